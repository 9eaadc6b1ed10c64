"""A user's torch data set of large or unequal images: read item by item on threads, resized on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from fastanc.batch import Batch
from fastanc.pipelines.ahead import ahead
from fastanc.pipelines.drawing import Drawn, draw, images_of, views_per_image, walked
from fastanc.pipelines.jpeg.options import JpegOptions, cores_per_process
from fastanc.pipelines.order import Picking, Picks
from fastanc.pipelines.own_items import Items, Looks
from fastanc.pipelines.resize import finished, placed
from fastanc.pipelines.transfer import moved
from fastanc.pipelines.views import PadCrop, ViewRule


class TorchSet:
    """A data set of a user's own items, [B, C, S, S] uint8 batches: the pixels of a `JpegSet` over the same images.

    `looks` is what one pass over the items found. Every item is compared with it when it is read again, so one that
    changes (a random transform, an overwritten file) ends the run with its number. See `dataset.DataSet` for what
    all sets share; of its options, threads and prefetch are heeded.
    """

    def __init__(
        self,
        name: str,
        items: Items,
        looks: Looks,
        classes: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        self.name, self._items, self._looks = name, items, looks
        self.classes, self.labels = list(classes), looks.labels
        self.num_images, self.num_classes, self.channels = len(looks.sizes), len(self.classes), items.channels
        self.mean, self.std = tuple(mean), tuple(std)
        self.device, self.options = torch.device("cpu"), JpegOptions()

    def on(self, device: torch.device | str, options: JpegOptions | None = None) -> TorchSet:
        """Return the set bound to a device and options; its items are decoded by the user's own code."""
        bound = copy.copy(self)
        bound.device, bound.options = torch.device(device), options or JpegOptions()
        return bound

    def describe(self) -> dict[str, object]:
        """Return what fixes the pixels of a view, ready for JSON: a part of the cache's identity."""
        return {
            "set": self.name,
            "fingerprint": self._looks.fingerprint,
            "decoder": "the user's",
            "resize": "torch uint8 bilinear",
            "antialias": True,
        }

    def sizes(self, index: np.ndarray) -> np.ndarray:
        """Return the sizes [B, 2] int32 of (w, h) in pixels of the items."""
        return self._looks.sizes[index]

    def subset(self, numbers: np.ndarray) -> TorchSet:
        """Return the set of some images, renumbered: `numbers` is [M] int64."""
        part = TorchSet(
            self.name, self._items, self._looks.subset(numbers), self.classes, self.mean, self.std
        )
        return part.on(self.device, self.options)

    def batches(
        self, picks: Picking, rule: ViewRule, *, start: int = 0, stop: int | None = None
    ) -> Iterator[Batch]:
        """Return the batches of steps start, start + 1, ... below `stop` (None: for ever, or all of a list).

        A batch stays valid for as long as it is held; the iterator has close(). Raises ValueError naming step and
        item when one cannot be read or is not what it was.
        """
        if isinstance(rule, PadCrop):
            raise ValueError(f"PadCrop is for sets kept as arrays: use RandomResizedCrop for {self.name}")
        at, steps = walked(picks, start, stop)
        return self._stream(at, steps, rule, views_per_image(picks))

    def _stream(
        self, picks: Callable[[int], Picks], steps: range, rule: ViewRule, views: int
    ) -> Generator[Batch, None, None]:
        threads = self.options.threads or cores_per_process()
        pool = ThreadPoolExecutor(threads, "items")
        drawn = draw(picks, rule, self.sizes, steps)
        batches = ahead(
            lambda step: self._pictures(next(drawn), rule, views, pool, threads), steps, self.options.prefetch
        )
        try:
            for (step, (index, view), _, _), images in batches:
                labels = None if self.labels is None else torch.from_numpy(self.labels[index])
                yield Batch(
                    images=images.to(self.device, non_blocking=True),
                    index=index,
                    view=view,
                    labels=None if labels is None else moved(labels, self.device),
                    step=step,
                )
        finally:
            batches.close()
            pool.shutdown(cancel_futures=True)

    def _pictures(
        self, drawn: Drawn, rule: ViewRule, views: int, pool: ThreadPoolExecutor, threads: int
    ) -> tuple[Drawn, Tensor]:
        """A step's views [B, C, S, S] uint8, channels_last, on the host."""
        step, picks, boxes, flips = drawn
        numbers, side = images_of(step, picks, views), rule.out_px
        crops, kept = placed(rule, boxes, self.sizes(picks.index))
        shape = (len(flips), side, side, self.channels)
        pinned = self.device.type == "cuda"  # so that its copy to the device need not be waited for
        images = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned).permute(0, 3, 1, 2)

        def fill(part: range) -> None:
            for g in part:
                pixels = torch.from_numpy(self._read(step, int(numbers[g]))).permute(2, 0, 1)
                for k in range(g * views, (g + 1) * views):
                    images[k] = finished(pixels, crops[k], kept[k], flips[k], side)

        share = -(-len(numbers) // threads) or 1
        list(pool.map(fill, [range(a, min(a + share, len(numbers))) for a in range(0, len(numbers), share)]))
        return drawn, images

    def _read(self, step: int, number: int) -> np.ndarray:
        """An image's pixels, which are those of the first pass."""
        i = int(self._looks.rows[number])
        try:
            pixels, _ = self._items.read(i)
            self._items.check(i, pixels, self._looks.sizes[number], int(self._looks.crc32[number]))
        except ValueError as error:
            raise ValueError(f"step {step}: {error}") from error
        return pixels
