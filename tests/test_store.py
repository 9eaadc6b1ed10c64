"""The cache on disk is trusted like a database: exact, identified, crash-safe, verifiable."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zlib
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from fastanc.cache.identity import differences, identity
from fastanc.cache.moving import export_cache, import_cache
from fastanc.cache.rows import decode
from fastanc.cache.store import Field, Store
from fastanc.jobs.cache import JOBS
from support.processes import forked

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")

N = 100
FIELDS = (Field("features", 24), Field("descriptors", 5, "fp32"))


def facts(**changes):
    teacher = {"name": "resnet56", "weights": "abc"} | changes
    return identity({"name": "digits", "decoder": "cpu"}, {"rule": "PadCrop", "out_px": 32}, 7, teacher)


def make(path, fields=FIELDS, rows_per_shard=16, n=N, **changes) -> Store:
    return Store.open(path, facts(**changes), fields, n, rows_per_shard, create=True)


def values(view, index) -> dict[str, np.ndarray]:
    """Rows [B, width] that say which view and image they are of; features are exact in fp16."""
    index, view = np.broadcast_arrays(index, view)
    features = ((index[:, None] * 3 + np.arange(24) + view[:, None]) % 512 / 4).astype(np.float32)
    return {"features": features, "descriptors": features[:, :5] / 3}


def fill(store: Store, view: int, missing: np.ndarray | None = None) -> None:
    missing = store.missing(view) if missing is None else missing
    for k in range(0, len(missing), store.rows_per_shard):
        index = missing[k : k + store.rows_per_shard]
        store.put(view, index, values(view, index))


def assert_right(store: Store, views) -> None:
    index, view = (a.ravel() for a in np.meshgrid(np.arange(store.num_images), views))
    shuffled = np.random.default_rng(0).permutation(len(index))
    index, view = index[shuffled], view[shuffled]
    reader = store.reader()
    got = reader.get(index, view)
    reader.close()
    for name, wanted in values(view, index).items():
        np.testing.assert_array_equal(got[name], wanted)


def data_files(store: Store, view: int = 0) -> list[Path]:
    return sorted((store.path / f"view-{view:05d}").glob("*.bin"))


def flip_byte(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_reader_against_numpy_indexing(tmp_path):
    store = make(tmp_path)
    fill(store, 0)  # contiguous ranges
    for index in np.array_split(np.random.default_rng(1).permutation(N), 7):  # lists, in an epoch's order
        store.put(3, index, values(3, index))
    assert store.views() == [0, 3]
    assert store.complete(0)
    assert store.complete(3)
    assert_right(store, [0, 3])
    assert_right(Store.at(store.path), [3, 0])


def test_ranges_and_lists_mixed_with_duplicates_read_the_first_come(tmp_path):
    store = make(tmp_path)
    store.put(0, np.arange(10, 30), values(0, np.arange(10, 30)))
    store.put(0, np.arange(25, 40), values(9, np.arange(25, 40)))  # overlaps: 25..29 are of the first shard
    store.put(0, np.array([60, 5, 12]), values(8, np.array([60, 5, 12])))
    reader = Store.at(store.path).reader()
    index = np.array([60, 12, 27, 33, 5, 10])
    wanted = [
        values(8, [60]),
        values(0, [12]),
        values(0, [27]),
        values(9, [33]),
        values(8, [5]),
        values(0, [10]),
    ]
    got = reader.get(index, np.zeros(6, int))["features"]
    reader.close()
    np.testing.assert_array_equal(got, np.concatenate([w["features"] for w in wanted]))
    np.testing.assert_array_equal(store.missing(0), sorted({*range(N)} - {*range(10, 40), 60, 5}))


@pytest.mark.parametrize("answer", ["warm", "partly", "never", "unsupported"])
def test_rows_in_memory_are_read_at_once_and_the_others_by_threads(tmp_path, monkeypatch, answer):
    store = make(tmp_path)
    fill(store, 0)
    preadv, asked, refused = os.preadv, [], {"never": errno.EAGAIN, "unsupported": errno.EOPNOTSUPP}

    def answering(file, buffers, offset, flags=0):
        asked.append(flags)
        if flags and answer in refused:
            raise OSError(refused[answer], "not now")
        if flags and answer == "partly" and len(asked) == 5:
            return preadv(file, [buffers[0][:1]], offset)
        return preadv(file, buffers, offset)

    monkeypatch.setattr(os, "preadv", answering)
    index = np.random.default_rng(1).permutation(N)
    reader = Store.at(store.path).reader()
    rows = reader.get(index, np.zeros(N, int))
    reader.close()
    for name, wanted in values(0, index).items():
        np.testing.assert_array_equal(rows[name], wanted)
    assert (0 in asked) == (answer != "warm")


def test_an_error_of_the_disk_is_not_taken_for_a_cold_row(tmp_path, monkeypatch):
    store = make(tmp_path)
    fill(store, 0)
    reader = Store.at(store.path).reader()

    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(OSError, match="Input/output"):
        reader.get(np.arange(3), np.zeros(3, int))
    reader.close()


def test_a_row_of_2048_fp16_is_one_aligned_page_and_features_lie_apart(tmp_path):
    store = Store.open(tmp_path, facts(), (Field("features", 2048), Field("logits", 10)), N, create=True)
    rng = np.random.default_rng(0)
    rows = {"features": rng.random((9, 2048), np.float32), "logits": rng.random((9, 10), np.float32)}
    store.put(0, np.arange(9), rows)
    raw = np.fromfile(data_files(store)[0], np.uint8)
    assert len(raw) % 4096 == 0
    pages = raw[: 9 * 4096].view(np.float16).reshape(9, 2048)
    np.testing.assert_array_equal(pages, rows["features"].astype(np.float16))
    logits = raw[9 * 4096 : 9 * 4096 + 180].view(np.float16).reshape(9, 10)
    np.testing.assert_array_equal(logits, rows["logits"].astype(np.float16))


@pytest.mark.parametrize("kind", ["relu", "signed", "zero", "constant"])
def test_uint8_error_is_half_a_step_of_each_row(tmp_path, kind):
    rng = np.random.default_rng(2)
    x = {
        "relu": np.maximum(rng.normal(size=(40, 300)), 0),
        "signed": rng.normal(size=(40, 300)) * np.exp(rng.normal(size=(40, 1)) * 6),
        "zero": np.zeros((40, 300)),
        "constant": np.full((40, 300), -3.25),
    }[kind].astype(np.float32)
    store = Store.open(tmp_path, facts(), (Field("features", 300, "uint8"),), N, create=True)
    index = rng.permutation(N)[:40]
    store.put(0, index, {"features": x})
    reader = store.reader()
    got = reader.get(index[::-1], np.zeros(40, int))["features"][::-1].astype(np.float64)
    reader.close()
    exact = x.astype(np.float64)
    span = np.maximum(exact.max(1), 0) - np.minimum(exact.min(1), 0)
    error = np.abs(got - exact).max(1)
    assert (error <= span / 255 / 2 + 1e-6 * span).all()
    if kind != "signed":
        np.testing.assert_array_equal(got[exact == 0], 0)
    if kind == "signed":
        assert (error > span / 255 / 4).any()  # the bound is not idle


def test_a_shard_committed_while_a_row_is_looked_up_is_read(tmp_path):
    store = make(tmp_path)
    reader, table, find = store.reader(), store.table(0), store.table(0).find

    def committed_meanwhile(index):
        if not table.shards:
            fill(store, 0)
            table.refresh()
        return find(index)

    table.find = committed_meanwhile
    got = reader.get(np.array([3, 40]), np.array([0, 0]))
    np.testing.assert_array_equal(got["features"], values(0, np.array([3, 40]))["features"])
    reader.close()


def test_rows_stay_right_while_other_threads_commit(tmp_path):
    n = 600
    store = Store.open(tmp_path, facts(), (Field("features", 24, "uint8"),), n, 5, create=True)
    order = np.random.default_rng(4).permutation(n)
    wanted = np.repeat(np.arange(n) % 255, 24).reshape(n, 24).astype(np.float32)
    wanted[:, 0] = 255  # a scale of one: uint8 is exact
    reader, done = store.reader(), threading.Event()

    def write() -> None:
        for k in range(0, n, 5):
            store.put(0, order[k : k + 5], {"features": wanted[order[k : k + 5]]})
            store.table(0).refresh()
        done.set()

    def read(seed: int) -> int:
        rng, seen = np.random.default_rng(seed), 0
        while not (done.is_set() and seen):
            index = rng.integers(0, n, 64)
            rows, present = reader.read(index, np.zeros(64, int), partial=True)
            np.testing.assert_array_equal(
                decode(rows, store.fields)["features"][present], wanted[index][present]
            )
            seen += int(present.sum())
        return seen

    with ThreadPoolExecutor(4) as pool:
        writing, *reading = [pool.submit(write), *(pool.submit(read, seed) for seed in range(3))]
        writing.result(1800)
        assert all(job.result(1800) for job in reading)
    reader.close()


@pytest.mark.parametrize("dtype", ["fp16", "uint8"])
def test_a_shard_that_could_not_be_opened_once_shifts_no_row(tmp_path, dtype):
    store = Store.open(tmp_path, facts(), (Field("features", 24, dtype),), N, 10, create=True)
    rows = np.random.default_rng(5).random((N, 24), np.float32)
    for k in range(0, N, 10):  # shards of two kinds, so that their sections begin at different places
        index = np.arange(k, k + 10) if k % 20 else np.arange(k, k + 10)[::-1]
        store.put(0, index, {"features": rows[index]})
    reader, every = store.reader(), np.arange(N)
    assert len(store.table(0).shards) == 10
    hidden = data_files(store)[6]
    hidden.rename(tmp_path / "hidden")
    for _ in range(2):
        with pytest.raises(ValueError, match="cannot be opened"):
            reader.get(every, every * 0)
    (tmp_path / "hidden").rename(hidden)
    got = reader.get(every, every * 0)["features"]
    reader.close()
    np.testing.assert_allclose(got, rows, atol=1 / 510 + 1e-3)


def test_missing_row_names_view_image_and_command(tmp_path):
    store = make(tmp_path)
    store.put(2, np.arange(50), values(2, np.arange(50)))
    reader = store.reader()
    with pytest.raises(FileNotFoundError, match=r"view 2, image 71 .*run `fastanc cache build`"):
        reader.get(np.array([3, 71]), np.array([2, 2]))
    with pytest.raises(FileNotFoundError, match="view 4, image 3 "):
        reader.get(np.array([3]), np.array([4]))
    reader.close()


def test_another_identity_is_refused_with_both_values(tmp_path):
    make(tmp_path)
    make(tmp_path, name="resnet110", weights="zzz")
    with pytest.raises(FileNotFoundError) as error:
        Store.open(tmp_path, facts(weights="def"), FIELDS, N)
    assert "resnet56-digits-32px" in str(error.value)
    assert 'teacher.weights ("abc" there, "def" here)' in str(error.value)
    with pytest.raises(FileNotFoundError, match=r'fields \(.*"fp16".* there, .*"uint8".* here\)'):
        Store.open(tmp_path, facts(), (Field("features", 24, "uint8"), FIELDS[1]), N)
    with pytest.raises(FileNotFoundError, match="holds no teacher cache"):
        Store.open(tmp_path / "elsewhere", facts(), FIELDS, N)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("part", ["crop", "decoder", "seed", "set", "boxes"])
def test_every_part_of_the_identity_counts(part):
    rule, dataset, crc = {"out_px": 224, "seed": 0}, {"fingerprint": "a", "decoder": "cpu"}, 1
    before = identity(dataset, rule, crc, {"name": "t"})
    rule |= {"crop": {"out_px": 192}, "seed": {"seed": 1}}.get(part, {})
    dataset |= {"decoder": {"decoder": "mixed"}, "set": {"fingerprint": "b"}}.get(part, {})
    after = identity(dataset, rule, crc + (part == "boxes"), {"name": "t"})
    assert len(differences(before, after)) == 1


def test_not_finite_values_are_refused_by_name(tmp_path):
    store = make(tmp_path)
    for bad in (np.nan, np.inf, 70000.0):
        rows = values(1, np.arange(20))
        rows["features"][[4, 7], 3] = bad
        with pytest.raises(
            ValueError, match=r"view 1: the features of 2 images \(4, 7\) are not finite as float16"
        ):
            store.put(1, np.arange(20), rows)
    assert len(store.missing(1)) == N
    single = Store.open(tmp_path, facts(), (Field("features", 24, "uint8"),), N, create=True)
    rows = {"features": values(1, np.arange(20))["features"]}
    rows["features"][5, 0] = np.nan
    with pytest.raises(ValueError, match=r"of 1 images \(5\)"):
        single.put(1, np.arange(20), rows)


def test_verify_finds_every_kind_of_damage_and_the_rest_stays_right(tmp_path):
    store = make(tmp_path)
    fill(store, 0)
    assert store.verify() == []
    files = data_files(store)
    flip_byte(files[0], 1000)
    files[1].write_bytes(files[1].read_bytes()[:-100])
    files[2].with_suffix(".json").unlink()
    other = json.loads(files[6].with_suffix(".json").read_text())  # of the last, shorter shard
    files[3].with_suffix(".json").write_text(json.dumps(other))
    flip_byte(files[4].with_suffix(".json"), 60)
    files[5].unlink()
    damage = {d.shard: d.reason for d in Store.at(store.path).verify()}
    assert sorted(damage) == [f.name for f in files[:6]]
    assert "CRC of its features" in damage[files[0].name]
    assert "bytes where the commit record says" in damage[files[1].name]
    assert "no commit record" in damage[files[2].name]
    assert "belongs to another shard" in damage[files[3].name]
    assert "record" in damage[files[4].name]
    assert "gone" in damage[files[5].name]

    again = Store.at(store.path, 16)
    with pytest.raises(FileNotFoundError, match=r"view 0, image 20 .*not trusted: its file has"):
        again.reader().get(np.array([20]), np.array([0]))
    np.testing.assert_array_equal(
        again.missing(0), np.arange(16, 96)
    )  # the flipped byte shows in verify only
    again.verify(drop=True)
    again.prune(stray_age_s=0)
    np.testing.assert_array_equal(again.missing(0), np.arange(96))
    fill(again, 0)
    assert again.verify() == []
    assert_right(again, [0])


def test_what_cannot_be_told_is_never_dropped(tmp_path, monkeypatch):
    store = make(tmp_path)
    fill(store, 0)
    files = data_files(store)
    newer = json.loads(files[0].with_suffix(".json").read_text()) | {"format": 99}
    files[0].with_suffix(".json").write_text(json.dumps(newer))
    files[1].unlink()
    files[1].symlink_to(files[1].name)  # ELOOP, as EIO and EACCES an error of the system
    files[2].with_suffix(".json").unlink()
    files[2].with_suffix(".json").symlink_to(files[2].with_suffix(".json").name)  # ELOOP, of the record
    flip_byte(files[3], 1000)
    before = {path for path in files[0].parent.iterdir()}
    found = {d.shard: d.told for d in Store.at(store.path).verify(drop=True)}
    assert found == {files[0].name: False, files[1].name: False, files[2].name: False, files[3].name: True}
    assert before - set(files[0].parent.iterdir()) == {files[3], files[3].with_suffix(".json")}


def _tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            if isinstance(data, str):
                info.type, info.linkname = tarfile.SYMTYPE, data
                tar.addfile(info)
            else:
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def test_a_broken_archive_leaves_nothing(tmp_path):
    store = make(tmp_path / "a")
    fill(store, 0)
    identity = (store.path / "identity.json").read_bytes()
    whole = export_cache(store, tmp_path / "whole.tar").read_bytes()
    broken = tmp_path / "broken.tar"
    cases = [
        [("identity.json", identity), ("../evil", b"x")],
        [("identity.json", identity), ("view-00000/shard-1-a.bin", "/etc/passwd")],
        [("identity.json", b"{}")],
        [("identity.json", b"[1]")],
        [("identity.json", identity[:50])],
        [("readme.txt", b"x")],
        [],
    ]
    for members in cases:
        _tar(broken, members)
        with pytest.raises(ValueError, match=r"broken\.tar"):
            import_cache(broken, tmp_path / "there")
        assert not (tmp_path / "there").exists()
    for length in (0, 100, 700, 5000, len(whole) // 2, len(whole) - 30000):
        broken.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"broken\.tar"):
            import_cache(broken, tmp_path / "there")
        assert not (tmp_path / "there").exists()


def test_one_bad_cache_does_not_hide_the_others(tmp_path, capsys):
    store = make(tmp_path)
    fill(store, 0)
    (tmp_path / "a-bad").mkdir()
    (tmp_path / "a-bad" / "identity.json").write_text("{")
    assert JOBS["info"](Namespace(path=tmp_path)) == 2
    said = capsys.readouterr()
    assert str(store.path) in said.out
    assert "a-bad/identity.json is not readable" in said.err


@pytest.mark.parametrize("at", range(0, 8192, 731))
def test_no_flipped_byte_of_a_list_shard_goes_unseen(tmp_path, at):
    store = make(tmp_path)
    store.put(0, np.array([5, 3, 77]), values(0, np.array([5, 3, 77])))
    flip_byte(data_files(store)[0], at)
    assert len(store.verify()) == 1


def test_a_record_of_another_cache_and_of_another_size(tmp_path):
    one, two = make(tmp_path), make(tmp_path, weights="def")
    fill(one, 0)
    target = two.path / "view-00000"
    target.mkdir()
    for path in (one.path / "view-00000").iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    assert two.present(0) == 0
    assert {d.reason for d in two.verify()} == {"its commit record belongs to another shard"}
    record = data_files(one)[0].with_suffix(".json")
    forged = json.loads(record.read_text()) | {"rows": 4000}
    del forged["crc32"]
    record.write_text(json.dumps(forged | {"crc32": zlib.crc32(json.dumps(forged, sort_keys=True).encode())}))
    assert [d.reason for d in one.verify()] == [
        "its commit record is of another size: features is not 192000 bytes"
    ]


def test_export_and_import_move_and_check(tmp_path):
    store = make(tmp_path / "a")
    fill(store, 0)
    fill(store, 5, np.array([4, 2, 9]))
    tar = export_cache(store, tmp_path / "out" / "cache.tar")
    assert [p.name for p in tar.parent.iterdir()] == ["cache.tar"]
    there = import_cache(tar, tmp_path / "b")
    assert there.path.name == store.path.name
    assert there.verify() == []
    assert_right(there, [0])
    assert there.present(5) == 3
    export_cache(there, tmp_path / "c")
    folder = import_cache(tmp_path / "c" / store.path.name, tmp_path / "b")  # everything there already
    assert folder.info()["bytes"] == store.info()["bytes"]

    flip_byte(data_files(there)[2], 77)
    with pytest.raises(ValueError, match="damaged, the CRC of its features"):
        export_cache(there, tmp_path / "bad.tar")
    assert not (tmp_path / "bad.tar").exists()
    with pytest.raises(ValueError, match=r"damaged, the CRC"):
        import_cache(there.path, tmp_path / "d")
    assert Store.at(tmp_path / "d" / store.path.name).verify() == []
    tar.write_bytes(tar.read_bytes()[:9000])
    with pytest.raises(ValueError, match="not a whole tar"):
        import_cache(tar, tmp_path / "e")


def test_prune_drops_views_and_dead_files_but_not_a_living_writers(tmp_path):
    store = make(tmp_path)
    fill(store, 0)
    fill(store, 1)
    fresh, dead = (store.path / "view-00000" / f"shard-{k}-ff.bin.aa.tmp" for k in (1, 2))
    for path in (fresh, dead):
        path.write_bytes(b"half")
    os.utime(dead, (1, 1))
    removed = store.prune([1])
    assert dead in removed
    assert fresh.exists()
    assert not (store.path / "view-00001").exists()
    assert store.views() == [0]
    assert_right(store, [0])


def test_killed_writers_leave_nothing_that_is_wrong(tmp_path):
    rng = random.Random(3)
    n = 24_000  # two views are 3000 shards, and a round writes some: none ends because everything is written
    make(tmp_path, n=n)

    def write(rank: int) -> None:
        store = make(tmp_path, n=n)
        for view in (0, 1):
            fill(store, view, store.todo(view, rank, 4))

    def records() -> int:
        return sum(1 for _ in tmp_path.rglob("*.json"))

    def living(writer: int) -> bool:
        return Path(f"/proc/{writer}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"

    present = 0
    for _ in range(10):
        if present > n:
            break
        before = records()
        writers = [forked(partial(write, rank)) for rank in range(4)]
        for writer in writers[:3]:
            time.sleep(rng.uniform(0, 0.02))
            os.kill(writer, signal.SIGKILL)
        while records() == before and living(writers[3]):  # however late it comes to commit something
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))
        os.kill(writers[3], signal.SIGKILL)
        for writer in writers:
            os.waitpid(writer, 0)
        store = make(tmp_path, n=n)
        committed = sum(store.present(view) for view in (0, 1))
        assert committed >= present
        present = committed
        assert not [d for d in store.verify() if "no commit record" not in d.reason]
    assert 0 < present < 2 * n
    store = make(tmp_path, n=n, rows_per_shard=1000)  # fewer files for the rest
    for view in (0, 1):
        fill(store, view)
    store.prune(stray_age_s=0)
    assert store.verify() == []
    assert sum(view["stray_files"] for view in store.info()["views"].values()) == 0
    assert {p.suffix for p in store.path.rglob("*") if p.is_file()} == {".bin", ".json"}
    assert_right(store, [0, 1])


def in_namespace(script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script that may mount."""
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-ec", script], capture_output=True, text=True, check=False
    )
    if done.returncode and any(word in done.stderr for word in ("unshare", "mount")):
        pytest.skip(f"this system lets no test mount: {done.stderr.strip()}")
    return done


PUT_ALL = """
import sys; sys.path.insert(0, {here!r})
from test_store import *
store = make({path!r}, n=20000, rows_per_shard=1000)
try:
    fill(store, 0)
except ValueError as error:
    print(error)
there = Store.at(store.path)
assert there.verify() == [], there.verify()
assert not list(there.path.glob("*/*.tmp"))
print(there.present(0))
"""


def test_full_disk_is_one_sentence_and_what_was_committed_stays(tmp_path):
    mount, script = tmp_path / "small", tmp_path / "script.py"
    mount.mkdir()
    script.write_text(PUT_ALL.format(here=str(Path(__file__).parent), path=str(mount)))
    done = in_namespace(f"mount -t tmpfs -o size=400k none {mount}; exec {sys.executable} {script}")
    assert done.returncode == 0, done.stderr
    sentence, present = done.stdout.splitlines()
    assert "no space is left for" in sentence
    assert "every committed shard is safe" in sentence
    assert 0 < int(present) < 20000


def test_a_file_size_limit_is_the_same_sentence(tmp_path):
    def write() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40000, 40000))
        store = make(tmp_path, n=5000, rows_per_shard=1000)
        store.put(0, np.arange(100), values(0, np.arange(100)))
        with pytest.raises(ValueError, match="no space is left for .* every committed shard is safe"):
            fill(store, 0)

    assert os.waitpid(forked(write), 0)[1] == 0
    store = make(tmp_path, n=5000)
    assert store.present(0) == 100
    assert store.verify() == []
    assert not list(store.path.rglob("*.tmp"))


READ_ONLY = """
import sys; sys.path.insert(0, {here!r})
from test_store import *
from fastanc.cache.writer import Writer
store = Store.at({path!r})
assert_right(store, [0])
for write in (lambda: fill(store, 1), lambda: Writer(store), lambda: make(store.path.parent, weights="new")):
    try:
        write()
    except ValueError as error:
        print(error)
"""


def test_read_only_folder_can_be_read_and_says_so_when_filled(tmp_path):
    store = make(tmp_path)
    fill(store, 0)
    script = tmp_path / "script.py"
    script.write_text(READ_ONLY.format(here=str(Path(__file__).parent), path=str(store.path)))
    done = in_namespace(
        f"mount --bind {tmp_path} {tmp_path}; mount -o remount,ro,bind {tmp_path};"
        f" exec {sys.executable} {script}"
    )
    assert done.returncode == 0, done.stderr
    sentences = done.stdout.splitlines()
    assert len(sentences) == 3
    assert all("cannot be written" in s and "--teacher.cache read" in s for s in sentences)


def test_damaged_identity_is_named(tmp_path):
    store = make(tmp_path)
    (store.path / "identity.json").write_text("{")
    with pytest.raises(ValueError, match=r"identity.json is not readable"):
        make(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not a cache"):
        Store.at(tmp_path)


def test_a_row_s_work_does_not_grow_with_the_batches_of_its_shard(tmp_path, monkeypatch):
    """How often the writer looks at a batch's rows is the same for few batches and for many."""
    import torch

    from fastanc.cache import writer as module

    class Counted(module._Piece):
        looks = 0

        def __init__(self, view, index, rows):
            super().__init__(view, index, rows)

        @property
        def index(self):
            type(self).looks += 1
            return self._index

        @index.setter
        def index(self, value):
            self._index = value

    monkeypatch.setattr(module, "_Piece", Counted)
    looks = {}
    for count in (10, 200):
        store = Store.open(tmp_path / str(count), {}, [Field("features", 4)], 1000, create=True)
        Counted.looks = 0
        writer = module.Writer(store)
        for k in range(count):
            writer.add(
                np.zeros(1, int), np.array([k]), {"features": torch.full((1, 4), k, dtype=torch.float16)}
            )
        writer.close()
        assert len(store.missing(0)) == 1000 - count
        looks[count] = Counted.looks / count
    assert looks[200] == looks[10]
