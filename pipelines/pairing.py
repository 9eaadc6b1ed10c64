"""Which two images are mixed in a view: a keyed involution of the image numbers, partner(partner(i)) = i.

Why not a partner from the batch, as trainers do? A view would depend on batch, order, number of processes and
resume point, and the teacher's row of it could be kept for one run only. Why not any image? The partner would have
to be decoded for this purpose alone. So the images of a view are paired by a permutation P of 0 .. n - 1, which is
arithmetic: partner(i) = P^-1(P(i) xor 1). Places 2 k and 2 k + 1 of P are a pair, an order of the pairs is an order
of the images, and both are in one batch of one process.

P is a Feistel network on the bits of n - 1 (Luby and Rackoff 1988): one half of the bits is xored with a hash of the
other, by turns, which is undone in the reverse order whatever the hash is. Its numbers may lie beyond n; such a one
is sent through again until it does not (Black and Rogaway 2002, "cycle walking"): fewer than twice on average, and a
permutation remains. The hash is MurmurHash3's finaliser with keys from Philox: ten rounds of Philox itself would cost
half a millisecond a call.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fastanc.pipelines.draws import PAIRS, philox

_ROUNDS = 6
_MASK32 = np.uint64(0xFFFFFFFF)
_M1, _M2 = np.uint64(0x85EBCA6B), np.uint64(0xC2B2AE35)
_S13, _S16 = np.uint64(13), np.uint64(16)


@lru_cache(maxsize=64)
def _keys(seed: int, group: int) -> tuple[np.uint64, ...]:
    """The rounds' keys of one permutation."""
    counter = np.array([[k, 0, group, PAIRS] for k in range(_ROUNDS)], np.uint64).T
    return tuple(philox(counter, seed)[0])


def _hash(x: np.ndarray, key: np.uint64) -> np.ndarray:
    """MurmurHash3's 32-bit finaliser of x xor key, in uint64."""
    x = x ^ key
    x = (x ^ x >> _S16) * _M1 & _MASK32
    x = (x ^ x >> _S13) * _M2 & _MASK32
    return x ^ x >> _S16


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
            result[mine] = self._permuted(numbers[mine].astype(np.uint64), one, inverse)
        return result

    def _permuted(self, x: np.ndarray, group: int, inverse: bool) -> np.ndarray:
        bound = np.uint64(self.n)
        x = self._network(x, group, inverse)
        while (beyond := np.flatnonzero(x >= bound)).size:
            x[beyond] = self._network(x[beyond], group, inverse)
        return x.astype(np.int64)

    def _network(self, x: np.ndarray, group: int, inverse: bool) -> np.ndarray:
        bits = max(2, (self.n - 1).bit_length())
        shift = np.uint64(bits // 2)
        low_mask, high_mask = np.uint64((1 << bits // 2) - 1), np.uint64((1 << bits - bits // 2) - 1)
        high, low = x >> shift, x & low_mask
        rounds = list(enumerate(_keys(self.seed, group)))
        for k, key in reversed(rounds) if inverse else rounds:
            if k % 2:
                low = low ^ _hash(high, key) & low_mask
            else:
                high = high ^ _hash(low, key) & high_mask
        return high << shift | low
