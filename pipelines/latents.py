"""Latent vectors in the place of images, for methods that need no data set."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import numpy as np
import torch

from fastanc.batch import Batch
from fastanc.pipelines.dataset import DataSet
from fastanc.pipelines.drawing import walked
from fastanc.pipelines.jpeg.options import JpegOptions
from fastanc.pipelines.order import Picking, Picks
from fastanc.pipelines.transfer import moved
from fastanc.pipelines.views import ViewRule


def latents(size: int, latent_dim: int, *, seed: int, step: int, rank: int = 0) -> np.ndarray:
    """Return standard normal vectors [size, latent_dim] float32, a pure function of the arguments."""
    stream = np.random.Philox(key=[seed, 0], counter=[0, 0, step, rank])
    return np.random.Generator(stream).standard_normal((size, latent_dim), np.float32)


class LatentSet:
    """A data set of nothing: its batches hold latent vectors [B, Z] float32, drawn from seed, step and process.

    What the networks are built for (classes, channels, mean and std) is what `like` says, the set they are judged on.
    Its picks say how many vectors a step has, not which. See `dataset.DataSet` for what all sets share.
    """

    name = "latent vectors"
    labels = None
    options = None

    def __init__(self, latent_dim: int, num_images: int, *, like: DataSet, seed: int, rank: int = 0) -> None:
        self.latent_dim, self.num_images = latent_dim, num_images
        self.classes, self.num_classes, self.channels = like.classes, like.num_classes, like.channels
        self.mean, self.std = like.mean, like.std
        self._seed, self._rank = seed, rank
        self.device = torch.device("cpu")

    def on(self, device: torch.device | str, options: JpegOptions | None = None) -> LatentSet:
        """Return the set with its batches on a device; nothing is decoded, so the options say nothing."""
        bound = copy.copy(self)
        bound.device = torch.device(device)
        return bound

    def describe(self) -> dict[str, object]:
        """Return what fixes the vectors, ready for JSON."""
        return {"set": self.name, "latent_dim": self.latent_dim, "seed": self._seed}

    def sizes(self, index: np.ndarray) -> np.ndarray:
        """Return the sizes [B, 2] int32 of (w, h): a row of latent_dim numbers."""
        return np.tile(np.array([self.latent_dim, 1], np.int32), (len(index), 1))

    def subset(self, numbers: np.ndarray) -> LatentSet:
        """Return a set of so many vectors: which is the step's business."""
        part = copy.copy(self)
        part.num_images = len(numbers)
        return part

    def batches(
        self, picks: Picking, rule: ViewRule, *, start: int = 0, stop: int | None = None
    ) -> Iterator[Batch]:
        """Return the batches of steps start, start + 1, ... below `stop` (None: for ever, or all of a list).

        Their images are latent vectors [B, Z] float32, B as in the picks; index and view are zeros.
        """
        at, steps = walked(picks, start, stop)
        return self._stream(at, steps)

    def _stream(self, picks: Callable[[int], Picks], steps: range) -> Iterator[Batch]:
        for step in steps:
            size = len(picks(step).index)
            drawn = latents(size, self.latent_dim, seed=self._seed, step=step, rank=self._rank)
            nowhere = np.zeros(size, np.int64)
            images = moved(torch.from_numpy(drawn), self.device)
            yield Batch(images=images, index=nowhere, view=nowhere, labels=None, step=step)
