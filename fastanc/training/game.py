"""The game of one run: its networks, who plays them, and the teacher they ask; what a checkpoint holds of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator

from fastanc.methods.base import Method
from fastanc.models.taps import Tapped
from fastanc.teacher.answers import Answers
from fastanc.teacher.frozen import FrozenTeacher
from fastanc.training.players import Average, Players
from fastanc.training.processes import average_flat
from fastanc.training.validate import average_buffers


@dataclass(frozen=True, kw_only=True)
class Game:
    """Everything of a run that learns, or is learnt from."""

    accelerator: Accelerator
    student: Tapped
    method: Method
    players: Players
    average: Average | None
    """The student's moving average, where run.ema asks for one."""
    teacher: FrozenTeacher | None
    """None for a method without one."""
    answers: Answers | None
    """Who answers for a batch; None also where the method plays the teacher's network itself."""
    labels_count: bool = True
    """Whether the validation set's labels are the student's classes; else agreement with the teacher counts."""
    notes: tuple[str, ...] = ()
    """Sentences for the log."""

    @property
    def kept(self) -> Tapped:
        """What is evaluated and written at the end: the student, or its moving average."""
        if self.average is None:
            return self.student
        assert isinstance(self.average.network, Tapped)
        return self.average.network

    def average_buffers(self) -> None:
        """Average the statistics of BatchNorm over the processes."""
        averaged = [self.players["student"].module, *([self.average.network] if self.average else ())]
        for module in averaged:
            average_buffers(module, lambda tensors: average_flat(self.accelerator, tensors))

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: players, moving average, loss scale."""
        state: dict[str, Any] = {"players": self.players.state()}
        if self.average is not None:
            state["average"] = self.average.network.state_dict()
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.players.load_state(state["players"])
        if self.average is not None:
            self.average.network.load_state_dict(state["average"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
