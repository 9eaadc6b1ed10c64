"""Files that hold no images which could be read in place: what each is, and what to do with it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from fastanc.pipelines.index.sources.listing import IMAGE_SUFFIXES, is_rubbish_folder
from fastanc.pipelines.tar_file import BLOCK, is_header

Kind = tuple[str, str]
"""What a file is, and what to do with it."""

_UNPACK = "unpack it, and give the folder"
_PLAIN = "decompress it, images are read in place from a plain tar"
_OWN = "read it by a torch data set of your own (docs/input.md, Your own data)"
_ONE = ("one image", "give the folder that it lies in")
_ZIP, _7Z, _RAR = ((f"a {kind} archive", _UNPACK) for kind in ("zip", "7z", "rar"))
_GZIP, _BZIP2, _XZ, _ZSTD, _LZ4 = (
    (f"compressed ({kind})", _PLAIN) for kind in ("gzip", "bzip2", "xz", "zstd", "lz4")
)
_PARQUET, _ARROW, _HDF5 = ("a parquet file", _OWN), ("an Arrow file", _OWN), ("an HDF5 file", _OWN)
_MATLAB, _SQLITE, _LMDB = ("a MATLAB file", _OWN), ("an SQLite database", _OWN), ("an LMDB database", _OWN)
_NUMPY = ("a NumPy array", "load it, and give fastanc.compress the array")
_PDF = ("a PDF", "give a folder of images")
_WEIGHTS = ("a file of weights", "give a folder of images or a tar as the data set")
_VIDEO = ("a video", "give a folder of its frames")
_MAGICS: tuple[tuple[bytes, Kind], ...] = (
    (b"PK\x03\x04", _ZIP),
    (b"PK\x05\x06", ("an empty zip archive", "get it again")),
    (b"7z\xbc\xaf\x27\x1c", _7Z),
    (b"Rar!", _RAR),
    (b"PAR1", _PARQUET),
    (b"ARROW1", _ARROW),
    (b"FEA1", ("an Arrow file (feather)", _OWN)),
    (b"\xff\xff\xff\xff", ("an Arrow stream", _OWN)),
    (b"\x89HDF", _HDF5),
    (b"\x93NUMPY", _NUMPY),
    (b"SQLite format 3", _SQLITE),
    (b"MATLAB", _MATLAB),
    (b"\0\0\x08\x01", ("an IDX file", _OWN)),
    (b"\0\0\x08\x03", ("an IDX file", _OWN)),
    (b"\x28\xb5\x2f\xfd", _ZSTD),
    (b"\x1f\x8b", _GZIP),
    (b"BZh", _BZIP2),
    (b"\xfd7zXZ\x00", _XZ),
    (b"\x04\x22\x4d\x18", _LZ4),
    (b"\xff\xd8\xff", _ONE),
    (b"\x89PNG", _ONE),
    (b"GIF8", _ONE),
    (b"%PDF", _PDF),
    (
        b"version https://git-lfs",
        ("the pointer that Git LFS leaves", "run `git lfs pull` where it comes from"),
    ),
)
_TEXT = ("a text file", "give the folder or tar of the images, and it by `fastanc index --labels`")
_SUFFIXES: dict[str, Kind] = {
    ".npz": ("NumPy arrays", "load them, and give fastanc.compress the pair (images, labels)"),
    ".npy": _NUMPY,
    **dict.fromkeys((".mdb", ".lmdb"), _LMDB),
    **dict.fromkeys((".h5", ".hdf5", ".he5"), _HDF5),
    ".mat": _MATLAB,
    ".parquet": _PARQUET,
    **dict.fromkeys((".arrow", ".feather"), _ARROW),
    **dict.fromkeys((".sqlite", ".sqlite3"), _SQLITE),
    **dict.fromkeys((".tfrecord", ".tfrecords"), ("a TFRecord file", _OWN)),
    ".rec": ("a RecordIO file", _OWN),
    ".beton": ("an FFCV file", _OWN),
    **dict.fromkeys((".pkl", ".pickle"), ("a pickle", _OWN)),
    **dict.fromkeys((".pt", ".pth"), ("a torch file", _OWN)),
    **dict.fromkeys((".safetensors", ".onnx", ".ckpt"), _WEIGHTS),
    ".zip": _ZIP,
    ".7z": _7Z,
    ".rar": _RAR,
    **dict.fromkeys((".gz", ".tgz"), _GZIP),
    **dict.fromkeys((".bz2", ".tbz2"), _BZIP2),
    **dict.fromkeys((".xz", ".txz"), _XZ),
    ".zst": _ZSTD,
    ".lz4": _LZ4,
    ".pdf": _PDF,
    **dict.fromkeys((".mp4", ".avi", ".mov", ".mkv", ".webm"), _VIDEO),
    ".py": ("a Python file", "name it by --plugin, and the data set that it registers by --data.name"),
    **dict.fromkeys(IMAGE_SUFFIXES, _ONE),
    **dict.fromkeys((".csv", ".tsv", ".txt", ".json", ".jsonl", ".xml", ".yaml", ".yml"), _TEXT),
    **dict.fromkeys((".md", ".html", ".ipynb", ".log"), _TEXT),
}
_UNKNOWN = (
    "no tar and no other kind of file that is known",
    "give a folder of images or an uncompressed tar",
)
_BROKEN = ("no tar (it does not begin with a header)", "get it again, or give a folder of images")
_LMDB_MARK = b"\xde\xc0\xef\xbe"


def other_kind(path: Path) -> Kind | None:
    """Return what a file is that is no tar, and what to do with it; None for a tar, whole or not.

    Raises OSError where it cannot be read.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        return "neither a folder nor a file", "give a folder of images or a tar"
    if not status.st_size:
        return "empty", "get it again"
    suffix = os.path.splitext(path.name)[1].lower()
    with open(path, "rb") as file:
        head = file.read(BLOCK)
    if is_header(head) or head[257:262] == b"ustar":
        return None
    if suffix == ".npz":
        return _SUFFIXES[suffix]
    for magic, kind in _MAGICS:
        if head.startswith(magic):
            return kind
    if head[16:20] == _LMDB_MARK:
        return _LMDB
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    if not head.strip(b"\0") and len(head) == BLOCK:  # an empty tar
        return None
    return _BROKEN if suffix == ".tar" else _UNKNOWN


def no_images(folder: Path) -> ValueError:
    """Return the error about a folder without images, which names a file of another kind that may hold them."""
    text = ""
    for path, _ in zip(_files(folder), range(_MOST)):
        kind = other_kind(path) if path.exists() else ("a broken link", "correct it")
        what, advice = kind or ("a tar", "give it, or the folder that it lies in")
        said = f"{folder} holds no images, but {path} is {what}: {advice}"
        if kind is _TEXT:
            text = text or said
        elif kind is not _UNKNOWN:
            return ValueError(said)
    return ValueError(text or f"{folder} holds no images: give a folder or an uncompressed tar of JPEG files")


_MOST = 1000  # files: of a folder of other things, a look is enough


def _files(folder: Path) -> Iterator[Path]:
    """The files of a folder and of those in it, without what is hidden or rubbish."""
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_rubbish_folder(name))
        yield from (Path(here, name) for name in sorted(names) if not name.startswith("."))
