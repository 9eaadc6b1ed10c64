"""Many ranges of files in a store, in order: neighbours in one request, several requests on their way at once.

What waits is bounded: so many blocks of so many bytes. No byte of an image is asked for twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple, TypeVar

from fastanc.pipelines.remote_path import RemotePath
from fastanc.pipelines.remote_trouble import changed, give_up

T = TypeVar("T")
R = TypeVar("R")

Place = tuple[RemotePath, int, int]
"""A file, and (offset, length) of a range of it, bytes."""

BLOCK = 4 << 20
"""Bytes of a request that is put together from several ranges; one range alone may be longer."""
NEAR = 1 << 16
"""Bytes between two images that are rather read than skipped: less than a request costs."""
_AHEAD = 8


class _Block(NamedTuple):
    path: RemotePath
    start: int
    end: int
    ranges: list[tuple[int, int]]


def read_ranges(places: Iterable[Place], near: int = NEAR) -> Iterator[bytes | FileNotFoundError]:
    """Yield the bytes of every place in order, or the error where its file is not there.

    A range that starts at 0 is that of a whole file. Raises StoreError where the store fails, ValueError where a file
    changed. `near` are the bytes between two ranges that are read too.
    """
    for block, data in asked_ahead(_read, _blocks(places, near)):
        for offset, length in block.ranges:
            if isinstance(data, bytes):
                yield data[offset - block.start : offset - block.start + length]
            else:
                yield data


def asked_ahead(ask: Callable[[T], R], pieces: Iterator[T]) -> Iterator[tuple[T, R]]:
    """Yield every piece with what `ask` returns of it, in order; some are asked at once.

    Where the loop is left before its end, what is still asked of stores ends with it.
    """
    pool = ThreadPoolExecutor(_AHEAD, "ahead")
    begun = deque[tuple[T, Future[R]]]()
    try:
        begun.extend((piece, pool.submit(ask, piece)) for piece in islice(pieces, _AHEAD))
        while begun:
            piece, future = begun[0]
            result = future.result()
            yield piece, result
            begun.popleft()
            begun.extend((more, pool.submit(ask, more)) for more in islice(pieces, 1))
    finally:
        if begun:
            give_up()
        pool.shutdown(wait=False, cancel_futures=True)


def _blocks(places: Iterable[Place], near: int) -> Iterator[_Block]:
    block: _Block | None = None
    for path, offset, length in places:
        end = offset + length
        fits = block is not None and path == block.path and 0 <= offset - block.end <= near
        if block is not None and fits and end - block.start <= BLOCK:
            block.ranges.append((offset, length))
            block = block._replace(end=end)
        else:
            if block is not None:
                yield block
            block = _Block(path, offset, end, [(offset, length)])
    if block is not None:
        yield block


def _read(block: _Block) -> bytes | FileNotFoundError:
    try:
        if not block.start:
            return block.path.read_whole(block.end)
        block.path.check_once()
        return block.path.read_at(block.end - block.start, block.start)
    except FileNotFoundError as error:
        if block.ranges[0][0]:  # not one image of many, but the file that holds them
            raise changed(str(block.path)) from None
        return error
