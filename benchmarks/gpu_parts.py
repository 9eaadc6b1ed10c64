"""The parts of `benchmarks.gpu_check`: each yields rows of one table, on the GPU, or tiny on the CPU to rehearse."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import ROOT
from benchmarks.step_game import Setting

Row = dict[str, Any]
TINY = Setting(student="resnet8", teacher="resnet20", image_px=32, num_classes=10, batch=4, precision="fp32")
FEW = 12
"""A rehearsal takes every so-manieth image."""


def row(case: str, says: str = "", **numbers: float | None) -> Row:
    """Return a line of the table."""
    known = {"images_per_s": None, "ms": None, "ratio": None, **numbers}
    return {"case": case, **known, "says": says}


def device_of(rehearse: bool) -> torch.device:
    """Return the device that the parts run on."""
    return torch.device("cpu" if rehearse else "cuda")


def tests(rehearse: bool) -> Iterator[Row]:
    """The tests that are skipped without CUDA."""
    files = [path for path in sorted((ROOT / "tests").glob("test_*.py")) if "mark.gpu" in path.read_text()]
    files = files[:1] if rehearse else files  # where all are skipped, one shows as much
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *map(str, files)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)  # in this part's process group
    lines = done.stdout.strip().splitlines() or ["nothing was said"]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    says = "; ".join([lines[-1].strip("= "), *failed[:5]])
    yield row("pytest -m gpu", f"FAILED: {says}" if done.returncode else says)


def decode_rates(rehearse: bool) -> Iterator[Row]:
    """Images per second of each decode plan, of the samples as they are and packed, at some thread counts."""
    from benchmarks.end_to_end import real_images
    from fastanc.pipelines.index.build import build_index
    from fastanc.pipelines.index.pack import pack
    from fastanc.pipelines.jpeg.options import PLANS, JpegOptions
    from fastanc.pipelines.jpeg.probe import probe

    device = device_of(rehearse)
    with tempfile.TemporaryDirectory() as place:
        folder = real_images(Path(place), copies=1 if rehearse else 4, every=FEW if rehearse else 1)
        indexes = {"originals": build_index(folder, progress=False)}
        indexes["packed"] = pack(folder, Path(place) / "packed.tar", progress=False).index
        for plan in PLANS[::-1]:
            for name, index in indexes.items():
                for threads in (2,) if rehearse else (4, 8, 16):
                    case = f"{plan}, {name}, {threads} threads"
                    if rehearse and plan != "cpu":
                        yield row(case, "needs CUDA")
                        continue
                    found = probe(index, device, JpegOptions(decode=plan, threads=threads))
                    yield row(case, found.failure or "", images_per_s=found.images_per_s)


def decode_stability(rehearse: bool) -> Iterator[Row]:
    """Whether a view's pixels depend on the batch that it is decoded in."""
    from benchmarks.end_to_end import real_images
    from fastanc.pipelines.index.build import build_index
    from fastanc.pipelines.jpeg.jpeg_set import JpegSet
    from fastanc.pipelines.jpeg.options import JpegOptions
    from fastanc.pipelines.order import Picks
    from fastanc.pipelines.views import RandomResizedCrop

    device = device_of(rehearse)
    cases = [("cpu", 0.65), ("mixed", 0.0), ("mixed", 0.65), ("mixed_roi", 0.0), ("mixed_roi", 0.65)]
    with tempfile.TemporaryDirectory() as place:
        images = real_images(Path(place), copies=1, every=FEW if rehearse else 1)
        index = build_index(images, progress=False)
        data, rule = JpegSet("samples", index, (), ()), RandomResizedCrop(64 if rehearse else 224, seed=0)
        for plan, load in cases:
            case = plan if plan == "cpu" else f"{plan}, hw_decoder_load {load}"
            if rehearse and plan != "cpu":
                yield row(case, "needs CUDA")
                continue
            options = JpegOptions(decode=plan, hw_decoder_load=load, threads=2 if rehearse else 8)
            bound = data.on(device, options)

            def decoded(images: np.ndarray, size: int, data: JpegSet = bound) -> Tensor:
                parts = [images[k : k + size] for k in range(0, len(images), size)]
                picks = [Picks(part, np.zeros_like(part)) for part in parts]
                batches = data.batches(picks, rule)
                found = torch.cat([batch.images.cpu() for batch in batches])
                return found[np.argsort(images)].int()

            every = np.arange(len(index))
            far = (decoded(every, 64) - decoded(np.random.default_rng(0).permutation(every), 9)).abs()
            differing = int(far.flatten(1).any(1).sum())
            says = f"{differing} of {len(index)} images differ, by up to {int(far.max())}"
            yield row(case, says if differing else f"all {len(index)} images have the same bits")


def kernels(rehearse: bool) -> Iterator[Row]:
    """Every kernel against its compiled reference, by `benchmarks/kernels.py`."""
    from benchmarks.kernel_cases import CASES
    from benchmarks.kernels import Worker, decisions

    environment = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "2"}
    if rehearse:
        environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    chosen = ["squared_error", "crop_flip"] if rehearse else list(CASES)
    workers = [Worker(kernel, environment) for kernel in chosen]
    for worker in workers:
        worker.wait()
    found = [each for worker in workers for each in worker.rows()]
    for each in found + decisions(found):
        taken = each.get("kernel_graph_us", each.get("kernel_us"))
        yield row(
            f"{each['kernel']}, {each['shape']}",
            str(each.get("verdict", each.get("failure", ""))),
            ms=None if taken is None else taken / 1e3,
            ratio=each.get("speedup"),
        )


def _setting(student: str, rehearse: bool) -> Setting:
    from benchmarks.step import defaults

    small, *_, large = defaults(device_of(rehearse))
    if rehearse:
        return TINY
    return small if student == small.student else replace(large, student=f"torchvision:{student}")


def step_of(student: str, modes: Sequence[str] = ("eager", "compiled")) -> Callable[[bool], Iterator[Row]]:
    """Return the part that measures the training step of a student of ResNet-152 at 224 px, or of ResNet-56 at 32."""

    def part(rehearse: bool) -> Iterator[Row]:
        from benchmarks.roofline import measure_ceilings
        from benchmarks.step import compare, usable

        device, setting = device_of(rehearse), _setting(student, rehearse)
        ceilings = measure_ceilings(device, setting.autocast or torch.float32)
        yield row(
            "ceilings", f"{ceilings.bytes_per_s / 1e9:,.0f} GB/s, {ceilings.flops_per_s / 1e12:,.2f} TFLOP/s"
        )
        variants = [name for name in usable(device, setting.precision) if name.startswith(("sup", "anc"))]
        variants.remove("anc filling")
        for mode in modes[:1] if rehearse else modes:
            for each in compare(setting, variants, [mode], 1 if rehearse else 4, device, ceilings):
                parts = ", ".join(
                    f"{key[:-3]} {value:.2f} ms"
                    for key, value in each.items()
                    if key.endswith("_ms") and key != "step_ms"
                )
                yield row(
                    f"{each['student']}@{each['px']} x {each['batch']}, {each['variant']}, {each['mode']}",
                    f"{each['of_roofline']:.2f} of the roofline, peak {each.get('peak_GiB', 0):.1f} GiB; {parts}",
                    images_per_s=each["images_per_s"],
                    ms=each["step_ms"],
                    ratio=each["time_of_supervised"],
                )

    return part


def teacher(rehearse: bool) -> Iterator[Row]:
    """The frozen teacher alone."""
    from benchmarks.roofline import measure_ceilings
    from benchmarks.step import teacher_rates

    device, setting = device_of(rehearse), _setting("resnet18", rehearse)
    ceilings = measure_ceilings(device, setting.autocast or torch.float32)
    modes = ["eager"] if rehearse else ["eager", "compiled"]
    for each in teacher_rates(setting, modes, 2 if rehearse else 20, device, ceilings):
        yield row(
            f"{each['teacher']}@{each['px']} x {each['batch']}, {each['variant']}, {each['mode']}",
            f"{each['of_roofline']:.2f} of the roofline",
            images_per_s=each["images_per_s"],
            ms=each["step_ms"],
        )


def end_to_end(rehearse: bool) -> Iterator[Row]:
    """From JPEG to updated student, beside plain loops; the ratio is to the best of them."""
    from benchmarks.end_to_end import run

    amount: dict[str, Any] = {"rounds": 2, "warmup": 5, "steps": 12, "copies": 8}
    setting = _setting("resnet18", rehearse)
    if rehearse:
        amount = {"rounds": 1, "warmup": 1, "steps": 1, "every": FEW}
        setting = replace(setting, student="torchvision:resnet18", teacher="torchvision:resnet18")
    for each in run(setting, device_of(rehearse), **amount):
        waiting = "" if each["data_share"] is None else f", data {each['data_share']:.3f} of the time"
        yield row(
            f"{each['loop']}: {each['student']}@{each['px']} x {each['batch']}",
            f"{each['of_synthetic']:.2f} of synthetic images{waiting}",
            images_per_s=each["images_per_s"],
            ratio=each["times_best_plain"],
        )


def launched(rehearse: bool) -> Iterator[Row]:
    """The public entry in each precision, one process under DDP (torchrun) and under ZeRO-1."""
    from benchmarks import launches

    batch = 64 if rehearse else 512
    words = [
        *launches.RECIPE,
        *launches.RANDOM_TEACHER,
        "--data.batch",
        str(batch),
        "--schedule.epochs",
        "40",
    ]
    torchrun = ["torch.distributed.run", "--standalone", "--nproc_per_node", "1"]
    starts: dict[str, Callable[[Path], Sequence[str]]] = {
        "DDP": lambda folder: torchrun,
        "ZeRO-1": partial(launches.accelerate, processes=1, zero_stage=1, cpu=rehearse),
    }
    for start, launcher in starts.items():
        for precision in ("fp32",) if rehearse else ("fp32", "bf16", "fp16"):
            case = f"{start}, one process, {precision}"
            if start != "DDP" and importlib.util.find_spec("deepspeed") is None:
                yield row(case, "needs deepspeed")
                continue
            steps = 10 if rehearse else 60
            try:
                found = launches.measure_once([*words, "--run.precision", precision], steps, launcher)
            except RuntimeError as error:
                yield row(case, f"FAILED: {error}")
                continue
            said = f"{found['start_s']:.1f} s to the first line of the log"
            yield row(case, said, images_per_s=1e3 * batch / found["ms_step"], ms=found["ms_step"])


class Part(NamedTuple):
    """What is run in a process of its own, and the seconds it may take."""

    run: Callable[[bool], Iterator[Row]]
    limit_s: float


PARTS = {  # the teacher is compiled once; the steps after it find it in the compiler's cache
    "decode": Part(decode_rates, 170),
    "stability": Part(decode_stability, 40),
    "kernels": Part(kernels, 110),
    "teacher": Part(teacher, 80),
    "step resnet18": Part(step_of("resnet18"), 100),
    "step resnet50": Part(step_of("resnet50"), 100),
    # The 32 px step may be bound by launches, which graphs save.
    "step resnet20": Part(step_of("resnet20_v1", ("eager", "compiled", "graphs")), 80),
    "end to end": Part(end_to_end, 60),
    "launches": Part(launched, 120),
    "tests": Part(tests, 150),
}
