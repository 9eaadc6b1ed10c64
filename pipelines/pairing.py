"""Which two images are mixed in a view: a keyed involution of the image numbers, partner(partner(i)) = i.

Why not a partner from the batch, as trainers do? A view would depend on batch, order, number of processes and
resume point, and the teacher's row of it could be kept for one run only. Why not any image? The partner would have
to be decoded for this purpose alone. So the images of a view are paired by a permutation P of 0 .. n - 1, which is
arithmetic: partner(i) = P^-1(P(i) xor 1). Places 2 k and 2 k + 1 of P are a pair, an order of the pairs is an order
of the images, and both are in one batch of one process.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastanc.pipelines.draws import PAIRS
from fastanc.pipelines.permutation import ROUNDS, keys, permuted


@dataclass(frozen=True)
class Pairing:
    """The pairs of every view of n images.

    Views of one group of `views_per_image` neighbours (0 and 1, 2 and 3, ... for 2) have the same pairs, because they
    come from one decode. Of an odd number of images one stays alone, another in every group.
    """

    n: int
    """Number of images, below 2^32."""
    seed: int
    views_per_image: int = 1

    @property
    def pairs(self) -> int:
        """Pairs of a view."""
        return self.n // 2

    def places(self, index: np.ndarray, view: np.ndarray) -> np.ndarray:
        """Return P of image numbers [B] in views [B], int64: 2 k and 2 k + 1 are a pair."""
        return self._walked(index, view, inverse=False)

    def images(self, places: np.ndarray, view: np.ndarray) -> np.ndarray:
        """Return the image numbers [B] int64 at places [B] of views [B]: the inverse of `places`."""
        return self._walked(places, view, inverse=True)

    def partners(self, index: np.ndarray, view: np.ndarray) -> np.ndarray:
        """Return the partners [B] int64 of image numbers [B] in views [B]; of one that is alone itself."""
        places = self.places(index, view)
        other = places ^ 1
        return self.images(np.where(other < self.n, other, places), view)

    def _walked(self, numbers: np.ndarray, view: np.ndarray, *, inverse: bool) -> np.ndarray:
        numbers = np.asarray(numbers)
        group = np.broadcast_to(view, numbers.shape) // self.views_per_image
        result = np.empty(numbers.shape, np.int64)
        for one in np.unique(group).tolist():
            mine = group == one
            keyed = keys(self.seed, one, PAIRS, ROUNDS)
            result[mine] = permuted(numbers[mine], self.n, keyed, inverse=inverse)
        return result
