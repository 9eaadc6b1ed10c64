"""Files that hold no images which could be read in place: what each is, and what to do with it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

_UNPACK = "unpack it, and give the folder"
_OWN = "read it by a torch data set of your own (docs/input.md, Your own data)"
_MAGICS = (
    (b"PK\x03\x04", "a zip archive", _UNPACK),
    (b"PK\x05\x06", "an empty zip archive", "get it again"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!", "a rar archive", _UNPACK),
    (b"PAR1", "a parquet file", _OWN),
    (b"ARROW1", "an Arrow file", _OWN),
    (b"FEA1", "an Arrow file (feather)", _OWN),
    (b"\xff\xff\xff\xff", "an Arrow stream", _OWN),
    (b"\x89HDF", "an HDF5 file", _OWN),
    (b"\x93NUMPY", "a NumPy array", "load it, and give fastanc.compress the array"),
    (b"SQLite format 3", "an SQLite database", _OWN),
    (b"MATLAB", "a MATLAB file", _OWN),
    (b"\x28\xb5\x2f\xfd", "compressed (zstd)", "decompress it, images are read in place from a plain tar"),
    (b"\x1f\x8b", "compressed (gzip)", "decompress it, images are read in place from a plain tar"),
    (b"BZh", "compressed (bzip2)", "decompress it, images are read in place from a plain tar"),
    (b"\xfd7zXZ\x00", "compressed (xz)", "decompress it, images are read in place from a plain tar"),
    (b"\xff\xd8\xff", "one image", "give the folder that it lies in"),
    (b"\x89PNG", "one image", "give the folder that it lies in"),
    (b"%PDF", "a PDF", "give a folder of images"),
)
_SUFFIXES = {
    ".npz": ("NumPy arrays", "load them, and give fastanc.compress the pair (images, labels)"),
    ".mdb": ("an LMDB database", _OWN),
    ".lmdb": ("an LMDB database", _OWN),
    ".tfrecord": ("a TFRecord file", _OWN),
    ".tfrecords": ("a TFRecord file", _OWN),
    ".rec": ("a RecordIO file", _OWN),
    ".beton": ("an FFCV file", _OWN),
    ".pkl": ("a pickle", _OWN),
    ".pickle": ("a pickle", _OWN),
    ".pt": ("a torch file", _OWN),
    ".pth": ("a torch file", _OWN),
    **dict.fromkeys(
        (".csv", ".tsv", ".txt", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".md"),
        ("a text file", "give the folder or tar of the images, and it by `fastanc index --labels`"),
    ),
}
_LMDB = b"\xde\xc0\xef\xbe"


def other_kind(path: Path) -> tuple[str, str] | None:
    """Return what a file is that is no tar, and what to do with it; None for one that may be a tar.

    Raises OSError where it cannot be read.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        return "neither a folder nor a file", "give a folder of images or a tar"
    if not status.st_size:
        return "empty", "get it again"
    suffix = _suffix(path)
    with open(path, "rb") as file:
        head = file.read(512)
    if suffix == ".npz":
        return _SUFFIXES[suffix]
    for magic, kind, advice in _MAGICS:
        if head.startswith(magic):
            return kind, advice
    if head[16:20] == _LMDB:
        return _SUFFIXES[".mdb"]
    return None if head[257:262] == b"ustar" else _SUFFIXES.get(suffix)


def no_images(folder: Path) -> ValueError:
    """Return the error about a folder without images, which names a file of another kind that may hold them."""
    most = 1000  # of a folder of other things, a look is enough
    for number, path in enumerate(sorted(_files(folder))):
        kind = other_kind(path) if path.exists() else ("a broken link", "correct it")
        if kind is not None:
            return ValueError(f"{folder} holds no images, but {path} is {kind[0]}: {kind[1]}")
        if number >= most:
            break
    return ValueError(f"{folder} holds no images: give a folder or an uncompressed tar of JPEG files")


def _files(folder: Path) -> list[Path]:
    """The files of a folder and of those in it, without what is hidden."""
    found = []
    for path in folder.iterdir():
        if path.is_dir() and not path.name.startswith("."):
            found += [inner for inner in path.iterdir() if not inner.is_dir()]
        elif not path.is_dir():
            found.append(path)
    return [path for path in found if not path.name.startswith(".")]


def _suffix(path: Path) -> str:
    return os.path.splitext(path.name)[1].lower()
