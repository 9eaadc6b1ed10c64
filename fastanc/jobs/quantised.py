"""A student's ONNX program in whole numbers of 8 bits, and how good it then is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fastanc.batch import Batch
from fastanc.jobs.programs import Run, run_by_onnxruntime
from fastanc.parsing import parse
from fastanc.pipelines.dataset import DataSet
from fastanc.pipelines.numbering import numbered_as
from fastanc.pipelines.order import Picks, evaluation_picks
from fastanc.pipelines.views import CentreCrop
from fastanc.training.assemble_input import open_sets

_CALIBRATED, _TOGETHER = 256, 32


class Judged(NamedTuple):
    """Two programs on the validation images."""

    images: int
    agreement: float
    """Share of the images of which both have the same first guess."""
    top1: dict[str, float]
    """Of each, parts of 1; empty where there are no labels of the student's classes."""

    def told(self, names: tuple[str, str]) -> str:
        """Return a sentence about the first and the second."""
        same = f"the same first guess for {100 * self.agreement:.2f} % of {self.images:,} validation images"
        if not self.top1:
            return f"{names[1]} has {same} as {names[0]}"
        shares = [f"{100 * self.top1[name]:.2f} %" for name in names]
        return f"top-1 {shares[1]} ({names[1]}) beside {shares[0]} ({names[0]}), {same}"


class Images(NamedTuple):
    """A run's images as its validation shows them; both sets on the CPU."""

    train: DataSet | None
    """None where a method trains on none."""
    val: DataSet
    rule: CentreCrop

    def calibrating(self) -> Iterator[Batch]:
        """Return up to 256 training images, evenly spaced and so of all classes."""
        assert self.train is not None
        count = min(_CALIBRATED, self.train.num_images)
        chosen = np.arange(count) * self.train.num_images // count
        parts = [chosen[k : k + _TOGETHER] for k in range(0, count, _TOGETHER)]
        return self.train.batches([Picks(part, np.zeros_like(part)) for part in parts], self.rule)

    def judging(self) -> Iterator[Batch]:
        """Return the validation images."""
        return self.val.batches(evaluation_picks(self.val.num_images, _TOGETHER), self.rule)


def images_of(run: Path) -> Images:
    """Open the images of a run; ValueError or FileNotFoundError where they are not there."""
    config = parse(["--config_path", str(run / "config.yaml")])
    train, val = open_sets(config)
    rule = CentreCrop(config.data.image_px, config.data.resize_px)
    if "latents" in config.method.needs:
        return Images(None, val.on("cpu"), rule)
    return Images(train.on("cpu"), numbered_as(train, val).on("cpu"), rule)


def quantise(program: Path, path: Path, images: Images | None) -> str:
    """Write an ONNX program in int8 and return how it was: static, by training images, or dynamic without any."""
    from onnxruntime import quantization as of
    from onnxruntime.quantization.shape_inference import quant_pre_process

    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it advises on the root logger
    prepared = path.with_suffix(".prepared")
    try:
        quant_pre_process(str(program), str(prepared), skip_symbolic_shape=True)
        if images is None or images.train is None:
            of.quantize_dynamic(str(prepared), str(path), weight_type=of.QuantType.QUInt8)
            return "dynamic, without images"
        of.quantize_static(
            str(prepared),
            str(path),
            _reader(of.CalibrationDataReader, images.calibrating()),
            quant_format=of.QuantFormat.QDQ,
            activation_type=of.QuantType.QUInt8,
            weight_type=of.QuantType.QInt8,
            per_channel=True,
            # Without VNNI a sum of two products of 8 bits overflows 16: 7 bits for weights are exact everywhere.
            reduce_range=True,
        )
        count = min(_CALIBRATED, images.train.num_images)
        return f"static, calibrated by {count} images of the training set"
    finally:
        logger.setLevel(level)
        prepared.unlink(missing_ok=True)


def _reader(base: Any, batches: Iterator[Batch]) -> Any:
    class Reader(base):
        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(batches, None)
            return None if batch is None else {"images": _shown(batch).numpy()}

    return Reader()


def _shown(batch: Batch) -> torch.Tensor:
    """A batch's images [B, C, S, S] as programs take them, float 0..1."""
    return (batch.images.float() / 255).contiguous()


def judge(
    programs: dict[str, Path],
    images: Images,
    num_classes: int,
    open_run: Callable[[Path], Run] = run_by_onnxruntime,
) -> Judged:
    """Return how good two ONNX programs are on all validation images, and how often they agree."""
    runs = {name: open_run(path) for name, path in programs.items()}
    labelled = images.val.labels is not None and images.val.num_classes == num_classes
    right, agreed, seen = dict.fromkeys(runs, 0), 0, 0
    for batch in images.judging():
        guesses = {name: run(_shown(batch)).argmax(1) for name, run in runs.items()}
        first, second = guesses.values()
        agreed += int((first == second).sum())
        seen += len(first)
        if labelled and batch.labels is not None:
            for name, guess in guesses.items():
                right[name] += int((guess == batch.labels).sum())
    return Judged(seen, agreed / seen, {k: n / seen for k, n in right.items()} if labelled else {})
