"""The teacher from the cache alone: features are read, logits are one small matrix product away."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from fastanc.batch import Batch, Outputs
from fastanc.cache.rows import decode, outputs_of
from fastanc.cache.store import Store
from fastanc.teacher.prefetch import Picked, ReadAhead, Resident, Source

_AHEAD = 4


class Cached:
    """Reads the teacher's outputs, some steps before they are asked for.

    Args:
        store: the cache; every row that is asked for must be in it.
        head: the teacher's last linear layer; None where the cache stores logits.
        picks: step -> index and view of this process, the same arithmetic as the input's order.
        device: of the training.
        ahead: steps to read ahead.
        host_budget_bytes: keep the complete views in host memory when they fit into so many.
        device_budget_bytes: the same on the device; tried first.

    Raises:
        FileNotFoundError: a row is missing; names view and image, and what to run.
        ValueError: a row does not fit its checksum.
    """

    rows_computed = 0

    def __init__(
        self,
        store: Store,
        head: nn.Linear | None,
        picks: Callable[[int], Picked] | None,
        *,
        device: torch.device | str,
        ahead: int = _AHEAD,
        host_budget_bytes: int = 0,
        device_budget_bytes: int = 0,
    ) -> None:
        device = torch.device(device)
        self.rows_read = 0
        self.store, self._fields = store, store.fields
        self._head = None if head is None else head.to(device)
        self._reader = store.reader()
        views = store.complete_views()
        num_bytes = len(views) * store.num_images * store.row_bytes
        source: Source = self._reader
        if views and num_bytes <= device_budget_bytes:
            source, ahead = Resident(self._reader, views, store.num_images, device), 0
        elif views and num_bytes <= host_budget_bytes:
            source = Resident(self._reader, views, store.num_images, torch.device("cpu"))
        self._ahead = ReadAhead(source, picks, ahead, device, partial=False)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Outputs:
        """Return the teacher's outputs on a batch, float32: logits [B, K] and the fields of the cache."""
        rows = self._ahead.take(batch).rows
        self.rows_read += len(batch.index)
        return outputs_of(decode(rows, self._fields), self._head)

    def flush(self) -> None:
        """Do nothing: nothing is kept back."""

    def close(self) -> None:
        """Stop reading and close the files."""
        self._ahead.close()
        self._reader.close()
