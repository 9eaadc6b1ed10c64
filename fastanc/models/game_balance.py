"""Running means that a game keeps in buffers of a player: the same on all processes, and part of a checkpoint.

Whoever calls `take` gives what was averaged over the processes before (`Method.settle`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_FLOOR = 0.01
"""Of the mean variance, added to each: a feature that the teacher never fires must not be blown up."""
_MOST = 1e4
"""Largest weight that a balance gives, as in VQGAN: a game without any pull cannot be balanced."""


class Running(nn.Module):
    """The exponential moving average of a vector, corrected for its start at zero as Adam's is."""

    sums: Tensor
    weight: Tensor

    def __init__(self, width: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("sums", torch.zeros(width))
        self.register_buffer("weight", torch.zeros(()))

    @torch.no_grad()
    def take(self, values: Tensor) -> None:
        """Take in values [width]; those of a step that is not finite are left out."""
        good = values.isfinite().all()
        kept = torch.where(good, self.decay, 1.0)
        self.sums.mul_(kept).add_(torch.where(good, values, 0).to(self.sums.dtype) * (1 - kept))
        self.weight.mul_(kept).add_(1 - kept)

    @property
    def mean(self) -> Tensor:
        """The average [width]; zeros before the first values."""
        return self.sums / self.weight.clamp_min(torch.finfo(self.sums.dtype).tiny)


class Moments(Running):
    """Mean and deviation of every entry of the teacher's samples, over some hundred steps."""

    def __init__(self, width: int) -> None:
        super().__init__(2 * width, decay=0.99)

    @staticmethod
    def of(samples: Tensor) -> Tensor:
        """Return what `take` takes of samples [B, W]: [2 W]."""
        return torch.cat([samples.mean(0), samples.square().mean(0)]).detach()

    def standard(self) -> tuple[Tensor, Tensor]:
        """Return mean and deviation, [W] each; 0 and 1 before the first samples."""
        mean, square = self.mean.chunk(2)
        variance = (square - mean.square()).clamp_min(0)
        deviation = (variance + _FLOOR * variance.mean()).sqrt()
        return mean, torch.where(self.weight > 0, deviation, 1.0).clamp_min(1e-6)


class Balance(Running):
    """The norms of two gradients, and the weight that gives the first a share of their sum."""

    def __init__(self) -> None:
        super().__init__(2, decay=0.9)

    def factor(self, share: float) -> Tensor:
        """Return w with w |first| = share (w |first| + |second|); 0 before the first norms, at most 10,000.

        The adaptive weight of VQGAN (Esser, Rombach, Ommer 2021, eq. 7), which has no share, in terms of one.
        """
        first, second = self.sums  # their weights are the same
        odds = share / (1 - share)
        return torch.where(first > 0, (odds * second / first).clamp_max(_MOST), 0.0)

    def share(self, factor: Tensor | float) -> Tensor:
        """Return the first's share of the sum of both norms, it times `factor`; 0 before the first norms."""
        first, second = factor * self.sums[0], self.sums[1]
        return first / (first + second).clamp_min(torch.finfo(self.sums.dtype).tiny)
