"""JPEG sets: an index of stored images -> batches of views, uint8 on the device."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from fastanc.batch import Batch
from fastanc.pipelines.drawing import views_per_image, walked
from fastanc.pipelines.jpeg import dali, whole
from fastanc.pipelines.jpeg.bytes import Indexed, check
from fastanc.pipelines.jpeg.options import TORCHVISION, JpegOptions
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
        self._bound: tuple[JpegOptions, str] | None = None

    @property
    def options(self) -> JpegOptions:
        """What it is bound with, the decode plan decided."""
        return self._planned()[0]

    @property
    def plan_source(self) -> str:
        """Where the decode plan comes from, in words; "" where nothing was to be decided."""
        return self._planned()[1]

    def _planned(self) -> tuple[JpegOptions, str]:
        # Not before it is asked for: to know whether DALI loads it must be loaded, which takes a second.
        if self._bound is None:
            self._bound = self._with_plan(self.device, JpegOptions())
        return self._bound

    def on(self, device: torch.device | str, options: JpegOptions | None = None) -> JpegSet:
        """Return the set bound to a device and options; a GPU's plan is decided here, where they say auto.

        With several processes one must decide and hand its options to the others: pixels depend on the plan.
        Where it was decided `plan_source` says how. Raises ValueError for a GPU's plan on the CPU, and for one of
        DALI's where that is missing.
        """
        bound = copy.copy(self)
        bound.device = torch.device(device)
        bound._bound = self._with_plan(bound.device, options or JpegOptions())
        return bound

    def _with_plan(self, device: torch.device, options: JpegOptions) -> tuple[JpegOptions, str]:
        """The options with the decode plan of this device, and where it comes from; "" where nothing was decided."""
        if options.decode == TORCHVISION:
            return options, ""
        missing, remedy = dali.problem(), dali.remedy()
        if device.type not in ("cpu", "cuda"):  # such as Apple's
            missing, remedy = f"DALI knows no device {device.type}", ""
        if missing:
            if options.decode == "auto":
                return replace(options, decode=TORCHVISION), f"{missing}: {remedy}" if remedy else missing
            raise ValueError(
                f"decode {options.decode!r} needs DALI, and {missing}: use auto or {TORCHVISION}"
            )
        if device.type == "cpu":
            if options.decode not in ("auto", "cpu"):
                raise ValueError(
                    f"decode {options.decode!r} needs a CUDA device: use auto, cpu or {TORCHVISION}"
                )
            return replace(options, decode="cpu"), ""
        if options.decode != "auto":
            return options, ""
        key = (str(device), options)
        if key not in self._decided:
            self._decided[key] = decide(self.index, device, options, self._memory)
        plan, source = self._decided[key]
        return replace(options, decode=plan), source

    def kinds_of_plan(self) -> list[JpegSet]:
        """Return the set bound to its device with one plan of each kind: those of one kind describe it alike."""
        kinds = (
            [TORCHVISION]
            if self.device.type not in ("cpu", "cuda") or dali.problem()
            else ["cpu", TORCHVISION]
        )
        return [self.on(self.device, replace(self.options, decode=plan)) for plan in kinds]

    def describe(self) -> dict[str, object]:
        """Return what fixes the pixels of a view, ready for JSON: a part of the cache's identity."""
        plan = self.options.decode
        on_cpu = self.device.type == "cpu" or plan == TORCHVISION
        facts: dict[str, object] = {
            "set": self.name,
            "fingerprint": self.index.fingerprint,
            "decoder": plan,
            "resize": "torch uint8 bilinear" if on_cpu else "dali gpu triangular",
            "antialias": True,
        }
        if plan == TORCHVISION:
            return facts | whole.identity()
        if plan != "cpu":
            facts["hw_decoder_load"] = self.options.hw_decoder_load
        return facts | {"dali": dali.version()}

    def subset(self, numbers: np.ndarray) -> JpegSet:
        """Return the set of some images, renumbered: `numbers` is [M] int64."""
        index = self.index.subset(numbers)
        part = JpegSet(self.name, index, self.mean, self.std, checked=self._checked, memory=self._memory)
        part.device, part._bound = self.device, self._bound
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
        views, bound = views_per_image(picks), self.options
        if bound.decode == TORCHVISION:
            return whole.batches(self.index, at, rule, steps, views=views, device=self.device, options=bound)
        from fastanc.pipelines.jpeg.decoder import Run  # which imports DALI

        return Run(
            self.index,
            at,
            rule,
            steps,
            largest=len(at(start).index) if callable(picks) else max(len(pick.index) for pick in picks),
            views=views,
            device=self.device,
            options=bound,
        ).batches()
