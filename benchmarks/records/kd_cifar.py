"""KD of ResNet-56 into ResNet-20 at 32 px beside plain loops: `python -m benchmarks.records.kd_cifar`.

The step alone, on images that are there: the plain loop has them normalised as fp32 already, fastanc as uint8. The
plain loop is a user's: the same two networks, eager, the teacher in every step, in PyTorch's own memory format and in
channels_last. fastanc runs the teacher in every step (online) or reads its rows (cached). All take turns in one
process with one count of threads; `times_best_plain` is the median, over rounds, of the better plain loop's
processor seconds over the row's own in the same round.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.harness import RECORDS, record, table
from benchmarks.step import enter
from benchmarks.step_game import Setting, frozen_teacher

SETTING = Setting(
    student="resnet20_v1", teacher="resnet56_v1", image_px=32, num_classes=10, batch=128, precision="fp32"
)
CPU = torch.device("cpu")
ALPHA, TEMPERATURE = 0.9, 4.0  # fastanc's defaults


def plain_step(memory_format: torch.memory_format) -> Callable[[], float]:
    """Return a training step of the plain loop, which returns its loss as such loops log it."""
    teacher, student = (
        SETTING.network(name).bare.to(memory_format=memory_format)
        for name in (SETTING.teacher, SETTING.student)
    )
    teacher.eval().requires_grad_(False)
    student.train()
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4)
    images = torch.randn(SETTING.batch, 3, 32, 32).contiguous(memory_format=memory_format)
    labels = torch.randint(0, SETTING.num_classes, (SETTING.batch,))

    def step() -> float:
        with torch.no_grad():
            wanted = teacher(images) / TEMPERATURE
        logits = student(images)
        soft = F.kl_div(
            F.log_softmax(logits / TEMPERATURE, 1),
            F.log_softmax(wanted, 1),
            reduction="batchmean",
            log_target=True,
        )
        loss = ALPHA * TEMPERATURE**2 * soft + (1 - ALPHA) * F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def measure(rounds: int, steps: int) -> list[dict[str, Any]]:
    """Let all loops take turns and return a row for each."""
    with tempfile.TemporaryDirectory() as folder:
        teacher = frozen_teacher(SETTING, CPU, "eager")
        games = {
            f"fastanc, {source}": enter(
                f"kd {source}", SETTING, teacher, CPU, Path(folder) / source, "eager"
            ).game
            for source in ("online", "cached")
        }
        loops: dict[str, Callable[[], object]] = {
            "plain, NCHW": plain_step(torch.contiguous_format),
            "plain, channels_last": plain_step(torch.channels_last),
            **{name: game.step for name, game in games.items()},
        }
        for game in games.values():
            game.clock("")
        taken: dict[str, list[float]] = {name: [] for name in loops}
        for number in range(-1, rounds):  # the first one warms up
            for name in list(loops)[:: -1 if number % 2 else 1]:
                began = time.process_time()
                for _ in range(steps):
                    loops[name]()
                if number >= 0:
                    taken[name].append((time.process_time() - began) / steps)
        for game in games.values():
            if game.teacher is not None:
                game.teacher.close()
    best = [min(pair) for pair in zip(*(taken[name] for name in loops if name.startswith("plain")))]
    return [
        {
            "loop": name,
            "teacher": SETTING.teacher,
            "student": SETTING.student,
            "batch": SETTING.batch,
            "threads": torch.get_num_threads(),
            "images_per_cpu_s": SETTING.batch / median(own),
            "times_plain_nchw": median(a / b for a, b in zip(taken["plain, NCHW"], own)),
            "times_best_plain": median(a / b for a, b in zip(best, own)),
        }
        for name, own in taken.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="of a turn")
    chosen = parser.parse_args()
    rows = measure(chosen.rounds, chosen.steps)
    print(table(rows))
    print(f"appended to {record('kd_cifar', rows, RECORDS)}")


if __name__ == "__main__":
    main()
