"""Rows go to disk from a thread of its own; the training step hands them over and goes on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fastanc.cache.store import Store
from fastanc.pipelines.transfer import moved
from fastanc.pipelines.waiting import waiting

_QUEUED_BATCHES = 64


class _Piece:
    """Rows of one view on their way: on the host once `ready` has passed."""

    def __init__(self, view: int, index: np.ndarray, rows: Mapping[str, Tensor]) -> None:
        self.view, self.index = view, index
        self.rows: dict[str, Tensor] = {}
        self.ready: torch.cuda.Event | None = None
        for name, value in rows.items():
            if not value.is_cuda:
                self.rows[name] = value
                continue
            self.rows[name] = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            self.rows[name].copy_(value, non_blocking=True)
            self.ready = torch.cuda.Event()
            self.ready.record()


class Writer:
    """Writes rows behind the training step, a batch at a time.

    An error of the thread is raised by the next call. The rows that it could not write are not in the cache.

    Args:
        store: to write to.
    """

    def __init__(self, store: Store) -> None:
        store.check_writable()
        self.bytes_written = 0
        self._store = store
        self._queue: queue.Queue[_Piece | None] = queue.Queue(_QUEUED_BATCHES)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="cache-write", daemon=True)
        self._thread.start()

    def add(self, view: np.ndarray, index: np.ndarray, rows: Mapping[str, Tensor]) -> None:
        """Hand over rows as stored, field name -> [B, row width], of views [B] and images [B]."""
        self._raise()
        for number in np.unique(view).tolist():
            at = np.flatnonzero(view == number)
            if len(at) == len(view):
                self._put(_Piece(number, index, rows))
                continue
            chosen = moved(torch.from_numpy(at), next(iter(rows.values())).device)
            self._put(_Piece(number, index[at], {k: v[chosen] for k, v in rows.items()}))

    def _put(self, piece: _Piece) -> None:
        with waiting():  # where the queue is full
            self._queue.put(piece)

    def drain(self) -> None:
        """Return when everything handed over so far can be read."""
        with waiting():
            self._queue.join()
        self._raise()

    def flush(self) -> None:
        """Return when everything handed over so far is durable: a power failure leaves it."""
        self.drain()
        self._store.sync()

    def close(self) -> None:
        """Write everything and end the thread."""
        if self._thread.is_alive():
            try:
                self.flush()
            finally:
                self._queue.put(None)
                self._thread.join()

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _work(self) -> None:
        while (piece := self._queue.get()) is not None:
            try:
                if piece.ready is not None:
                    piece.ready.synchronize()
                self.bytes_written += self._store.put_rows(piece.view, piece.index, piece.rows)
            except BaseException as error:  # handed to the training thread
                self._error = error
            finally:
                self._queue.task_done()
