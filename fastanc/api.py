"""From Python: what `fastanc train` does, from objects as well as names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import draccus
from torch import nn

from fastanc.errors import Interrupted
from fastanc.following import SMALL_PX
from fastanc.methods.base import Method
from fastanc.models import zoo
from fastanc.models.ensemble import ensemble
from fastanc.models.registered import object_name
from fastanc.models.taps import Tapped, untap
from fastanc.models.weights import fit_weights, read_weights
from fastanc.parsing import configure, with_teacher
from fastanc.pipelines.arrays import ArraySet
from fastanc.pipelines.catalogue import open_dataset
from fastanc.pipelines.dataset import DataSet
from fastanc.pipelines.own_sets import as_dataset
from fastanc.quoting import cut
from fastanc.train import train
from fastanc.training.assemble_networks import Given

OWN_DATA = "own_data"
"""The recipe that is taken where none is named."""


@dataclass(frozen=True)
class Result:
    """What a run leaves behind."""

    student: nn.Module
    """The bare network, trained, in eval mode: normalised images [B, C, H, W] -> logits [B, K]."""
    metrics: dict[str, float]
    """Of the last evaluation: top1, error_pct, agreement_pct, ..."""
    folder: Path
    """The run's folder, as `fastanc train` leaves it: report and resume take it, and so does export, with a --plugin
    file that registers the student's class where it was given as an object."""
    mean: tuple[float, ...]
    """By which the student wants its images normalised, on the 0..1 scale."""
    std: tuple[float, ...]


def compress(
    teacher: nn.Module | str | Sequence[nn.Module | str],
    student: nn.Module | str,
    data: Any,
    method: str | Method | None = None,
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
        teacher: a network (logits [B, K] of normalised images), or a name as in teacher.name. Of a list the mean,
            each normalised by its own statistics (a Tapped's, timm's), else by ImageNet's.
        student: a network, which is trained in place, or a name.
        data: what data.name takes (a name, folder, tar, ...), a torch Dataset of (image, label) or image, arrays
            (images, labels) or images (uint8), or a fastanc DataSet.
        method: a name, whose knobs the recipe may set, or an object such as `fastanc.methods.Kd(alpha=1.0)`, which
            brings all of its own; None takes the recipe's.
        val: the validation set, an object as `data` may be, or what data.val takes; without one a folder's val/, or a
            held-out share.
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
        KeyboardInterrupt: Ctrl-C, SIGTERM or SIGUSR1; the run has saved itself first, and the message says where.
    """
    _check(teacher, student, method, fields or {})
    method = method() if isinstance(method, type) else method
    given = Given(
        teacher=_given_teacher(teacher),
        student=student if isinstance(student, nn.Module) else None,
        train=None if isinstance(data, (str, Path)) else as_dataset(data),
        val=None if val is None or isinstance(val, (str, Path)) else as_dataset(val, name="val"),
    )
    chosen: dict[str, Any] = {
        "run.out": str(Path(out).parent),
        "run.name": Path(out).name,
        "run.resume": resume,
        "teacher.name": object_name(given.teacher) if given.teacher is not None else _name_of(teacher),
        "student.name": object_name(given.student) if given.student is not None else student,
        "data.name": str(data) if given.train is None else given.train.name,
        "data.val": str(val) if isinstance(val, (str, Path)) else None,
        "method": _given_method(method),
        "schedule.epochs": epochs,
        "data.batch": batch,
        **_sizes(image_px, given.train if given.train is not None else _small(data, recipe, fields or {})),
        **({"teacher.cache": "off"} if cache is None else {"teacher.cache_dir": str(cache)}),
    }
    wanted = {key: value for key, value in chosen.items() if value is not None}
    config = configure(recipe or OWN_DATA, {**wanted, **(fields or {})})
    with _left_in_peace(given):
        for each in with_teacher(config) if given.teacher is None else [config]:
            try:
                folder = train(each, given if each is config else None)
            except (
                Interrupted
            ) as stopped:  # a script ends as Ctrl-C ends any other, and a notebook's cell too
                raise KeyboardInterrupt(
                    f'{stopped} in {each.run.folder}; the same call goes on, with resume="latest"'
                ) from None
        return _result(folder, given)


def _given_method(method: str | Method | None) -> Any:
    if isinstance(method, str):
        return {"type": method}
    return None if method is None else draccus.encode(method, Method)


_ARGUMENTS = {"data.name": "data", "method.type": "method"}
"""Fields that an argument without a default says already."""


def _check(teacher: object, student: object, method: object, fields: Mapping[str, Any]) -> None:
    """Raise TypeError for an argument of another kind, ValueError for a field that an object makes idle."""
    of_many = isinstance(teacher, Sequence) and all(isinstance(one, (str, nn.Module)) for one in teacher)
    is_kind = isinstance(method, type) and issubclass(method, Method)
    for name, value, good in (
        ("teacher", teacher, isinstance(teacher, (str, nn.Module)) or of_many),
        ("student", student, isinstance(student, (str, nn.Module))),
        ("method", method, method is None or isinstance(method, (str, Method)) or is_kind),
    ):
        if not good:
            kind = "a name or a fastanc.Method" if name == "method" else "a network or a name"
            raise TypeError(f"{name} is {cut(repr(value))}: give {kind}")
    if not isinstance(fields, Mapping):
        raise TypeError(f'fields is {cut(repr(fields))}: give a dictionary such as {{"optimizer.lr": 0.1}}')
    if wrong := [key for key in fields if not isinstance(key, str)]:
        raise TypeError(f'fields holds {cut(repr(wrong[0]))}: its keys are names such as "optimizer.lr"')
    for key, argument in _ARGUMENTS.items():
        if key in fields:
            raise ValueError(f"{key} in fields is what the argument {argument} says: leave it out")
    for name, value in (("teacher", teacher), ("student", student)):
        idle = [f"{name}.{key}" for key in ("name", "weights", "kwargs") if f"{name}.{key}" in fields]
        if idle and not isinstance(value, str):
            raise ValueError(
                f"{idle[0]} does nothing beside a {name} that is given as an object: leave it out"
            )


@contextmanager
def _left_in_peace(given: Given) -> Iterator[None]:
    """Give the networks back as they came, without taps, frozen where they were; the student keeps what it learnt."""
    networks = [network for network in (given.teacher, given.student) if network is not None]
    wants = [(p, p.requires_grad) for network in networks for p in network.parameters()]
    modes = [] if given.teacher is None else [(m, m.training) for m in given.teacher.modules()]
    try:
        yield
    finally:
        for parameter, wanted in wants:
            parameter.requires_grad_(wanted)
        for module, mode in modes:
            module.training = mode
        for network in networks:
            if not isinstance(network, Tapped):
                untap(network)


def _given_teacher(teacher: nn.Module | str | Sequence[nn.Module | str]) -> nn.Module | None:
    if isinstance(teacher, (nn.Module, str)):
        return teacher if isinstance(teacher, nn.Module) else None
    return _given_teacher(teacher[0]) if len(teacher) == 1 else ensemble(teacher)


def _name_of(teacher: nn.Module | str | Sequence[nn.Module | str]) -> object:
    return teacher if isinstance(teacher, (str, nn.Module)) else teacher[0]


def _sizes(image_px: int | None, dataset: DataSet | None) -> dict[str, int]:
    """Return the fields of the images' size: small arrays as they are, photographs in the usual ratio."""
    if image_px is None and isinstance(dataset, ArraySet):
        image_px = dataset.images.shape[1]
    if image_px is None:
        return {}
    small = isinstance(dataset, ArraySet) or image_px <= SMALL_PX
    return {"data.image_px": image_px, "data.resize_px": image_px if small else round(image_px * 256 / 224)}


def _small(data: Any, recipe: str | None, fields: Mapping[str, Any]) -> DataSet | None:
    """Return a set by name that is kept as small arrays, whose size is the images'; None for any other."""
    if recipe is not None or "/" in str(data) or Path(str(data)).exists():
        return None
    return open_dataset(str(data), "val", fields.get("data.root"))


def _result(folder: Path, given: Given) -> Result:
    """Return the student as its file holds it: of a moving average that is another one than was trained."""
    path = folder / "student.safetensors"
    state, metadata, *_ = read_weights(path)
    if given.student is None:
        student = zoo.load_weights(path).bare
    else:
        student = given.student.bare if isinstance(given.student, Tapped) else given.student
        fit_weights(student, state, path)
    summary = json.loads((folder / "summary.json").read_text())
    mean, std = (tuple(json.loads(metadata[key])) for key in ("mean", "std"))
    return Result(student.eval(), summary["val"], folder, mean, std)
