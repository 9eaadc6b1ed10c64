"""Images that are decoded whole on CPU threads, and cut and resized there: the way that needs no DALI."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from fastanc.batch import Batch
from fastanc.pipelines.ahead import ahead
from fastanc.pipelines.drawing import Drawn, draw, images_of
from fastanc.pipelines.order import Picks
from fastanc.pipelines.resize import finished, placed
from fastanc.pipelines.transfer import moved
from fastanc.pipelines.views import ViewRule

T = TypeVar("T")
_FETCHED = 2
_TOGETHER = 4
"""Images of a thread's turn: fewer cost more turns, more leave threads idle at a step's end."""


@dataclass(frozen=True, kw_only=True)
class Pictures(Generic[T]):
    """N images and how their pixels are had."""

    fetch: Callable[[int, np.ndarray], Sequence[T]]
    """(step, image numbers [G]) -> for each what it is decoded from; done early, on a thread of its own."""
    decode: Callable[[int, T], Tensor]
    """(step, one of these) -> pixels [C, H, W] uint8; done on many threads at once."""
    sizes: Callable[[np.ndarray], np.ndarray]
    """Image numbers [B] -> (w, h) in pixels [B, 2]."""
    labels: np.ndarray | None
    """[N] int64."""
    channels: int
    """C."""

    def batches(
        self,
        picks: Callable[[int], Picks],
        steps: range,
        rule: ViewRule,
        views: int,
        *,
        device: torch.device,
        threads: int,
        prefetch: int,
    ) -> Generator[Batch, None, None]:
        """Yield the batches of these steps, `prefetch` of them made early; closing the iterator ends the threads.

        Neighbours in a step, `views` each, are views of one image, which is decoded once.
        """
        drawn = draw(picks, rule, self.sizes, steps)
        fetched = ahead(lambda step: self._fetched(next(drawn), views), steps, _FETCHED)
        pool = ThreadPoolExecutor(threads, "pictures")
        pinned = device.type == "cuda"  # so that its copy to the device need not be waited for
        made = ahead(lambda step: self._made(*next(fetched), rule, views, pool, pinned), steps, prefetch)
        try:
            for (step, (index, view), _, _), images in made:
                labels = None if self.labels is None else moved(torch.from_numpy(self.labels[index]), device)
                yield Batch(
                    images=images.to(device, non_blocking=pinned),
                    index=index,
                    view=view,
                    labels=labels,
                    step=step,
                )
        finally:
            made.close()
            fetched.close()
            pool.shutdown(cancel_futures=True)

    def _fetched(self, drawn: Drawn, views: int) -> tuple[Drawn, Sequence[T]]:
        return drawn, self.fetch(drawn.step, images_of(drawn.step, drawn.picks, views))

    def _made(
        self,
        drawn: Drawn,
        fetched: Sequence[T],
        rule: ViewRule,
        views: int,
        pool: ThreadPoolExecutor,
        pinned: bool,
    ) -> tuple[Drawn, Tensor]:
        """A step's views [B, C, S, S] uint8, channels_last, on the host."""
        step, picks, boxes, flips = drawn
        side = rule.out_px
        crops, kept = placed(rule, boxes, self.sizes(picks.index))
        shape = (len(flips), side, side, self.channels)
        images = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned).permute(0, 3, 1, 2)

        def fill(part: range) -> None:
            for g in part:
                pixels = self.decode(step, fetched[g])
                for k in range(g * views, (g + 1) * views):
                    images[k] = finished(pixels, crops[k], kept[k], flips[k], side)

        parts = [range(a, min(a + _TOGETHER, len(fetched))) for a in range(0, len(fetched), _TOGETHER)]
        list(pool.map(fill, parts))
        return drawn, images
