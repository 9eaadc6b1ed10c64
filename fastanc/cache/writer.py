"""Rows go to disk from a thread of its own; the training step hands them over and goes on."""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fastanc.cache.store import Store

_QUEUED_BATCHES = 64


class _Piece:
    """Rows on their way: on the host once `ready` has passed."""

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
    """Collects rows and commits them a shard at a time; a batch's rows of a view always share a shard.

    An error of the thread is raised by the next call. What was not committed then is not in the cache.

    Args:
        store: to write to.
    """

    def __init__(self, store: Store) -> None:
        store.check_writable()
        self.bytes_written = 0
        self._store = store
        self._pending: dict[int, list[_Piece]] = {}
        # Counted along: a sum over the pieces of a shard would make small batches dearer the more there are.
        self._rows: Counter[int] = Counter()
        self._queue: queue.Queue[_Piece | threading.Event | None] = queue.Queue(_QUEUED_BATCHES)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="cache-write", daemon=True)
        self._thread.start()

    def add(self, view: np.ndarray, index: np.ndarray, rows: Mapping[str, Tensor]) -> None:
        """Hand over rows as stored, part name -> [B, part width], of views [B] and images [B]."""
        self._raise()
        for number in np.unique(view).tolist():
            at = np.flatnonzero(view == number)
            if len(at) == len(view):
                self._queue.put(_Piece(number, index, rows))
                continue
            chosen = torch.from_numpy(at)
            self._queue.put(_Piece(number, index[at], {k: v[chosen.to(v.device)] for k, v in rows.items()}))

    def flush(self) -> None:
        """Commit everything handed over so far; returns when it is on disk."""
        done = threading.Event()
        self._queue.put(done)
        done.wait()
        self._raise()

    def close(self) -> None:
        """Commit everything and end the thread."""
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
        while (item := self._queue.get()) is not None:
            try:
                if isinstance(item, threading.Event):
                    for view in list(self._pending):
                        self._commit(view)
                else:
                    self._collect(item)
            except BaseException as error:  # handed to the training thread
                self._error = error
            if isinstance(item, threading.Event):
                item.set()

    def _collect(self, piece: _Piece) -> None:
        if piece.ready is not None:
            piece.ready.synchronize()
        self._pending.setdefault(piece.view, []).append(piece)
        self._rows[piece.view] += len(piece.index)
        if self._rows[piece.view] >= self._store.rows_per_shard:
            self._commit(piece.view)

    def _commit(self, view: int) -> None:
        pieces = self._pending.pop(view)
        del self._rows[view]
        index = np.concatenate([piece.index for piece in pieces])
        rows = {name: torch.cat([piece.rows[name] for piece in pieces]).numpy() for name in pieces[0].rows}
        self.bytes_written += self._store.put_rows(view, index, rows)
        self._store.table(view).refresh()
