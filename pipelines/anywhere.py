"""What is asked of files and folders, whether they lie on a disk or in a store that is read over the network.

Of a disk the very calls of `os` are made, with their errors; a store answers alike (`remote_path`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from fastanc.pipelines.remote_headers import reading
from fastanc.pipelines.remote_path import RemotePath
from fastanc.pipelines.remote_trouble import give_up

Read = Callable[[int, int], bytes]
"""(length, offset) -> bytes of an open file, fewer at its end."""


class Opened(NamedTuple):
    """A file that ranges of bytes are read of."""

    read: Read
    size: int
    """Bytes."""


@contextmanager
def threads(number: int) -> Iterator[ThreadPoolExecutor]:
    """Yield threads; where the block ends with an error, what they ask of stores ends with it."""
    with ThreadPoolExecutor(number) as pool:
        try:
            yield pool
        except BaseException:
            give_up()
            raise


@contextmanager
def opened(path: Path, scattered: bool = False) -> Iterator[Opened]:
    """Yield a file to read ranges of, by one thread; `scattered` says that most of it is skipped."""
    if isinstance(path, RemotePath):
        yield Opened(reading(path), path.stat().st_size)
        return
    with open(path, "rb", buffering=0) as file:
        if scattered:
            with suppress(AttributeError):  # macOS takes no advice
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        yield opened_as(file.fileno())


def opened_as(descriptor: int) -> Opened:
    """Return an open file of this machine as one to read ranges of."""
    return Opened(partial(os.pread, descriptor), os.fstat(descriptor).st_size)


def for_library(path: Path) -> AbstractContextManager[Any]:
    """Return what a library that reads files is given: the path itself, or a file object of a store's."""
    return path.open("rb") if isinstance(path, RemotePath) else nullcontext(path)


def head_of(path: Path, length: int) -> bytes:
    """Return the first bytes of a file."""
    if isinstance(path, RemotePath):
        return path.read_at(length, 0)
    with open(path, "rb") as file:
        return file.read(length)


def joined(base: Path | str, name: str) -> str | RemotePath:
    """Return a name below a folder: of a disk as text, as the system takes it."""
    return base / name if isinstance(base, RemotePath) else os.path.join(base, name)


def stat_of(path: str | Path) -> Any:
    """Return what `os.stat` says; of a store's file it is asked anew, and not remembered."""
    return path.ask() if isinstance(path, RemotePath) else os.stat(path)


def exists(path: Path) -> bool:
    """Tell whether anything is there, as `os.path.exists`."""
    return path.exists() if isinstance(path, RemotePath) else os.path.exists(path)


def lexists(path: str | Path) -> bool:
    """Tell whether anything is there, a broken link too."""
    return path.exists() if isinstance(path, RemotePath) else os.path.lexists(path)


def listdir(folder: str | Path) -> list[str]:
    """Return the names in a folder."""
    return [entry.name for entry in folder.scan()] if isinstance(folder, RemotePath) else os.listdir(folder)


def scan(folder: str | Path) -> AbstractContextManager[Any]:
    """Return what lies in a folder, as `os.scandir` does."""
    return nullcontext(folder.scan()) if isinstance(folder, RemotePath) else os.scandir(folder)
