"""Rows on the training device before they are asked for: reading ahead by step, or a cache kept in memory.

The order of the images is arithmetic, so what step k + 4 will ask for is known at step k. `ReadAhead.take(batch)`
hands out the rows that a thread has read for this step and lets it begin with the coming ones. Three things could go
wrong. The batch may not be what `picks` said (an evaluation, a loop of somebody's own): then the prepared rows are
left alone and the right ones are read now. On a GPU the thread copies on a stream of its own, so the training stream
waits for the copy's event, not for the host, and `record_stream` tells the allocator that the memory is in use there
until the step has passed. And rows that were missing when they were read ahead may have been written since: that is
`Filling`'s to look after.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from fastanc.batch import Batch
from fastanc.cache.reader import Reader
from fastanc.pipelines.transfer import moved
from fastanc.pipelines.waiting import waiting

_LOAD_ROWS = 16384


class Picked(Protocol):
    """What `picks(step)` returns: index [B] and view [B], int64."""

    @property
    def index(self) -> np.ndarray: ...  # noqa: D102
    @property
    def view(self) -> np.ndarray: ...  # noqa: D102


class Source(Protocol):
    """Where rows come from: a Reader or a Resident."""

    def read(  # noqa: D102
        self, index: np.ndarray, view: np.ndarray, *, partial: bool = False, pin: bool = False
    ) -> tuple[dict[str, Tensor], np.ndarray]: ...


class Resident:
    """Every row of some complete views in one tensor per part, on the host or on the device.

    Args:
        reader: to load them with; serves the other views.
        views: to keep.
        num_images: of a view.
        device: to keep them on.
    """

    def __init__(self, reader: Reader, views: Sequence[int], num_images: int, device: torch.device) -> None:
        self._reader, self._views, self._num_images = reader, np.asarray(sorted(views)), num_images
        self._tables: dict[str, Tensor] = {}
        for slot, view in enumerate(self._views.tolist()):
            for first in range(0, num_images, _LOAD_ROWS):
                index = np.arange(first, min(first + _LOAD_ROWS, num_images))
                rows, _ = reader.read(index, np.full(len(index), view))
                for name, block in rows.items():
                    if name not in self._tables:
                        shape = (len(self._views) * num_images, block.shape[1])
                        self._tables[name] = torch.empty(shape, dtype=block.dtype, device=device)
                    start = slot * num_images + first
                    self._tables[name][start : start + len(index)] = block.to(device)

    def read(
        self, index: np.ndarray, view: np.ndarray, *, partial: bool = False, pin: bool = False
    ) -> tuple[dict[str, Tensor], np.ndarray]:
        """Return rows as `Reader.read` does, on the device where they are kept."""
        if not np.isin(view, self._views).all():
            return self._reader.read(index, view, partial=partial, pin=pin)
        place = torch.from_numpy(np.searchsorted(self._views, view) * self._num_images + index)
        rows = {}
        for name, table in self._tables.items():
            if table.is_cuda:
                rows[name] = table.index_select(0, moved(place, table.device))
            else:
                out = torch.empty(len(index), table.shape[1], dtype=table.dtype, pin_memory=pin)
                rows[name] = torch.index_select(table, 0, place, out=out)
        return rows, np.ones(len(index), bool)


class Fetched(NamedTuple):
    """Rows on the training device."""

    rows: dict[str, Tensor]
    present: np.ndarray
    ready: torch.cuda.Event | None = None
    """Passed when the copy to the device is done."""


class ReadAhead:
    """Rows of a batch on the device, read some steps earlier by a thread and copied on a stream of its own.

    Args:
        source: of the rows.
        picks: step -> the images and views of this process; None never reads ahead.
        ahead: steps.
        device: of the training.
        partial: leave missing rows unset instead of raising.
    """

    def __init__(
        self,
        source: Source,
        picks: Callable[[int], Picked] | None,
        ahead: int,
        device: torch.device,
        partial: bool,
    ) -> None:
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        self._source, self._picks, self._ahead = source, picks, ahead
        self._device, self._partial = device, partial
        self._cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._cuda else None
        # A new thread's device is 0: without this every process would open a context there.
        begin = (lambda: torch.cuda.set_device(device)) if self._cuda else None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="cache-ahead", initializer=begin)
        self._due: dict[int, tuple[Picked, Future[Fetched]]] = {}

    def take(self, batch: Batch) -> Fetched:
        """Return a batch's rows, waiting where they are not there yet; start reading for the next steps.

        A batch that is not what `picks` says of its step is read directly.
        """
        due = self._due.get(batch.step)
        expected = due[0] if due else None
        if due is None and self._picks is not None and self._ahead:
            expected = self._picks(batch.step)
        in_order = expected is not None and _same(expected, batch)
        if in_order:
            self._schedule(batch.step)
        with waiting():
            fetched = due[1].result() if due and in_order else self.read_now(batch)
        if fetched.ready is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(fetched.ready)
            for value in fetched.rows.values():
                value.record_stream(current)
        return fetched

    def read_now(self, picked: Picked | Batch) -> Fetched:
        """Read rows in this thread, onto the current stream."""
        rows, present = self._source.read(picked.index, picked.view, partial=self._partial, pin=self._cuda)
        return Fetched({k: v.to(self._device, non_blocking=True) for k, v in rows.items()}, present)

    def _schedule(self, step: int) -> None:
        assert self._picks is not None
        for late in [s for s in self._due if s <= step]:
            self._due.pop(late)
        for coming in range(step + 1, step + 1 + self._ahead):
            if coming not in self._due:
                picked = self._picks(coming)
                self._due[coming] = (picked, self._pool.submit(self._fetch, picked))

    def _fetch(self, picked: Picked) -> Fetched:
        if self._stream is None:
            return self.read_now(picked)
        with torch.cuda.stream(self._stream):
            fetched = self.read_now(picked)
            ready = torch.cuda.Event()
            ready.record(self._stream)
        return fetched._replace(ready=ready)

    def close(self) -> None:
        """Stop reading."""
        self._pool.shutdown(cancel_futures=True)


def _same(picked: Picked, batch: Batch) -> bool:
    return np.array_equal(picked.index, batch.index) and np.array_equal(picked.view, batch.view)
