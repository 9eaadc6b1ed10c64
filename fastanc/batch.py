"""The contract between input, teacher, student and method.

Shape legend, used everywhere: B batch, K classes, C channels, H W map size, D feature width.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


class Outputs(NamedTuple):
    """What a network says of a batch; a field that nobody asked for is None."""

    logits: Tensor
    """[B, K], before softmax."""
    features: Tensor | None = None
    """[B, D], the input of the last linear layer."""
    stages: tuple[Tensor, ...] | None = None
    """Stage maps, each [B, C_i, H_i, W_i], shallow to deep."""
    descriptors: Tensor | None = None
    """[B, F], KSANC's squeezed descriptors of all stages, concatenated."""


def _nobody() -> np.ndarray:
    return np.empty(0, np.int64)


@dataclass
class Batch:
    """One step's input of one process."""

    images: Tensor
    """[B, C, H, W] uint8 (0..255), channels_last, on the training device; or float in 0..1; or latent
    vectors [B, Z] where there is no data set. Every network normalises by itself."""
    index: np.ndarray = field(default_factory=_nobody)
    """[B] int64 image numbers, on the host, where the cache needs them; empty in a loop without one."""
    view: np.ndarray = field(default_factory=_nobody)
    """[B] int64 view numbers, likewise."""
    labels: Tensor | None = None
    """[B] int64 on the training device, or [B, K] shares of classes where pictures are mixed or labels smoothed; None
    where the set has none."""
    step: int = 0
    """The global step this batch belongs to."""
    target: Outputs | None = None
    """The teacher's outputs on these images."""

    def parts(self, count: int) -> list[Batch]:
        """Return the batch in `count` equal parts, in order; they share its memory."""
        size, rest = divmod(len(self.images), count)
        if rest:
            raise ValueError(f"a batch of {len(self.images)} images has no {count} equal parts: change one")
        return [self._cut(slice(k * size, (k + 1) * size)) for k in range(count)]

    def _cut(self, where: slice) -> Batch:
        return replace(
            self,
            images=self.images[where],
            index=self.index[where],
            view=self.view[where],
            labels=None if self.labels is None else self.labels[where],
            target=None if self.target is None else cut(self.target, where),
        )


def cut(whole: Outputs, where: slice) -> Outputs:
    """Return the outputs of some images of a batch."""
    return Outputs(
        whole.logits[where],
        None if whole.features is None else whole.features[where],
        None if whole.stages is None else tuple(stage[where] for stage in whole.stages),
        None if whole.descriptors is None else whole.descriptors[where],
    )
