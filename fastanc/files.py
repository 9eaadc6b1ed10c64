"""A file or folder appears whole or not at all: written beside its place, made durable, then renamed over it."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

TEMPORARY = ".tmp"
"""Suffix of what is not finished; after a kill it may stay, and whoever owns the folder may `sweep` it."""

HOUR_S = 3600.0
"""A writer at work touches its file more often than that."""

_SCRATCH = re.compile(r"\.(.+)\.[0-9a-f]+\.tmp", re.DOTALL)


@contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a name beside `path`; the file or folder that the block leaves there takes the place of `path`.

    Content and name are on the disk (fsync) when it returns; on any error `path` stays as it was. A link stays a
    link, and what it points to is replaced; a pipe or a device is written itself. Raises OSError that names `path`.
    """
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):
        yield path
        return
    place = Path(os.path.realpath(path))
    part = scratch(place)
    try:
        with named(path, part):
            yield part
            put(part, place)
    except BaseException:
        remove(part)
        raise


@contextmanager
def written(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Yield a binary file that takes the place of `path` when the block ends; see `whole`."""
    with whole(path) as part, open(part, "wb") as file:
        yield file


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write bytes so that `path` holds all of them or what it held before."""
    with written(path) as file:
        file.write(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text, UTF-8, so that `path` holds all of it or what it held before."""
    write_bytes(path, text.encode())


@contextmanager
def workspace(folder: Path, name: str) -> Iterator[Path]:
    """Yield an empty folder inside `folder`, from which `put` takes what is finished; it is gone afterwards.

    Raises OSError that names `folder`.
    """
    inside = scratch(folder / name)
    try:
        with named(folder, inside):
            inside.mkdir()
            yield inside
    finally:
        remove(inside)


def put(part: Path, path: Path) -> None:
    """Make a finished file or folder durable and give it its name.

    A folder of that name is moved aside first, because no folder can be renamed over it: a kill in that moment
    leaves none. Raises OSError; IsADirectoryError where a file would take the place of a folder.
    """
    if path.is_dir() and not part.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    inside = part.rglob("*") if part.is_dir() else ()
    for file in (*inside, part):
        sync(file)
    if not path.is_dir():
        os.replace(part, path)
        sync(path.parent)
        return
    aside = scratch(path)
    os.replace(path, aside)
    try:
        os.replace(part, path)
    except OSError:
        os.replace(aside, path)
        raise
    sync(path.parent)
    remove(aside)


def scratch(path: Path) -> Path:
    """Return a name beside `path` that nobody else uses, for what will be renamed to it."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")


def sweep(folder: Path, *names: str, older_than_s: float = 0.0) -> list[Path]:
    """Remove what killed writers left in a folder, and return it; with `names`, only what was to become these.

    Where others may write at the same time, give an age: `HOUR_S`.
    """
    removed = []
    with suppress(OSError):
        for path in sorted(folder.iterdir()):
            match = _SCRATCH.fullmatch(path.name)
            if match and (not names or match[1] in names) and _age_s(path) >= older_than_s:
                remove(path)
                removed.append(path)
    return removed


def _age_s(path: Path) -> float:
    """Return the seconds since a file, or anything in a folder, was last written."""
    try:
        newest = max(p.stat().st_mtime for p in (path, *path.rglob("*")))
    except OSError:  # its writer is at work
        return 0.0
    return time.time() - newest


def remove(path: Path) -> None:
    """Remove a file or folder as far as that is possible; never raises, and a folder disappears whole too."""
    with suppress(OSError):
        if not path.is_dir() or path.is_symlink():
            path.unlink(missing_ok=True)
            return
        if not _SCRATCH.fullmatch(path.name):
            path = path.rename(scratch(path))
        shutil.rmtree(path, ignore_errors=True)


def make_folder(folder: Path) -> None:
    """Create a folder and the missing ones above it durably; raises OSError."""
    missing = [above for above in (folder, *folder.parents) if not above.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        sync(made.parent)


def sync(path: str | os.PathLike[str]) -> None:
    """Make a file's content, or a folder's names, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # some file systems do not know this for folders
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not os.path.isdir(path):
            raise
    finally:
        os.close(handle)


@contextmanager
def named(path: str | os.PathLike[str], part: Path | None = None) -> Iterator[None]:
    """Let an OSError of the block name `path`: a full disk says no name, and a scratch file's means nothing."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and (error.filename is None or _lies_in(part, error.filename)):
            error.filename = os.fspath(path)
        raise


def _lies_in(part: Path | None, name: object) -> bool:
    return (
        part is not None and isinstance(name, str | os.PathLike) and part in (Path(name), *Path(name).parents)
    )
