"""An index is compared with what there is: whatever was added, removed or replaced is named with the command."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastanc.pipelines.catalogue import open_dataset
from fastanc.pipelines.index.build import build_index, index_path, open_index
from fastanc.pipelines.index.table import Index
from fastanc.pipelines.source_options import SourceOptions
from support.images import class_folders, jpeg, put
from support.tars import tar_of_tree, write_tar

FILES = {f"{c}/{k}.jpg": jpeg(10 * j + k, (40, 30)) for j, c in enumerate("ab") for k in range(4)}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTANC_CACHE", str(tmp_path / "cache"))


def same_size(data: bytes) -> bytes:
    """Another image of as many bytes: the last byte of its scan is another."""
    other = bytearray(data)
    other[-10] ^= 0x11
    return bytes(other)


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "an image more": (lambda s: put(s, {"a/9.jpg": jpeg(99)}), r"a/9\.jpg was added"),
    "three more": (
        lambda s: put(s, {f"b/{k}.jpg": jpeg(k) for k in (7, 8, 9)}),
        r"3 files were added .first b/7\.jpg",
    ),
    "a class more": (
        lambda s: put(s, {"c/1.jpg": jpeg(99)}),
        r"c/1\.jpg was added; the class folder 'c' was added",
    ),
    "an empty class more": (lambda s: (s / "0").mkdir(), r"the class folder '0' was added"),
    "an image less": (lambda s: (s / "a/1.jpg").unlink(), r"a/1\.jpg went missing"),
    "a class less": (
        lambda s: shutil.rmtree(s / "b"),
        r"4 files went missing .first b/0\.jpg.*class folder 'b' went",
    ),
    "cut": (lambda s: os.truncate(s / "b/2.jpg", 300), r"b/2\.jpg changed from \d+ to 300 bytes"),
    "another name": (
        lambda s: (s / "a/1.jpg").rename(s / "a/x.jpg"),
        r"a/x\.jpg was added; a/1\.jpg went missing",
    ),
    "another class": (
        lambda s: (s / "a/1.jpg").rename(s / "b/1x.jpg"),
        r"b/1x\.jpg was added; a/1\.jpg went missing",
    ),
    "as many bytes": (
        lambda s: (s / "a/2.jpg").write_bytes(same_size(FILES["a/2.jpg"])),
        r"a/2\.jpg was replaced .of the same size",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_tree_is_named_until_it_is_indexed_again(tmp_path: Path, change: str) -> None:
    tree = put(tmp_path / "set", FILES)
    first = open_index(tree)
    act, words = CHANGES[change]
    act(tree)
    for _ in range(2):  # on every run
        with pytest.raises(
            ValueError, match=rf"{words}.* since the set was indexed: run `fastanc index --refresh"
        ):
            open_dataset(str(tree), "train")
    assert build_index(tree, progress=False).fingerprint != first.fingerprint
    again = open_index(tree)
    present = sorted(
        str(path.relative_to(tree)) for path in tree.glob("*/*.jpg") if path.stat().st_size != 300
    )
    assert sorted(again.names()) == present


@pytest.mark.parametrize("kind", ["tar", "shards", "packed"])
def test_a_changed_tar_is_named(tmp_path: Path, kind: str) -> None:
    tree = put(tmp_path / "tree", FILES)
    source = tar = tar_of_tree(tree, tmp_path / "t.tar")
    if kind == "shards":
        source = tmp_path / "shards"
        source.mkdir()
        tar = source / "n00000001.tar"
        write_tar(tar, {"1.jpg": jpeg(1)})
        write_tar(source / "n00000002.tar", {"1.jpg": jpeg(2)})
    if kind == "packed":
        from fastanc.pipelines.index.pack import pack

        source = tar = tmp_path / "p.tar"
        pack(tree, tar, progress=False, workers=1)
    index = open_index(source)
    fingerprint, middle, whole = index.fingerprint, index.places([0])[0][1] + 50, tar.read_bytes()
    tar.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with pytest.raises(ValueError, match=r"\.jpg was replaced .of the same size. since the set was indexed"):
        open_index(source)
    tar.write_bytes(whole)  # another time, the same bytes
    assert open_index(source).fingerprint == fingerprint
    with open(tar, "ab") as file:
        file.write(bytes(512))
    with pytest.raises(
        ValueError, match=rf"{tar.name} changed from {len(whole)} to {len(whole) + 512} bytes"
    ):
        open_index(source)
    if kind == "shards":
        tar.write_bytes(whole)
        write_tar(source / "n00000003.tar", {"1.jpg": jpeg(3)})
        with pytest.raises(ValueError, match=r"n00000003\.tar was added"):
            open_index(source)


def test_a_tar_whose_images_have_other_folders_or_labels_is_named(tmp_path: Path) -> None:
    source = write_tar(tmp_path / "t.tar", FILES)
    open_index(source)
    swapped = {("b" if name[0] == "a" else "a") + name[1:]: data for name, data in FILES.items()}
    write_tar(source, swapped)  # as many bytes at the same places
    with pytest.raises(ValueError, match=r"a/0\.jpg and 7 more were replaced"):
        open_index(source)
    shard = tmp_path / "w.tar"
    for label in (b"1", b"0"):
        write_tar(shard, [("x.jpg", jpeg(1)), ("x.cls", label), ("y.jpg", jpeg(2)), ("y.cls", b"1")])
        if label == b"1":
            open_index(shard)
    with pytest.raises(ValueError, match=r"x\.jpg was replaced"):
        open_index(shard)


def test_a_copied_set_is_compared_by_its_bytes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = put(tmp_path / "set", FILES)
    fingerprint = open_index(tree).fingerprint
    shutil.copytree(tree, tmp_path / "new" / "set", copy_function=shutil.copyfile)
    shutil.copyfile(index_path(tree), tmp_path / "new" / "set.index")
    from fastanc.pipelines.index import changes

    read: list[str] = []
    genuine = changes.read_range
    monkeypatch.setattr(changes, "read_range", lambda *place: read.append(place[0]) or genuine(*place))
    for _ in range(2):
        index = open_index(tmp_path / "new" / "set")
        assert (index.fingerprint, index.source) == (fingerprint, tmp_path / "new" / "set")
    assert sorted(read) == sorted(str(tmp_path / "new" / "set" / name) for name in FILES)


def test_a_rejected_file_is_no_news_until_it_is_mended(tmp_path: Path) -> None:
    tree = put(tmp_path / "set", {**FILES, "a/bad.jpg": b"", "outside.jpg": jpeg(1)})
    assert open_index(tree).rejected == 2
    assert len(open_index(tree)) == 8
    (tree / "a/bad.jpg").write_bytes(jpeg(77))
    with pytest.raises(ValueError, match=r"a/bad\.jpg changed from 0 to"):
        open_index(tree)


def test_one_process_of_a_machine_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = put(tmp_path / "set", FILES)
    open_index(tree)
    put(tree, {"a/9.jpg": jpeg(99)})
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert len(open_index(tree)) == 8
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ValueError, match="was added"):
        open_index(tree)


def test_a_changed_label_file_is_named_with_the_whole_command(tmp_path: Path) -> None:
    tree = put(tmp_path / "flat", {f"{k}.jpg": jpeg(k) for k in range(3)})
    labels = tmp_path / "my labels.csv"
    labels.write_text("image,label\n0,cat\n1,dog\n2,cat\n")
    build_index(tree, SourceOptions(labels=labels), progress=False)
    assert open_index(tree).classes == ["cat", "dog"]
    labels.write_text("image,label\n0,cat\n1,dog\n2,dog\n")
    with pytest.raises(ValueError, match=r"my labels\.csv changed since .*--labels '.*my labels\.csv'"):
        open_index(tree)
    labels.unlink()  # what it said is in the index
    assert open_index(tree).labels is not None


def test_val_is_checked_as_train_is(tmp_path: Path) -> None:
    class_folders(tmp_path / "set" / "train", a=4, b=4)
    val = class_folders(tmp_path / "set" / "val", a=2, b=2)
    open_dataset(str(tmp_path / "set"), "val")
    put(val, {"b/new.jpg": jpeg(5)})
    with pytest.raises(ValueError, match=r"set/val: b/new\.jpg was added"):
        open_dataset(str(tmp_path / "set"), "val")


# ---- the file's own bytes


@pytest.mark.parametrize("kind", ["older", "newer", "other fields"])
def test_an_index_of_another_format_is_made_anew_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    tree = put(tmp_path / "set", FILES)
    path = index_path(tree)
    fingerprint = open_index(tree).fingerprint
    whole = path.read_bytes()
    if kind == "other fields":
        end = 24 + int.from_bytes(whole[8:16], "little")
        header = json.loads(whole[24:end])
        del header["origin"]["remarks"]
        text = json.dumps(header).encode().ljust(end - 24)
        other = whole[:16] + zlib.crc32(text).to_bytes(8, "little") + text + whole[end:]
    else:
        other = (b"FANCIDX1" if kind == "older" else b"FANCIDX3") + b"other things" * 30
    path.write_bytes(other)
    capsys.readouterr()
    assert open_index(tree).fingerprint == fingerprint
    said = [line for line in capsys.readouterr().err.splitlines() if "another version" in line]
    assert said == [f"{path} is of another version of fastanc: it is made anew"]
    assert path.read_bytes() == whole
    assert open_index(tree).fingerprint == fingerprint
    assert "another version" not in capsys.readouterr().err


def test_every_flipped_bit_and_every_cut_is_one_sentence(tmp_path: Path) -> None:
    tree = put(tmp_path / "set", FILES)
    path = index_path(tree)
    open_index(tree)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    wrong = "(is damaged|is cut off|is not an index of this version): build it again"
    for position in [*range(64), *rng.integers(64, len(whole), 800).tolist()]:
        flipped = bytearray(whole)
        flipped[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=wrong):
            Index.load(path)
    for length in rng.integers(0, len(whole), 100).tolist():
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=wrong):
            Index.load(path)
    for start in rng.integers(0, len(whole) - 200, 100).tolist():  # a hole, as a disk leaves it
        if any(whole[start : start + 200]):
            path.write_bytes(whole[:start] + bytes(200) + whole[start + 200 :])
            with pytest.raises(ValueError, match=wrong):
                Index.load(path)
    for length in (0, 7, 24, 500):
        path.write_bytes(rng.bytes(length))
        with pytest.raises(ValueError, match=wrong):
            Index.load(path)
    path.write_bytes(whole)
    assert len(Index.load(path)) == len(FILES)
