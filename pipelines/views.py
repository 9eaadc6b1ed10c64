"""How views are cut: a rule turns (seed, view number, image number) into the box and the flip of every image.

RandomResizedCrop hashes draws 0 to 9 of a view (words: area, shape, x, y; see `draws`) and takes the first that fits
into the image, as torchvision tries anew; the flip is draw 10. Most fit at draw 0, so the others are hashed for the
rest alone, which changes no number.
"""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np

from fastanc.pipelines.draws import below, exp, log, uniform, words_of

_TRIES = 10
_CRC_ROWS = 1 << 16
_STRIP = 8

Boxes = tuple[np.ndarray, np.ndarray]


class ViewRule(Protocol):
    """How views are drawn."""

    @property
    def out_px(self) -> int:
        """Side of the square pictures that the views become."""

    def boxes(self, index: np.ndarray, view: np.ndarray, sizes: np.ndarray) -> Boxes:
        """Return boxes [B, 4] int32 of (x, y, w, h) and flips [B] uint8.

        From image numbers [B], view numbers [B] and sizes [B, 2] of (w, h) in pixels.
        """

    def describe(self) -> dict[str, object]:
        """Return the rule's name and knobs, ready for JSON: a part of the cache's identity."""


def _flips(words: np.ndarray, flip: bool) -> np.ndarray:
    return (words >> np.uint64(31)).astype(np.uint8) * np.uint8(flip)


@dataclass(frozen=True)
class RandomResizedCrop:
    """A random part of the image, of random area and shape (torchvision's rule), flipped with chance 1/2.

    Szegedy et al. 2015, "Going deeper with convolutions", section 6.
    """

    out_px: int
    seed: int
    scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the image's area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest w / h, within 1/7 and 7."""
    flip: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(
                f"scale {self.scale} must be two shares of the area, 0 < smallest <= largest <= 1"
            )
        if not 1 / 7 <= self.ratio[0] <= self.ratio[1] <= 7:
            raise ValueError(f"ratio {self.ratio} must be two shapes w / h, 1/7 <= smallest <= largest <= 7")

    def boxes(self, index: np.ndarray, view: np.ndarray, sizes: np.ndarray) -> Boxes:
        """Return boxes [B, 4] int32 of (x, y, w, h) in stored pixels, and flips [B] uint8."""
        index, view = np.asarray(index), np.broadcast_to(view, np.shape(index))
        sizes = np.asarray(sizes, np.int64)
        result, left = self._largest(sizes), np.arange(len(index))
        for draws in (range(1), range(1, _TRIES)):  # most fit at the first try
            found, fits = self._draw(index[left], view[left], sizes[left], draws)
            result[left[fits]] = found[fits]
            left = left[~fits]
        return result.astype(np.int32), _flips(words_of(self.seed, index, view, _TRIES)[0], self.flip)

    def _draw(
        self, index: np.ndarray, view: np.ndarray, sizes: np.ndarray, draws: range
    ) -> tuple[np.ndarray, np.ndarray]:
        """The first of some tries that fits, [B, 4], and whether one does, [B]."""
        words = words_of(self.seed, index[:, None], view[:, None], np.array(draws))
        width, height = sizes[:, :1], sizes[:, 1:]
        area = width * height * (self.scale[0] + (self.scale[1] - self.scale[0]) * uniform(words[0]))
        low, high = log(self.ratio[0]), log(self.ratio[1])
        shape = exp(low + (high - low) * uniform(words[1]))
        w = np.rint(np.sqrt(area * shape)).astype(np.int64)
        h = np.rint(np.sqrt(area / shape)).astype(np.int64)
        fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
        x = below(words[2], np.where(fits, width - w + 1, 1))
        y = below(words[3], np.where(fits, height - h + 1, 1))
        first = np.arange(len(index)), fits.argmax(1)
        return np.stack([x[first], y[first], w[first], h[first]], 1), fits.any(1)

    def _largest(self, sizes: np.ndarray) -> np.ndarray:
        """The largest central box of an allowed shape, for images that no try fits."""
        width, height = sizes[:, 0], sizes[:, 1]
        shape = width / height
        w = np.where(shape > self.ratio[1], np.rint(height * self.ratio[1]), width).astype(np.int64)
        h = np.where(shape < self.ratio[0], np.rint(width / self.ratio[0]), height).astype(np.int64)
        return np.stack([(width - w) // 2, (height - h) // 2, w, h], 1)

    def describe(self) -> dict[str, object]:
        """Return the rule's name and knobs, ready for JSON."""
        return _described(self)


@dataclass(frozen=True)
class PadCrop:
    """A window of the image padded by `pad` px of zeros on every side, flipped with chance 1/2.

    For images of out_px x out_px. Boxes count in pixels of the PADDED image: x and y in [0, 2 * pad],
    w = h = out_px.
    He et al. 2015, "Deep residual learning", section 4.2.
    """

    out_px: int
    seed: int
    pad: int = 4
    flip: bool = True

    def boxes(self, index: np.ndarray, view: np.ndarray, sizes: np.ndarray) -> Boxes:
        """Return boxes [B, 4] int32 of (x, y, w, h) in padded pixels, and flips [B] uint8."""
        words = words_of(self.seed, index, view, 0)
        x, y = (below(word, 2 * self.pad + 1) for word in words[:2])
        side = np.full_like(x, self.out_px)
        return np.stack([x, y, side, side], 1).astype(np.int32), _flips(words[2], self.flip)

    def describe(self) -> dict[str, object]:
        """Return the rule's name and knobs, ready for JSON."""
        return {**_described(self), "fill": "zeros"}  # the only one: caches have it in their identity


@dataclass(frozen=True)
class CentreCrop:
    """torchvision's Resize(resize_px) + CenterCrop(out_px); never flipped.

    `exactly` is that in its two moves, `boxes` the box that comes nearest in one.
    """

    out_px: int
    resize_px: int

    def __post_init__(self) -> None:
        if self.resize_px < self.out_px:
            raise ValueError(f"resize_px {self.resize_px} must be at least out_px {self.out_px}")

    def boxes(self, index: np.ndarray, view: np.ndarray, sizes: np.ndarray) -> Boxes:
        """Return boxes [B, 4] int32 of (x, y, w, h) in stored pixels, and flips [B] uint8, all 0.

        The crop is mapped back into the stored image with each side's own scale and rounded to whole pixels: its
        edges are off by less than one stored pixel, and a resize does not see beyond the box.
        """
        sizes = np.asarray(sizes, np.int64)
        resized, corner = self._resized(sizes)
        near, far = (edge * sizes / resized for edge in (corner, corner + self.out_px))
        xy, end = _nearest_edges(near, far, sizes)
        return np.concatenate([xy, end - xy], 1).astype(np.int32), np.zeros(len(sizes), np.uint8)

    def exactly(self, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return what is resized, [B, 4] int32 of (x, y, w, h) in stored pixels, and what is kept of it.

        The second is [B, 4] int32 of (x, y, w, h): the first is resized to w x h, and the square of out_px from
        (x, y) on is the picture. Strips longer than 8 times their width would become huge: they keep their box.
        """
        sizes = np.asarray(sizes, np.int64)
        resized, corner = self._resized(sizes)
        strip = (sizes.max(1) > _STRIP * sizes.min(1))[:, None]
        taken = np.where(strip, self.boxes(sizes, sizes, sizes)[0], np.concatenate([0 * sizes, sizes], 1))
        kept = np.concatenate([np.where(strip, 0, corner), np.where(strip, self.out_px, resized)], 1)
        return taken.astype(np.int32), kept.astype(np.int32)

    def _resized(self, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The sizes [B, 2] after the resize, and the corners [B, 2] of the crop in them."""
        resized = self.resize_px * sizes // sizes.min(1, keepdims=True)
        return resized, np.rint((resized - self.out_px) / 2)

    def describe(self) -> dict[str, object]:
        """Return the rule's name and knobs, ready for JSON."""
        return _described(self)


def _nearest_edges(near: np.ndarray, far: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whole edges [B, 2] of the box that is nearest to one with real edges, over all of its points.

    A point at share t between edges that are off by a and b is off by (1 - t) a + t b: in the mean square that is
    (a a + a b + b b) / 3, so edges off to opposite sides are better than a shift.
    """
    best = np.floor(near), np.minimum(np.ceil(far), sizes)
    least = np.full(near.shape, np.inf)
    for first in (np.floor(near), np.ceil(near)):
        for last in (np.ceil(far), np.floor(far)):
            a, b = first - near, last - far
            error = np.where((last > first) & (last <= sizes), a * a + a * b + b * b, np.inf)
            best = tuple(np.where(error < least, new, old) for new, old in zip((first, last), best))
            least = np.minimum(error, least)
    return best[0], best[1]


def _described(rule: RandomResizedCrop | PadCrop | CentreCrop) -> dict[str, object]:
    knobs = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(rule).items()}
    return {"rule": type(rule).__name__, **knobs}


def boxes_crc(rule: ViewRule, sizes: np.ndarray, view: int) -> int:
    """Return the CRC-32 of one view's boxes and flips over all images, sizes [N, 2] of (w, h)."""
    crc = 0
    for first in range(0, len(sizes), _CRC_ROWS):
        rows = sizes[first : first + _CRC_ROWS]
        index = np.arange(first, first + len(rows))
        for part in rule.boxes(index, np.full(len(rows), view), rows):
            crc = zlib.crc32(part.astype(part.dtype.newbyteorder("<")).tobytes(), crc)
    return crc
