"""The teacher that fills the cache while it teaches: the first student pays, every later one rides.

A batch goes through four stations. Its rows were read ahead, as far as they are there. Those that are missing are
looked for once more, since this process has handed over more rows than are committed (it then waits for its own
writer), and another process may fill the same view (looked at every few seconds, not in every step). The teacher runs
for the rest: for the whole batch where much is missing, so that its arithmetic is that of an uninterrupted run, or
for the few images alone, repeated up to one fixed size, so that a compiled teacher meets one more shape and not many.
And what it says is rounded to rows *before* the student sees it: the first student's targets are the bits that every
later one reads. Of a batch's rows the first is written last: a run that is killed and goes on either finds all of
them or lacks the first, runs the whole batch again, and computes the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from fastanc.batch import Batch, Outputs
from fastanc.cache.rows import decode, encode, outputs_of, values_of
from fastanc.cache.store import Store
from fastanc.cache.writer import Writer
from fastanc.pipelines.transfer import moved
from fastanc.pipelines.waiting import waiting
from fastanc.teacher.online import Online
from fastanc.teacher.prefetch import Fetched, Picked, ReadAhead

_AHEAD = 4
_FEW = 8
_LOOK_AGAIN_S = 5.0


class Filling:
    """Reads the rows that are there, runs the teacher for the others and adds them to the cache.

    The student always sees rows as they are stored, so the first student's targets equal the later ones'. A
    batch of which more than an eighth or the first image is missing goes through the teacher whole, else only its
    missing images do: so a run that is killed and resumed computes the same bits.

    Args:
        online: the teacher.
        store: the cache, opened for writing.
        head: the teacher's last linear layer; None where the cache stores logits.
        picks: step -> index and view of this process; None reads without looking ahead.
        device: of the training.

    Raises:
        ValueError: the folder cannot be written, the disk is full, a row is not finite (at the next call).
    """

    def __init__(
        self,
        online: Online,
        store: Store,
        head: nn.Linear | None,
        picks: Callable[[int], Picked] | None = None,
        *,
        device: torch.device | str,
    ) -> None:
        device = torch.device(device)
        self.rows_read = 0
        self.online, self.store, self._fields = online, store, store.fields
        self._head = None if head is None else head.to(device)
        self._writer = Writer(store)
        self._reader = store.reader()
        self._ahead = ReadAhead(self._reader, picks, _AHEAD, device, partial=True)
        self._taken: dict[int, np.ndarray] = {}  # view -> [N] bool: rows handed to the writer
        self._looked_s = -_LOOK_AGAIN_S

    @property
    def rows_computed(self) -> int:
        """Images the teacher was run on."""
        return self.online.rows_computed

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Outputs:
        """Return the teacher's outputs on a batch, float32: logits [B, K] and the fields of the cache."""
        fetched = self._ahead.take(batch)
        if not fetched.present.all():
            fetched = self._looked_again(batch, fetched)
        rows, absent = fetched.rows, np.flatnonzero(~fetched.present)
        self.rows_read += len(batch.index) - len(absent)
        if len(absent):
            rows = self._completed(batch, rows, absent)
        return outputs_of(decode(rows, self._fields), self._head)

    def _looked_again(self, batch: Batch, fetched: Fetched) -> Fetched:
        """Read once more where rows may have come since they were read ahead, by this process or another."""
        absent = ~fetched.present
        index, view = batch.index[absent], batch.view[absent]
        views = np.unique(view).tolist()
        if any(self._noted(v)[index[view == v]].any() for v in views):
            self._writer.drain()
        elif time.monotonic() - self._looked_s < _LOOK_AGAIN_S:
            return fetched
        self._looked_s = time.monotonic()
        with waiting():
            found = any(self.store.look_again(v, index[view == v]).any() for v in views)
            return self._ahead.read_now(batch) if found else fetched

    def _noted(self, view: int) -> np.ndarray:
        if view not in self._taken:
            self._taken[view] = np.zeros(self.store.num_images, bool)
        return self._taken[view]

    def _completed(self, batch: Batch, rows: dict[str, Tensor], absent: np.ndarray) -> dict[str, Tensor]:
        """Run the teacher for the missing rows, hand them to the writer, and return all rows."""
        size = len(batch.index)
        few = len(absent) <= size // _FEW and absent[0] > 0
        computed = self._computed(_part(batch, absent), size // _FEW) if few else self._computed(batch)
        if few or len(absent) == size:
            fresh = computed
        else:
            chosen = moved(torch.from_numpy(absent), batch.images.device)
            fresh = {name: value.index_select(0, chosen) for name, value in computed.items()}
        index, view = batch.index[absent], batch.view[absent]
        self._writer.add(view, index, fresh)
        for number in np.unique(view).tolist():
            self._noted(number)[index[view == number]] = True
        if len(absent) == size:
            return fresh
        where = moved(torch.from_numpy(absent), batch.images.device)
        return {name: value.index_copy(0, where, fresh[name]) for name, value in rows.items()}

    def _computed(self, batch: Batch, size: int = 0) -> dict[str, Tensor]:
        return encode(values_of(self.online(batch, size), self._fields), self._fields)

    def flush(self) -> None:
        """Return when every row computed so far is on disk."""
        self._writer.flush()
        self._looked_s = -_LOOK_AGAIN_S

    def close(self) -> None:
        """Write everything and stop reading."""
        try:
            self._writer.close()
        finally:
            self._ahead.close()
            self._reader.close()


def _part(batch: Batch, at: np.ndarray) -> Batch:
    """Return some images of a batch."""
    images = batch.images[moved(torch.from_numpy(at), batch.images.device)]
    if images.dim() == 4:
        images = images.contiguous(memory_format=torch.channels_last)
    return replace(batch, images=images, index=batch.index[at], view=batch.view[at], labels=None)
