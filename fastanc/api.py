"""From Python: what `fastanc train` does, from objects as well as names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import draccus
from torch import nn

from fastanc.config import Config
from fastanc.methods.base import Method
from fastanc.models import zoo
from fastanc.models.ensemble import ensemble
from fastanc.models.registered import object_name
from fastanc.models.weights import fit_weights, read_weights
from fastanc.parsing import configure, with_teacher
from fastanc.pipelines.arrays import ArraySet
from fastanc.pipelines.dataset import DataSet
from fastanc.pipelines.own_sets import as_dataset
from fastanc.train import train
from fastanc.training.assemble_networks import Given

OWN_DATA = "own_data"
"""The recipe that is taken where none is named."""
_SMALL_PX = 64


@dataclass(frozen=True)
class Result:
    """What a run leaves behind."""

    student: nn.Module
    """The bare network, trained, in eval mode: normalised images [B, C, H, W] -> logits [B, K]."""
    metrics: dict[str, float]
    """Of the last evaluation: top1, error_pct, agreement_pct, ..."""
    folder: Path
    """The run's folder, as `fastanc train` leaves it: report, export and resume take it."""
    mean: tuple[float, ...]
    """By which the student wants its images normalised, on the 0..1 scale."""
    std: tuple[float, ...]


def compress(
    teacher: nn.Module | str | Sequence[nn.Module | str],
    student: nn.Module | str,
    data: Any,
    method: str | Method = "anc",
    *,
    val: Any = None,
    recipe: str | None = None,
    epochs: int | None = None,
    batch: int | None = None,
    image_px: int | None = None,
    cache: str | Path | None = "cache",
    out: str | Path = "runs/compress",
    resume: str = "latest",
    fields: Mapping[str, Any] | None = None,
) -> Result:
    """Train a student to do what a teacher does, and return it.

    Runs in one process, or in all that `accelerate launch my_script.py` started. Called again with the same arguments
    it goes on where it was killed.

    Args:
        teacher: a network (logits [B, K] of normalised images), or a name as in teacher.name; of a list the mean.
        student: likewise; a network that is given is trained in place.
        data: what data.name takes (a name, folder, tar, ...), a torch Dataset of (image, label) or image, arrays
            (images, labels) or images (uint8), or a fastanc DataSet.
        method: a name, or a method such as `fastanc.methods.Kd(alpha=1.0)`.
        val: the validation set, an object as `data` may be; without one a folder's val/, or a held-out share.
        recipe: whose fields are the defaults; "own_data" where none is named.
        epochs: length of the run.
        batch: images per step over all processes.
        image_px: side of the images that both networks see.
        cache: folder of the teacher's cache; None runs the teacher in every step.
        out: the run's folder.
        resume: latest goes on where an earlier call was ended, anew starts over, never refuses.
        fields: any field of the configuration, such as {"optimizer.lr": 0.1}; they win.

    Raises:
        ValueError: something does not fit, in one sentence. FileNotFoundError: a file is not there.
    """
    given = Given(
        teacher=_given_teacher(teacher),
        student=student if isinstance(student, nn.Module) else None,
        train=None if isinstance(data, (str, Path)) else as_dataset(data),
        val=None if val is None else as_dataset(val, name="val"),
    )
    chosen: dict[str, Any] = {
        "run.out": str(Path(out).parent),
        "run.name": Path(out).name,
        "run.resume": resume,
        "teacher.name": object_name(given.teacher) if given.teacher is not None else teacher,
        "student.name": object_name(given.student) if given.student is not None else student,
        "data.name": str(data) if given.train is None else given.train.name,
        "method": {"type": method} if isinstance(method, str) else draccus.encode(method, Method),
        "schedule.epochs": epochs,
        "data.batch": batch,
        **_sizes(image_px, given.train, recipe),
        **({"teacher.cache": "off"} if cache is None else {"teacher.cache_dir": str(cache)}),
    }
    wanted = {key: value for key, value in chosen.items() if value is not None}
    config = configure(recipe or OWN_DATA, {**wanted, **(fields or {})})
    for each in with_teacher(config):
        folder = train(each, given if each is config else None)
    return _result(config, folder, given)


def _given_teacher(teacher: nn.Module | str | Sequence[nn.Module | str]) -> nn.Module | None:
    if isinstance(teacher, (nn.Module, str)):
        return teacher if isinstance(teacher, nn.Module) else None
    return ensemble(teacher)


def _sizes(image_px: int | None, dataset: DataSet | None, recipe: str | None) -> dict[str, int]:
    """Return the fields of the images' size: small arrays as they are, photographs in the usual ratio."""
    if image_px is None and isinstance(dataset, ArraySet):
        image_px = dataset.images.shape[1]
    if image_px is None:
        return {}
    small = isinstance(dataset, ArraySet) or image_px <= _SMALL_PX
    return {"data.image_px": image_px, "data.resize_px": image_px if small else round(image_px * 256 / 224)}


def _result(config: Config, folder: Path, given: Given) -> Result:
    """Return the student as its file holds it: of a moving average that is another one than was trained."""
    path = folder / "student.safetensors"
    state, metadata = read_weights(path)
    if given.student is None:
        student = zoo.load_weights(path).bare
    else:
        student = getattr(given.student, "bare", given.student)
        fit_weights(student, state, path)
    summary = json.loads((folder / "summary.json").read_text())
    mean, std = (tuple(json.loads(metadata[key])) for key in ("mean", "std"))
    return Result(student.eval().requires_grad_(True), summary["val"], folder, mean, std)
