"""A method's training step as train.py makes it, with a clock inside; what the benchmarks of the step share."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal

import torch

from fastanc.batch import Batch, Outputs
from fastanc.methods.anc import Anc
from fastanc.methods.base import Method, Nets, Play, Played, TeacherSpec, spec_of
from fastanc.models import zoo
from fastanc.models.attention import Squeezed, estimators_for
from fastanc.models.calibration import calibrate_batchnorm
from fastanc.models.folding import fold_batchnorm
from fastanc.models.taps import Tapped
from fastanc.optimizers import OptimizerConfig
from fastanc.teacher.cached import Cached
from fastanc.teacher.filling import Filling
from fastanc.teacher.online import Online
from fastanc.training.compiling import compile_in_place
from fastanc.training.fused import fused
from fastanc.training.players import Players
from fastanc.training.processes import make_accelerator, seed_step
from fastanc.training.step import moves

PARTS = (
    "data",
    "teacher",
    "student_forward",
    "discriminator_play",
    "other_play",
    "student_play",
    "optimizer",
)
SGD = OptimizerConfig(lr=1e-4, momentum=0.9, weight_decay=1e-4)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Networks and sizes of one comparison."""

    student: str
    teacher: str
    image_px: int
    num_classes: int
    batch: int
    precision: str
    steps: int = 1
    """Steps of a variant's turn."""

    @property
    def autocast(self) -> torch.dtype | None:
        """The dtype of both networks' passes; None is fp32."""
        return {"fp32": None, "bf16": torch.bfloat16}[self.precision]

    @property
    def itemsize(self) -> int:
        """Bytes of an activation."""
        return 2 if self.autocast else 4

    def network(self, name: str, stages: Sequence[str] | Literal["auto"] = ()) -> Tapped:
        """Build an untrained network of this comparison."""
        network = zoo.build(name, num_classes=self.num_classes, image_px=self.image_px, stages=stages)
        return network.to(memory_format=torch.channels_last)


@dataclass(frozen=True, kw_only=True)
class FusedAnc(Anc):
    """ANC with its plays by the Triton kernels, see `training.fused`."""

    @property
    def plays(self) -> tuple[Play, ...]:
        """The plays of Anc, each by kernels."""
        plain = Anc(**{field.name: getattr(self, field.name) for field in fields(Anc)})
        return tuple(Play(play.player, partial(_fused, plain, play)) for play in plain.plays)


def _fused(method: Method, play: Play, nets: Nets, batch: Batch, out: Outputs | None) -> Played:
    loss = fused(method, play, nets)
    assert loss is not None, f"the {play.player}'s play has no kernels here"
    return loss(nets, batch, out)


def _part_of(player: str) -> str:
    """Return the part that a player's play belongs to: a sum's discriminator is `anc_discriminator`."""
    kind = player.rpartition("_")[2]
    return f"{kind}_play" if kind in ("student", "discriminator") else "other_play"


class Clock:
    """Where the time of a turn goes; on CUDA by events, which wait for nothing."""

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = []

    def __call__(self, part: str) -> None:
        """Say that what happened since the last mark was `part`; "" begins."""
        if self._cuda:
            mark: Any = torch.cuda.Event(enable_timing=True)
            mark.record()
        else:
            mark = time.perf_counter()
        self._marks.append((part, mark))

    def taken(self) -> dict[str, float]:
        """Return the milliseconds of every part since the last call, and "step", all of them together."""
        marks, self._marks = self._marks, []
        spent = dict.fromkeys(PARTS, 0.0)
        for (_, before), (part, after) in zip(marks, marks[1:]):
            spent[part] += before.elapsed_time(after) if self._cuda else 1e3 * (after - before)
        first, last = marks[0][1], marks[-1][1]
        spent["step"] = first.elapsed_time(last) if self._cuda else 1e3 * (last - first)
        return spent


class Game:
    """A method with its players, its teacher and its batches; `mode` is eager, compiled, or graphs (CUDA graphs)."""

    def __init__(
        self,
        method: Method,
        student: Tapped,
        teacher: Online | Filling | Cached | Ready | None,
        batches: Iterator[Batch],
        device: torch.device,
        *,
        spec: TeacherSpec,
        precision: str = "fp32",
        mode: str = "eager",
        optimizer: OptimizerConfig = SGD,
    ):
        self.method, self.teacher, self.batches, self.device = method, teacher, batches, device
        networks = method.networks(student, spec)
        if mode != "eager":
            compile_in_place(networks["student"], "reduce-overhead" if mode == "graphs" else "default")
        self.players = Players(make_accelerator(precision=precision), networks, {"student": optimizer})
        self.clock = Clock(device)
        self.players["student"].wrapped.register_forward_hook(lambda *_: self.clock("student_forward"))
        for player in self.players:
            self._optimizer_apart(player)
        self._graphs = mode == "graphs"
        self._steps_done = 0

    def step(self) -> None:
        """Play one step as train.py does, and tell the clock of its parts."""
        clock, number = self.clock, self._steps_done
        self._steps_done += 1
        seed_step(0, number, 0)
        batch = next(self.batches)
        if self._graphs:
            torch.compiler.cudagraph_mark_step_begin()
        clock("data")
        if self.teacher is not None:
            batch.target = self.teacher(batch)
        clock("teacher")
        for made in moves(self.method, self.players, batch):
            clock(_part_of(made.player))

    def _optimizer_apart(self, player: str) -> None:
        prepared = self.players[player].optimizer
        optimizer = getattr(prepared, "optimizer", prepared)  # Accelerate's wrapper has no hooks
        optimizer.register_step_pre_hook(lambda *_: self.clock(_part_of(player)))
        optimizer.register_step_post_hook(lambda *_: self.clock("optimizer"))

    def turn(self, steps: int) -> dict[str, float]:
        """Play some steps; return the milliseconds of one, its parts, and processor milliseconds `cpu`."""
        wait(self.device)
        cpu_s = time.process_time()
        self.clock("")
        for _ in range(steps):
            self.step()
        wait(self.device)
        cpu_s = time.process_time() - cpu_s
        return {key: ms / steps for key, ms in {**self.clock.taken(), "cpu": 1e3 * cpu_s}.items()}


def make_method(name: str) -> Method:
    """Return a method with its default options."""
    return FusedAnc() if name == "anc kernels" else Method.get_choice_class(name)()


def methods_of_images() -> list[str]:
    """Return every method that trains a student on images; KSANC's estimators and latent vectors are other games."""
    known = [name for name in Method.get_known_choices() if name != "ksanc_teacher"]
    return sorted(name for name in known if "latents" not in make_method(name).needs)


class Ready:
    """The teacher's outputs on the only images that there are, computed before any clock runs."""

    def __init__(self, network: Tapped | Squeezed, batch: Batch, autocast: torch.dtype | None):
        self._outputs = Online(network, autocast)(batch)

    def __call__(self, batch: Batch) -> Outputs:
        """Return them: without a cost, so that what a step costs more than the supervised one is the method's."""
        return self._outputs

    def close(self) -> None:
        """Nothing is open."""


def ready_game(
    name: str, setting: Setting, batches: Iterator[Batch], device: torch.device, mode: str
) -> Game:
    """Return the game of any method between this comparison's networks, with all of its taps."""
    method = make_method(name)
    teacher: Ready | None = None
    stages: Literal["auto"] | tuple[()] = "auto" if method.taps_student else ()
    spec = TeacherSpec(setting.num_classes)
    if method.needs_teacher:
        network = frozen_teacher(setting, device, mode, stages=stages)
        spec = spec_of(network)
        whole: Tapped | Squeezed = network
        if "descriptors" in method.needs:
            whole = Squeezed(network, estimators_for(network)).eval().requires_grad_(False).to(device)
        teacher = Ready(whole, next(batches), setting.autocast)
    student = setting.network(setting.student, stages)
    return Game(method, student, teacher, batches, device, spec=spec, precision=setting.precision, mode=mode)


def frozen_teacher(
    setting: Setting,
    device: torch.device,
    mode: str,
    fold: bool = True,
    stages: Sequence[str] | Literal["auto"] = (),
) -> Tapped:
    """Return the comparison's teacher as a run has it: folded, frozen, channels_last, compiled if wanted."""
    network = setting.network(setting.teacher, stages).eval()
    calibrate_batchnorm(network, 3, setting.image_px)  # untrained features would leave fp16's range
    network = (fold_batchnorm(network) if fold else network).requires_grad_(False).to(device)
    if mode != "eager":
        compile_in_place(network)
    return network


def wait(device: torch.device) -> None:
    """Wait until the device has done what was queued; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
