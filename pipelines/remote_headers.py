"""Headers of files in a store: read by small requests, with a bar, since each says where the next one lies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

from fastanc.pipelines.remote_path import RemotePath

_GAP, _LARGEST_AHEAD = 1 << 12, 1 << 20
_PATIENCE_S = 2
_bars: list[tqdm] = []


@contextmanager
def watched(path: object, progress: bool) -> Iterator[None]:
    """Show how far the headers of a source are read, in bytes of its files; of one on a disk nothing."""
    if not isinstance(path, RemotePath):
        yield
        return
    with tqdm(
        total=0, unit="B", unit_scale=True, desc="list", delay=_PATIENCE_S, disable=not progress
    ) as bar:
        _bars.append(bar)
        try:
            yield
        finally:
            _bars.pop()


class Passed:
    """How far one file of so many bytes is read."""

    def __init__(self, size: int) -> None:
        self._position = 0
        for bar in _bars[-1:]:
            bar.total = (bar.total or 0) + size

    def to(self, position: int) -> None:
        """Say that all before a place is done with."""
        step, self._position = max(0, position - self._position), max(position, self._position)
        for bar in _bars[-1:]:
            bar.update(step)


def reading(path: RemotePath) -> Callable[[int, int], bytes]:
    """Return what reads (length, offset) of a file that is mostly skipped through, by one thread.

    Each request takes a few KiB more, where the next header often lies; where the reads go on from there, ever more.
    """
    start, data, ahead = 0, b"", _GAP
    passed = Passed(path.stat().st_size)

    def read(length: int, offset: int) -> bytes:
        nonlocal start, data, ahead
        if offset < start or offset + length > start + len(data):
            near = start <= offset <= start + len(data) + _GAP
            ahead = min(2 * ahead, _LARGEST_AHEAD) if near else _GAP
            kept = data[offset - start :] if start <= offset < start + len(data) else b""
            data = kept + path.read_at(max(length - len(kept), ahead), offset + len(kept))
            start = offset
            passed.to(offset)
        return data[offset - start : offset - start + length]

    return read
