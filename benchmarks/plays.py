"""The plays of every method, plain beside what else there is on this device: `python -m benchmarks.plays`.

What `run.kernels auto` measures at the start of a run, for all methods at once: milliseconds of loss and gradients,
how far they are from float64, and what the choice saves of a whole step. CIFAR's networks at 32 px, where a step is
short and its plays weigh most.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.harness import record, table
from benchmarks.step_game import wait
from fastanc.batch import Batch
from fastanc.kernels.choice import cost_of
from fastanc.methods.base import Method
from fastanc.models import zoo
from fastanc.training.choices import compared
from fastanc.training.players import players_of
from fastanc.training.processes import make_accelerator
from fastanc.training.step import play

METHODS = ("supervised", "l2", "kd", "anc", "can", "attention_transfer", "fsp", "fitnets")
CLASSES, SIDE = 10, 32


def rows(name: str, size: int, precision: str) -> Iterator[dict[str, Any]]:
    """Yield a row for each spelling of each play of one method; teacher ResNet-56, student ResNet-20."""
    method = Method.get_choice_class(name)()
    accelerator = make_accelerator(precision=precision)
    device = accelerator.device
    torch.manual_seed(0)
    stages: Any = "auto" if method.taps_student else ()
    teacher, student = (
        zoo.build(network, num_classes=CLASSES, image_px=SIDE, stages=stages)
        for network in ("resnet56_v1", "resnet20_v1")
    )
    student.to(memory_format=torch.channels_last)
    images = torch.randint(0, 256, (size, 3, SIDE, SIDE), dtype=torch.uint8)
    images = images.to(device, memory_format=torch.channels_last)
    labels = torch.randint(0, CLASSES, (size,), device=device)
    batch = Batch(images, np.arange(size), np.zeros(size, np.int64), labels)
    with torch.no_grad():
        batch.target = teacher.to(device).eval()(images)
    players = players_of(method, student, teacher, accelerator=accelerator)
    choice, found = compared(method, players, batch, precision)

    def step() -> list[torch.Tensor]:
        play(method, players, batch)
        return []

    step_ms = 1e3 * cost_of(step, device, rounds=5).device_s
    wait(device)
    for each in found:
        place = [made.player for made in method.plays].index(each["player"])
        plain = next(row for row in found if (row["player"], row["spelling"]) == (each["player"], "plain"))
        saved = None if each["device_ms"] is None else (plain["device_ms"] - each["device_ms"]) / step_ms
        yield {
            "method": name,
            **each,
            "batch": size,
            "precision": precision,
            "chosen": choice.names[place] == each["spelling"],
            "step_ms": step_ms,
            "saved_of_step": saved,
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    chosen = parser.parse_args()
    found = [row for name in chosen.methods for row in rows(name, chosen.batch, chosen.precision)]
    print(table(found))
    print(f"appended to {record('plays', found)}")


if __name__ == "__main__":
    main()
