"""Which steps a run of batches has, and the views of many of them at once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from fastanc.pipelines.order import Picking, Picks
from fastanc.pipelines.views import ViewRule

_TOGETHER = 4096


class Drawn(NamedTuple):
    """A step's picks with their views."""

    step: int
    picks: Picks
    boxes: np.ndarray
    """[B, 4] int32 (x, y, w, h)."""
    flips: np.ndarray
    """[B] uint8."""


def walked(picks: Picking, start: int, stop: int | None) -> tuple[Callable[[int], Picks], range]:
    """Return the picks as a function of the step, and the steps: without a `stop` for ever, or to a list's end."""
    if callable(picks):
        return picks, range(start, sys.maxsize if stop is None else stop)
    return picks.__getitem__, range(start, len(picks) if stop is None else min(stop, len(picks)))


def views_per_image(picks: Picking) -> int:
    """Return how many neighbours are views of one image, which an Order says; 1 in a list."""
    return int(getattr(picks, "views_per_image", 1))


def images_of(step: int, picks: Picks, views: int) -> np.ndarray:
    """Return the images [B / views] of a step; ValueError where they are not `views` neighbours each."""
    images = picks.index[::views]
    if len(picks.index) != views * len(images) or (picks.index != np.repeat(images, views)).any():
        raise ValueError(
            f"step {step}: an order with views_per_image {views} must give each image {views} times in a row"
        )
    return images


def draw(
    picks: Callable[[int], Picks],
    rule: ViewRule,
    sizes: Callable[[np.ndarray], np.ndarray],
    steps: range,
) -> Iterator[Drawn]:
    """Yield the views of all steps in order; `sizes` returns [B, 2] (w, h) in pixels of image numbers [B].

    A draw costs 0.6 ms whatever it draws, so some steps, of about 4096 picks, are drawn together: the same bits,
    at a quarter of the time for a batch of 256.
    """
    while steps:
        together = [picks(steps[0])]
        count = max(1, _TOGETHER // max(1, len(together[0].index)))
        together += [picks(step) for step in steps[1:count]]
        index, view = (np.concatenate(parts) for parts in zip(*together))
        boxes, flips = rule.boxes(index, view, sizes(index))
        ends = np.cumsum([len(pick.index) for pick in together])[:-1]
        yield from map(Drawn, steps, together, np.split(boxes, ends), np.split(flips, ends))
        steps = steps[count:]
