"""What is wrong with names and files of a configuration, found before anything slow is imported.

Only what a run would refuse is refused here, by the same rules (`models.names`, `pipelines.names`); a name that a
plugin may register is left to the run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastanc.models import names as networks
from fastanc.pipelines import names as datasets
from fastanc.pipelines.own_looks import check_look

_RESUMES = ("never", "latest", "anew")


def check_images(groups: Mapping[str, Any]) -> None:
    """Raise ValueError or FileNotFoundError naming a field that says which images and views; see `check`."""
    run, data = groups["run"], groups["data"]
    plugin = run.plugin is not None
    _named("data.name", datasets.check_name, data.name, plugin)
    if (
        data.root is not None
        and data.name in datasets.KNOWN[1:]
        and not os.path.isdir(Path(data.root).expanduser())
    ):
        raise FileNotFoundError(f"data.root: there is no folder {data.root} to look for {data.name} in")
    if data.val is not None:
        _named("data.val", datasets.check_name, data.val, plugin)
    for name in ("labels", "class_map"):
        _file(f"data.{name}", getattr(data, name))
    if data.images is not None and not os.path.isdir(data.images):
        raise FileNotFoundError(f"data.images: there is no folder {data.images}: correct the path")
    if not plugin:
        check_look(data.looks)
    _file("run.plugin", run.plugin)


def check(groups: Mapping[str, Any]) -> None:
    """Raise ValueError or FileNotFoundError naming the field; `groups` are a configuration's, the method if known."""
    check_images(groups)
    run, teacher, student = (groups[name] for name in ("run", "teacher", "student"))
    plugin, method = run.plugin is not None, groups.get("method")
    _named("student.name", networks.check_name, student.name, plugin)
    _weights("student.weights", student.weights)
    for optimizer in (groups.get("optimizer"), *(method.optimizers().values() if method is not None else ())):
        if optimizer is not None:
            optimizer.check_library()
    if method is not None and method.needs_teacher:
        _file("teacher.estimators", teacher.estimators)
        for one in [teacher] if teacher.members is None else teacher.members:
            _named(f"{one.group}.name", networks.check_name, one.name, plugin)
            _teacher_files(one, getattr(one, "recipe", None), may_be_registered=plugin)
    check_trackers(run.trackers)
    if run.resume not in _RESUMES and not os.path.exists(run.resume):
        raise FileNotFoundError(
            f"run.resume: there is no checkpoint {run.resume}: take {', '.join(_RESUMES)}, or a"
            " checkpoint's path"
        )


def check_trackers(names: Sequence[str]) -> None:
    """Raise ValueError where a tracker's package is not installed; nothing is imported."""
    for name in names:
        if find_spec(name) is None:
            raise ValueError(f"run.trackers: {name} is not installed: pip install 'fastanc[{name}]'")


def _teacher_files(teacher: Any, recipe: str | None, *, may_be_registered: bool) -> None:
    if teacher.weights is None and not (networks.has_published(teacher.name) or may_be_registered):
        raise ValueError(
            f"{teacher.group}.weights is missing: name a file, or the word random for a speed test with an untrained"
            " teacher"
        )
    if teacher.weights not in (None, "random") and recipe is None:
        _weights(f"{teacher.group}.weights", teacher.weights)


def _named(field: str, check_name: Any, name: str, may_be_registered: bool) -> None:
    try:
        check_name(name, may_be_registered=may_be_registered)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"{field}: {error}") from None


def _file(field: str, path: str | None) -> None:
    if path is not None and not os.path.isfile(path):
        raise FileNotFoundError(f"{field}: there is no file {path}: correct the path")


def _weights(field: str, path: str | None) -> None:
    # The folder of a finished run means the student in it.
    _file(field, os.path.join(path, "student.safetensors") if path and os.path.isdir(path) else path)
