"""What cannot be read in place becomes a plain tar of the same set; killed at random, of the same bytes."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import random
import signal
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastanc.cli import main
from fastanc.pipelines.catalogue import open_dataset, open_splits
from fastanc.pipelines.index import pack_stream
from fastanc.pipelines.index.build import Index, build_index, index_path, rejected_path
from fastanc.pipelines.index.image_check import read_range
from fastanc.pipelines.index.pack import pack
from fastanc.pipelines.index.sources import PackFirst, list_source
from fastanc.pipelines.source_options import SourceOptions
from fastanc.pipelines.tar_file import walk
from support.formats import FORMATS, parquet_table, write_mds, write_parquet, zipped
from support.images import encoded, jpeg, picture, put
from support.processes import forked
from support.tars import contents, write_tar

FILES = {f"{c}/{c}{k:02d}.jpg": jpeg([n, k], (60 + k, 50)) for n, c in enumerate("abc") for k in range(13)}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTANC_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FASTANC_DATA", raising=False)


def _pack(source: Path, out: Path, **options: object) -> object:
    return pack(source, out, progress=False, workers=1, **options)  # type: ignore[arg-type]


def _said(index: Index) -> dict[bytes, str]:
    assert index.labels is not None
    data = (read_range(*place) for place in index.places(range(len(index))))
    return {one: index.classes[k] for one, k in zip(data, index.labels.tolist())}


def _zstd(data: bytes, kind: str = "zstd") -> bytes:
    pa = pytest.importorskip("pyarrow")
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, kind) as out:
        out.write(data)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": _zstd,
    "lz4": lambda data: _zstd(data, "lz4"),
}


@pytest.mark.parametrize("end", COMPRESSED)
def test_a_compressed_tar_becomes_the_tar_that_it_is(tmp_path: Path, end: str) -> None:
    plain = write_tar(tmp_path / "set.tar", FILES)
    source = tmp_path / f"set.tar.{end}"
    source.write_bytes(COMPRESSED[end](plain.read_bytes()))
    with pytest.raises(
        PackFirst, match=rf"set\.tar\.{end} is compressed \(.*\): `fastanc pack .* set\.packed\.tar`"
    ):
        open_dataset(str(source), "train")
    _pack(source, tmp_path / "out.tar")
    assert (tmp_path / "out.tar").read_bytes() == plain.read_bytes()
    assert (
        Index.load(index_path(tmp_path / "out.tar")).fingerprint
        == build_index(plain, progress=False).fingerprint
    )
    with pytest.raises(ValueError, match="is a compressed tar, of which no image is made smaller on the way"):
        _pack(source, tmp_path / "small.tar", short_side=20)
    source.write_bytes(COMPRESSED[end](plain.read_bytes())[:-30])
    with pytest.raises(ValueError, match=r"set\.tar\.\w+ is damaged or cut off .*: get it again"):
        _pack(source, tmp_path / "torn.tar")
    source.write_bytes(COMPRESSED[end](b"no tar" * 1000))
    with pytest.raises(ValueError, match="but what it holds is no tar: decompress it by itself"):
        _pack(source, tmp_path / "other.tar")
    assert sorted(p.name for p in tmp_path.iterdir() if "torn" in p.name or "other" in p.name) == []


def _deflated(folder: Path) -> Path:
    return zipped(folder / "set.zip", FILES, zipfile.ZIP_DEFLATED)


def _snappy(folder: Path) -> Path:
    return write_parquet(folder / "set.parquet", FILES, compression="SNAPPY")


def _dictionary(folder: Path) -> Path:
    (folder / "set").mkdir()
    for k in range(2):
        part = dict(list(FILES.items())[k::2])
        write_parquet(folder / "set" / f"{k}.parquet", part, use_dictionary=True, compression="ZSTD")
    return folder / "set"


def _mds(folder: Path, kind: str = "zstd", packed: Callable[[bytes], bytes] = _zstd) -> Path:
    source = write_mds(folder / "set", FILES)
    index = json.loads((source / "index.json").read_text())
    for shard in index["shards"]:
        path = source / shard["raw_data"]["basename"]
        shard["compression"] = kind
        shard["zip_data"] = {"basename": f"{path.name}.{kind[:4]}", "bytes": 0, "hashes": {}}
        (source / shard["zip_data"]["basename"]).write_bytes(packed(path.read_bytes()))
        path.unlink()
    (source / "index.json").write_text(json.dumps(index))
    return source


def _mds_gz(folder: Path) -> Path:
    return _mds(folder, "gz:9", gzip.compress)


def _gzip(folder: Path) -> Path:
    data = write_tar(folder / "plain.tar", FILES).read_bytes()
    (folder / "plain.tar").unlink()
    (folder / "set.tgz").write_bytes(gzip.compress(data))
    return folder / "set.tgz"


SOURCES = {
    "zip": _deflated,
    "snappy": _snappy,
    "dictionary": _dictionary,
    "mds": _mds,
    "mds gz": _mds_gz,
    "tgz": _gzip,
}


@pytest.mark.parametrize("kind", SOURCES)
def test_the_tar_is_the_same_set(tmp_path: Path, kind: str) -> None:
    source = SOURCES[kind](tmp_path)
    with pytest.raises(PackFirst, match="`fastanc pack "):
        build_index(source, progress=False)
    _pack(source, tmp_path / "out.tar")
    index = build_index(
        tmp_path / "out.tar", out=tmp_path / "again.index", progress=False
    )  # from the tar alone
    classes = ["0", "1", "2"] if kind.startswith("mds") else ["a", "b", "c"]
    assert index.classes == classes
    assert index.numbered == kind.startswith("mds")
    assert _said(index) == {data: classes["abc".index(name[0])] for name, data in FILES.items()}
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith("out")) == [
        "out.tar",
        "out.tar.index",
    ]
    with pytest.raises(FileExistsError, match=r"out\.tar exists: remove it first"):
        _pack(source, tmp_path / "out.tar")


@pytest.mark.parametrize("kind", SOURCES)
def test_killed_ten_times_at_random_it_gives_the_same_bytes(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = SOURCES[kind](tmp_path)
    _pack(source, tmp_path / "whole.tar")
    whole, rng = (tmp_path / "whole.tar").read_bytes(), random.Random(7)
    out, part = tmp_path / "out.tar", tmp_path / "out.tar.part"
    monkeypatch.setattr(pack_stream, "_CHUNK", 1)
    monkeypatch.setattr(pack_stream, "_BLOCK", 3000)
    genuine, kills = pack_stream.tqdm, 0

    class Slow(genuine):  # type: ignore[misc,valid-type]
        def update(self, n: float | None = 1) -> bool | None:
            time.sleep(0.003)
            return super().update(n)  # type: ignore[no-any-return]

    monkeypatch.setattr(pack_stream, "tqdm", Slow)
    sizes = sorted(rng.randrange(1, len(whole) - 4000) for _ in range(10))
    for size in sizes:
        child = forked(lambda: _pack(source, out))
        deadline = time.monotonic() + 600  # of a hang
        while not part.exists() or part.stat().st_size < size:
            assert time.monotonic() < deadline
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "it ended before it could be killed"
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += 1
        assert not out.exists()
        if rng.random() < 0.5:  # a write that the kill tore
            os.truncate(part, max(0, part.stat().st_size - rng.randrange(1, 900)))
    _pack(source, out)
    assert kills == 10
    assert out.read_bytes() == whole
    assert (
        not list(tmp_path.glob("*.part*")) + list(tmp_path.glob("*.lock")) + list(tmp_path.glob("*.journal"))
    )


def test_classes_that_folders_cannot_say_are_said_by_the_tar(tmp_path: Path) -> None:
    """Names with slashes, out of order, without images; of a set in place and of one that is streamed."""
    classes = ["zebra", "../evil", "a/b", "none yet", "a_b", ".git"]
    files = {f"{k}/{k}.jpg": jpeg(k) for k in (0, 1, 2, 4, 5)}
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = parquet_table(files, features=False)
    labels = [int(name.split(".")[0]) for name in table["image"].combine_chunks().field("path").to_pylist()]  # type: ignore[index]
    features = {"image": {"_type": "Image"}, "label": {"names": classes, "_type": "ClassLabel"}}
    table = table.set_column(1, "label", pa.array(labels))  # type: ignore[attr-defined]
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    for name, compression in (("plain", "NONE"), ("packed", "ZSTD")):
        pq.write_table(table, tmp_path / f"{name}.parquet", compression=compression, use_dictionary=False)
        _pack(tmp_path / f"{name}.parquet", tmp_path / f"{name}.tar")
        index = build_index(tmp_path / f"{name}.tar", out=tmp_path / "again.index", progress=False)
        assert index.classes == classes
        assert _said(index) == {data: classes[int(k[0])] for k, data in files.items()}
        assert all(
            not m.name.startswith(("/", "..")) and "/../" not in m.name
            for m in walk(tmp_path / f"{name}.tar")
        )


def test_string_labels_and_numbers_of_parquet_come_back(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    blobs = [jpeg(k) for k in range(4)]
    for k, (labels, classes) in enumerate(
        [(["b/c", "b%2Fc", "é", "b/c"], ["b%2Fc", "b/c", "é"]), ([0, 7, 2, 7], [str(n) for n in range(8)])]
    ):
        path = tmp_path / f"{k}.parquet"
        pq.write_table(pa.table({"image": blobs, "label": labels}), path, compression="ZSTD")
        _pack(path, tmp_path / f"{k}.tar")
        index = Index.load(index_path(tmp_path / f"{k}.tar"))
        assert index.classes == classes
        assert _said(index) == {blob: str(label) for blob, label in zip(blobs, labels)}


def test_a_zip_of_splits_becomes_a_tar_of_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {f"x/train/{n}": d for n, d in FILES.items()} | {
        f"x/val/{n}": d for n, d in list(FILES.items())[:5]
    }
    zipped(tmp_path / "set.zip", files | {"../evil.jpg": jpeg(1)}, zipfile.ZIP_DEFLATED)
    assert main(["pack", str(tmp_path / "set.zip"), str(tmp_path / "set.tar"), "--workers", "1"]) == 0
    said = capsys.readouterr().out
    assert f"39 images in {tmp_path}/set.tar/train, 5 images in {tmp_path}/set.tar/val: " in said
    assert contents(tmp_path / "set.tar") == files
    train, val = open_splits(str(tmp_path / "set.tar"))
    assert (train.num_images, val.num_images, train.classes) == (39, 5, ["a", "b", "c"])


def test_members_that_lie_or_do_not_unpack_are_left_out_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastanc.pipelines.index.streams.MOST_BYTES", 1 << 20)
    path = zipped(tmp_path / "set.zip", {**FILES, "a/bomb.jpg": bytes(1 << 24)}, zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("b/b03.jpg").header_offset + 60
    data = bytearray(path.read_bytes())
    data[start : start + 40] = bytes(40)
    path.write_bytes(data)
    _pack(path, tmp_path / "out.tar")
    said = rejected_path(index_path(tmp_path / "out.tar")).read_text().splitlines()[1:]
    assert said == ["a/bomb.jpg\tempty file", "b/b03.jpg\tempty file"]
    assert len(Index.load(index_path(tmp_path / "out.tar"))) == len(FILES) - 1
    assert (tmp_path / "out.tar").stat().st_size < 1 << 20


def test_lmdb_values_that_are_images_become_members_and_labels_are_given_to_the_tar(tmp_path: Path) -> None:
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(tmp_path / "set_lmdb"), map_size=1 << 24) as file, file.begin(write=True) as write:
        for k, data in enumerate(FILES.values()):
            write.put(f"../{k:05d}".encode(), data)
        write.put(b"num-samples", b"39")
        write.put(b"png", encoded(picture(9), "PNG"))
    with pytest.raises(
        PackFirst, match=r"set_lmdb is an LMDB database: `fastanc pack .*data\.mdb data\.packed\.tar`"
    ):
        list_source(tmp_path / "set_lmdb")
    _pack(tmp_path / "set_lmdb", tmp_path / "out.tar")
    expected = {f"{k:05d}.jpg": data for k, data in enumerate(FILES.values())}
    assert contents(tmp_path / "out.tar") == {**expected, "png.png": encoded(picture(9), "PNG")}
    lines = "".join(f"{name},{'xy'[k % 2]}\n" for k, name in enumerate(contents(tmp_path / "out.tar")))
    put(tmp_path, {"labels.csv": lines.encode()})
    options = SourceOptions(labels=tmp_path / "labels.csv")
    assert build_index(tmp_path / "out.tar", options, progress=False).classes == ["x", "y"]
    with lmdb.open(str(tmp_path / "other"), map_size=1 << 20) as file, file.begin(write=True) as write:
        write.put(b"a", b"pickled")
    with pytest.raises(ValueError, match="whose 1 values are no image files: read it by a torch data set"):
        _pack(tmp_path / "other", tmp_path / "none.tar")


def test_a_streamed_source_is_made_smaller_where_it_is_asked_for(tmp_path: Path) -> None:
    source = _snappy(tmp_path)
    pack(source, tmp_path / "small.tar", short_side=32, workers=2, progress=False)
    index = Index.load(index_path(tmp_path / "small.tar"))
    assert index.sizes.min(1).tolist() == [32] * len(FILES)
    assert np.bincount(np.asarray(index.labels)).tolist() == [13, 13, 13]


@pytest.mark.parametrize("kind", ["parquet", "mds", "csv"])
def test_a_source_in_place_is_packed_with_suffixes_and_classes(tmp_path: Path, kind: str) -> None:
    source = FORMATS[kind](tmp_path, FILES)
    _pack(source, tmp_path / "out.tar")
    before, after = build_index(source, progress=False), Index.load(index_path(tmp_path / "out.tar"))
    assert [name.split("/")[-1][-4:] for name in after.names()] == [".jpg"] * len(FILES)
    assert sorted(_said(after)) == sorted(_said(before))
    assert (
        [int(label) for label in _said(after).values()] == [int(x) for x in _said(before).values()]
        if kind == "mds"
        else (_said(after) == _said(before))
    )
