"""The best student so far, by one number of the evaluations, and for how long a better one is waited for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from fastanc.files import remove, write_bytes
from fastanc.models import zoo
from fastanc.training.folder import BEST

_LOWER_IS_BETTER = {"error_pct", "loss", "teacher_kl"}


class Best:
    """Keeps the student of the best evaluation as best.safetensors; every process counts alike.

    A checkpoint holds the count and that file, so that a run that goes on from any of them is where it was then.

    Args:
        metric: the number of an evaluation that decides.
        patience: evaluations in a row without a better one after which the run is over; 0 never ends it.
        folder: of the run.
        accelerator: of this process; process 0 writes.
    """

    def __init__(self, metric: str, patience: int, folder: Path, accelerator: Accelerator):
        self.metric, self._patience, self._path = metric, patience, folder / BEST
        self._is_main = accelerator.is_main_process
        self.value: float | None = None
        self.steps = 0
        """Steps that were done at the best evaluation."""
        self._seen = self._waited = 0
        self._file: Tensor | None = None

    def take(self, done: int, values: Mapping[str, float | None], student: nn.Module) -> None:
        """Count an evaluation of the student after `done` steps, once; every process calls it."""
        if done <= self._seen:
            return
        told: list[Any] = [values.get(self.metric)]
        broadcast_object_list(told)  # all have to end at the same step, whatever the last bit of their sums
        (value,) = told
        self._seen, self._waited = done, self._waited + 1
        if value is None or not math.isfinite(value) or not self._is_better(value):
            return
        self.value, self.steps, self._waited = value, done, 0
        if self._is_main:
            zoo.save_weights(student, self._path)
            self._file = _bytes_of(self._path)

    def _is_better(self, value: float) -> bool:
        if self.value is None:
            return True
        return value < self.value if self.metric in _LOWER_IS_BETTER else value > self.value

    @property
    def is_over(self) -> bool:
        """Whether as many evaluations as patience says brought nothing better."""
        return 0 < self._patience <= self._waited

    def sentence(self, done: int, total: int) -> str:
        """Say why the run ends after `done` of `total` steps."""
        than = "" if self.value is None else f" better than {self.value:.4g} of step {self.steps}"
        return (
            f"{self._waited} evaluation{'s' * (self._waited != 1)} without a {self.metric}{than}: the run ends"
            f" after step {done} of {total} (run.patience)"
        )

    def said(self, steps_per_epoch: int) -> dict[str, Any] | None:
        """Return what the summary says of it; None where no evaluation had the number."""
        if self.value is None:
            return None
        epoch = self.steps / steps_per_epoch
        return {"metric": self.metric, "value": self.value, "steps": self.steps, "epoch": epoch}

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps; on process 0."""
        return {
            "metric": self.metric,
            "value": self.value,
            "steps": self.steps,
            "seen": self._seen,
            "waited": self._waited,
            "file": self._file,
        }

    def load_state(self, state: Mapping[str, Any] | None) -> None:
        """Go on from what `state` returned; by another number, or without a state, the count begins anew."""
        if state is None or state["metric"] != self.metric:
            return
        self.value, self.steps, self._file = state["value"], state["steps"], state["file"]
        self._seen, self._waited = state["seen"], state["waited"]

    def restore(self) -> None:
        """Make the file what it was at the checkpoint: it may be of an evaluation that is made again."""
        if not self._is_main:
            return
        if self._file is None:
            remove(self._path)
        elif not self._path.is_file() or not torch.equal(_bytes_of(self._path), self._file):
            write_bytes(self._path, self._file.numpy().tobytes())


def _bytes_of(path: Path) -> Tensor:
    return torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
