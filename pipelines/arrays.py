"""Small sets, kept whole on the device as uint8: a view is a window of the padded images."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fastanc.batch import Batch
from fastanc.kernels.backend import runs_kernels
from fastanc.kernels.small_set import crop_flip
from fastanc.pipelines.drawing import draw, walked
from fastanc.pipelines.jpeg.options import JpegOptions
from fastanc.pipelines.order import Picking, Picks
from fastanc.pipelines.transfer import moved
from fastanc.pipelines.views import CentreCrop, PadCrop, ViewRule


def channels_last(name: str, images: np.ndarray) -> np.ndarray:
    """Return uint8 images [N, C, S, S] or [N, S, S, C] with C 1 or 3 as [N, S, S, C].

    Raises ValueError for any other layout; `name` is that of the set.
    """
    if images.dtype != np.uint8:
        raise ValueError(
            f"{name}: images must be uint8 0..255, not {images.dtype}: networks normalise themselves"
        )
    if images.ndim == 4 and images.shape[3] not in (1, 3) and images.shape[1] in (1, 3):
        images = images.transpose(0, 2, 3, 1)
    if images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ValueError(
            f"{name}: images must be [N, C, S, S] or [N, S, S, C] with C 1 or 3, not {list(images.shape)}"
        )
    if images.shape[1] != images.shape[2]:
        raise ValueError(f"{name}: images must be square, not {images.shape[2]} x {images.shape[1]} px")
    return np.require(images, requirements=["C", "W"])  # torch warns of memory that it could not write to


class ArraySet:
    """A data set whose images all have one size and fit into the device's memory.

    `images` is uint8 [N, C, S, S] or [N, S, S, C] with C 1 or 3, labels [N] or None.
    Raises ValueError for any other layout. See `dataset.DataSet` for what all sets share.
    """

    options = None

    def __init__(
        self,
        name: str,
        images: np.ndarray,
        labels: np.ndarray | None,
        classes: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        self.name = name
        self.images = images = channels_last(name, images)
        self.labels = None if labels is None else np.require(labels, np.int64, ["C", "W"])
        self.classes = list(classes)
        self.mean, self.std = tuple(mean), tuple(std)
        self.num_images, self.num_classes, self.channels = len(images), len(self.classes), images.shape[3]
        self.device = torch.device("cpu")
        self._on_device: dict[tuple[str, int], Tensor] = {}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over pixels and labels."""
        digest = hashlib.sha256(str(self.images.shape).encode())
        digest.update(self.images.data)
        if self.labels is not None:
            digest.update(self.labels.data)
        return digest.hexdigest()

    def on(self, device: torch.device | str, options: JpegOptions | None = None) -> ArraySet:
        """Return the set with its batches on a device; nothing is decoded, so the options say nothing."""
        bound = copy.copy(self)  # pixels, fingerprint and what already lies on a device are shared
        bound.device = torch.device(device)
        return bound

    def describe(self) -> dict[str, object]:
        """Return what fixes the pixels, ready for JSON."""
        return {"set": self.name, "fingerprint": self.fingerprint, "decoder": "none", "resize": "none"}

    def subset(self, numbers: np.ndarray) -> ArraySet:
        """Return the set of some images, renumbered: `numbers` is [M] int64."""
        labels = None if self.labels is None else self.labels[numbers]
        part = ArraySet(self.name, self.images[numbers], labels, self.classes, self.mean, self.std)
        return part.on(self.device)

    def sizes(self, index: np.ndarray) -> np.ndarray:
        """Return the sizes [B, 2] int32 of (w, h) in pixels of the unpadded images."""
        return np.full((len(index), 2), self.images.shape[1], np.int32)

    def batches(
        self, picks: Picking, rule: ViewRule, *, start: int = 0, stop: int | None = None
    ) -> Iterator[Batch]:
        """Return the batches of steps start, start + 1, ... below `stop` (None: for ever, or all of a list).

        Raises ValueError for a rule other than PadCrop of the images' size and CentreCrop without a resize.
        """
        side = self.images.shape[1]
        if isinstance(rule, PadCrop) and rule.out_px == side:
            pad = rule.pad
        elif isinstance(rule, CentreCrop) and rule.resize_px == side:
            pad = 0
        else:
            raise ValueError(
                f"{self.name} is kept as {side} px arrays: "
                f"use PadCrop(out_px={side}) or CentreCrop(resize_px={side}), not {rule}"
            )
        return self._stream(*walked(picks, start, stop), rule, self._cutter(pad, rule.out_px))

    def _stream(
        self, picks: Callable[[int], Picks], steps: range, rule: ViewRule, cut: Callable[[Tensor], Tensor]
    ) -> Iterator[Batch]:
        device = self.device
        labels = None if self.labels is None else moved(torch.from_numpy(self.labels), device)
        for step, (index, view), boxes, flips in draw(picks, rule, self.sizes, steps):
            where = torch.from_numpy(np.stack([index, boxes[:, 0], boxes[:, 1], flips]).astype(np.int64))
            where = moved(where, device)
            yield Batch(
                images=cut(where).permute(0, 3, 1, 2),
                index=index,
                view=view,
                labels=None if labels is None else labels[where[0]],
                step=step,
            )

    def _cutter(self, pad: int, side: int) -> Callable[[Tensor], Tensor]:
        """Return what takes (image, x, y, flip) [4, B] int64 to crops [B, side, side, C] uint8.

        A kernel reads zeros beyond the edge, so where it runs the set lies on the device without its border.
        """
        if runs_kernels(torch.empty(0, device=self.device)):
            images = self._padded(0)
            return lambda where: crop_flip(images, where[0], where[1:3].t(), where[3], side, pad)
        windows = _windows(self._padded(pad), side)

        def cut(where: Tensor) -> Tensor:
            image, x, y, flip = where
            pixels = windows[image, y, x]
            return torch.where(flip.bool()[:, None, None, None], pixels.flip(2), pixels)

        return cut

    def _padded(self, pad: int) -> Tensor:
        """All images with a border of zeros, [N, S + 2 pad, S + 2 pad, C] uint8 on the device; made once."""
        key = (str(self.device), pad)
        if key not in self._on_device:
            images = torch.from_numpy(self.images).to(self.device)
            padded = torch.nn.functional.pad(images, (0, 0, pad, pad, pad, pad))
            self._on_device[key] = padded.contiguous()
        return self._on_device[key]


def _windows(padded: Tensor, side: int) -> Tensor:
    """Every window of every image, [N, Y, X, side, side, C], as a view that takes no memory."""
    n, height, width, channels = padded.shape
    row, column = padded.stride(1), padded.stride(2)
    shape = (n, height - side + 1, width - side + 1, side, side, channels)
    return padded.as_strided(shape, (padded.stride(0), row, column, row, column, 1))
