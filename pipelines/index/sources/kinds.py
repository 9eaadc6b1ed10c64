"""Which files hold images that are read in place; of every other kind what it is, and what to do with it."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path

from fastanc.pipelines.anywhere import head_of
from fastanc.pipelines.index.sources.listing import IMAGE_SUFFIXES, is_rubbish_folder
from fastanc.pipelines.tar_file import BLOCK, is_header

Kind = tuple[str, str]
"""What a file is, and what to do with it."""

_UNPACK = "unpack it, and give the folder"
_PACK = "{pack} makes a plain tar of it once, from which images are read in place"
_OWN = "read it by a torch data set of your own (docs/input.md, Your own data)"
_ONE = ("one image", "give the folder that it lies in")
_7Z, _RAR = ((f"a {kind} archive", _UNPACK) for kind in ("7z", "rar"))
_GZIP, _BZIP2, _XZ, _ZSTD, _LZ4 = (
    (f"compressed ({kind})", _PACK) for kind in ("gzip", "bzip2", "xz", "zstd", "lz4")
)
_COMPRESSED = {"gzip": _GZIP, "bzip2": _BZIP2, "xz": _XZ, "zstd": _ZSTD, "lz4": _LZ4}
_ARROW, _HDF5 = ("an Arrow file", _OWN), ("an HDF5 file", _OWN)
_MATLAB, _SQLITE, _LMDB = ("a MATLAB file", _OWN), ("an SQLite database", _OWN), ("an LMDB database", _PACK)
_NUMPY = ("a NumPy array", "load it, and give fastanc.compress the array")
_PDF = ("a PDF", "give a folder of images")
_WEIGHTS = ("a file of weights", "give a folder of images or a tar as the data set")
_VIDEO = ("a video", "give a folder of its frames")
_MAGICS: tuple[tuple[bytes, Kind], ...] = (
    (b"PK\x05\x06", ("an empty zip archive", "get it again")),
    (b"7z\xbc\xaf\x27\x1c", _7Z),
    (b"Rar!", _RAR),
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
_TEXT = ("a text file", "give the folder or file of the images, and it by `fastanc index --labels`")
READABLE = ("tar", "zip", "parquet", "list")
"""What single files are read: the names of the modules that do."""
_NAMES = {"tar": "a tar", "zip": "a zip", "parquet": "a parquet file", "list": "a text file"}
_SUFFIX_KINDS = {
    ".tar": "tar",
    ".zip": "zip",
    ".parquet": "parquet",
    **dict.fromkeys((".csv", ".tsv", ".psv", ".jsonl", ".ndjson", ".json", ".txt", ".lst"), "list"),
}
_SUFFIXES: dict[str, Kind] = {
    ".npz": ("NumPy arrays", "load them, and give fastanc.compress the pair (images, labels)"),
    ".npy": _NUMPY,
    **dict.fromkeys((".mdb", ".lmdb"), _LMDB),
    **dict.fromkeys((".h5", ".hdf5", ".he5"), _HDF5),
    ".mat": _MATLAB,
    **dict.fromkeys((".arrow", ".feather"), _ARROW),
    **dict.fromkeys((".sqlite", ".sqlite3"), _SQLITE),
    **dict.fromkeys((".tfrecord", ".tfrecords"), ("a TFRecord file", _OWN)),
    ".rec": ("a RecordIO file", _OWN),
    ".beton": ("an FFCV file", _OWN),
    **dict.fromkeys((".pkl", ".pickle"), ("a pickle", _OWN)),
    **dict.fromkeys((".pt", ".pth"), ("a torch file", _OWN)),
    **dict.fromkeys((".safetensors", ".onnx", ".ckpt"), _WEIGHTS),
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
    **dict.fromkeys((".xml", ".yaml", ".yml"), _TEXT),
    **dict.fromkeys((".md", ".html", ".ipynb", ".log"), _TEXT),
}
_UNKNOWN = (
    "no kind of file that is known",
    "give a folder of images, a tar, a zip, parquet, or a list of paths",
)
_BROKEN = ("no tar (it does not begin with a header)", "get it again, or give a folder of images")
_LMDB_MARK = b"\xde\xc0\xef\xbe"


def kind_of(path: Path) -> str | None:
    """Return which of READABLE a file is, whole or not, by its first bytes and else by its name; None for another.

    Raises OSError where it cannot be read.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or not status.st_size:
        return None
    suffix = os.path.splitext(path.name)[1].lower()
    head = head_of(path, BLOCK)
    if is_header(head) or head[257:262] == b"ustar":
        return "tar"
    if head.startswith(b"PK\x03\x04") and suffix != ".npz":
        return "zip"
    if head.startswith(b"PAR1"):
        return "parquet"
    if any(head.startswith(magic) for magic, _ in _MAGICS):
        return None
    if not head.strip(b"\0") and len(head) == BLOCK and suffix not in _SUFFIXES:  # an empty tar
        return "tar"
    kind = _SUFFIX_KINDS.get(suffix)
    return None if kind == "tar" else kind


def other_kind(path: Path) -> Kind | None:
    """Return what a file is that holds no images to be read in place, and what to do with it; None where it may.

    Raises OSError where it cannot be read.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        return "neither a folder nor a file", "give a folder of images or a tar"
    if not status.st_size:
        return "empty", "get it again"
    if kind_of(path) is not None:
        return None
    suffix = os.path.splitext(path.name)[1].lower()
    head = head_of(path, BLOCK)
    what, advice = _other(head, suffix)
    return what, advice.format(pack=pack_command(path))


def _other(head: bytes, suffix: str) -> Kind:
    if suffix == ".npz":
        return _SUFFIXES[suffix]
    for magic, kind in _MAGICS:
        if head.startswith(magic):
            return kind
    if head[16:20] == _LMDB_MARK:
        return _LMDB
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    return _BROKEN if suffix == ".tar" else _UNKNOWN


def pack_command(path: Path) -> str:
    """Return the command that makes a tar of a source which cannot be read in place."""
    name = path.name.replace("*", "all")
    for suffix in (*_SUFFIXES, *_SUFFIX_KINDS, ".tar"):
        name = name.removesuffix(suffix)
    return f"`{shlex.join(['fastanc', 'pack', str(path), f'{name}.packed.tar'])}`"


class PackFirst(ValueError):
    """A source of a known kind whose images cannot be read in place: `pack` makes a tar of it."""


def pack_first(path: Path, what: str) -> PackFirst:
    """Return the error about a source whose images cannot be read in place."""
    return PackFirst(f"{path} is {what}: {_PACK.format(pack=pack_command(path))}")


def compression_of(path: Path) -> str | None:
    """Return by what a file is compressed, gzip or another; None where it is not."""
    head = head_of(path, 8)
    found = next((kind for magic, kind in _MAGICS if head.startswith(magic)), None)
    return next((name for name, kind in _COMPRESSED.items() if kind is found), None)


def no_images(folder: Path) -> ValueError:
    """Return the error about a folder without images, which names a file of another kind that may hold them."""
    text = ""
    for path, _ in zip(_files(folder), range(_MOST)):
        other = other_kind(path) if path.exists() else ("a broken link", "correct it")
        name = kind_of(path) if other is None else None
        what, advice = other or (_NAMES[name or "tar"], "give it, or the folder that it lies in")
        if name == "list":
            advice = f"give it where it lists paths of images, else {_TEXT[1]}"
        said = f"{folder} holds no images, but {path} is {what}: {advice}"
        if name == "list" or other is not None and other[0] == _TEXT[0]:
            text = text or said
        elif other is None or other[0] != _UNKNOWN[0]:
            return ValueError(said)
    return ValueError(text or f"{folder} holds no images: {_UNKNOWN[1]}")


_MOST = 1000  # files: of a folder of other things, a look is enough


def _files(folder: Path) -> Iterator[Path]:
    """The files of a folder and of those in it, without what is hidden or rubbish."""
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_rubbish_folder(name))
        yield from (Path(here, name) for name in sorted(names) if not name.startswith("."))
