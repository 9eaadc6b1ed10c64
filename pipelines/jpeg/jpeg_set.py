"""JPEG sets: an index of stored images -> batches of views, uint8 on the device."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import nvidia.dali
import torch

from fastanc.batch import Batch
from fastanc.pipelines.drawing import views_per_image, walked
from fastanc.pipelines.jpeg.bytes import Indexed, check
from fastanc.pipelines.jpeg.decoder import Run
from fastanc.pipelines.jpeg.options import JpegOptions
from fastanc.pipelines.jpeg.plan import Decision, decide
from fastanc.pipelines.order import Picking
from fastanc.pipelines.views import PadCrop, ViewRule


class JpegSet:
    """A data set of indexed JPEGs (other formats that the index accepted too), [B, 3, S, S] uint8 batches.

    See `dataset.DataSet` for what all sets share.
    """

    channels = 3

    def __init__(
        self,
        name: str,
        index: Indexed,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        checked: bool = False,
        memory: Path | None = None,
    ) -> None:
        """`checked` says that the index was compared with its files just now.

        `memory` is the file in which decode plans are remembered; None measures in every process.
        """
        self.name, self.index = name, index
        self.classes, self.labels = index.classes, index.labels
        self.numbered: bool = getattr(index, "numbered", False)
        self.remarks: list[str] = getattr(index, "remarks", [])
        self.num_images, self.num_classes = len(index), len(index.classes)
        self.mean, self.std = tuple(mean), tuple(std)
        self._checked = checked
        self._memory = memory
        self._decided: dict[tuple[str, JpegOptions], Decision] = {}
        self.device = torch.device("cpu")
        self.options, self.plan_source = self._with_plan(self.device, JpegOptions())

    def on(self, device: torch.device | str, options: JpegOptions | None = None) -> JpegSet:
        """Return the set bound to a device and options; a GPU's plan is decided here, where they say auto.

        With several processes one must decide and hand its options to the others: pixels depend on the plan.
        Where it was decided `plan_source` says how. Raises ValueError for a GPU's plan on the CPU.
        """
        bound = copy.copy(self)
        bound.device = torch.device(device)
        bound.options, bound.plan_source = self._with_plan(bound.device, options or JpegOptions())
        return bound

    def _with_plan(self, device: torch.device, options: JpegOptions) -> tuple[JpegOptions, str]:
        """The options with the decode plan of this device, and where it comes from; "" where nothing was decided."""
        if device.type == "cpu":
            if options.decode not in ("auto", "cpu"):
                raise ValueError(f"decode {options.decode!r} needs a CUDA device: use auto or cpu")
            return replace(options, decode="cpu"), ""
        if options.decode != "auto":
            return options, ""
        key = (str(device), options)
        if key not in self._decided:
            self._decided[key] = decide(self.index, device, options, self._memory)
        plan, source = self._decided[key]
        return replace(options, decode=plan), source

    def describe(self) -> dict[str, object]:
        """Return what fixes the pixels of a view, ready for JSON: a part of the cache's identity."""
        plan = self.options.decode
        mixed = {} if plan == "cpu" else {"hw_decoder_load": self.options.hw_decoder_load}
        return {
            "set": self.name,
            "fingerprint": self.index.fingerprint,
            "decoder": plan,
            **mixed,
            "resize": "torch uint8 bilinear" if self.device.type == "cpu" else "dali gpu triangular",
            "antialias": True,
            "dali": nvidia.dali.__version__,
        }

    def subset(self, numbers: np.ndarray) -> JpegSet:
        """Return the set of some images, renumbered: `numbers` is [M] int64."""
        index = self.index.subset(numbers)
        part = JpegSet(self.name, index, self.mean, self.std, checked=self._checked, memory=self._memory)
        part.device, part.options, part.plan_source = self.device, self.options, self.plan_source
        return part

    def sizes(self, index: np.ndarray) -> np.ndarray:
        """Return the sizes [B, 2] of (w, h) in pixels of the stored images."""
        return self.index.sizes[index]

    def batches(
        self, picks: Picking, rule: ViewRule, *, start: int = 0, stop: int | None = None
    ) -> Iterator[Batch]:
        """Return the batches of steps start, start + 1, ... below `stop` (None: for ever, or all of a list).

        A batch stays valid for as long as it is held; the iterator has close(). Raises ValueError when a file
        changed since it was indexed, and RuntimeError naming step and file when one does not decode.
        """
        if isinstance(rule, PadCrop):
            raise ValueError(f"PadCrop is for sets kept as arrays: use RandomResizedCrop for {self.name}")
        at, steps = walked(picks, start, stop)
        if not steps:
            return iter(())
        if not self._checked:
            check(self.index)
            self._checked = True
        return Run(
            self.index,
            at,
            rule,
            steps,
            largest=len(at(start).index) if callable(picks) else max(len(pick.index) for pick in picks),
            views=views_per_image(picks),
            device=self.device,
            options=self.options,
        ).batches()
