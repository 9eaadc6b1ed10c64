"""Trackers: what metrics.jsonl is told, in TensorBoard, Weights & Biases, Trackio or MLflow as well.

Each is Accelerate's, and is started, told and ended by itself: one that fails is left out, and the run goes on.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from PIL import Image

from fastanc.errors import raised
from fastanc.files import write_text
from fastanc.training.folder import TENSORBOARD, TRACKED

_PROJECT = "fastanc"
_PLACE = ("kind", "step")  # of a line: what it is of; all else is a number
_NO_NAME = re.compile(r"[^\w./ -]")


class Trackers:
    """The trackers of one run, in the process that writes its folder; a run that goes on is the same one there.

    Args:
        names: of tensorboard, wandb, trackio and mlflow.
        folder: the run's, which remembers under what name or number a tracker keeps it.
        run: its name.
        fields: the configuration as nested dictionaries.
        start: the first step that this execution makes.
        say: told in one sentence of a tracker that failed.
    """

    def __init__(
        self,
        names: Sequence[str],
        folder: Path,
        *,
        run: str,
        fields: Mapping[str, Any],
        start: int,
        say: Callable[[str], None],
    ):
        self._say = say
        self._live: dict[str, GeneralTracker] = {}
        self._kept = _read(folder / TRACKED)
        for name in dict.fromkeys(names):
            self._try(name, "start", lambda: self._begin(name, folder, run, fields, start))  # noqa: B023
        if self._live:
            write_text(folder / TRACKED, json.dumps(self._kept, indent=1))

    def line(self, line: Mapping[str, Any]) -> None:
        """Send the numbers of a line of metrics.jsonl, as train/NAME or val/NAME; notes are not sent."""
        if line["kind"] == "note":
            return
        values = {
            f"{line['kind']}/{_NO_NAME.sub('_', key)}": value
            for key, value in line.items()
            if key not in _PLACE and _is_number(value)
        }
        for name, tracker in [*self._live.items()]:
            self._try(name, "log", lambda: tracker.log(values, step=line["step"]))  # noqa: B023

    def show(self, what: str, picture: Callable[[], Image.Image], step: int) -> None:
        """Send a picture to those that take one; it is made where there are any."""
        takers = [name for name, tracker in self._live.items() if _takes_pictures(tracker)]
        if not takers:
            return
        try:
            made = picture().convert("RGB")
        except Exception as error:  # a set, or a plugin's code, that cannot be looked at
            self._say(f"there is no picture of {what} for {', '.join(takers)} ({raised(error)})")
            return
        for name in takers:
            self._try(name, "log a picture", lambda: _send(self._live[name], what, made, step))  # noqa: B023

    def close(self) -> None:
        """End the run's record in each."""
        for name in [*self._live]:
            self._try(name, "end", self._live[name].finish)
        self._live.clear()

    def _begin(self, name: str, folder: Path, run: str, fields: Mapping[str, Any], start: int) -> None:
        known = self._kept.get(name)
        tracker: GeneralTracker = _MAKERS[name](folder, run, known, start)
        tracker.start()
        self._live[name] = tracker
        if known is None:  # MLflow refuses another value, TensorBoard would have it twice
            tracker.store_init_configuration(dict(_flat(fields)))
        self._kept[name] = _number_of(name, tracker)

    def _try(self, name: str, what: str, act: Callable[[], object]) -> None:
        """Do something with a tracker; one that fails is left out, and that is said once."""
        try:
            act()
        # wandb and click end a process where they cannot go on.
        except (Exception, SystemExit) as error:
            tracker = self._live.pop(name, None)
            if tracker is not None and what != "end":
                with suppress(Exception, SystemExit):
                    tracker.finish()
            self._say(f"the tracker {name} could not {what} ({raised(error)}): the run goes on without it")


def _read(path: Path) -> dict[str, str]:
    """Return under what name or number each tracker keeps the run; one that is not written there begins anew."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in found.items() if isinstance(v, str)} if isinstance(found, dict) else {}


def _tensorboard(folder: Path, run: str, known: str | None, start: int) -> GeneralTracker:
    # What a killed run had told of the steps that are made again is hidden.
    return LOGGER_TYPE_TO_CLASS["tensorboard"](TENSORBOARD, folder, purge_step=start or None)


def _wandb(folder: Path, run: str, known: str | None, start: int) -> GeneralTracker:
    project = os.environ.get("WANDB_PROJECT") or _PROJECT
    more = {} if known is None else {"id": known, "resume": "allow"}
    return LOGGER_TYPE_TO_CLASS["wandb"](project, name=run, **more)


def _trackio(folder: Path, run: str, known: str | None, start: int) -> GeneralTracker:
    more = {"name": run} if known is None else {"name": known, "resume": "allow"}
    return LOGGER_TYPE_TO_CLASS["trackio"](_PROJECT, **more)


def _mlflow(folder: Path, run: str, known: str | None, start: int) -> GeneralTracker:
    return LOGGER_TYPE_TO_CLASS["mlflow"](experiment_name=_PROJECT, run_name=run, run_id=known)


_MAKERS: dict[str, Callable[[Path, str, str | None, int], GeneralTracker]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "trackio": _trackio,
    "mlflow": _mlflow,
}


def _number_of(name: str, tracker: Any) -> str:
    """Return under what name or number a tracker keeps the run."""
    if name == "wandb":
        return str(tracker.tracker.id)
    if name == "trackio":
        return str(tracker.tracker.name)
    return str(tracker.tracker.info.run_id) if name == "mlflow" else TENSORBOARD


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str | int | float | bool]]:
    """Yield a configuration's fields as group.field; what is no plain value as its text."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            plain = isinstance(value, str | int | float | bool)
            yield prefix + key, value if plain else json.dumps(value, default=str)


def _takes_pictures(tracker: GeneralTracker) -> bool:
    return hasattr(tracker, "log_images") or hasattr(tracker, "log_artifact")


def _send(tracker: Any, what: str, picture: Image.Image, step: int) -> None:
    pixels = np.asarray(picture)
    if tracker.name == TENSORBOARD:
        tracker.log_images({what: pixels[None]}, step=step, dataformats="NHWC")
    elif hasattr(tracker, "log_images"):
        tracker.log_images({what: [pixels]}, step=step)
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{what}.png"
            picture.save(path)
            tracker.log_artifact(str(path))
