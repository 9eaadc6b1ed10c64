"""The stored bytes of images: ranges of tars, or whole small files."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Lock
from typing import NamedTuple, Protocol

import numpy as np

Place = tuple[str, int, int]
_THREADS = 8
_CHECK_ROWS = 1 << 16
ADVICE = "run `fastanc index --refresh` on the set"


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


def undecodable(step: int, who: str) -> str:
    """Return the sentence about an image that does not decode in a step."""
    return f"step {step}: {who} does not decode: leave it out by `fastanc index --full` on the set"


class _Tar(NamedTuple):
    """A tar, open for reading."""

    descriptor: int
    size: int
    mtime_ns: int
    """As they were when it was opened."""


class Reader:
    """Reads the bytes of images on a few threads, which wait for the disk at the same time.

    They are copied out: pages of a mapped file that somebody cuts would end the process (SIGBUS) when the decoder
    touches them, and to copy costs no more CPU than to fault them in. A tar stays open; a file of a tree is opened
    anew, or it would hold a descriptor for every image.
    """

    def __init__(self, index: Indexed) -> None:
        self._index = index
        self._tars: dict[str, _Tar] = {}
        self._opening = Lock()
        self._threads = ThreadPoolExecutor(_THREADS, "read")
        # A descriptor of every tar is held, of which there may be thousands; the usual limit is 1024.
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        with suppress(ValueError):  # macOS promises more than it gives
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    def read(self, indices: np.ndarray) -> list[np.ndarray]:
        """Return the encoded bytes [length] uint8 of these images.

        Raises ChangedImage that names the first image whose file is not as it was when the set was indexed.
        """
        places = self._index.places(indices.tolist())
        share = -(-len(places) // _THREADS) or 1
        parts = [range(a, min(a + share, len(places))) for a in range(0, len(places), share)]

        def read(part: range) -> list[np.ndarray]:
            for k in part:  # the disk is told of all of them before one is waited for
                self._announce(places[k])
            return [self._read(places[k], int(indices[k])) for k in part]

        return [data for part in self._threads.map(read, parts) for data in part]

    def _announce(self, place: Place) -> None:
        path, offset, length = place
        with suppress(OSError, AttributeError):  # which reading it will name; macOS takes no advice
            if offset:
                os.posix_fadvise(self._tar(path).descriptor, offset, length, os.POSIX_FADV_WILLNEED)

    def _tar(self, path: str) -> _Tar:
        with self._opening:
            if path not in self._tars:
                self._tars[path] = _open(path)
            return self._tars[path]

    def _read(self, place: Place, image: int) -> np.ndarray:
        path, offset, length = place
        try:
            data = self._range(path, offset, length) if offset else _whole(path, length)
        except OSError as error:
            raise ChangedImage(f"{self._index.name(image)} cannot be read ({error}): {ADVICE}") from error
        if data is None:
            raise ChangedImage(f"{self._index.name(image)} changed since it was indexed: {ADVICE}")
        return data

    def _range(self, path: str, offset: int, length: int) -> np.ndarray | None:
        """The bytes of a tar's range, or None where the tar has become too short for it or was written over."""
        tar = self._tar(path)
        now = os.fstat(tar.descriptor)
        if now.st_size == tar.size and now.st_mtime_ns != tar.mtime_ns:
            return None
        return _exactly(tar.descriptor, offset, length)

    def close(self) -> None:
        """End the threads, and close the tars."""
        self._threads.shutdown(cancel_futures=True)
        for tar in self._tars.values():
            os.close(tar.descriptor)
        self._tars.clear()


def _open(path: str) -> _Tar:
    descriptor = os.open(path, os.O_RDONLY)
    with suppress(AttributeError):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # the images of a step lie far apart
    status = os.fstat(descriptor)
    return _Tar(descriptor, status.st_size, status.st_mtime_ns)


def _whole(path: str, length: int) -> np.ndarray | None:
    """The bytes of a file, or None where its length is another one."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return _exactly(descriptor, 0, length) if os.fstat(descriptor).st_size == length else None
    finally:
        os.close(descriptor)


def _exactly(descriptor: int, offset: int, length: int) -> np.ndarray | None:
    """Bytes of a file, or None where it ends before."""
    data = np.empty(length, np.uint8)
    return data if os.preadv(descriptor, [data.data], offset) == length else None


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
                    raise ValueError(f"{wrong} since the set was indexed: {ADVICE}")


def _expected(index: Indexed) -> Iterator[list[tuple[str, int]]]:
    """(path, bytes) of all files, in lists of a bounded length for a tree, which has one file an image."""
    if not len(index) or index.places([0])[0][1]:
        yield index.containers()
        return
    ranges = False
    for first in range(0, len(index), _CHECK_ROWS):
        rows = index.places(range(first, min(first + _CHECK_ROWS, len(index))))
        yield [(path, length) for path, offset, length in rows if not offset]
        ranges = ranges or any(offset for _, offset, _ in rows)
    if ranges:  # of parts of several kinds
        yield index.containers()


def _first_changed(files: list[tuple[str, int]]) -> str | None:
    for path, length in files:
        try:
            size = os.stat(path).st_size
        except OSError:
            return f"{path} went missing"
        if size != length:
            return f"{path} changed from {length} to {size} bytes"
    return None
