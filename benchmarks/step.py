"""One training step by every method, side by side: `python -m benchmarks.step`.

The steps are train.py's, through the real players, methods and teachers, on random uint8 images that lie on the
device; cached rows are random numbers, read from files. The variants take turns, round by round, so that a busy
machine slows all of them alike; medians count. Where a game's tensors happen to lie makes it faster or slower by some
percent for as long as it lives, so every variant is played by several copies, whose mean is a turn, and a second
supervised game, "supervised again", says what a difference of nothing looks like. The parts' times end where the host
(CPU) or the stream (CUDA events) ends them. `of_roofline` is the least time of `roofline.py` over the measured one.

Without `--student` the networks are those of the papers, at a size for the device. `--methods` plays every method
with the teacher's outputs at hand (ResNet-56 -> 20 at 32 px): `above_supervised_ms` is what its own arithmetic costs,
`cpu_above_supervised_ms` the same in processor time, which other programs on the machine disturb less.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from statistics import mean, median
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from benchmarks.harness import measure, record, table
from benchmarks.roofline import Ceilings, least_s, measure_ceilings, passes
from benchmarks.step_game import (
    PARTS,
    Game,
    Setting,
    frozen_teacher,
    make_method,
    methods_of_images,
    ready_game,
)
from fastanc.batch import Batch
from fastanc.cache.rows import Field
from fastanc.cache.store import Store
from fastanc.methods.base import TeacherSpec
from fastanc.models.taps import Tapped
from fastanc.pipelines.order import Order
from fastanc.teacher.cached import Cached
from fastanc.teacher.filling import Filling
from fastanc.teacher.online import Online

VARIANTS = {  # name -> method, source of the teacher's outputs
    "supervised": ("supervised", None),
    "supervised again": ("supervised", None),
    "l2 cached": ("l2", "cached"),
    "kd online": ("kd", "online"),
    "kd cached": ("kd", "cached"),
    "anc online": ("anc", "online"),
    "anc filling": ("anc", "filling"),
    "anc cached": ("anc", "cached"),
    "anc cached, kernels": ("anc kernels", "cached"),
    "ksanc cached": ("ksanc", "cached"),
}
READY = {f"{method} ready": (method, "ready") for method in methods_of_images()}
"""Every method, the teacher's outputs at hand: what its own arithmetic costs."""
_STEPS_PER_EPOCH = 16


class Contestant(NamedTuple):
    """One row of a comparison."""

    variant: str
    mode: str
    game: Game


def synthetic(setting: Setting, order: Order, device: torch.device) -> Iterator[Batch]:
    """Yield batches of the same random images and labels, which lie on the device, under the order's numbers."""
    shape = (setting.batch, 3, setting.image_px, setting.image_px)
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    images = images.to(device, memory_format=torch.channels_last)
    labels = torch.randint(0, setting.num_classes, (setting.batch,), device=device)
    for step in count():
        picks = order(step)
        yield Batch(images, picks.index, picks.view, labels, step)


def enter(
    variant: str, setting: Setting, network: Tapped, device: torch.device, folder: Path, mode: str
) -> Contestant:
    """Make the game of a variant; a cache gets a folder of its own."""
    method, source = {**VARIANTS, **READY}[variant]
    if source == "ready":
        order = Order(_STEPS_PER_EPOCH * setting.batch, setting.batch, views=1)
        batches = synthetic(setting, order, device)
        return Contestant(variant, mode, ready_game(method, setting, batches, device, mode))
    order = Order(_STEPS_PER_EPOCH * setting.batch, setting.batch, views=None if source == "filling" else 1)
    stages: tuple[()] | Literal["auto"] = "auto" if method == "ksanc" else ()
    channels = setting.network(setting.teacher, stages).stage_channels(setting.image_px, 3) if stages else ()
    spec = TeacherSpec(setting.num_classes, network.feature_dim, channels, network)
    teacher: Online | Filling | Cached | None = None
    if source is not None:
        teacher = Online(network, setting.autocast)
    if source in ("filling", "cached"):
        assert isinstance(teacher, Online)
        assert network.feature_dim is not None
        fields = [Field("features", network.feature_dim)]
        if channels:
            fields.append(Field("descriptors", sum(channels)))
        facts = {"teacher": {"name": setting.teacher}}
        store = Store.open(folder, facts, fields, order.n, create=True)
        if source == "filling":
            teacher = Filling(teacher, store, network.head, order, device=device)
        else:
            store.put(0, np.arange(order.n), {f.name: torch.randn(order.n, f.width) for f in fields})
            teacher = Cached(store, network.head, order, device=device)
    game = Game(
        make_method(method),
        setting.network(setting.student, stages),
        teacher,
        synthetic(setting, order, device),
        device,
        spec=spec,
        precision=setting.precision,
        mode=mode,
    )
    return Contestant(variant, mode, game)


def compare(
    setting: Setting,
    variants: Sequence[str],
    modes: Sequence[str],
    rounds: int,
    device: torch.device,
    ceilings: Ceilings,
    copies: int = 1,
    begin: Callable[[str], None] = lambda what: None,
) -> list[dict[str, Any]]:
    """Let the variants take turns and return a row for each; the first one must be supervised.

    `begin` is told which game is prepared and which round is played, before it is.
    """
    assert variants[0] == "supervised"
    with tempfile.TemporaryDirectory() as folder:
        contestants: list[Contestant] = []  # the copies of a variant lie `len(modes) * len(variants)` apart
        resident = []
        for copy in range(copies):
            for mode in modes:
                teacher = frozen_teacher(setting, device, mode)
                for variant in variants:
                    begin(f"{variant}, {mode}: its first steps")
                    before = _allocated(device)
                    own = Path(folder) / f"{variant}-{mode}-{copy}"
                    contestants.append(enter(variant, setting, teacher, device, own, mode))
                    contestants[-1].game.turn(3 if mode != "eager" or device.type == "cuda" else 1)
                    resident.append(_allocated(device) - before)
        turns: list[list[dict[str, float]]] = [[] for _ in contestants]
        peaks = [0.0] * len(contestants)
        for number in range(rounds):
            begin(f"round {number + 1} of {rounds}, {', '.join(modes)}")
            for k in range(len(contestants))[:: -1 if number % 2 else 1]:
                _forget_peak(device)
                before = _allocated(device)
                turns[k].append(contestants[k].game.turn(setting.steps))
                peaks[k] = max(peaks[k], resident[k] + _peak(device) - before)
        for contestant in contestants:
            if contestant.game.teacher is not None:
                contestant.game.teacher.close()
    apart = len(modes) * len(variants)
    merged = [[_mean(of_copies) for of_copies in zip(*turns[k::apart])] for k in range(apart)]
    supervised = [merged[k - k % len(variants)] for k in range(apart)]  # of the same mode
    rows = [
        _row(setting, who, own, others, ceilings) for who, own, others in zip(contestants, merged, supervised)
    ]
    if device.type == "cuda":
        for row, peak in zip(rows, peaks):
            row["peak_GiB"] = peak
    return rows


def _mean(turns: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: mean(turn[key] for turn in turns) for key in turns[0]}


def _row(
    setting: Setting,
    who: Contestant,
    turns: Sequence[Mapping[str, float]],
    supervised: Sequence[Mapping[str, float]],
    ceilings: Ceilings,
) -> dict[str, Any]:
    step_ms = median(turn["step"] for turn in turns)
    row = {
        "student": setting.student.removeprefix("torchvision:"),
        "px": setting.image_px,
        "batch": setting.batch,
        "variant": who.variant,
        "mode": f"{who.mode}, {setting.precision}",
        "images_per_s": 1e3 * setting.batch / step_ms,
        "step_ms": step_ms,
        "above_supervised_ms": median(a["step"] - b["step"] for a, b in zip(turns, supervised)),
        "time_of_supervised": median(a["step"] / b["step"] for a, b in zip(turns, supervised)),
    }
    if who.game.device.type == "cpu":
        row["images_per_cpu_s"] = 1e3 * setting.batch / median(turn["cpu"] for turn in turns)
        row["cpu_above_supervised_ms"] = median(a["cpu"] - b["cpu"] for a, b in zip(turns, supervised))
        row["cpu_of_supervised"] = median(a["cpu"] / b["cpu"] for a, b in zip(turns, supervised))
    row |= {f"{part}_ms": median(turn[part] for turn in turns) for part in PARTS}
    row["of_roofline"] = 1e3 * _least_s(setting, who.variant, ceilings) / step_ms
    return row


def _least_s(setting: Setting, variant: str, ceilings: Ceilings) -> float:
    work = passes(setting.network(setting.student), 3, setting.image_px, trained=True)
    if {**VARIANTS, **READY}[variant][1] in ("online", "filling"):
        work += passes(setting.network(setting.teacher), 3, setting.image_px, trained=False)
    return least_s(work, setting.batch, setting.itemsize, ceilings)


def teacher_rates(
    setting: Setting, modes: Sequence[str], rounds: int, device: torch.device, ceilings: Ceilings
) -> Iterator[dict[str, Any]]:
    """Yield a row for the frozen teacher alone: as it comes, folded, and folded in the other modes."""
    images = torch.randint(0, 256, (setting.batch, 3, setting.image_px, setting.image_px), dtype=torch.uint8)
    images = images.to(device, memory_format=torch.channels_last)
    nowhere = np.zeros(setting.batch, np.int64)
    batch = Batch(images, nowhere, nowhere, None, 0)
    work = passes(setting.network(setting.teacher), 3, setting.image_px, trained=False)
    least = least_s(work, setting.batch, setting.itemsize, ceilings)
    for mode in modes:
        for fold in (False, True) if mode == "eager" else (True,):
            network = frozen_teacher(setting, device, mode, fold)
            online = Online(network, setting.autocast)
            found = measure(partial(online, batch), warmup=2, runs=rounds, cuda=device.type == "cuda")
            yield {
                "teacher": setting.teacher.removeprefix("torchvision:"),
                "px": setting.image_px,
                "batch": setting.batch,
                "variant": "BatchNorm folded" if fold else "as it comes",
                "mode": f"{mode}, {setting.precision}",
                "images_per_s": 1e3 * setting.batch / found["ms"],
                "step_ms": found["ms"],
                "of_roofline": 1e3 * least / found["ms"],
            }


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
    parser.add_argument("--rounds", type=int, default=5 if cuda else 6, help="turns of every variant")
    parser.add_argument("--copies", type=int, default=1 if cuda else 6, help="games of every variant")
    parser.add_argument("--variants", nargs="+", choices=[*VARIANTS, *READY], help="beside supervised")
    parser.add_argument(
        "--methods", action="store_true", help="every method with the teacher's outputs at hand, at 32 px"
    )
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="bf16 on CUDA, else fp32")
    parser.add_argument(
        "--compile", action="store_true", help="every variant also compiled, and with CUDA graphs"
    )
    chosen = parser.parse_args()
    settings = defaults(device, chosen.precision)
    if chosen.methods:
        if chosen.student or chosen.variants:
            parser.error("--methods has networks and variants of its own: leave --student and --variants out")
        settings, chosen.variants = settings[:1], ["supervised again", *READY]
    if chosen.student:
        names = ("student", "teacher", "image_px", "num_classes")
        settings = [replace(settings[-1], **{name: getattr(chosen, name) for name in names})]
    sizes = {name: getattr(chosen, name) for name in ("batch", "steps") if getattr(chosen, name)}
    ceilings = measure_ceilings(device, settings[0].autocast or torch.float32)
    print(
        f"ceilings: {ceilings.bytes_per_s / 1e9:.1f} GB/s, {ceilings.flops_per_s / 1e12:.3f} TFLOP/s",
        flush=True,
    )
    modes = ["eager", *(["compiled", "graphs"] if chosen.compile else [])]
    rows = []
    for setting in settings:
        wanted = chosen.variants or usable(device, setting.precision)
        variants = ["supervised", *(name for name in wanted if name != "supervised")]
        setting = replace(setting, **sizes)
        rows += compare(setting, variants, modes, chosen.rounds, device, ceilings, chosen.copies)
    for row in rows:
        row["GB_per_s_ceiling"] = ceilings.bytes_per_s / 1e9
        row["TFLOP_per_s_ceiling"] = ceilings.flops_per_s / 1e12
    record("step", rows)
    print(table(rows))


if __name__ == "__main__":
    main()
