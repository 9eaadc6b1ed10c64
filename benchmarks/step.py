"""One training step by every method, side by side: `python -m benchmarks.step`.

The steps are train.py's, through the real players, methods and teachers, on random uint8 images that lie on the
device; cached rows are random numbers, read from files. The variants take turns, round by round, so that a busy
machine slows all of them alike; medians count. The parts' times end where the host (CPU) or the stream (CUDA events)
ends them. `of_roofline` is the least time of `roofline.py` over the measured one.

Without `--student` the networks are those of the papers, at a size for the device.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from benchmarks.harness import measure, record, table
from benchmarks.roofline import Ceilings, least_s, measure_ceilings, passes
from fastanc.assemble import compile_in_place
from fastanc.batch import Batch, Outputs
from fastanc.kernels.discriminator_move import discriminator_move
from fastanc.kernels.fooling_move import fooling_move
from fastanc.losses import squared_error
from fastanc.methods.anc import Anc, AncConfig
from fastanc.methods.base import Method, Nets, Played, TeacherSpec, sides
from fastanc.methods.l2 import L2Config
from fastanc.methods.supervised import SupervisedConfig
from fastanc.models import zoo
from fastanc.models.folding import fold_batchnorm
from fastanc.models.taps import Tapped
from fastanc.optimizers import OptimizerConfig
from fastanc.pipelines.order import Order
from fastanc.players import Players
from fastanc.processes import make_accelerator, seed_step
from fastanc.teacher.cached import Cached
from fastanc.teacher.filling import Filling
from fastanc.teacher.online import Online
from fastanc.teacher.rows import Field
from fastanc.teacher.store import Store

PARTS = ("data", "teacher", "student_forward", "discriminator_play", "student_play", "optimizer")
VARIANTS = {  # name -> method, source of the teacher's outputs
    "supervised": ("supervised", None),
    "l2 cached": ("l2", "cached"),
    "anc online": ("anc", "online"),
    "anc filling": ("anc", "filling"),
    "anc cached": ("anc", "cached"),
    "anc cached, kernels": ("anc kernels", "cached"),
}
SGD = OptimizerConfig(lr=1e-4, momentum=0.9, weight_decay=1e-4)
_STEPS_PER_EPOCH = 16


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

    def network(self, name: str) -> Tapped:
        """Build an untrained network of this comparison."""
        network = zoo.build(name, num_classes=self.num_classes, image_px=self.image_px)
        return network.to(memory_format=torch.channels_last)


class KernelAnc(Anc):
    """ANC with its two moves by the Triton kernels; the same losses, for the default configuration alone."""

    def _keep(self, sample: Tensor) -> Tensor:
        return torch.rand(sample.shape, device=sample.device) >= self.config.dropout

    def discriminator_play(self, nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        """The discriminator's move in two launches."""
        teacher, student = sides(batch, out)
        assert teacher.features is not None
        assert student.features is not None
        features = student.features.detach()
        weights = list(nets["discriminator"].parameters())
        move = discriminator_move(
            teacher.features, features, weights, self._keep(features), self.config.dropout
        )
        return Played({"discriminate": move.loss})

    def student_play(self, nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        """The fooling loss in one launch, and the squared error."""
        teacher, student = sides(batch, out)
        assert student.features is not None
        weights = list(nets["discriminator"].parameters())
        move = fooling_move(student.features, weights, self._keep(student.features), self.config.dropout)
        return Played({"fool": move.loss, "data": squared_error(student.logits, teacher.logits)})


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
    """One variant: a student and its players, and the method's step with a clock in it."""

    def __init__(
        self, variant: str, setting: Setting, teacher: Tapped, device: torch.device, folder: Path, mode: str
    ):
        self.variant, self.setting, self.device, self.mode = variant, setting, device, mode
        self.source = VARIANTS[variant][1]
        size = setting.batch
        self.order = Order(
            _STEPS_PER_EPOCH * size, size, seed=0, views=None if self.source == "filling" else 1
        )
        images = torch.randint(0, 256, (size, 3, setting.image_px, setting.image_px), dtype=torch.uint8)
        self.images = images.to(device, memory_format=torch.channels_last)
        self.labels = torch.randint(0, setting.num_classes, (size,), device=device)
        spec = TeacherSpec(setting.num_classes, teacher.feature_dim, (), teacher)
        self.method = make_method(VARIANTS[variant][0], spec)
        networks = self.method.networks(setting.network(setting.student).to(device))
        networks["student"].to(device, memory_format=torch.channels_last)
        if mode == "compiled" and (problem := compile_in_place(networks["student"], self.images)):
            print(problem)
        self.players = Players(make_accelerator(precision=setting.precision), networks, {"student": SGD})
        self.teacher = self._open_teacher(teacher, spec, folder)
        self.clock = Clock(device)
        self._steps_done = 0

    def _open_teacher(
        self, network: Tapped, spec: TeacherSpec, folder: Path
    ) -> Online | Filling | Cached | None:
        online = Online(network, spec, self.setting.autocast)
        if self.source in (None, "online"):
            return online if self.source else None
        assert network.feature_dim is not None
        field = Field("features", network.feature_dim)
        facts = {"teacher": {"name": self.setting.teacher}}
        store = Store.open(folder / f"{self.variant}-{self.mode}", facts, [field], self.order.n, create=True)
        if self.source == "filling":
            return Filling(online, store, network.head, self.order, device=self.device)
        rows = torch.randn(self.order.n, network.feature_dim)
        store.put(0, np.arange(self.order.n), {"features": rows})
        return Cached(store, network.head, self.order, device=self.device, spec=spec)

    def step(self) -> None:
        """Play one step as train.py does, and tell the clock of its parts."""
        clock, number = self.clock, self._steps_done
        self._steps_done += 1
        seed_step(0, number, 0)
        picks = self.order(number)
        batch = Batch(self.images, picks.index, picks.view, self.labels, number)
        clock("data")
        if self.teacher is not None:
            batch.target = self.teacher(batch)
        clock("teacher")
        with self.players.turn("student") as nets:
            out = self.method.forward(nets, batch)
        clock("student_forward")
        for play in self.method.plays:
            with self.players.turn(play.player) as nets, self._optimizer_apart(play.player):
                self.players.update(play.player, play.loss(nets, batch, out).terms)
            clock(f"{play.player}_play")

    @contextmanager
    def _optimizer_apart(self, player: str) -> Iterator[None]:
        prepared = self.players[player].optimizer
        optimizer = getattr(prepared, "optimizer", prepared)  # Accelerate's wrapper has no hooks
        hooks: list[RemovableHandle] = [
            optimizer.register_step_pre_hook(lambda *_: self.clock(f"{player}_play")),
            optimizer.register_step_post_hook(lambda *_: self.clock("optimizer")),
        ]
        yield
        for hook in hooks:
            hook.remove()

    def turn(self, steps: int) -> dict[str, float]:
        """Play some steps; return the milliseconds of one, its parts, and processor milliseconds `cpu`."""
        _wait(self.device)
        cpu_s = time.process_time()
        self.clock("")
        for _ in range(steps):
            self.step()
        _wait(self.device)
        cpu_s = time.process_time() - cpu_s
        return {key: ms / steps for key, ms in {**self.clock.taken(), "cpu": 1e3 * cpu_s}.items()}


def make_method(name: str, spec: TeacherSpec) -> Method:
    """Return a method with its default options."""
    if name == "anc kernels":
        return KernelAnc(AncConfig(), spec)
    return {"supervised": SupervisedConfig, "l2": L2Config, "anc": AncConfig}[name]().build(spec)


def compare(
    setting: Setting,
    variants: Sequence[str],
    modes: Sequence[str],
    rounds: int,
    device: torch.device,
    ceilings: Ceilings,
) -> list[dict[str, Any]]:
    """Let the variants take turns and return a row for each; the first one must be supervised."""
    assert variants[0] == "supervised"
    with tempfile.TemporaryDirectory() as folder:
        games, resident = [], []
        for mode in modes:
            teacher = frozen_teacher(setting, device, mode)
            for variant in variants:
                before = _allocated(device)
                games.append(Game(variant, setting, teacher, device, Path(folder), mode))
                games[-1].turn(3 if mode == "compiled" or device.type == "cuda" else 1)
                resident.append(_allocated(device) - before)
        turns: list[list[dict[str, float]]] = [[] for _ in games]
        peaks = [0.0] * len(games)
        for number in range(rounds):
            for k in range(len(games))[:: -1 if number % 2 else 1]:
                _forget_peak(device)
                before = _allocated(device)
                turns[k].append(games[k].turn(setting.steps))
                peaks[k] = max(peaks[k], resident[k] + _peak(device) - before)
        for game in games:
            if game.teacher is not None:
                game.teacher.close()
    supervised = [turns[k - k % len(variants)] for k in range(len(games))]  # of the same mode
    rows = [_row(game, own, others, ceilings) for game, own, others in zip(games, turns, supervised)]
    if device.type == "cuda":
        for row, peak in zip(rows, peaks):
            row["peak_GiB"] = peak
    return rows


def _row(
    game: Game,
    turns: Sequence[Mapping[str, float]],
    supervised: Sequence[Mapping[str, float]],
    ceilings: Ceilings,
) -> dict[str, Any]:
    setting = game.setting
    step_ms = median(turn["step"] for turn in turns)
    row = {
        "student": setting.student.removeprefix("torchvision:"),
        "px": setting.image_px,
        "batch": setting.batch,
        "variant": game.variant,
        "mode": f"{game.mode}, {setting.precision}",
        "images_per_s": 1e3 * setting.batch / step_ms,
        "step_ms": step_ms,
        "time_of_supervised": median(a["step"] / b["step"] for a, b in zip(turns, supervised)),
    }
    if game.device.type == "cpu":
        row["images_per_cpu_s"] = 1e3 * setting.batch / median(turn["cpu"] for turn in turns)
        row["cpu_of_supervised"] = median(a["cpu"] / b["cpu"] for a, b in zip(turns, supervised))
    row |= {f"{part}_ms": median(turn[part] for turn in turns) for part in PARTS}
    row["of_roofline"] = 1e3 * _least_s(game, ceilings) / step_ms
    return row


def _least_s(game: Game, ceilings: Ceilings) -> float:
    setting, itemsize = game.setting, 2 if game.setting.autocast else 4
    work = passes(setting.network(setting.student), 3, setting.image_px, trained=True)
    if game.source in ("online", "filling"):
        work += passes(setting.network(setting.teacher), 3, setting.image_px, trained=False)
    return least_s(work, setting.batch, itemsize, ceilings)


def frozen_teacher(setting: Setting, device: torch.device, mode: str, fold: bool = True) -> Tapped:
    """Return the comparison's teacher as a run has it: folded, frozen, channels_last, compiled if wanted."""
    network = setting.network(setting.teacher).eval()
    network = (fold_batchnorm(network) if fold else network).requires_grad_(False).to(device)
    sample = torch.zeros(setting.batch, 3, setting.image_px, setting.image_px, dtype=torch.uint8)
    if mode == "compiled" and (
        problem := compile_in_place(network, sample.to(device, memory_format=torch.channels_last))
    ):
        print(problem)
    return network


def teacher_rates(
    setting: Setting, modes: Sequence[str], rounds: int, device: torch.device, ceilings: Ceilings
) -> list[dict[str, Any]]:
    """Return a row for the frozen teacher alone: as it comes and folded, in every mode."""
    images = torch.randint(0, 256, (setting.batch, 3, setting.image_px, setting.image_px), dtype=torch.uint8)
    images = images.to(device, memory_format=torch.channels_last)
    nowhere = np.zeros(setting.batch, np.int64)
    batch = Batch(images, nowhere, nowhere, None, 0)
    work = passes(setting.network(setting.teacher), 3, setting.image_px, trained=False)
    least = least_s(work, setting.batch, 2 if setting.autocast else 4, ceilings)
    rows = []
    for mode in modes:
        for fold in (False, True):
            network = frozen_teacher(setting, device, mode, fold)
            online = Online(network, TeacherSpec(setting.num_classes, network.feature_dim), setting.autocast)
            found = measure(partial(online, batch), warmup=2, runs=rounds, cuda=device.type == "cuda")
            rows.append(
                {
                    "teacher": setting.teacher.removeprefix("torchvision:"),
                    "px": setting.image_px,
                    "batch": setting.batch,
                    "variant": "BatchNorm folded" if fold else "as it comes",
                    "mode": f"{mode}, {setting.precision}",
                    "images_per_s": 1e3 * setting.batch / found["ms"],
                    "step_ms": found["ms"],
                    "of_roofline": 1e3 * least / found["ms"],
                }
            )
    return rows


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _allocated(device: torch.device) -> float:
    return torch.cuda.memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0


def _peak(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def defaults(device: torch.device, precision: str | None = None) -> list[Setting]:
    """Return the papers' networks at a size for this device."""
    cuda = device.type == "cuda"
    precision = precision or ("bf16" if cuda else "fp32")
    small = Setting(
        student="resnet20_v1",
        teacher="resnet56_v1",
        image_px=32,
        num_classes=10,
        batch=1024 if cuda else 64,
        precision=precision,
        steps=20 if cuda else 2,
    )
    large = Setting(
        student="torchvision:resnet18",
        teacher="torchvision:resnet152",
        image_px=224,
        num_classes=1000,
        batch=256 if cuda else 8,
        precision=precision,
        steps=10 if cuda else 1,
    )
    return [small, large, *([replace(large, student="torchvision:resnet50")] if cuda else [])]


def usable(device: torch.device, precision: str) -> list[str]:
    """Return the variants that mean something here: kernels on CUDA, where autocast is on."""
    kernels = device.type == "cuda" and precision == "bf16"
    return [name for name in VARIANTS if kernels or "kernels" not in name]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    parser.add_argument("--student", help="name of a network; the papers' by default")
    parser.add_argument("--teacher", default="torchvision:resnet152", help="beside --student")
    parser.add_argument("--image_px", type=int, default=224, help="beside --student")
    parser.add_argument("--num_classes", type=int, default=1000, help="beside --student")
    parser.add_argument("--batch", type=int, help="images of a step")
    parser.add_argument("--steps", type=int, help="steps of a turn")
    parser.add_argument("--rounds", type=int, default=5, help="turns of every variant")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), help="beside supervised")
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="bf16 on CUDA, else fp32")
    parser.add_argument("--compile", action="store_true", help="every variant also compiled")
    chosen = parser.parse_args()
    settings = defaults(device, chosen.precision)
    if chosen.student:
        names = ("student", "teacher", "image_px", "num_classes")
        settings = [replace(settings[-1], **{name: getattr(chosen, name) for name in names})]
    sizes = {name: getattr(chosen, name) for name in ("batch", "steps") if getattr(chosen, name)}
    ceilings = measure_ceilings(device, settings[0].autocast or torch.float32)
    print(
        f"ceilings: {ceilings.bytes_per_s / 1e9:.1f} GB/s, {ceilings.flops_per_s / 1e12:.3f} TFLOP/s",
        flush=True,
    )
    modes = ["eager", "compiled"] if chosen.compile else ["eager"]
    rows = []
    for setting in settings:
        wanted = chosen.variants or usable(device, setting.precision)
        variants = ["supervised", *(name for name in wanted if name != "supervised")]
        rows += compare(replace(setting, **sizes), variants, modes, chosen.rounds, device, ceilings)
    for row in rows:
        row["GB_per_s_ceiling"] = ceilings.bytes_per_s / 1e9
        row["TFLOP_per_s_ceiling"] = ceilings.flops_per_s / 1e12
    record("step", rows)
    print(table(rows))


if __name__ == "__main__":
    main()
