"""The game of one run: its networks, who plays them, and the teacher they ask; what a checkpoint holds of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import set_seed
from torch import nn

from fastanc.config import Config
from fastanc.methods.base import Method, TeacherSpec
from fastanc.models.attention import Squeezed
from fastanc.models.taps import Tapped
from fastanc.training import assemble
from fastanc.training.inputs import Input
from fastanc.training.players import Average, Players
from fastanc.training.processes import average_flat
from fastanc.training.validate import average_buffers


@dataclass(frozen=True, kw_only=True)
class Game:
    """What `open_game` builds from a configuration."""

    accelerator: Accelerator
    student: Tapped
    method: Method
    players: Players
    average: Average | None
    """The student's moving average, where run.ema asks for one."""
    teacher_network: Tapped | Squeezed | None
    """The frozen teacher; None for a method without one."""
    teacher: assemble.Teacher | None
    """What answers for a batch; None also where the method plays the teacher's network itself."""
    notes: tuple[str, ...]
    """Sentences for the log: what could not be compiled."""

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


def open_game(config: Config, accelerator: Accelerator, source: Input) -> Game:
    """Build the networks, hand them to the players, open the teacher; ValueError where they do not fit."""
    set_seed(config.run.seed)
    dataset = source.train
    student = assemble.build_network(
        config.student, config.data, dataset, config.student.weights, config.method.reads_stages
    )
    teacher_network, spec = None, TeacherSpec(num_classes=dataset.num_classes)
    if config.method.needs_teacher:
        teacher_network = assemble.build_teacher_network(config, dataset)
        spec = assemble.teacher_spec(teacher_network, config.data, dataset.channels)
    method = config.method.build(spec)
    if "labels" in method.needs and dataset.labels is None:
        raise ValueError(
            f"data.name {dataset.name} has no labels, which method.type {config.method.kind} needs"
        )
    networks = method.networks(student)
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        # DeepSpeed views weights as bytes, which needs the contiguous layout.
        networks["student"].to(memory_format=torch.channels_last)
    notes = _compile(config, accelerator, dataset.channels, networks["student"], teacher_network)
    # Copied before the student is wrapped.
    average = Average(student, config.run.ema, accelerator.device) if config.run.ema else None
    optimizers = {"student": config.optimizer, **method.optimizers()}
    players = Players(accelerator, networks, optimizers, skip_nonfinite=config.run.skip_nonfinite)
    teacher = None
    if teacher_network is not None:
        teacher_network.to(accelerator.device)
        if config.method.latent_dim is None:
            teacher = assemble.open_teacher(config, source, method, teacher_network)
    return Game(
        accelerator=accelerator,
        student=student,
        method=method,
        players=players,
        average=average,
        teacher_network=teacher_network,
        teacher=teacher,
        notes=notes,
    )


def _compile(
    config: Config, accelerator: Accelerator, channels: int, student: nn.Module, teacher: nn.Module | None
) -> tuple[str, ...]:
    """Compile both networks where run.compile asks for it; return a sentence for each that stays eager."""
    if not config.run.compile:
        return ()
    # All networks share Tapped.forward, so that their variants (who, in which mode, with a gradient or not, the
    # last batch of an evaluation) count together against Dynamo's limit of 8, beyond which it stays eager.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    # The real batch: a sample of another size would make the compiler think that sizes vary.
    size = config.data.batch // accelerator.num_processes // config.run.accumulate
    shape = (size, channels, config.data.image_px, config.data.image_px)
    sample = torch.zeros(shape, dtype=torch.uint8, device=accelerator.device)
    # Not the teacher: a graph's outputs are overwritten in the next step, and rows wait longer to be kept.
    modes = ((student, config.run.compile_mode), (teacher, "default"))
    said = [
        assemble.compile_in_place(module.to(accelerator.device), sample, mode)
        for module, mode in modes
        if module is not None
    ]
    return tuple(sentence for sentence in said if sentence)
