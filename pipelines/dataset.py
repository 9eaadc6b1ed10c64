"""What every data set is, whatever it is made from: arrays, JPEGs, a user's own objects, latent vectors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from fastanc.batch import Batch
from fastanc.pipelines.jpeg.options import JpegOptions
from fastanc.pipelines.order import Picking
from fastanc.pipelines.views import ViewRule


@runtime_checkable
class DataSet(Protocol):
    """A set of N images that become batches of views.

    A set is bound once to the device its batches shall lie on (`on`); as it is made it is bound to the CPU.
    """

    @property
    def name(self) -> str:
        """What it is called in messages and in a cache's folder."""

    @property
    def num_images(self) -> int:
        """N."""

    @property
    def num_classes(self) -> int:
        """K, 0 where nobody knows any classes."""

    @property
    def channels(self) -> int:
        """1 or 3."""

    @property
    def classes(self) -> list[str]:
        """Names of the classes; a label is a position in it."""

    @property
    def labels(self) -> np.ndarray | None:
        """[N] int64; None where the set has none."""

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of every channel, on the 0..1 scale."""

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of every channel, on the 0..1 scale."""

    @property
    def options(self) -> JpegOptions | None:
        """What it is bound with, the decode plan decided; None for a set without a decoder."""

    def on(self, device: torch.device | str, options: JpegOptions | None = None) -> DataSet:
        """Return the same set bound to a device; a GPU's decode plan is probed here, where the options say auto.

        Of several processes one must do that and hand its `options` to the others: pixels depend on the plan.
        """

    def describe(self) -> dict[str, object]:
        """Return what fixes the pixels of a view, ready for JSON: a part of the cache's identity."""

    def sizes(self, index: np.ndarray) -> np.ndarray:
        """Return the sizes [B, 2] of (w, h) in pixels of the stored images, from their numbers [B]."""

    def subset(self, numbers: np.ndarray) -> DataSet:
        """Return the set of some images, renumbered: `numbers` is [M] int64."""

    def batches(
        self, picks: Picking, rule: ViewRule, *, start: int = 0, stop: int | None = None
    ) -> Iterator[Batch]:
        """Return the batches of steps start, start + 1, ... below `stop` (None: for ever, or all of a list).

        K views of one image, neighbours in an order with `views_per_image` K, come from one decode. Raises
        ValueError for a rule that is not for this kind of set.
        """
