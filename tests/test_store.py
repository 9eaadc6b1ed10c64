"""The cache on disk is trusted like a database: exact, identified, crash-safe, and every row certifies itself."""

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
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from fastanc.cache.checksum import _keys, checksums, seed_of
from fastanc.cache.column import Column
from fastanc.cache.identity import differences, identity
from fastanc.cache.moving import export_cache, import_cache
from fastanc.cache.rows import PAGE, decode, encode
from fastanc.cache.store import Field, Store
from fastanc.cache.writer import Writer
from fastanc.jobs.cache import JOBS
from support.processes import forked

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")

N = 100
FIELDS = (Field("features", 24), Field("descriptors", 5, "fp32"))


def facts(**changes):
    teacher = {"name": "resnet56", "weights": "abc"} | changes
    return identity(
        {"name": "digits", "decoder": "cpu"}, {"rule": "PadCrop", "out_px": 32}, {"boxes_crc": 7}, teacher
    )


def make(path, fields=FIELDS, n=N, **changes) -> Store:
    return Store.open(path, facts(**changes), fields, n, create=True)


def values(view, index) -> dict[str, np.ndarray]:
    """Rows [B, width] that say which view and image they are of; features are exact in fp16."""
    index, view = np.broadcast_arrays(index, view)
    features = ((index[:, None] * 3 + np.arange(24) + view[:, None]) % 512 / 4).astype(np.float32)
    return {"features": features, "descriptors": features[:, :5] / 3}


def fill(store: Store, view: int, missing: np.ndarray | None = None, at_once: int = 16) -> None:
    missing = store.missing(view) if missing is None else missing
    for k in range(0, len(missing), at_once):
        index = missing[k : k + at_once]
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


def file_of(store: Store, kind: str = "rows", view: int = 0, field: str = "features") -> Path:
    return store.path / f"view-{view:05d}" / f"{field}.{kind}"


def flip(path: Path, bit: int) -> None:
    with open(path, "r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def trusted(store: Store, view: int = 0) -> np.ndarray:
    """Return which images a new reader takes for present, [N] bool; what it takes must be right."""
    reader = Store.at(store.path).reader()
    index = np.arange(store.num_images)
    rows, present = reader.read(index, np.full(len(index), view), partial=True)
    reader.close()
    got = decode(rows, store.fields)
    for name, wanted in values(view, index).items():
        np.testing.assert_array_equal(got[name].numpy()[present], wanted[present])
    return present


def test_reader_against_numpy_indexing(tmp_path):
    store = make(tmp_path)
    fill(store, 0)  # contiguous ranges
    for index in np.array_split(np.random.default_rng(1).permutation(N), 7):  # an epoch's order
        store.put(3, index, values(3, index))
    assert store.views() == [0, 3]
    assert store.complete(0)
    assert store.complete(3)
    assert_right(store, [0, 3])
    assert_right(Store.at(store.path), [3, 0])


def test_the_files_are_plain_arrays_that_numpy_maps(tmp_path):
    """Row i of a field at i times its bytes, its checksum at 8 i: computed here by Python's integers."""
    store = make(tmp_path, (Field("features", 24), Field("descriptors", 5, "uint8")))
    fill(store, 4)
    wanted = values(4, np.arange(N))
    np.testing.assert_array_equal(
        np.memmap(file_of(store, view=4), "<f2", "r").reshape(N, 24), wanted["features"].astype("<f2")
    )
    layout = np.dtype([("code", "u1", 5), ("scale", "<f4"), ("low", "<f4")])
    mapped = np.memmap(file_of(store, view=4, field="descriptors"), layout, "r")
    assert len(mapped) == N
    decoded = mapped["code"] * mapped["scale"][:, None] + mapped["low"][:, None]
    np.testing.assert_allclose(decoded, wanted["descriptors"], atol=128 / 255 / 3 / 2 + 1e-4)

    keys = [int(key) for key in _keys(7)]
    row = file_of(store, view=4).read_bytes()[48 * 17 : 48 * 18]
    words = [int.from_bytes(row[k : k + 8], "little") for k in range(0, 48, 8)]
    total = sum((word ^ word >> 32) * key for word, key in zip(words, keys[1:], strict=True))
    total += 18 * keys[0] + seed_of(store.hash, 4, "features")
    assert np.fromfile(file_of(store, "sums", view=4), "<u8")[17] == total % 2**64


def test_the_checksum_finds_every_flip_of_one_and_two_bits_and_every_other_place():
    rng = np.random.default_rng(0)
    row = rng.integers(0, 256, (1, 20), np.uint8)  # not whole words
    at, seed = np.array([5]), 77
    wanted = checksums(row, at, seed)[0]
    flips = [np.packbits(np.eye(160, dtype=np.uint8)[k]) for k in range(160)]
    one = np.array([row[0] ^ flip for flip in flips])
    two = np.array([row[0] ^ a ^ b for k, a in enumerate(flips) for b in flips[:k]])
    for changed in (one, two):
        assert wanted not in checksums(changed, np.repeat(at, len(changed)), seed)
    assert wanted not in checksums(np.repeat(row, 5, 0), np.arange(5), seed)
    assert wanted != checksums(row, at, seed + 1)[0]
    assert (_keys(4096) % 2 == 1).all()
    assert len(set(_keys(4096).tolist())) == 4096
    zeros = np.zeros((1000, 48), np.uint8)
    assert (checksums(zeros, np.arange(1000), 0) != 0).all()


def test_zero_is_never_a_checksum(monkeypatch):
    """A row whose sum is 0 by chance would be missing for ever."""
    row, at = np.zeros((1, 8), np.uint8), np.array([3])
    seed = (-int(checksums(row, at, 0)[0])) % 2**64
    assert checksums(row, at, seed)[0] == 1


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


def test_rows_may_begin_on_pages(tmp_path):
    store = make(tmp_path, (Field("features", 24, align=PAGE),))
    index = np.random.default_rng(2).permutation(N)[:60]
    store.put(0, index, {"features": values(0, index)["features"]})
    pages = np.fromfile(file_of(store), np.uint8).reshape(N, PAGE)
    np.testing.assert_array_equal(
        pages[index, :48].copy().view("<f2"), values(0, index)["features"].astype("<f2")
    )
    assert not pages[:, 48:].any()
    reader = Store.at(store.path).reader()
    got = reader.get(np.sort(index), np.zeros(60, int))["features"]
    reader.close()
    np.testing.assert_array_equal(got, values(0, np.sort(index))["features"])
    assert [found.right for found in store.verify()] == [60]
    with pytest.raises(FileNotFoundError, match="which differs in fields"):
        Store.open(tmp_path, facts(), (Field("features", 24),), N)


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


def test_a_row_that_another_process_writes_is_found_when_it_is_asked_for(tmp_path):
    store = make(tmp_path)
    store.put(0, np.arange(10), values(0, np.arange(10)))
    reader = store.reader()
    reader.get(np.arange(10), np.zeros(10, int))
    assert os.waitpid(forked(lambda: fill(make(tmp_path), 0)), 0)[1] == 0
    got = reader.get(np.array([3, 40]), np.array([0, 0]))
    np.testing.assert_array_equal(got["features"], values(0, np.array([3, 40]))["features"])
    assert store.look_again(0, np.array([70, 71])).all()
    reader.close()


def test_rows_stay_right_while_other_threads_commit(tmp_path):
    n = 600
    store = Store.open(tmp_path, facts(), (Field("features", 24, "uint8"),), n, create=True)
    order = np.random.default_rng(4).permutation(n)
    wanted = np.repeat(np.arange(n) % 255, 24).reshape(n, 24).astype(np.float32)
    wanted[:, 0] = 255  # a scale of one: uint8 is exact
    reader, done = store.reader(), threading.Event()

    def write() -> None:
        for k in range(0, n, 5):
            store.put(0, order[k : k + 5], {"features": wanted[order[k : k + 5]]})
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
    before = identity(dataset, rule, {"boxes_crc": crc}, {"name": "t"})
    rule |= {"crop": {"out_px": 192}, "seed": {"seed": 1}}.get(part, {})
    dataset |= {"decoder": {"decoder": "mixed"}, "set": {"fingerprint": "b"}}.get(part, {})
    after = identity(dataset, rule, {"boxes_crc": crc + (part == "boxes")}, {"name": "t"})
    assert len(differences(before, after)) == 1


def test_not_finite_values_are_refused_by_name(tmp_path):
    store = make(tmp_path)
    for bad in (np.nan, np.inf, 70000.0):
        rows = values(1, np.arange(20))
        rows["features"][[4, 7], 3] = bad
        with pytest.raises(
            ValueError, match=r"view 1: the features of 2 images \(4, 7\) are not finite as fp16"
        ):
            store.put(1, np.arange(20), rows)
    assert len(store.missing(1)) == N
    single = Store.open(tmp_path, facts(), (Field("features", 24, "uint8"),), N, create=True)
    rows = {"features": values(1, np.arange(20))["features"]}
    rows["features"][5, 0] = np.nan
    with pytest.raises(ValueError, match=r"of 1 images \(5\)"):
        single.put(1, np.arange(20), rows)


@pytest.mark.parametrize("kind", ["rows", "sums"])
def test_no_flipped_bit_is_trusted_and_the_row_comes_back(tmp_path, kind):
    """Every bit of a row, and of its checksum: never handed out, named, found by verify, computed again."""
    store = make(tmp_path)
    fill(store, 0)
    row_bits = {"rows": 48 * 8, "sums": 64}[kind]
    image = 37
    for bit in range(row_bits):
        flip(file_of(store, kind), image * row_bits + bit)
        reader = Store.at(store.path).reader()
        _, present = reader.read(np.array([36, 37, 38]), np.zeros(3, int), partial=True)
        assert present.tolist() == [True, False, True], bit
        reader.close()
        flip(file_of(store, kind), image * row_bits + bit)
    flip(file_of(store, kind), image * row_bits + 11)
    reader = Store.at(store.path).reader()
    with pytest.raises(ValueError, match=r"view 0, image 37 .* is damaged .*`fastanc cache verify --drop`"):
        reader.get(np.array([36, 37]), np.array([0, 0]))
    reader.close()
    (found,) = store.verify()
    assert (found.right, found.missing) == (N - 1, 0)
    assert {name: images.tolist() for name, images in found.wrong.items()} == {"features": [image]}
    store.verify(drop=True)
    assert Store.at(store.path).missing(0).tolist() == [image]
    fill(store, 0)
    assert [(found.right, found.wrong) for found in store.verify()] == [(N, {})]
    assert trusted(store).all()


def test_files_that_are_cut_punched_or_copied_by_half_lack_rows_and_never_lie(tmp_path):
    store = make(tmp_path)
    fill(store, 0)
    rows, sums = file_of(store), file_of(store, "sums")
    whole = {path: path.read_bytes() for path in (rows, sums)}

    def damaged(path: Path, data: bytes) -> np.ndarray:
        path.write_bytes(data)
        present = trusted(store)
        for known, content in whole.items():
            known.write_bytes(content)
        return present

    cut = damaged(rows, whole[rows][: 48 * 60 + 7])
    np.testing.assert_array_equal(cut, np.arange(N) < 60)
    np.testing.assert_array_equal(damaged(sums, whole[sums][: 8 * 30 + 3]), np.arange(N) < 30)
    punched = bytearray(whole[rows])
    punched[48 * 10 : 48 * 20] = bytes(480)
    np.testing.assert_array_equal(damaged(rows, bytes(punched)), ~np.isin(np.arange(N), range(10, 20)))
    assert not damaged(rows, b"").any()
    assert not damaged(sums, b"").any()
    half = whole[rows][: 48 * 50] + bytes(48 * 50)
    np.testing.assert_array_equal(damaged(rows, half), np.arange(N) < 50)
    rows.unlink()
    assert not trusted(store).any()
    rows.write_bytes(whole[rows][:1000])
    fill(make(tmp_path), 0, np.arange(N))  # a writer makes the files whole again
    assert trusted(store).all()
    assert rows.stat().st_size == 48 * N


def test_files_of_another_view_field_or_cache_are_not_this_one_s(tmp_path):
    one, two = make(tmp_path), make(tmp_path, weights="def")
    fill(one, 0)
    fill(one, 1)
    for kind in ("rows", "sums"):
        for name in ("features", "descriptors"):
            target = file_of(two, kind, 0, name)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(file_of(one, kind, 0, name).read_bytes())
            file_of(one, kind, 1, name).write_bytes(file_of(one, kind, 0, name).read_bytes())
    assert not trusted(two).any()
    assert trusted(one, 0).all()
    assert not trusted(one, 1).any()
    assert [len(found.wrong["features"]) for found in two.verify()] == [N]


def test_what_cannot_be_read_is_not_dropped(tmp_path, monkeypatch):
    store = make(tmp_path)
    fill(store, 0)
    flip(file_of(store), 5)
    before = file_of(store, "sums").read_bytes()
    preadv = os.preadv

    def broken(file, buffers, offset, *flags):
        if offset >= 48 * 50:
            raise OSError(errno.EIO, "Input/output error")
        return preadv(file, buffers, offset, *flags)

    monkeypatch.setattr("fastanc.cache.verified._AT_ONCE_BYTES", 480)
    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(OSError, match="Input/output"):
        store.verify(drop=True)
    monkeypatch.undo()
    assert file_of(store, "sums").read_bytes() == before
    assert not list(tmp_path.rglob("*.tmp"))
    opened = os.open

    def denied(path, *rest, **more):
        if str(path).endswith(".rows"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *rest, **more)

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(PermissionError, match=r"features.rows"):
        Store.at(store.path).verify(drop=True)
    monkeypatch.undo()
    assert file_of(store, "sums").read_bytes() == before


def test_a_row_that_is_written_again_while_it_is_verified_is_not_dropped(tmp_path):
    store = make(tmp_path)
    fill(store, 0)
    column = Column(store.path / "view-00000", FIELDS[0], N, seed_of(store.hash, 0, "features"))
    seen = column.sums[:3].copy()
    other = {
        "features": values(0, np.arange(2))["features"] + 1,
        "descriptors": values(0, np.arange(2))["descriptors"],
    }
    store.put(0, np.arange(2), other)
    column.drop(np.arange(3), seen)
    assert Store.at(store.path).missing(0).tolist() == [2]


def test_export_and_import_move_and_check(tmp_path):
    store = make(tmp_path / "a")
    fill(store, 0)
    fill(store, 5, np.array([4, 2, 9]))
    tar = export_cache(store, tmp_path / "out" / "cache.tar")
    assert [p.name for p in tar.parent.iterdir()] == ["cache.tar"]
    with tarfile.open(tar) as members:
        assert members.getnames()[:3] == [
            "identity.json",
            "view-00000/descriptors.sums",
            "view-00000/descriptors.rows",
        ]
    done = import_cache(tar, tmp_path / "b")
    there = done.store
    assert (done.rows, done.wrong) == (2 * (N + 3), 0)
    assert there.path.name == store.path.name
    assert not any(found.wrong for found in there.verify())
    assert_right(there, [0])
    assert there.present(5) == 3
    assert import_cache(there.path, tmp_path / "b")[1:] == (0, 0)  # everything is there already
    assert import_cache(tar, tmp_path / "b")[1:] == (0, 0)

    flip(file_of(there), 48 * 8 * 60)
    again = import_cache(there.path, tmp_path / "d")
    assert (again.rows, again.wrong) == (2 * (N + 3) - 1, 1)
    assert again.store.missing(0).tolist() == [60]
    assert import_cache(tar, tmp_path / "d")[1:] == (1, 0)  # the right row comes from a right copy
    assert_right(again.store, [0])


def packed(path: Path, members: list[tuple[str, bytes | str]]) -> Path:
    """Write a tar of files and, where the content is a text, links to it."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            if isinstance(data, str):
                info.type, info.linkname = tarfile.SYMTYPE, data
                tar.addfile(info)
            else:
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def test_a_broken_archive_leaves_nothing(tmp_path):
    store = make(tmp_path / "a")
    fill(store, 0)
    told = (store.path / "identity.json").read_bytes()
    whole = export_cache(store, tmp_path / "whole.tar").read_bytes()
    broken, there = tmp_path / "broken.tar", tmp_path / "there"
    deep = b"[" * 100_000
    identities = [b"{", b"[]", b"[1]", b"{}", deep, b'{"format": 1}', b'{"format": 2}', told[:50]]
    elsewhere = told.replace(b"resnet56", b"../../resnet56")
    for members in (
        [("identity.json", told), ("../evil", b"x")],
        [("identity.json", told), ("view-00000/features.sums", "/etc/passwd")],
        [("identity.json", told), ("view-00000/features.bin", b"x")],
        [("readme.txt", b"x")],
        [("view-00000/features.sums", b"x")],
        [],
        *([("identity.json", identity_text)] for identity_text in identities),
    ):
        packed(broken, members)
        with pytest.raises(ValueError, match=r"broken\.tar"):
            import_cache(broken, there)
        assert not there.exists(), members
    import_cache(packed(broken, [("identity.json", elsewhere)]), there)
    assert [path.parent for path in tmp_path.rglob("identity.json") if "56" in str(path)][0]
    assert {path.parent.parent for path in tmp_path.rglob("identity.json")} == {tmp_path / "a", there}
    for length in (0, 100, 511, 700, 2000, len(whole) // 4, len(whole) // 3):
        broken.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"broken\.tar"):
            import_cache(broken, tmp_path / "cut")
        assert not (tmp_path / "cut").exists()


def test_rows_of_a_tar_that_do_not_fit_are_left_out(tmp_path):
    store = make(tmp_path / "a", (Field("features", 24),))
    index = np.arange(N)
    store.put(0, index, {"features": values(0, index)["features"]})
    sums, rows = file_of(store, "sums").read_bytes(), file_of(store).read_bytes()
    told = (store.path / "identity.json").read_bytes()
    half = rows[:2400] + bytes(2400)
    members = [
        ("identity.json", told),
        ("view-00000/features.sums", sums),
        ("view-00000/features.rows", half),
    ]
    done = import_cache(packed(tmp_path / "half.tar", members), tmp_path / "b")
    assert (done.rows, done.wrong) == (50, 50)
    assert done.store.missing(0).tolist() == list(range(50, 100))
    members[2] = ("view-00000/features.rows", rows[:1000])
    done = import_cache(packed(tmp_path / "short.tar", members), tmp_path / "c")
    assert (done.rows, done.wrong) == (20, 80)
    with pytest.raises(ValueError, match=r"features.rows comes without its checksums"):
        import_cache(packed(tmp_path / "bare.tar", [members[0], members[2]]), tmp_path / "d")


def test_verify_counts_what_is_missing_and_names_what_it_cannot_read(tmp_path, capsys):
    store = make(tmp_path)
    fill(store, 0)
    words = {"path": store.path, "teacher": 0, "drop": False}
    assert JOBS["verify"](Namespace(**words)) == 0
    assert f"the {N} rows that are there fit their checksums\n" in capsys.readouterr().out
    file_of(store, "sums").write_bytes(b"")
    assert JOBS["verify"](Namespace(**words)) == 0
    assert (
        f"the 0 rows that are there fit their checksums, {N} are missing: `fastanc" in capsys.readouterr().out
    )
    fill(store, 1)
    rows = file_of(store, "rows", 1)
    rows.unlink()
    rows.mkdir()
    with pytest.raises(IsADirectoryError, match=r"features\.rows"):
        JOBS["verify"](Namespace(**words))
    reader = Store.at(store.path).reader()
    with pytest.raises(IsADirectoryError, match=r"features\.rows"):
        reader.get(np.arange(3), np.ones(3, int))
    reader.close()


def test_one_bad_cache_does_not_hide_the_others(tmp_path, capsys):
    store = make(tmp_path)
    fill(store, 0)
    (tmp_path / "a-bad").mkdir()
    (tmp_path / "a-bad" / "identity.json").write_text("{")
    assert JOBS["info"](Namespace(path=tmp_path)) == 2
    said = capsys.readouterr()
    assert str(store.path) in said.out
    assert "a-bad/identity.json is not readable" in said.err


def test_a_cache_of_the_old_format_is_refused_by_name(tmp_path):
    store = make(tmp_path)
    old = {key: value for key, value in store.identity.items() if key != "format"}
    from fastanc.cache.identity import folder_name

    folder = tmp_path / folder_name(old)
    folder.mkdir()
    (folder / "identity.json").write_text(json.dumps(old))
    with pytest.raises(ValueError, match=r"is a cache of format 1, this version reads 2: build it again"):
        Store.at(folder)
    (store.path / "identity.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"which differs in format \(1 there, 2 here\)"):
        Store.open(tmp_path, facts(), FIELDS, N)


def test_prune_drops_views_and_dead_files_but_not_a_living_writers(tmp_path):
    store = make(tmp_path)
    fill(store, 0)
    fill(store, 1)
    fresh, dead = (store.path / f".identity.json.{k}{k}.tmp" for k in "ab")
    for path in (fresh, dead):
        path.write_bytes(b"half")
    os.utime(dead, (1, 1))
    removed = store.prune([1])
    assert dead in removed
    assert fresh.exists()
    assert not (store.path / "view-00001").exists()
    assert store.views() == [0]
    assert_right(store, [0])
    assert store.missing(1).tolist() == list(range(N))
    fill(store, 1)
    assert_right(store, [1])


def test_killed_writers_leave_rows_that_are_right_or_missing(tmp_path):
    """Three processes fill the same rows, are killed, and go on; the rows of the seconds before are kept."""
    rng, n = random.Random(3), 24_000
    make(tmp_path, n=n)

    def write(seed: int) -> None:
        store, order = make(tmp_path, n=n), np.random.default_rng(seed).permutation(n)
        for k in range(0, n, 50):
            for view in (0, 1):
                index = order[k : k + 50]
                store.put(view, index, values(view, index))

    present = 0
    for round_ in range(6):
        writers = [forked(partial(write, round_ * 10 + k)) for k in range(3)]
        deadline = time.monotonic() + 600
        while make(tmp_path, n=n).present(0) <= present and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))
        for writer in writers:
            os.kill(writer, signal.SIGKILL)
        for writer in writers:
            os.waitpid(writer, 0)
        store = make(tmp_path, n=n)
        right = [trusted(store, view).sum() for view in (0, 1)]
        assert right[0] > 0
        present = store.present(0)
        torn = [len(images) for found in store.verify() for images in found.wrong.values()]
        assert sum(torn, 0) <= 3 * 50 * 2  # no more than what was under way
    store = make(tmp_path, n=n)
    store.verify(drop=True)
    for view in (0, 1):
        fill(store, view, at_once=1000)
    assert not any(found.wrong for found in store.verify())
    assert_right(store, [0, 1])
    names = {"features.rows", "features.sums", "descriptors.rows", "descriptors.sums", "identity.json"}
    assert {p.name for p in store.path.rglob("*") if p.is_file()} == names


def test_nodes_that_write_whole_stale_pages_lose_rows_and_never_make_wrong_ones(tmp_path):
    """As clients of NFS may: each holds pages of its own, and writes them back with old bytes of its neighbours."""
    make(tmp_path, n=2000)

    def node(seed: int) -> None:
        pages: dict[tuple[int, int], bytearray] = {}
        rng, pread, pwrite = np.random.default_rng(seed), os.pread, os.pwrite

        def stale(handle: int, data: bytes, offset: int) -> int:
            at, left, inode = offset, memoryview(data), os.fstat(handle).st_ino
            while left:
                number, inside = divmod(at, 4096)
                size = min(len(left), 4096 - inside)
                page = pages.setdefault(
                    (inode, number), bytearray(pread(handle, 4096, number * 4096).ljust(4096, b"\0"))
                )
                page[inside : inside + size] = left[:size]
                whole = min(4096, os.fstat(handle).st_size - number * 4096)
                pwrite(handle, page[:whole], number * 4096)
                at, left = at + size, left[size:]
            return len(data)

        os.pwrite = stale
        store, order = (
            make(tmp_path, n=2000),
            rng.permutation(1000) * 2 + seed,
        )  # one the even, one the odd images
        for k in range(0, 1000, 20):
            store.put(0, order[k : k + 20], values(0, order[k : k + 20]))
            if k % 200 == 0:  # both hold pages, and neither is done before the other has begun
                (tmp_path / f"{seed} at {k}").touch()
                while not (tmp_path / f"{1 - seed} at {k}").exists():
                    time.sleep(0.001)

    nodes = [forked(partial(node, seed)) for seed in (0, 1)]
    assert [os.waitpid(child, 0)[1] for child in nodes] == [0, 0]
    there = trusted(make(tmp_path, n=2000))  # which also compares what is there with the truth
    assert there.any()
    assert not there.all()  # or this node model loses nothing, and shows nothing
    store = make(tmp_path, n=2000)
    store.verify(drop=True)
    fill(store, 0)
    assert trusted(store).all()


def test_the_first_row_of_what_is_written_is_there_last(tmp_path, monkeypatch):
    """By it a teacher that goes on after a kill knows a batch of which not everything was written."""
    store, pwrite, index = make(tmp_path), os.pwrite, np.random.default_rng(5).permutation(N)[:40]
    seen = []

    def watched(handle, data, offset):
        done = pwrite(handle, data, offset)
        there = Store.at(store.path).there(0)
        seen.append((bool(there[index[0]]), int(there.sum())))
        return done

    monkeypatch.setattr(os, "pwrite", watched)
    store.put(0, index, values(0, index))
    assert len(seen) > 80
    assert [first for first, _ in seen[:-1]] == [False] * (len(seen) - 1)
    assert seen[-1] == (True, 40)
    assert 0 < seen[-2][1] < 40


def test_a_writer_does_work_in_proportion_to_its_rows(tmp_path, monkeypatch):
    written, pwrite = [], os.pwrite

    def counted(handle, data, offset):
        written.append(len(data))
        return pwrite(handle, data, offset)

    monkeypatch.setattr(os, "pwrite", counted)
    store = make(tmp_path, (Field("features", 24),), n=2000)
    writer = Writer(store)
    for image in range(2000):
        rows = encode({"features": torch.from_numpy(values(0, np.array([image]))["features"])}, store.fields)
        writer.add(np.array([0]), np.array([image]), rows)
    writer.drain()
    assert sum(written) == 2000 * (48 + 8)
    assert len(written) == 2 * 2000
    writer.close()
    assert_right_features(store)


def assert_right_features(store: Store) -> None:
    reader = Store.at(store.path).reader()
    got = reader.get(np.arange(store.num_images), np.zeros(store.num_images, int))["features"]
    reader.close()
    np.testing.assert_array_equal(got, values(0, np.arange(store.num_images))["features"])


def test_clocks_do_not_matter(tmp_path):
    """Rows that a process with a clock of years ago wrote are read like any other."""
    store = make(tmp_path)
    fill(store, 0, np.arange(50))
    for path in (store.path / "view-00000").iterdir():
        os.utime(path, (1, 1))
    fill(store, 0)
    for path in (store.path / "view-00000").iterdir():
        os.utime(path, (4e9, 4e9))
    assert trusted(store).all()


def test_no_more_than_some_views_stay_open(tmp_path):
    store = make(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for view in range(60):
        store.put(view, np.arange(3), values(view, np.arange(3)))
    reader = store.reader()
    for view in range(60):
        got = reader.get(np.arange(3), np.full(3, view))
        np.testing.assert_array_equal(got["features"], values(view, np.arange(3))["features"])
    store.sync()
    assert len(os.listdir("/proc/self/fd")) - before <= 16 * 2 * 3
    reader.close()


def in_namespace(script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script that may mount."""
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-ec", script], capture_output=True, text=True, check=False
    )
    if done.returncode and any(word in done.stderr for word in ("unshare", "mount")):
        pytest.skip(f"this system lets no test mount: {done.stderr.strip()}")
    return done


FILL_DISKS = """
import sys; sys.path.insert(0, {here!r})
from test_store import *
for size in {sizes!r}:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={{size}}k", "none", {path!r}], check=True)
    store = make({path!r}, n=20000)
    try:
        fill(store, 0, at_once=1000)
        sentence = ""
    except ValueError as error:
        sentence = str(error)
    print(trusted(store).sum(), Store.at(store.path).present(0), sentence)
    del store
    subprocess.run(["umount", "-l", {path!r}], check=True)
"""


def test_a_full_disk_is_known_before_the_first_row(tmp_path):
    """At fifteen sizes of the disk: one sentence and no row, or every row."""
    mount, script = tmp_path / "small", tmp_path / "script.py"
    mount.mkdir()
    sizes = [round(100 * 1.25**k) for k in range(15)]  # kB; 20,000 x (48 + 20 + 16) bytes are 1,640 kB
    script.write_text(FILL_DISKS.format(here=str(Path(__file__).parent), path=str(mount), sizes=sizes))
    done = in_namespace(f"exec {sys.executable} {script}")
    assert done.returncode == 0, done.stderr
    lines = [line.split(" ", 2) for line in done.stdout.splitlines()]
    assert len(lines) == 15
    for right, present, sentence in lines:
        assert right == present
        assert (right, "no space is left for" in sentence) in (("0", True), ("20000", False))
        assert ("every row that was written is safe" in sentence) == (right == "0")
    assert len({right for right, *_ in lines}) == 2


def test_a_file_size_limit_is_the_same_sentence(tmp_path):
    fill(make(tmp_path, n=5000), 0, np.arange(100))

    def write() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40000, 40000))
        store = make(tmp_path, n=5000)
        with pytest.raises(ValueError, match="no space is left for .* every row that was written is safe"):
            fill(store, 1)

    assert os.waitpid(forked(write), 0)[1] == 0
    store = make(tmp_path, n=5000)
    assert store.present(0) == 100
    assert store.present(1) == 0
    assert not any(found.wrong for found in store.verify())
    assert not list(store.path.rglob("*.tmp"))


def test_where_a_file_system_cannot_reserve_the_files_are_sparse(tmp_path, monkeypatch):
    import ctypes

    def refuses(*_):
        ctypes.set_errno(errno.EOPNOTSUPP)
        return -1

    monkeypatch.setattr("fastanc.cache.column._fallocate", lambda: refuses)
    store = make(tmp_path, n=100_000)
    store.put(0, np.arange(10), values(0, np.arange(10)))
    assert file_of(store).stat().st_size == 4_800_000
    assert store.info()["bytes"] < 400_000
    assert trusted(store).sum() == 10


READ_ONLY = """
import sys; sys.path.insert(0, {here!r})
from test_store import *
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
