"""What lies beside the images: other programs' folders are no classes, and what holds no images is named."""

from __future__ import annotations

import gzip
import io
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fastanc.pipelines import small_sets
from fastanc.pipelines.catalogue import open_dataset
from fastanc.pipelines.index.build import build_index, open_index, summary
from fastanc.pipelines.index.sources import list_source
from fastanc.pipelines.tar_file import walk_nested
from support.images import class_folders, encoded, jpeg, picture, put
from support.tars import tar_of_tars, write_tar

FILES = {f"{c}/{k}.jpg": jpeg(10 * j + k, (40, 30)) for j, c in enumerate("ab") for k in range(4)}
RUBBISH = {
    "__MACOSX/a/._1.jpg": b"\0\5\x16\7 Mac OS X",
    "_MACOSX/a/1.jpg": jpeg(58),
    "@eaDir/1.jpg": jpeg(59),
    "a/._1.jpg": b"\0\5\x16\7 Mac OS X",
    "a/.ipynb_checkpoints/1-checkpoint.jpg": jpeg(50),
    ".git/objects/x.jpg": jpeg(51),
    ".Trash-1000/files/x.jpg": jpeg(52),
    "$RECYCLE.BIN/x.jpg": jpeg(53),
    "lost+found/x.jpg": jpeg(54),
    "System Volume Information/x.jpg": jpeg(55),
    "b/@eaDir/1.jpg/thumb.jpg": jpeg(56),
    "#recycle/x.jpg": jpeg(57),
    "Thumbs.db": b"x",
    ".DS_Store": b"x",
    "a/desktop.ini": b"x",
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTANC_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", ["tree", "tar", "tar of train/", "shared ./"])
def test_other_programs_folders_are_no_classes_and_are_said(tmp_path: Path, kind: str) -> None:
    clean = build_index(put(tmp_path / "clean", FILES), progress=False)
    both = {**FILES, **RUBBISH}
    if kind == "tree":
        source = put(tmp_path / "set", both)
    else:
        prefix = {"tar": "", "tar of train/": "train/", "shared ./": "./"}[kind]
        files = {prefix + name: data for name, data in both.items()}
        source = write_tar(
            tmp_path / "set.tar", {**files, "__MACOSX/train/._b": b"x", ".hidden/y.jpg": jpeg(9)}
        )
    index = build_index(source, progress=False)
    assert (index.fingerprint, index.classes, index.rejected) == (clean.fingerprint, ["a", "b"], 0)
    said = summary(index)
    for name in ("__MACOSX", "$RECYCLE.BIN", "lost+found", "._*", ".git"):
        assert name in said or re.search(r"and \d more", said)
    assert "passed over: " in said
    assert "passed over" not in summary(clean)


@pytest.mark.parametrize("kind", ["tree", "tar"])
def test_an_empty_class_folder_is_a_class_and_is_named(tmp_path: Path, kind: str) -> None:
    tree = put(tmp_path / "set", FILES)
    (tree / "0 none yet").mkdir()
    put(tree, {"c/bad.jpg": b""})
    source = tree
    if kind == "tar":
        source = tmp_path / "set.tar"
        subprocess.run(["tar", "-cf", source, "-C", tree.parent, "set"], check=True)
    index = build_index(source, progress=False)
    assert index.classes == ["0 none yet", "a", "b", "c"]
    assert "2 of 4 classes have no image: 0 none yet, c" in summary(index)


def test_a_link_to_a_folder_above_does_not_double_the_images(tmp_path: Path) -> None:
    tree = put(tmp_path / "set", FILES)
    (tree / "a" / "up").symlink_to(tree)
    (tree / "b" / "here").symlink_to(".")
    elsewhere = put(tmp_path / "more", {"9.jpg": jpeg(9)})
    (tree / "c").symlink_to(elsewhere)  # a class that lies elsewhere is one
    index = build_index(tree, progress=False)
    assert index.names() == [*sorted(FILES), "c/9.jpg"]


def _numpy(save: object, *arrays: object) -> bytes:
    file = io.BytesIO()
    save(file, *arrays)  # type: ignore[operator]
    return file.getvalue()


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/1.jpg", jpeg())
    return file.getvalue()


FOREIGN = {
    "set.7z": (b"7z\xbc\xaf\x27\x1c" + bytes(600), "a 7z archive: unpack it"),
    "set.rar": (b"Rar!\x1a\x07\x01\0" + bytes(600), "a rar archive: unpack it"),
    "data.arrow": (b"ARROW1\0\0" + bytes(600), "an Arrow file: read it by a torch data set"),
    "set.h5": (b"\x89HDF\r\n\x1a\n" + bytes(600), "an HDF5 file: read it by a torch data set"),
    "set.npz": (_numpy(np.savez, np.zeros(3)), "NumPy arrays: load them, and give fastanc.compress"),
    "set.npy": (_numpy(np.save, np.zeros(3)), "a NumPy array: load it"),
    "data.mdb": (
        bytes(16) + b"\xde\xc0\xef\xbe" + bytes(4000),
        r"an LMDB database: `fastanc pack \S*data.mdb data.packed.tar` makes a plain tar of it once",
    ),
    "set.sqlite": (b"SQLite format 3\0" + bytes(600), "an SQLite database"),
    "set.tfrecord": (bytes(range(200)) * 4, "a TFRecord file"),
    "set.tar.gz": (
        gzip.compress(bytes(2000)),
        r"compressed .gzip.: `fastanc pack \S*set.tar.gz set.packed.tar` makes a plain tar of it once",
    ),
    "set.tgz": (
        gzip.compress(bytes(2000)),
        r"compressed .gzip.: `fastanc pack \S*set.tgz set.packed.tar` makes",
    ),
    "one.jpg": (jpeg(), "one image: give the folder that it lies in"),
    "one.png": (b"\x89PNG\r\n\x1a\n" + bytes(600), "one image: give the folder"),
    "torn.h5": (b"rubbish" * 200, "an HDF5 file: read it by a torch data set"),
    "block.h5": (bytes(512) + b"\x89HDF\r\n\x1a\n" + bytes(600), "an HDF5 file: read it"),  # MATLAB's 7.3
    "set.mat": (b"MATLAB 5.0 MAT-file, Platform: GLNXA64" + bytes(600), "a MATLAB file: read it by a torch"),
    "old.mat": (bytes(600), "a MATLAB file: read it by a torch data set"),  # MATLAB's 4
    "torn.tar.gz": (b"rubbish" * 200, "compressed .gzip.: `fastanc pack "),
    "images-idx3-ubyte": (b"\0\0\x08\x03" + bytes(600), "an IDX file: read it by"),
    "weights.safetensors": (b"\x10" + bytes(600), "a file of weights: give a folder of images"),
    "clip.mp4": (b"\0\0\0\x18ftypmp42" + bytes(600), "a video: give a folder of its frames"),
    "sets.py": (b"import torch\n", "a Python file: name it by --plugin"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "the pointer that Git LFS leaves: run"),
    "one.bmp": (encoded(picture(), "BMP"), "one image: give the folder"),
    "one.gif": (b"GIF89a" + bytes(600), "one image: give the folder"),
    "one.webp": (b"RIFFrubbish", "one image: give the folder"),
    "torn.tar": (b"rubbish" * 200, "no tar .it does not begin with a header.: get it again"),
    "short.tar": (b"rubbish", "no tar .it does not begin with a header.: get it again"),
    "empty.tar": (b"", "is empty: get it again"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_of_another_kind_is_named_with_what_to_do(tmp_path: Path, name: str) -> None:
    data, words = FOREIGN[name]
    (tmp_path / "set").mkdir()
    path = tmp_path / "set" / name
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"{name} is .*{words}|{name} {words}"):
        open_dataset(str(path), "train")
    if not name.startswith("one") and not name.endswith(".tar"):  # a folder that holds nothing else
        # A folder that is a database is named as one.
        told = rf"set is .*{words}" if name == "data.mdb" else rf"holds no images, but .*{name} is .*{words}"
        with pytest.raises(ValueError, match=told):
            open_dataset(str(path.parent), "train")


@pytest.mark.parametrize("data", [b"rub", b"rubbish" * 200, bytes(range(256)) * 8], ids=len)
def test_a_file_of_no_known_kind_says_what_is_wanted(tmp_path: Path, data: bytes) -> None:
    path = put(tmp_path, {"set/data.bin": data}) / "set" / "data.bin"
    with pytest.raises(
        ValueError, match=r"data\.bin is no kind of file that is known: give a folder of images, a tar, a zip"
    ):
        open_dataset(str(path), "train")
    with pytest.raises(ValueError, match="set holds no images: give a folder of images, a tar, a zip"):
        open_dataset(str(path.parent), "train")


@pytest.mark.parametrize("deep", ["", "x_train_lmdb/", "data/en/2020/"])
def test_a_database_is_named_rather_than_the_text_beside_it(tmp_path: Path, deep: str) -> None:
    put(tmp_path / "set", {"README.md": b"words", "LICENSE": b"words", "a.json": b"{}"})
    put(tmp_path / "set", {f"{deep}data.mdb": b"x" * 600, f"{deep}lock.mdb": b"x" * 600})
    but = rf" holds no images, but .*{deep}data\.mdb" if deep else ""
    with pytest.raises(ValueError, match=rf"set{but} is an LMDB database: `fastanc pack \S*{deep}data\.mdb "):
        open_dataset(str(tmp_path / "set"), "train")


def test_a_tar_with_a_damaged_first_header_is_a_tar(tmp_path: Path) -> None:
    data = bytearray(write_tar(tmp_path / "set.bin", FILES).read_bytes())
    data[0] ^= 1
    (tmp_path / "set.bin").write_bytes(data)
    with pytest.raises(ValueError, match=r"set\.bin is not a readable tar: .* byte 0: get it again"):
        open_dataset(str(tmp_path / "set.bin"), "train")


def test_other_wrong_paths_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(FileNotFoundError, match=r"link is a link to nowhere, which does not exist"):
        open_dataset(str(tmp_path / "link"), "train")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe is neither a folder nor a file"):
        open_dataset(str(tmp_path / "pipe"), "train")
    (tmp_path / "file.txt").write_text("words")
    with pytest.raises(ValueError, match=r"data\.root .*file\.txt is a file: name the folder to look in"):
        open_dataset("cifar10", "train", tmp_path / "file.txt")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"'photos' is unknown: .*there is none of that name in {tmp_path}"):
        open_dataset("photos", "train")
    put(tmp_path / "deep", {"a/b.txt": b"words"})
    with pytest.raises(ValueError, match=r"deep holds no images, but .*b\.txt is a text file"):
        open_dataset(str(tmp_path / "deep"), "train")
    (tmp_path / "bare" / "a").mkdir(parents=True)
    with pytest.raises(ValueError, match="bare holds no images: give a folder of images, a tar"):
        open_dataset(str(tmp_path / "bare"), "train")
    class_folders(tmp_path / "both" / "train", a=3, b=3)
    (tmp_path / "both" / "val").write_text("a file where a folder is wanted")
    with pytest.raises(ValueError, match="both/val is no kind of file that is known: give a folder"):
        open_dataset(str(tmp_path / "both"), "val")


def test_archives_beside_the_images_are_said(tmp_path: Path) -> None:
    tree = put(tmp_path / "set", {**FILES, "b.zip": _zip(), "a/more.tar": b"x"})
    said = summary(build_index(tree, progress=False))
    assert "passed over: a/more.tar, b.zip" in said
    shards = tmp_path / "shards"
    shards.mkdir()
    for k in range(2):
        write_tar(shards / f"n0000000{k}.tar", {"1.jpg": jpeg(k)})
    (shards / "loose.jpg").write_bytes(jpeg())
    assert "passed over: *.jpg beside the tars" in summary(build_index(shards, progress=False))


# ---- damage


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_a_damaged_tar_never_ends_in_a_foreign_error(tmp_path: Path, form: int) -> None:
    files = {**FILES, "b/" + "long" * 22 + ".jpg": b"x" * 700, "b/x.cls": b"3", "b/x.json": b'{"label": 1}'}
    path, rng = tmp_path / "t.tar", np.random.default_rng(form)
    whole = write_tar(path, files, form).read_bytes()
    nested = tar_of_tars(tmp_path / "n.tar", FILES).read_bytes()
    heads = [k for k in range(0, len(whole), 512) if whole[k + 257 : k + 262] == b"ustar"]
    for k in range(600):
        data = bytearray(nested if k % 5 == 0 else whole)
        for _ in range(int(rng.integers(1, 4))):
            at = int(rng.choice(heads)) + int(rng.integers(1100)) if k % 2 else int(rng.integers(len(data)))
            data[min(at, len(data) - 1)] = int(rng.integers(256))
        if k % 3 == 0:  # a header whose sum is right, whatever its fields say
            at = int(rng.choice(heads))
            data[at + int(rng.integers(100, 512))] = int(rng.integers(256))
            total = sum(data[at : at + 148]) + sum(data[at + 156 : at + 512]) + 8 * 32
            data[at + 148 : at + 156] = b"%06o\0 " % total
        path.write_bytes(data[: int(rng.integers(len(data)))] if k % 7 == 0 else data)
        for read in (walk_nested, list_source):
            try:
                read(path)
            except ValueError as error:
                assert str(path) in str(error), error  # noqa: PT017  (many may pass)


def test_damaged_idx_files_never_end_in_a_foreign_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (6, 4, 4), np.uint8), np.arange(6, dtype=np.uint8)
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
        (tmp_path / f"train-{name}-ubyte.gz").write_bytes(gzip.compress(head + array.tobytes()))
    assert np.array_equal(small_sets.read_fashion(tmp_path, "train").images[..., 0], images)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    plain = gzip.decompress(whole)
    for k in range(600):
        data = bytearray(plain if k % 2 else whole)
        data[int(rng.integers(min(40, len(data))))] = int(rng.integers(256))
        path.write_bytes(
            gzip.compress(data) if k % 2 else bytes(data[: int(rng.integers(len(data)))] if k % 3 else data)
        )
        try:
            small_sets.read_fashion(tmp_path, "train")
        except ValueError as error:
            assert str(tmp_path) in str(error)  # noqa: PT017  (many may pass)


CUT = """
import os, sys
from pathlib import Path
import numpy as np
from fastanc.pipelines.index.build import build_index
from fastanc.pipelines.jpeg.jpeg_set import JpegSet
from fastanc.pipelines.order import Order
from fastanc.pipelines.views import RandomResizedCrop
source = Path(sys.argv[1])
index = build_index(source, workers=1, progress=False)
from fastanc.errors import command
def job():
    for batch in JpegSet("cut", index, (0.0,), (1.0,)).batches(Order(len(index), 4), RandomResizedCrop(16, 0)):
        if batch.step == 3:
            os.truncate(source, 600)
sys.exit(command(job))
"""


@pytest.mark.parametrize("victim", ["tar", "packed"])
def test_a_tar_cut_in_mid_run_is_one_sentence_and_no_signal(tmp_path: Path, victim: str) -> None:
    source = write_tar(
        tmp_path / "t.tar", {f"{c}/{k}.jpg": jpeg(k, (400, 300)) for c in "ab" for k in range(8)}
    )
    if victim == "packed":
        from fastanc.pipelines.index.pack import pack

        pack(source, tmp_path / "p.tar", short_side=200, progress=False, workers=1)
        source = tmp_path / "p.tar"
    done = subprocess.run([sys.executable, "-c", CUT, source], capture_output=True, text=True, timeout=1800)
    assert done.returncode == 2, done
    assert (
        "changed since it was indexed: run `fastanc index --refresh` on the set"
        in done.stderr.splitlines()[-1]
    )


def test_a_tar_written_over_in_mid_run_is_named(tmp_path: Path) -> None:
    from fastanc.pipelines.jpeg.bytes import ChangedImage, Reader

    source = write_tar(tmp_path / "t.tar", FILES)
    index = open_index(source)
    reader = Reader(index)
    assert [bytes(data) for data in reader.read(np.arange(8))] == [FILES[name] for name in index.names()]
    with open(source, "r+b") as file:
        file.seek(index.places([3])[0][1])
        file.write(b"other bytes")
    os.utime(source, ns=(1, 1))
    with pytest.raises(ChangedImage, match="changed since it was indexed"):
        reader.read(np.arange(8))
    reader.close()
