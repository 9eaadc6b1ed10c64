"""The parts of `benchmarks.gpu_check` that train: the step, the frozen teacher, and all the way from the JPEG."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.gpu_rows import FEW, Row, begin, device_of, row

if TYPE_CHECKING:
    from benchmarks.step_game import Setting


def setting_of(student: str, rehearse: bool) -> Setting:
    """Return the papers' networks with this student; a rehearsal's are tiny whatever it is."""
    from benchmarks.step import defaults
    from benchmarks.step_game import Setting

    if rehearse:
        return Setting(
            student="resnet8", teacher="resnet20", image_px=32, num_classes=10, batch=4, precision="fp32"
        )
    small, *_, large = defaults(device_of(rehearse))
    return small if student == small.student else replace(large, student=f"torchvision:{student}")


def step_of(student: str, modes: Sequence[str] = ("compiled", "eager")) -> Callable[[bool], Iterator[Row]]:
    """Return the part that measures the training step of a student of ResNet-152 at 224 px, or of ResNet-56 at 32."""

    def part(rehearse: bool) -> Iterator[Row]:
        from benchmarks.roofline import measure_ceilings
        from benchmarks.step import compare, usable

        device, setting = device_of(rehearse), setting_of(student, rehearse)
        begin("the ceilings")
        ceilings = measure_ceilings(device, setting.autocast or torch.float32)
        yield row(
            "ceilings", f"{ceilings.bytes_per_s / 1e9:,.0f} GB/s, {ceilings.flops_per_s / 1e12:,.2f} TFLOP/s"
        )
        variants = [name for name in usable(device, setting.precision) if name.startswith(("sup", "anc"))]
        variants.remove("anc filling")
        for mode in ("eager",) if rehearse else modes:
            rounds = 1 if rehearse else 4
            for each in compare(setting, variants, [mode], rounds, device, ceilings, begin=begin):
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

    device, setting = device_of(rehearse), setting_of("resnet18", rehearse)
    begin("the ceilings")
    ceilings = measure_ceilings(device, setting.autocast or torch.float32)
    begin("the teacher as it comes, folded, compiled; a row each")
    modes = ["eager"] if rehearse else ["eager", "compiled"]
    for each in teacher_rates(setting, modes, 2 if rehearse else 20, device, ceilings):
        yield row(
            f"{each['teacher']}@{each['px']} x {each['batch']}, {each['variant']}, {each['mode']}",
            f"{each['of_roofline']:.2f} of the roofline",
            images_per_s=each["images_per_s"],
            ms=each["step_ms"],
        )


def end_to_end(rehearse: bool) -> Iterator[Row]:
    """From JPEG to updated student, beside plain loops: every turn, then the medians; the ratio is to the best one.

    The decode plan is fixed, because its probe would take a tenth of the time; the part "decode" compares the plans.
    """
    from benchmarks.end_to_end import gathered, opened, turns

    setting, amount = setting_of("resnet18", rehearse), {"rounds": 2, "warmup": 5, "steps": 12}
    place: dict[str, Any] = {"copies": 8, "decode": "cpu"}
    if rehearse:
        setting = replace(setting, student="torchvision:resnet18", teacher="torchvision:resnet18")
        amount, place = {"rounds": 1, "warmup": 1, "steps": 1}, {"every": FEW}
    taken = []
    begin("the images, the cache and the networks")
    with opened(setting, device_of(rehearse), **place) as contest:
        for name, rates in turns(contest, **amount, begin=begin):
            taken.append((name, rates))
            yield row(f"a turn of {name}", images_per_s=rates["images_per_s"])
    for each in gathered(taken, setting):
        waiting = "" if each["data_share"] is None else f", data {each['data_share']:.3f} of the time"
        yield row(
            f"{each['loop']}: {each['student']}@{each['px']} x {each['batch']}",
            f"{each['of_synthetic']:.2f} of synthetic images{waiting}",
            images_per_s=each["images_per_s"],
            ratio=each["times_best_plain"],
        )
