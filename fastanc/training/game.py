"""The game of one run: its networks, who plays them, and the teacher they ask; what a checkpoint holds of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from fastanc.methods.base import Method
from fastanc.models.memories import Memory
from fastanc.models.taps import Tapped
from fastanc.teacher.answers import Answers
from fastanc.teacher.frozen import FrozenTeacher
from fastanc.training.player import Average
from fastanc.training.players import Players
from fastanc.training.processes import average_flat
from fastanc.training.validate import statistics


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
    autocast: torch.dtype | None = None
    """The student's arithmetic where it is evaluated, the same whatever its width: run.precision's."""
    labels_count: bool = True
    """Whether the validation set's labels are the student's classes; else agreement with the teacher counts."""
    classes: tuple[str, ...] = ()
    """Names of the student's classes, in the order of its logits; none where nobody says them."""
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
        average_flat(self.accelerator, self._averaged())

    def _averaged(self) -> list[Tensor]:
        modules = [self.players["student"].module, *([self.average.network] if self.average else ())]
        return [buffer for module in modules for buffer in statistics(module)]

    @torch.no_grad()
    def _gathered(self) -> Tensor | None:
        """Return every process's statistics of BatchNorm [processes, values]; None in a process that is alone."""
        own = self._averaged()
        if self.accelerator.num_processes == 1 or not own:
            return None
        gathered: Tensor = self.accelerator.gather(torch.cat([buffer.reshape(-1) for buffer in own])[None])
        return gathered

    @torch.no_grad()
    def _restore(self, gathered: Tensor | None) -> None:
        """Give this process its own statistics back; where there were other processes, the mean of theirs."""
        if gathered is None:
            return
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        values = gathered[rank] if len(gathered) == world else gathered.mean(0)
        own = self._averaged()
        for buffer, part in zip(own, values.split([buffer.numel() for buffer in own])):
            buffer.copy_(part.view_as(buffer))

    def _remembered(self) -> list[Tensor]:
        """Return the buffers that are what this process alone has seen."""
        parts = [part for module in self.players.modules().values() for part in module.modules()]
        return [
            buffer for part in parts if isinstance(part, Memory) for buffer in part.buffers(recurse=False)
        ]

    @torch.no_grad()
    def _recall(self, gathered: list[Tensor] | None) -> None:
        """Give this process its own memories back; of another number of processes, all have the first one's."""
        if gathered is None or len(gathered[0]) != self.accelerator.num_processes:
            return
        for buffer, of_all in zip(self._remembered(), gathered, strict=True):
            buffer.copy_(of_all[self.accelerator.process_index])

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: players, moving average, loss scale; every process calls it."""
        state: dict[str, Any] = {"players": self.players.state(), "statistics": self._gathered()}
        own = self._remembered()
        if own and self.accelerator.num_processes > 1:
            state["memories"] = [self.accelerator.gather(buffer[None]) for buffer in own]
        if self.average is not None:
            state["average"] = self.average.network.state_dict()
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.players.load_state(state["players"])
        self._restore(state.get("statistics"))
        self._recall(state.get("memories"))
        if self.average is not None:
            self.average.network.load_state_dict(state["average"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
