"""A file appears whole or not at all: written beside its place, made durable, then renamed over it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

TEMPORARY = ".tmp"
"""Suffix of what is not finished; after a kill such a file may stay, and whoever owns the folder may remove it."""


@contextmanager
def written(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Yield a binary file that takes the place of `path` when the block ends; on any error `path` stays as it was.

    Content and name are on the disk (fsync of file and folder) when it returns. Raises OSError.
    """
    path = Path(path)
    part = scratch(path)
    try:
        with open(part, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text, UTF-8, so that `path` holds all of it or what it held before."""
    with written(path) as file:
        file.write(text.encode())


def scratch(path: Path) -> Path:
    """Return a name beside `path` that nobody else uses, for what will be renamed to it."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")


def sync(path: str | os.PathLike[str]) -> None:
    """Make a file's content, or a folder's names, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
