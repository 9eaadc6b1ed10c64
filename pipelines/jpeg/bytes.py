"""The stored bytes of images: ranges of mapped tars, or whole small files."""

from __future__ import annotations

import mmap
import os
import resource
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import NamedTuple, Protocol

import numpy as np

Place = tuple[str, int, int]
_THREADS = 8
_CHECK_ROWS = 1 << 16
_ADVICE = "run `fastanc index --refresh` on the set"


class Indexed(Protocol):
    """What the readers and decoders use of an index."""

    @property
    def sizes(self) -> np.ndarray:
        """[N, 2] (w, h) in pixels of the stored images, unrotated."""

    @property
    def labels(self) -> np.ndarray | None:
        """[N] int64, or None."""

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""

    @property
    def fingerprint(self) -> str:
        """What the set is, in a few hex digits."""

    def __len__(self) -> int: ...

    def places(self, indices: Sequence[int]) -> list[Place]:
        """Return (path of the holding file, offset, length) in bytes; offset 0 is a whole file."""

    def subset(self, numbers: np.ndarray) -> Indexed:
        """Return the index of some images, renumbered; its fingerprint says which."""

    def containers(self) -> list[tuple[str, int]]:
        """Return (path, expected bytes) of every file that holds images."""

    def name(self, i: int) -> str:
        """Return what to call image i in a message."""


class ChangedImage(RuntimeError):
    """An image's file is not as it was when the set was indexed."""


class _Container(NamedTuple):
    """A tar, open for announcing and mapped for reading."""

    descriptor: int
    pages: mmap.mmap


class Reader:
    """Reads the bytes of images on a few threads, which wait for the disk at the same time.

    A tar is mapped once and its ranges are handed out without a copy: the kernel is told of them here
    (posix_fadvise) and the decoder's threads touch them later. A file of a tree is read whole: to open, map,
    fault in and unmap it costs as much CPU as to copy it, and would hold a descriptor for every image.
    """

    def __init__(self, index: Indexed) -> None:
        self._index = index
        self._containers: dict[str, _Container] = {}
        self._opening = Lock()
        self._threads = ThreadPoolExecutor(_THREADS, "read")
        # Two descriptors of every tar are held, of which there may be thousands; the usual limit is 1024.
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    def read(self, indices: np.ndarray) -> list[np.ndarray]:
        """Return the encoded bytes [length] uint8 of these images.

        Raises ChangedImage that names the first image whose file is not as it was when the set was indexed.
        """
        places = self._index.places(indices.tolist())
        share = -(-len(places) // _THREADS) or 1
        parts = [range(a, min(a + share, len(places))) for a in range(0, len(places), share)]
        read = self._threads.map(lambda part: [self._read(places[k], int(indices[k])) for k in part], parts)
        return [data for part in read for data in part]

    def _read(self, place: Place, image: int) -> np.ndarray:
        path, offset, length = place
        try:
            data = self._range(path, offset, length) if offset else _whole(path, length)
        except OSError as error:
            raise ChangedImage(f"{self._index.name(image)} cannot be read ({error}): {_ADVICE}") from error
        if data is None:
            raise ChangedImage(f"{self._index.name(image)} changed since it was indexed: {_ADVICE}")
        return data

    def _range(self, path: str, offset: int, length: int) -> np.ndarray | None:
        """The bytes of a tar's range, or None where the tar has become too short for it."""
        with self._opening:
            if path not in self._containers:
                self._containers[path] = _open(path)
        descriptor, pages = self._containers[path]
        # A mapped tar that shrank would end the process (SIGBUS) at the first touch beyond its end.
        if os.fstat(descriptor).st_size < offset + length:
            return None
        os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_WILLNEED)
        return np.frombuffer(pages, np.uint8, length, offset)

    def close(self) -> None:
        """End the threads; mapped ranges stay valid for as long as somebody holds them."""
        self._threads.shutdown(cancel_futures=True)
        for descriptor, _ in self._containers.values():
            os.close(descriptor)
        self._containers.clear()


def _open(path: str) -> _Container:
    descriptor = os.open(path, os.O_RDONLY)
    pages = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
    pages.madvise(mmap.MADV_RANDOM)
    return _Container(descriptor, pages)


def _whole(path: str, length: int) -> np.ndarray | None:
    """The bytes of a file, or None where its length is another one."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if os.fstat(descriptor).st_size != length:
            return None
        data = np.empty(length, np.uint8)
        return data if os.preadv(descriptor, [data.data], 0) == length else None
    finally:
        os.close(descriptor)


def check(index: Indexed) -> None:
    """Compare the size of every file of a set with its index, on several threads.

    Raises ValueError that names the first file that is missing or has another size: DALI ends the process on
    some cut files, so they must never reach it.
    """
    with ThreadPoolExecutor(2 * _THREADS, "check") as threads:
        for expected in _expected(index):
            share = -(-len(expected) // (2 * _THREADS)) or 1
            parts = [expected[a : a + share] for a in range(0, len(expected), share)]
            for wrong in threads.map(_first_changed, parts):
                if wrong:
                    raise ValueError(f"{wrong} since the set was indexed: {_ADVICE}")


def _expected(index: Indexed) -> Iterator[list[tuple[str, int]]]:
    """(path, bytes) of all files, in lists of a bounded length for a tree, which has one file an image."""
    if not len(index) or index.places([0])[0][1]:
        yield index.containers()
        return
    for first in range(0, len(index), _CHECK_ROWS):
        rows = range(first, min(first + _CHECK_ROWS, len(index)))
        yield [(path, length) for path, _, length in index.places(rows)]


def _first_changed(files: list[tuple[str, int]]) -> str | None:
    for path, length in files:
        try:
            size = os.stat(path).st_size
        except OSError:
            return f"{path} went missing"
        if size != length:
            return f"{path} changed from {length} to {size} bytes"
    return None
