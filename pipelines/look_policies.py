"""Augmentation policies by name: which operations a view gets, with which parameters.

A policy is a function of the view's numbers alone. It knows no pixel, so its draws are made early, on the host.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from typing import NamedTuple

import numpy as np

from fastanc.pipelines.draws import ERASE, GREY, LOOKS, OWN, VFLIP, below, exp, log, sine, uniform, words_of

OPS = (
    "identity",
    "affine",
    "translate",
    "brightness",
    "contrast",
    "saturation",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
    "hue",
    "grey",
    "blur",
    "flip",
    "erase",
)
ONE_BITS = 7
ONE = 1 << ONE_BITS
"""A factor of 1, of those that pixels are multiplied by."""
FACTOR, OFFSET = 1 << 16, 1 << 17
"""A factor of 1 and an offset of a pixel, of an affine map."""
_BINS = 30
_ORDERS = np.array(list(permutations(range(4))))
_TRIES = 10
_AREA, _SHAPE = (0.02, 0.33), (0.3, 3.3)
_JITTER = {"b": "brightness", "c": "contrast", "s": "saturation", "h": "hue"}
_NUMBER = r"(\d+(?:\.\d+)?)"
_NAMES = "none, jitter[-bB-cC-sS-hH], rand-mM-nN[-mstdS], trivial, three"


@dataclass(frozen=True)
class Key:
    """The views of a batch: what every draw is a function of."""

    seed: int
    index: np.ndarray
    """[B] int64 image numbers."""
    view: np.ndarray
    """[B] int64 view numbers."""
    px: int
    """Side of the pictures."""

    def words(self, draw: int) -> np.ndarray:
        """Return four random words [4, B] of every view."""
        return words_of(self.seed, self.index, self.view, draw)


class Slot(NamedTuple):
    """One operation of every picture of a batch."""

    op: np.ndarray
    """[B] int64 positions in OPS."""
    parameters: np.ndarray
    """[B, 6] int32, as `look_ops` takes them."""


def _slot(count: int) -> Slot:
    return Slot(np.zeros(count, np.int64), np.zeros((count, 6), np.int32))


def _fill(slot: Slot, rows: np.ndarray, op: str, *parameters: np.ndarray | int) -> None:
    slot.op[rows] = OPS.index(op)
    for k, values in enumerate(parameters):
        slot.parameters[rows, k] = values


def _whole(values: np.ndarray, scale: int) -> np.ndarray:
    return np.rint(values * scale).astype(np.int32)


# What torchvision's policies choose from, each with its strongest value; the order is torchvision's.


@dataclass(frozen=True)
class _Space:
    shear: float
    translate: Callable[[int], float]
    """The longest way in pixels, of a picture's side."""
    rotate: float
    """Degrees."""
    factor: float
    posterize: int

    def draw(self, key: Key, level: np.ndarray, slot: Slot, words: np.ndarray) -> None:
        """Fill a slot with operations at levels [B] in 0..1."""
        makers: Sequence[Callable[[np.ndarray, np.ndarray, np.ndarray], None]] = (
            lambda rows, level, signed: None,
            lambda rows, level, signed: self._shear(key.px, slot, rows, signed, along=0),
            lambda rows, level, signed: self._shear(key.px, slot, rows, signed, along=1),
            lambda rows, level, signed: _fill(slot, rows, "translate", self._way(key.px, signed), 0),
            lambda rows, level, signed: _fill(slot, rows, "translate", 0, self._way(key.px, signed)),
            lambda rows, level, signed: self._rotate(slot, rows, signed),
            *(
                partial(self._factor, slot, op)
                for op in ("brightness", "saturation", "contrast", "sharpness")
            ),
            lambda rows, level, signed: _fill(
                slot, rows, "posterize", 8 - np.rint(level * self.posterize).astype(np.int32)
            ),
            lambda rows, level, signed: _fill(
                slot, rows, "solarize", np.ceil(255 - 255 * level).astype(np.int32)
            ),
            lambda rows, level, signed: _fill(slot, rows, "autocontrast"),
            lambda rows, level, signed: _fill(slot, rows, "equalize"),
        )
        chosen = below(words[0], len(makers))
        sign = np.where(words[1] >> np.uint64(31) == 1, -1.0, 1.0)
        for k, make in enumerate(makers):
            rows = np.flatnonzero(chosen == k)
            if len(rows):
                make(rows, level[rows], sign[rows] * level[rows])

    def _way(self, px: int, signed: np.ndarray) -> np.ndarray:
        return np.trunc(signed * self.translate(px)).astype(np.int32)

    def _factor(self, slot: Slot, op: str, rows: np.ndarray, level: np.ndarray, signed: np.ndarray) -> None:
        _fill(slot, rows, op, _whole(1 + signed * self.factor, ONE))

    def _shear(self, px: int, slot: Slot, rows: np.ndarray, signed: np.ndarray, along: int) -> None:
        """Along an axis, in proportion to the distance from the left or upper edge."""
        tangent = signed * self.shear
        slope, way = _whole(tangent, FACTOR), _whole(tangent * px / 2, OFFSET)
        if along == 0:
            _fill(slot, rows, "affine", FACTOR, slope, way, 0, FACTOR, 0)
        else:
            _fill(slot, rows, "affine", FACTOR, 0, 0, slope, FACTOR, way)

    def _rotate(self, slot: Slot, rows: np.ndarray, signed: np.ndarray) -> None:
        turn = signed * self.rotate / 360
        s, c = _whole(sine(turn), FACTOR), _whole(sine(turn + 0.25), FACTOR)
        _fill(slot, rows, "affine", c, -s, 0, s, c, 0)


_RAND = _Space(0.3, lambda px: 150.0 / 331.0 * px, 30.0, 0.9, 4)
_WIDE = _Space(0.99, lambda px: 32.0, 135.0, 0.99, 6)


@dataclass(frozen=True)
class Rand:
    """RandAugment (Cubuk et al. 2020), as torchvision has it but for bilinear resampling."""

    magnitude: float
    """0 to 30."""
    ops: int
    std: float = 0.0
    """The magnitude's deviation; it stays within 0 to 30."""

    def slots(self, key: Key) -> list[Slot]:
        """Return the operations of these views, one after the other."""
        made = []
        for k in range(self.ops):
            words, slot = key.words(LOOKS + 8 * k), _slot(len(key.index))
            level = np.full(len(key.index), self.magnitude)
            if self.std:
                level = (level + self.std * self._normal(key, k)).clip(0, _BINS)
            _RAND.draw(key, level / _BINS, slot, words)
            made.append(slot)
        return made

    def _normal(self, key: Key, k: int) -> np.ndarray:
        """About standard normal numbers [B]: twelve uniform ones less 6 (Irwin and Hall), of deviation 1."""
        total = np.full(len(key.index), -6.0)
        for more in range(1, 4):
            for word in uniform(key.words(LOOKS + 8 * k + more)):
                total = total + word
        return total


@dataclass(frozen=True)
class Trivial:
    """TrivialAugmentWide (Mueller and Hutter 2021): one operation, at any of 31 levels."""

    def slots(self, key: Key) -> list[Slot]:
        """Return the operation of these views."""
        words, slot = key.words(LOOKS), _slot(len(key.index))
        _WIDE.draw(key, below(words[2], _BINS + 1) / _BINS, slot, words)
        return [slot]


@dataclass(frozen=True)
class Jitter:
    """Brightness, contrast, saturation and hue by random factors, in a random order (torchvision's ColorJitter)."""

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    first: int = LOOKS
    """Of its draws."""

    def slots(self, key: Key) -> list[Slot]:
        """Return the operations of these views, one after the other."""
        drawn = uniform(key.words(self.first))
        order = _ORDERS[below(key.words(self.first + 1)[0], len(_ORDERS))]
        made = [_slot(len(key.index)) for _ in range(4)]
        for k, op in enumerate(("brightness", "contrast", "saturation")):
            strength = getattr(self, op)
            low = max(0.0, 1 - strength)
            self._put(made, order == k, op, _whole(low + (1 + strength - low) * drawn[k], ONE), strength)
        turn = _whole(self.hue * (2 * drawn[3] - 1), 1 << 16) % (1 << 16)
        self._put(made, order == 3, "hue", turn, self.hue)
        return made

    def _put(self, made: list[Slot], where: np.ndarray, op: str, values: np.ndarray, strength: float) -> None:
        for slot, mine in zip(made, where.T if strength else ()):
            rows = np.flatnonzero(mine)
            _fill(slot, rows, op, values[rows])


@dataclass(frozen=True)
class Three:
    """3-Augment (Touvron et al. 2022, "DeiT III"): grey, solarized or blurred, then jitter of 0.3."""

    def slots(self, key: Key) -> list[Slot]:
        """Return the operations of these views, one after the other."""
        words, slot = key.words(LOOKS), _slot(len(key.index))
        chosen = below(words[0], 3)
        sigma = 0.1 + 1.9 * uniform(words[1])
        _fill(slot, np.flatnonzero(chosen == 0), "grey")
        _fill(slot, np.flatnonzero(chosen == 1), "solarize", 128)
        blurred = np.flatnonzero(chosen == 2)
        _fill(slot, blurred, "blur", np.rint(32 * sigma[blurred]).astype(np.int32) - 1)
        return [slot, *Jitter(0.3, 0.3, 0.3, 0.0, LOOKS + 8).slots(key)]


Policy = Rand | Trivial | Jitter | Three


def policy_of(name: str) -> Policy | None:
    """Return the policy of a name, None for `none`; ValueError names what there is."""
    if name == "none":
        return None
    if name == "trivial":
        return Trivial()
    if name == "three":
        return Three()
    if found := re.fullmatch(rf"rand-m{_NUMBER}-n(\d+)(?:-mstd{_NUMBER})?", name, re.ASCII):
        magnitude, ops, std = float(found[1]), int(found[2]), float(found[3] or 0)
        if magnitude > _BINS or not 1 <= ops <= 16 or std > _BINS:
            raise ValueError(
                f"data.looks {name}: magnitude and mstd go up to {_BINS}, the operations from 1 to 16"
            )
        return Rand(magnitude, ops, std)
    if found := re.fullmatch(rf"jitter((?:-[bcsh]{_NUMBER})*)", name, re.ASCII):
        words = [(word[0], float(word[1:])) for word in found[1].split("-")[1:]]
        strengths = dict(words)
        if len(strengths) < len(words) or any(v > (0.5 if k == "h" else 1) for k, v in words):
            raise ValueError(f"data.looks {name}: b, c and s go up to 1, h to 0.5, each once")
        return Jitter(**{_JITTER[k]: v for k, v in strengths.items()})
    raise ValueError(f"data.looks {name[:80]!r} is not known: choose one of {_NAMES}")


def fills(name: str) -> bool:
    """Return whether a policy leaves places with nothing to see, which a colour fills."""
    return name.startswith(("rand-", "trivial"))


def shared(key: Key, share: float, first: int, op: str) -> Slot:
    """Return an operation of a share of the views."""
    slot = _slot(len(key.index))
    _fill(slot, np.flatnonzero(uniform(key.words(first)[0]) < share), op)
    return slot


def greyed(key: Key, share: float) -> Slot:
    """Return grey for a share of the views."""
    return shared(key, share, GREY, "grey")


def flipped(key: Key) -> Slot:
    """Return the turn upside down of half of the views."""
    return shared(key, 0.5, VFLIP, "flip")


def erased(key: Key, share: float) -> Slot:
    """Return torchvision's RandomErasing for a share of the views (Zhong et al. 2020, algorithm 1)."""
    slot = _slot(len(key.index))
    left = np.flatnonzero(uniform(key.words(ERASE + _TRIES)[0]) < share)
    for k in range(_TRIES):
        if not len(left):
            break
        words = words_of(key.seed, key.index[left], key.view[left], ERASE + k)
        area = key.px**2 * (_AREA[0] + (_AREA[1] - _AREA[0]) * uniform(words[0]))
        shape = exp(log(_SHAPE[0]) + (log(_SHAPE[1]) - log(_SHAPE[0])) * uniform(words[1]))
        h, w = (np.rint(np.sqrt(side)).astype(np.int64) for side in (area * shape, area / shape))
        fits = (h < key.px) & (w < key.px)
        y, x = (
            below(words[2], key.px - np.minimum(h, key.px) + 1),
            below(words[3], key.px - np.minimum(w, key.px) + 1),
        )
        rows = left[fits]
        _fill(slot, rows, "erase", *(value[fits] for value in (x, y, x + w, y + h)))
        left = left[~fits]
    return slot


@dataclass(frozen=True)
class Draws:
    """Random numbers of some views, for a look of one's own."""

    key: Key

    def uniform(self, k: int) -> np.ndarray:
        """Return the k-th number of every view, [B] float64 in 0..1: always the same of the same view."""
        return uniform(self.key.words(OWN + k)[0])
