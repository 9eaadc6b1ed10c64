"""Keyed permutations of 0 .. n - 1 that are arithmetic: any place of any one, and back, without a table.

A permutation is a Feistel network on the bits of n - 1 (Luby and Rackoff 1988): one half of the bits is xored with a
hash of the other, by turns, which is undone in the reverse order whatever the hash is. Its numbers may lie beyond n;
such a one is sent through again until it does not (Black and Rogaway 2002, "cycle walking"): fewer than twice on
average, and a permutation remains. The hash is MurmurHash3's finaliser with keys from Philox: ten rounds of Philox
itself would cost half a millisecond a call.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from fastanc.pipelines.draws import philox

ROUNDS = 6
ROUNDS_OF_FEW = 16
FEW = 64
"""Of so few numbers, whose halves are 3 bits, six rounds leave some orders visibly likelier (n 5: chi-squared of
pairs of places 100 deviations off)."""
_M1, _M2 = np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35)
_S13, _S16 = np.uint32(13), np.uint32(16)


@lru_cache(maxsize=64)
def keys(seed: int, group: int, kind: int, rounds: int) -> tuple[np.uint32, ...]:
    """Return the rounds' keys of one permutation; `kind` is a first draw of `draws`, `group` below 2^32."""
    counter = np.array([[k, 0, group, kind] for k in range(rounds)], np.uint64).T
    return tuple(philox(counter, seed)[0].astype(np.uint32))


def permuted(
    numbers: np.ndarray, n: int, keyed: tuple[np.uint32, ...], *, inverse: bool = False
) -> np.ndarray:
    """Return where the permutation of n takes numbers [B] below n, int64 [B]; `inverse` takes them back."""
    found = _network(numbers.astype(np.uint64), n, keyed, inverse)
    bound = np.uint64(n)
    beyond = np.flatnonzero(found >= bound)
    while beyond.size:
        again = _network(found[beyond], n, keyed, inverse)
        found[beyond] = again
        beyond = beyond[again >= bound]
    return found.astype(np.int64)


def _network(x: np.ndarray, n: int, keyed: tuple[np.uint32, ...], inverse: bool) -> np.ndarray:
    bits = max(2, (n - 1).bit_length())
    shift = np.uint64(bits // 2)
    low_mask, high_mask = np.uint32((1 << bits // 2) - 1), np.uint32((1 << bits - bits // 2) - 1)
    high, low = (x >> shift).astype(np.uint32), x.astype(np.uint32) & low_mask
    rounds = list(enumerate(keyed))
    for k, key in reversed(rounds) if inverse else rounds:
        if k % 2:
            low ^= _hash(high, key) & low_mask
        else:
            high ^= _hash(low, key) & high_mask
    return high.astype(np.uint64) << shift | low


def _hash(x: np.ndarray, key: np.uint32) -> np.ndarray:
    """MurmurHash3's 32-bit finaliser of x xor key."""
    x = x ^ key
    x ^= x >> _S16
    x *= _M1
    x ^= x >> _S13
    x *= _M2
    x ^= x >> _S16
    return x
