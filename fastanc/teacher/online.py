"""The teacher as it is: the network, run on every batch."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastanc.batch import Batch, Outputs
from fastanc.cache.rows import head_logits
from fastanc.models.sizes import one_size, passed
from fastanc.pipelines.waiting import waiting

if TYPE_CHECKING:
    from fastanc.models.attention import Squeezed
    from fastanc.models.taps import Tapped


def _switches() -> list[tuple[Any, str, Any]]:
    """What lets CUDA round fp32 products to TF32, and the value with which it does not."""
    cudnn, blas = torch.backends.cudnn, torch.backends.cuda.matmul
    old = [(part, "allow_tf32", False) for part in (cudnn, blas)]
    try:
        for part, name, _ in old:
            getattr(part, name)
    except RuntimeError:  # somebody has used torch's newer names, and now the old ones are not answered
        parts = (getattr(cudnn, "conv"), getattr(cudnn, "rnn"), blas)  # noqa: B009  (torch declares none of them)
        return [(part, "fp32_precision", "ieee") for part in parts]
    return old  # which the compiler asks for, so that the newer ones would not do


_turning, _passes = threading.Lock(), 0
_before: list[tuple[Any, str, Any]] = []


@contextmanager
def _whole_fp32() -> Iterator[None]:
    """Let fp32 be fp32: cuDNN's convolutions are TF32 by default, and a cache is filled here and read there.

    The switches are the process's: of passes that overlap in several threads the first turns them, the last back.
    """
    global _passes
    with _turning:
        if not _passes:
            switches = _switches()
            _before[:] = [(part, name, getattr(part, name)) for part, name, _ in switches]
            for part, name, exact in switches:
                setattr(part, name, exact)
        _passes += 1
    try:
        yield
    finally:
        with _turning:
            _passes -= 1
            if not _passes:
                for part, name, value in _before:
                    setattr(part, name, value)


class Played(nn.Module):
    """A frozen teacher for a method that plays it itself, with gradients to its images: `Online`'s arithmetic."""

    def __init__(self, network: Tapped | Squeezed, autocast: torch.dtype | None = None) -> None:
        super().__init__()
        self.network, self._autocast = network, autocast

    def forward(self, images: Tensor) -> Outputs:
        """Return the teacher's outputs, logits and features in float32."""
        with torch.autocast(images.device.type, self._autocast, enabled=self._autocast is not None):
            out: Outputs = self.network(images)
        features = None if out.features is None else out.features.float()
        return out._replace(logits=out.logits.float(), features=features)


class Online:
    """Runs the frozen teacher in eval mode, without gradient.

    Args:
        network: the teacher, on the training device; it is frozen here.
        autocast: dtype of its pass; None runs it in the dtype of its weights. Logits are always float32: from
            narrower features they are computed again by the head in float32, as a cached teacher does.
    """

    rows_read = 0

    def __init__(self, network: Tapped | Squeezed, autocast: torch.dtype | None = None) -> None:
        self.network = network.eval().requires_grad_(False)
        self.rows_computed = 0
        self._autocast, self._most = autocast, 0

    @torch.no_grad()
    def untouched(self, batch: Batch, size: int = 0) -> Outputs:
        """Return what the network itself gives for a batch, its own logits whatever their dtype.

        `size` is how many images pass at least; without one a last, smaller batch passes as those before it did.
        """
        device = batch.images.device.type
        if not size and one_size(self.network):
            size = self._most = max(self._most, len(batch.images))
        # A GPU's pass is only launched here, a CPU's is waited for.
        waits = waiting() if device == "cpu" else nullcontext()
        with waits, _whole_fp32(), torch.autocast(device, self._autocast, enabled=self._autocast is not None):
            out = passed(self.network, batch.images, size)
        self.rows_computed += max(size, len(batch.images))
        return out

    @torch.no_grad()
    def __call__(self, batch: Batch, size: int = 0) -> Outputs:
        """Return the teacher's outputs on a batch: logits [B, K] and whatever is tapped; `size` as in `untouched`."""
        out = self.untouched(batch, size)
        if out.logits.dtype == torch.float32 and self.network.head is not None:
            return out
        features, head = out.features, self.network.head
        if features is None or head is None:
            return out._replace(
                logits=out.logits.float(), features=None if features is None else features.float()
            )
        return out._replace(logits=head_logits(features, head), features=features.float())

    def flush(self) -> None:
        """Do nothing: nothing is kept back."""

    def close(self) -> None:
        """Do nothing: nothing is held."""
