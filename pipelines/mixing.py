"""Mixing: two pictures of a view become two mixed ones (mixup, cutmix), as a pure function of (seed, view, image).

`Pairing` says who is whose partner; what is drawn is drawn for the pair, from its smaller number, so both pictures of
a pair have the same weight and box with the roles exchanged: x_i = w i + (1 - w) j, x_j = w j + (1 - w) i. The
teacher is asked about the *mixed* picture: a mean of its answers on the two is another thing, and the labels that
mixing gives in the place of its word are known to hurt (Wang et al. 2021, "Understanding the success of knowledge
distillation: a data augmentation perspective", table 1). Weights are k / 128 and pixels are whole numbers, so that
the same bits come out on every device; Beta(a, a) is drawn from a table that is made by operations which IEEE 754
rounds exactly, since libraries change their generators.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fastanc.pipelines.draws import MIXES, below, exp, log, uniform, words_of
from fastanc.pipelines.look_backend import loops_for
from fastanc.pipelines.pairing import Pairing
from fastanc.pipelines.transfer import moved

MIXING_VERSION = 1
"""Of the rule: a part of the cache's identity."""
KINDS = ("mixup", "cutmix", "both")
_BITS = 7  # (a - b) w + 64 of two pixels has 16 bits then
_ONE = 1 << _BITS  # the weight of a picture that is not mixed
_LOG_2 = 0.6931471805599453
_TERMS = 80
_CHUNK_PIXELS = 1 << 16


class Mix(NamedTuple):
    """How the pictures of a batch are mixed."""

    partner: np.ndarray
    """[B] int64 image numbers; its own where it stays alone."""
    weight: np.ndarray
    """[B] int16, 0..128: mixup's weight of the own picture; 128 where none is blended."""
    boxes: np.ndarray
    """[B, 4] int32 of (left, top, right, bottom): cutmix's box, which the partner fills; or empty."""
    own: np.ndarray
    """[B] float32, 0..1: the weight of the own label."""


@dataclass(frozen=True)
class Mixing:
    """Pairs of pictures are mixed.

    Zhang et al. 2018, "mixup: beyond empirical risk minimization", eq. 1; Yun et al. 2019, "CutMix", eq. 1 and 2.
    """

    kind: str
    """mixup, cutmix, or both: either with chance 1/2."""
    pairing: Pairing
    alpha: float = 1.0
    """Of the weight's distribution Beta(alpha, alpha), above 0 and up to 16; 1 is uniform."""
    share: float = 1.0
    """Share of the pairs that are mixed."""
    out_px: int = field(kw_only=True)
    """Side of the pictures."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"mixing {self.kind!r} is not known: choose one of {', '.join(KINDS)}")
        if not 0 < self.alpha <= 16:
            raise ValueError(f"alpha {self.alpha} of the mixing must lie above 0 and up to 16")

    @cached_property
    def _table(self) -> np.ndarray:
        return beta_table(self.alpha)

    def draw(self, index: np.ndarray, view: np.ndarray) -> Mix:
        """Return how image numbers [B] are mixed in views [B]."""
        partner = self.pairing.partners(index, view)
        first = np.minimum(index, partner)
        words = words_of(self.pairing.seed, first, view, MIXES)
        mixes = (partner != index) & (uniform(words[0]) < self.share)
        cuts = {"mixup": False, "cutmix": True, "both": words[1] >> np.uint64(31) == 1}[self.kind]
        weight = np.searchsorted(self._table, words[2], side="right").astype(np.int32)
        boxes = self._boxes(first, view, weight) * (mixes & cuts)[:, None]
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        weight = np.where(mixes & ~np.asarray(cuts), weight, _ONE).astype(np.int16)
        own = (weight / _ONE) * (1 - area / self.out_px**2)  # one of the two factors is 1
        return Mix(partner, weight, boxes.astype(np.int32), own.astype(np.float32))

    def _boxes(self, first: np.ndarray, view: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Boxes of area 1 - weight around a point anywhere, as far as they lie in the picture (CutMix eq. 2)."""
        words = words_of(self.pairing.seed, first, view, MIXES + 1)
        centre = np.stack([below(words[0], self.out_px), below(words[1], self.out_px)], 1)
        half = (0.5 * np.sqrt(1 - weight / _ONE) * self.out_px).astype(np.int64)[:, None]
        return np.concatenate([centre - half, centre + half], 1).clip(0, self.out_px)

    def __str__(self) -> str:
        what = {"mixup": "mixup", "cutmix": "cutmix", "both": "mixup or cutmix"}[self.kind]
        return f"{what} of {100 * self.share:g} % of the pairs"

    def describe(self) -> dict[str, object]:
        """Return what fixes the mixing, ready for JSON: a part of the cache's identity."""
        return {
            "mix": self.kind,
            "alpha": self.alpha,
            "share": self.share,
            "paired": self.pairing.views_per_image,
            "version": MIXING_VERSION,
        }


def mixed(images: Tensor, partner: Tensor, mix: Mix, rows: slice) -> Tensor:
    """Return some rows of the pictures [B, H, W, C] uint8, mixed with those at rows `partner` [B] int64."""
    count = len(range(*rows.indices(len(images))))
    if images.device.type != "cpu":
        return _mixed_at_once(images[rows], images.index_select(0, partner[rows]), _part(mix, rows))
    result = images.new_empty((count, *images.shape[1:]))
    loops = loops_for(images.device)
    if loops is not None:
        own = _part(mix, rows)
        whole, other = images.contiguous().numpy(), partner[rows].numpy()
        loops.mixed(result.numpy(), whole, rows.start, other, own.weight, own.boxes)
        return result
    size = max(1, _CHUNK_PIXELS // (images.shape[1] * images.shape[2]))
    for k in range(0, count, size):  # what stays in a CPU's cache
        part = slice(rows.start + k, min(rows.start + k + size, rows.start + count))
        b = images.index_select(0, partner[part])
        result[k : k + size] = _mixed_in_cache(images[part], b, _part(mix, part))
    return result


def _part(mix: Mix, rows: slice) -> Mix:
    return Mix(*(values[rows] for values in mix))


def _mixed_in_cache(a: Tensor, b: Tensor, mix: Mix) -> Tensor:
    if (mix.weight < _ONE).any():
        result = _blended(a, b, torch.from_numpy(mix.weight))
    else:
        result = a.clone()
    for row in np.flatnonzero(mix.boxes[:, 2] > mix.boxes[:, 0]).tolist():
        left, top, right, bottom = mix.boxes[row].tolist()
        result[row, top:bottom, left:right] = b[row, top:bottom, left:right]
    return result


def _mixed_at_once(a: Tensor, b: Tensor, mix: Mix) -> Tensor:
    weight, boxes = (moved(torch.from_numpy(part), a.device) for part in (mix.weight, mix.boxes))
    return torch.where(_inside(boxes, a.shape[1])[..., None], b, _blended(a, b, weight))


def _blended(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """w a + (1 - w) b, rounded."""
    own, other = a.short(), b.short()
    rest = own.sub_(other).mul_(weight[:, None, None, None]).add_(_ONE // 2)
    return rest.bitwise_right_shift_(_BITS).add_(other).to(torch.uint8)


def _inside(boxes: Tensor, side: int) -> Tensor:
    """Which pixels [B, side, side] lie in the boxes [B, 4]."""
    along = torch.arange(side, device=boxes.device, dtype=boxes.dtype)
    left, top, right, bottom = boxes.t()[:, :, None]
    columns, rows = (along >= left) & (along < right), (along >= top) & (along < bottom)
    return rows[:, :, None] & columns[:, None, :]


def soft_labels(
    labels: Tensor, num_classes: int, partner: Tensor | None, own: Tensor | None, smoothing: float = 0.0
) -> Tensor:
    """Return labels [B, K] float32 that sum to 1, from one class each, [B] int64.

    Args:
        labels: of the pictures before they are mixed.
        num_classes: K.
        partner: [B] int64, the row whose label has the rest of the weight; None where nothing is mixed.
        own: [B] float32, the own label's weight; None likewise.
        smoothing: share of the weight that is spread over all classes (Szegedy et al. 2016, section 7).
    """
    soft = F.one_hot(labels, num_classes).float()
    if partner is not None and own is not None:
        soft = soft[partner] + own[:, None] * (soft - soft[partner])
    return soft.mul_(1 - smoothing).add_(smoothing / num_classes) if smoothing else soft


@lru_cache(maxsize=8)
def beta_table(alpha: float) -> np.ndarray:
    """Return 2^32 P(w <= k / 128), k = 0 .. 127, of a Beta(alpha, alpha) weight that is rounded, [128] uint64.

    The distribution function up to x <= 1/2 is x^a sum_k c_k x^k / (a + k) with c_k = c_(k-1) (k - a) / k, but for a
    factor that its value 1/2 at x = 1/2 gives; the other half is the same from above.
    """
    x = (np.arange(_ONE // 2) + 0.5) / _ONE
    rises = np.append(_series(x, alpha), _series(np.array([0.5]), alpha))
    lower = np.rint(rises[:-1] / rises[-1] * 2.0**31).astype(np.uint64)
    table = np.concatenate([lower, np.uint64(1 << 32) - lower[::-1]])
    table.flags.writeable = False
    return table


def _series(x: np.ndarray, a: float) -> np.ndarray:
    total, factor, power = np.zeros_like(x), 1.0, np.ones_like(x)
    for k in range(_TERMS):
        if k:
            factor, power = factor * (k - a) / k, power * x
        total = total + factor * power / (a + k)
    return _power(x, a) * total


def _power(x: np.ndarray, a: float) -> np.ndarray:
    """x^a of 0 < x <= 1 and a <= 16, the same bits everywhere."""
    mantissa, exponent = np.frexp(x)
    y = a * (np.array([log(float(m)) for m in mantissa]) + exponent * _LOG_2)
    whole = np.rint(y / _LOG_2)
    return np.ldexp(exp(y - whole * _LOG_2), whole.astype(np.int64))
