"""A user's torch data set of large or unequal images: read item by item on threads, resized on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from fastanc.batch import Batch
from fastanc.pipelines.drawing import views_per_image, walked
from fastanc.pipelines.jpeg.options import JpegOptions, cores_per_process
from fastanc.pipelines.order import Picking
from fastanc.pipelines.own_items import Items, Looks
from fastanc.pipelines.pictures import Pictures
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
        pictures = Pictures(
            fetch=lambda step, numbers: numbers.tolist(),
            decode=self._decoded,
            sizes=self.sizes,
            labels=self.labels,
            channels=self.channels,
        )
        return pictures.batches(
            at,
            steps,
            rule,
            views_per_image(picks),
            device=self.device,
            threads=self.options.threads or cores_per_process(),
            prefetch=self.options.prefetch,
        )

    def _decoded(self, step: int, number: int) -> Tensor:
        """An image's pixels [C, H, W], which are those of the first pass."""
        i = int(self._looks.rows[number])
        try:
            pixels, _ = self._items.read(i)
            self._items.check(i, pixels, self._looks.sizes[number], int(self._looks.crc32[number]))
        except ValueError as error:
            raise ValueError(f"step {step}: {error}") from error
        return torch.from_numpy(pixels).permute(2, 0, 1)
