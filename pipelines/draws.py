"""Random numbers and functions of them that have the same bits everywhere, in any order, for ever.

A usual generator has a state: the n-th number needs the n - 1 before it, so a view would depend on batch, order and
process. A counter generator has none: it is a hash, `philox(counter, key)`, whose four output words are as random as
any. The key is the seed; the counter holds image number (64 bits), view number and the number of the draw, so every
view's numbers can be had at once, in any order, for ever. Words become numbers without a rounding that could differ:
to [0, 1) times 2^-32, to whole numbers below n by multiply and shift.

Only operations that IEEE 754 rounds exactly are used (+ - * / sqrt rint): NumPy's exp and log differ in their last
bit from CPU to CPU, and with a box rounded differently the cache would hold pixels the student never sees. So what is
needed of them is written out here as sums, in a fixed order.
"""

from __future__ import annotations

from functools import cache

import numpy as np

_MULTIPLIERS = np.array([0xD2511F53, 0xCD9E8D57], np.uint64)
_WEYL, _ROUNDS = np.array([0x9E3779B9, 0xBB67AE85], np.uint64), np.arange(10, dtype=np.uint64)[:, None]
_LOW, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)

CROPS, LOOKS, GREY, VFLIP, ERASE, PAIRS, MIXES, OWN, ORDER = (k << 16 for k in range(9))
"""First draw of every kind: each has 2^16 numbers of its own, so that a new kind moves no draw of another."""


def philox(counter: np.ndarray, key: int) -> np.ndarray:
    """Return random 32-bit words [4, ...] in uint64, from counters [4, ...] of 32-bit words and a 64-bit key.

    Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), both lanes at once.
    """
    lanes = (2,) + (1,) * (counter.ndim - 1)
    factors = _MULTIPLIERS.reshape(lanes)
    even, odd = counter[0::2], counter[1::2]
    keys = np.array([key & 0xFFFFFFFF, key >> 32 & 0xFFFFFFFF], np.uint64) + _ROUNDS * _WEYL & _LOW
    for round_key in keys.reshape(10, *lanes):
        product = even * factors
        even, odd = (product >> _SHIFT)[::-1] ^ odd ^ round_key, (product & _LOW)[::-1]
    return np.stack([even, odd], 1).reshape(counter.shape)


def words_of(seed: int, index: np.ndarray, view: np.ndarray, draw: np.ndarray | int) -> np.ndarray:
    """Four random 32-bit words [4, ...] for each (index, view, draw); `draw` numbers the draws of one view."""
    index, view, draw = np.broadcast_arrays(index, view, draw)
    counter = np.array([index, index, view, draw]).astype(np.uint64)
    counter[0] &= _LOW
    counter[1] >>= _SHIFT
    return philox(counter, seed)


def uniform(words: np.ndarray) -> np.ndarray:
    """In [0, 1), float64, exact."""
    return words.astype(np.float64) * 2.0**-32


def below(words: np.ndarray, bound: np.ndarray | int) -> np.ndarray:
    """In [0, bound), int64, by multiply and shift (Lemire 2019)."""
    return (words * np.asarray(bound).astype(np.uint64) >> _SHIFT).astype(np.int64)


def exp(z: np.ndarray) -> np.ndarray:
    """The exponential of |z| < 2 by Horner's rule, the same bits everywhere."""
    result = np.ones_like(z)
    for k in range(16, 0, -1):
        result = 1.0 + result * z * (1.0 / k)
    return result


@cache
def log(x: float) -> float:
    """The logarithm of 1/8 < x < 8 by its inverse-tangent series, the same bits everywhere."""
    z = (x - 1.0) / (x + 1.0)
    total, power = 0.0, z
    for k in range(1, 161, 2):
        total, power = total + power / k, power * z * z
    return 2.0 * total


def sine(turns: np.ndarray) -> np.ndarray:
    """The sine of an angle in whole turns, up to 1, by Taylor's series, the same bits everywhere."""
    x = 6.283185307179586 * (turns - np.rint(turns))
    total, term = x, x
    for k in range(1, 20):
        term = term * (x * x) * (-1.0 / (2 * k * (2 * k + 1)))
        total = total + term
    return total
