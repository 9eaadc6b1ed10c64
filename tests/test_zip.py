"""Zips are read in place; splits, maps and Kaggle's layout inside; hostile members are named, never followed."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fastanc.pipelines.catalogue import open_dataset, open_splits
from fastanc.pipelines.index.build import build_index, rejected_path
from fastanc.pipelines.index.sources import list_source
from fastanc.pipelines.jpeg.jpeg_set import JpegSet
from support.formats import stored_zip, zipped
from support.images import jpeg, put

FILES = {f"{c}/{k}.jpg": jpeg([n, k], (40 + k, 30)) for n, c in enumerate("ab") for k in range(6)}
WNIDS = ("n01440764", "n02102040")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTANC_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FASTANC_DATA", raising=False)


def _labels(data: object) -> dict[str, str]:
    assert isinstance(data, JpegSet)
    assert data.labels is not None
    return {data.index.name(i): data.classes[k] for i, k in enumerate(data.labels.tolist())}


def test_a_zip_has_the_fingerprint_of_its_tree(tmp_path: Path) -> None:
    tree = build_index(put(tmp_path / "tree", FILES), progress=False)
    for name, files in {"a": FILES, "b": {f"x/train/{n}": d for n, d in FILES.items()}}.items():
        index = build_index(zipped(tmp_path / f"{name}.zip", files), progress=False)
        assert index.fingerprint == tree.fingerprint


def test_what_python_and_zip64_write_is_found_where_it_lies(tmp_path: Path) -> None:
    path = tmp_path / "big.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in FILES.items():
            with archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as member:  # longer extra fields
                member.write(data)
    with open(path, "r+b") as file:  # a program before the zip, as self-extracting ones have
        whole = file.read()
        file.seek(0)
        file.write(b"#!/bin/sh\nexit\n" + whole)
    with zipfile.ZipFile(path) as archive:
        assert archive.read("a/0.jpg") == FILES["a/0.jpg"]
    with pytest.raises(
        ValueError, match="no kind of file that is known"
    ):  # what is no zip by its start or name ...
        list_source(path.rename(tmp_path / "big.run"))
    source = (tmp_path / "big.run").rename(tmp_path / "big.zip")  # ... and one by its name
    index = build_index(source, progress=False)
    for i, (_, offset, length) in enumerate(index.places(range(len(index)))):
        assert source.read_bytes()[offset : offset + length] == FILES[index.name(i)]


def test_splits_inside_an_archive_are_opened_and_never_listed_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"set/train/{n}": d for n, d in FILES.items()}
    files |= {f"set/Val/{n}": d for n, d in list(FILES.items())[:4]}
    path = zipped(tmp_path / "set.zip", files)
    train, val = open_splits(str(path))
    assert (train.num_images, val.num_images, train.classes) == (12, 4, ["a", "b"])
    assert sorted(p.name for p in tmp_path.glob("*.index")) == ["set.zip.Val.index", "set.zip.train.index"]
    monkeypatch.setattr("fastanc.pipelines.index.sources.zip.opened", lambda path: 1 / 0)
    assert open_dataset(str(path), "train").num_images == 12
    assert open_dataset(str(path / "train"), "train", val_share=0.5).num_images == 6
    monkeypatch.undo()
    with pytest.raises(
        ValueError, match=r"set\.zip holds the splits Val, train: index each of them by itself, "
    ):
        build_index(path, progress=False)
    with pytest.raises(ValueError, match=r"set\.zip has no images in tset/: it holds Val, train"):
        build_index(path / "tset", progress=False)


@pytest.mark.parametrize("place", ["inside", "beside"])
def test_a_map_file_labels_and_numbers(tmp_path: Path, place: str) -> None:
    """Swin's layout: train.zip with class folders, val.zip flat, NAME_map.txt for both; here in another order."""
    train = {f"{c}/{k}.jpg": jpeg([n, k]) for n, c in enumerate(WNIDS) for k in range(4)}
    val = {f"ILSVRC2012_val_{k:08d}.JPEG": jpeg(k) for k in range(3)}
    maps = {
        "train_map.txt": "".join(f"{name}\t{1 - WNIDS.index(name[:9])}\n" for name in train).encode(),
        "val_map.txt": "".join(f"val.zip@/{name}\t{k % 2}\n" for k, name in enumerate(val)).encode(),
    }
    for split, files in (("train", train), ("val", val)):
        own = {f"{split}_map.txt": maps[f"{split}_map.txt"]}
        (tmp_path / "set").mkdir(exist_ok=True)
        zipped(tmp_path / "set" / f"{split}.zip", {**files, **(own if place == "inside" else {})})
        if place == "beside":
            put(tmp_path / "set", own)
    found_train, found_val = open_splits(str(tmp_path / "set"))
    assert found_train.classes == [WNIDS[1], WNIDS[0]]  # the map's numbers, the folders' names
    assert _labels(found_train) == {name: name[:9] for name in train}
    assert found_val.labels is not None
    assert found_val.labels.tolist() == [0, 1, 0]
    if place == "beside":
        put(tmp_path / "set", {"train_map.txt": maps["train_map.txt"].replace(b"\t1", b"\t2")})
        with pytest.raises(ValueError, match=r"train_map\.txt changed since .*train\.zip was indexed"):
            open_dataset(str(tmp_path / "set"), "train")


@pytest.mark.parametrize("kind", ["unpacked", "as CLS-LOC", "zip"])
def test_kaggle_s_imagenet_as_it_comes(tmp_path: Path, kind: str) -> None:
    base = "ILSVRC/Data/CLS-LOC"
    files = {f"{base}/train/{c}/{c}_{k}.JPEG": jpeg([n, k]) for n, c in enumerate(WNIDS) for k in range(4)}
    files |= {
        f"{base}/{split}/ILSVRC2012_{split}_{k:08d}.JPEG": jpeg(k)
        for split in ("val", "test")
        for k in range(3)
    }
    files |= {
        f"ILSVRC/Annotations/CLS-LOC/train/{WNIDS[0]}/1.xml": b"<a/>",
        "ILSVRC/ImageSets/CLS-LOC/val.txt": b"1 1",
    }
    lines = [f"ILSVRC2012_val_{k:08d},{WNIDS[k % 2]} 1 2 3 4 {WNIDS[k % 2]} 5 6 7 8 " for k in (2, 0, 1)]
    files["LOC_val_solution.csv"] = "\n".join(["ImageId,PredictionString", *lines]).encode()
    files["LOC_synset_mapping.txt"] = "\n".join(f"{w} words, more words" for w in WNIDS).encode()
    if kind == "zip":
        source = tmp_path / "imagenet-object-localization-challenge.zip"
        with zipfile.ZipFile(source, "w") as archive:
            for name, data in files.items():
                pressed = zipfile.ZIP_STORED if name.endswith("JPEG") else zipfile.ZIP_DEFLATED
                archive.writestr(name, data, pressed)
    else:
        put(tmp_path / "kaggle", files)
        source = tmp_path / "kaggle" if kind == "unpacked" else tmp_path / "kaggle" / base
    train, val = open_splits(str(source))
    assert _labels(train) == {f"{c}/{c}_{k}.JPEG": c for c in WNIDS for k in range(4)}
    assert _labels(val) == {f"ILSVRC2012_val_{k:08d}.JPEG": WNIDS[k % 2] for k in range(3)}
    if kind == "unpacked":
        assert open_dataset("imagenet", "val", source).num_images == 3


def test_what_is_compressed_or_encrypted_is_said_with_the_command(tmp_path: Path) -> None:
    path = zipped(
        tmp_path / "my set.zip", {n: bytes(5000) + d for n, d in FILES.items()}, zipfile.ZIP_DEFLATED
    )
    with pytest.raises(
        ValueError,
        match=r"my set\.zip is a zip in which 12 of 12 images are compressed: `fastanc pack '.*my set\.zip'"
        r" 'my set\.packed\.tar'` makes a plain tar of it once",
    ):
        open_dataset(str(path), "train")
    data = bytearray(stored_zip(FILES))
    for mark, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        position = data.find(mark)
        while position >= 0:
            data[position + at] |= 1
            position = data.find(mark, position + 4)
    (tmp_path / "secret.zip").write_bytes(data)
    with pytest.raises(ValueError, match=r"secret\.zip is an encrypted zip: unpack it with its password"):
        open_dataset(str(tmp_path / "secret.zip"), "train")


def test_hostile_members_are_left_out_by_name_and_nothing_is_written_outside(tmp_path: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in FILES.items():
            archive.writestr(name, data)
        archive.writestr("../../evil.jpg", jpeg(90))
        archive.writestr("/etc/evil.jpg", jpeg(91))
        archive.writestr("a/../../evil.jpg", jpeg(92))
        link = zipfile.ZipInfo("a/link.jpg")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("b/last.jpg", jpeg(93))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a/0.jpg", jpeg(94))
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "set.zip"
    path.write_bytes(file.getvalue())
    index = build_index(path, progress=False)
    said = rejected_path(tmp_path / "in" / "set.zip.index").read_text()
    for name, why in {
        "../../evil.jpg": "a name that leaves its folder",
        "/etc/evil.jpg": "a name that leaves its folder",
        "a/../../evil.jpg": "a name that leaves its folder",
        "a/link.jpg": "a link inside the zip",
        "a/0.jpg": "a later member has the same name",
    }.items():
        assert f"{name}\t{why}\n" in said
    assert index.crc32[index.names().index("a/0.jpg")] == np.uint32(zipfile.crc32(jpeg(94)))
    assert sorted(p.name for p in tmp_path.rglob("*")) == [
        "in",
        "set.zip",
        "set.zip.index",
        "set.zip.rejected.tsv",
    ]


def _lying(data: bytes, size: int) -> bytes:
    """A zip whose directory says another size of its first member."""
    changed = bytearray(data)
    at = changed.find(b"PK\1\2")
    struct.pack_into("<II", changed, at + 20, size, size)
    return bytes(changed)


@pytest.mark.parametrize("size", [10**5, 2**32 - 2])
def test_a_size_that_lies_is_left_out(tmp_path: Path, size: int) -> None:
    path = tmp_path / "set.zip"
    path.write_bytes(_lying(stored_zip(FILES), size))
    listing = list_source(path)
    assert listing.rejected == [("a/0.jpg", "a size that cannot be true")]
    assert len(listing.candidates) == len(FILES) - 1


def test_members_that_share_their_bytes_are_left_out(tmp_path: Path) -> None:
    """Fifield's bomb: many entries of the directory point at one member."""
    data = bytearray(stored_zip({"a/0.jpg": jpeg(0), "a/1.jpg": jpeg(1), "a/2.jpg": jpeg(2)}))
    at = data.find(b"PK\1\2", data.find(b"PK\1\2") + 4)
    struct.pack_into("<I", data, at + 42, 0)  # the second begins where the first does
    struct.pack_into("<II", data, at + 20, len(data) // 2, len(data) // 2)
    path = tmp_path / "set.zip"
    path.write_bytes(data)
    assert ("a/1.jpg", "a size that cannot be true") in list_source(path).rejected


def test_a_torn_or_damaged_zip_is_one_sentence(tmp_path: Path) -> None:
    whole, path = stored_zip({**FILES, "set_map.txt": b"x"}), tmp_path / "set.zip"
    for k in range(1, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:k])
        with pytest.raises(ValueError, match=r"set\.zip is not a readable zip .*: get it again"):
            list_source(path)
    rng = np.random.default_rng(0)
    start = whole.find(b"PK\1\2")
    for _ in range(400):
        data = bytearray(stored_zip(FILES))
        for _ in range(int(rng.integers(1, 5))):
            at = int(rng.integers(start, len(data))) if rng.random() < 0.7 else int(rng.integers(len(data)))
            data[min(at, len(data) - 1)] = int(rng.integers(256))
        path.write_bytes(data)
        try:
            listing = list_source(path)
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017  (many may pass)
        else:
            size = os.path.getsize(path)
            assert all(0 < c.offset <= c.offset + c.length <= size for c in listing.candidates)


def test_a_map_that_is_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastanc.pipelines.index.sources.zip._MOST_TEXT_BYTES", 1 << 20)
    path = zipped(tmp_path / "set.zip", FILES)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("set_map.txt", bytes(1 << 22))
    assert path.stat().st_size < 1 << 16
    with pytest.raises(ValueError, match=r"set_map\.txt of more than 1 MiB: that is no list of labels"):
        list_source(path)
