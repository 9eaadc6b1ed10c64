"""What several processes cost: `python -m benchmarks.launches`, DDP and each ZeRO stage against plain, in one run.

| run | processes | batch of a process |
| --- | --- | --- |
| plain, a part | 1 | what one of `--processes` has to compute |
| plain | 1 | `--data.batch` |
| DDP, ZeRO-0, 1, 2 | `--processes` | its part of `--data.batch` |

Each is `fastanc.train` through `accelerate launch`, as users start it, for `--steps` steps of ANC on the digits.
The clock starts with the command; `start_s` ends with the first line of its log, `ms_step` is taken from there to
the last line, `overhead_ms` is what it is above plain with one process's part of the batch. Bytes are those of the
loopback interface, so nothing else may use it; `planned_mb_step` is what `fastanc plan` says of the same step.
Fields of the recipe may follow: `--student.name resnet56 --data.batch 128`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness import record, table
from fastanc.jobs.plan import load_of
from fastanc.parsing import parse
from fastanc.training.metrics import read_metrics

RECIPE = ["--recipe", "digits_anc", "--student.name", "resnet20", "--teacher.name", "resnet8"]
RANDOM_TEACHER = ["--teacher.weights", "random", "--teacher.cache", "off"]
LOG_EVERY = 5
DIGITS = {"classes": 10, "channels": 3, "image_bytes": 700}


def accelerate(folder: Path, processes: int, zero_stage: int | None, cpu: bool = True) -> list[str]:
    """Return the words of `accelerate launch` under DDP or a ZeRO stage; writes its configuration into the folder."""
    settings: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "MULTI_GPU" if zero_stage is None else "DEEPSPEED",
        "use_cpu": cpu,
        "mixed_precision": "no",
        "num_machines": 1,
        "num_processes": processes,
    }
    if processes == 1 and zero_stage is None:
        settings["distributed_type"] = "NO"
    if zero_stage is not None:
        settings["deepspeed_config"] = {"zero_stage": zero_stage}
    path = folder / "launch.yaml"
    path.write_text(json.dumps(settings))  # JSON is YAML
    return ["accelerate.commands.launch", "--config_file", str(path), "--main_process_port", "0"]


def measure_once(
    words: Sequence[str], steps: int, launcher: Callable[[Path], Sequence[str]]
) -> dict[str, float]:
    """Launch a run and return start_s, ms_step and bytes_step.

    Args:
        words: the run's fields.
        steps: of it; a multiple of LOG_EVERY.
        launcher: a folder -> the module that starts processes, with its options.

    Raises:
        RuntimeError: the run failed; says why.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", *launcher(Path(folder)), "-m", "fastanc.train"),
            *(*words, "--run.out", folder, "--run.name", "run", "--run.eval_every", "0"),
            *(
                "--run.checkpoint_every",
                "0",
                "--run.max_steps",
                str(steps),
                "--run.log_every",
                str(LOG_EVERY),
            ),
        ]
        began, log = time.monotonic(), Path(folder) / "log"
        with log.open("wb") as out:
            running = subprocess.Popen(
                command, stdout=out, stderr=out, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
        marks = _watch(running, Path(folder) / "run" / "metrics.jsonl", steps // LOG_EVERY)
        if running.wait() or len(marks) < 2:
            raise RuntimeError(f"the run failed: {reason(log.read_text())}")
    (first, first_s, first_bytes), (last, last_s, last_bytes) = marks[0], marks[-1]
    moved = (last - first) * LOG_EVERY
    return {
        "start_s": first_s - began,
        "ms_step": 1e3 * (last_s - first_s) / moved,
        "bytes_step": (last_bytes - first_bytes) / moved,
    }


def reason(log: str) -> str:
    """Return the sentence that the run itself ended with, or the last line; launchers put much below it."""
    lines = log.strip().splitlines() or ["it said nothing"]
    return next((line for line in lines[::-1] if line.startswith("fastanc: ")), lines[-1])


def _watch(running: subprocess.Popen[bytes], metrics: Path, lines: int) -> list[tuple[int, float, int]]:
    """Return (lines of the log so far, seconds, bytes on the loopback) whenever a line was added, up to `lines`."""
    marks: list[tuple[int, float, int]] = []
    while running.poll() is None and (not marks or marks[-1][0] < lines):
        found = metrics.exists() and sum(line["kind"] == "train" for line in read_metrics(metrics))
        if found and (not marks or found > marks[-1][0]):
            marks.append((int(found), time.monotonic(), _loopback_bytes()))
        time.sleep(0.01)
    return marks


def _loopback_bytes() -> int:
    """Return what went over the loopback interface since the machine started."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return int(next(line for line in lines if line.strip().startswith("lo:")).split()[1])


def main() -> None:
    """Measure in turns, print a table, and append it to the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--steps", type=int, default=40, help=f"steps of a run, a multiple of {LOG_EVERY} (40)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="turns (3)")
    parser.add_argument("--processes", type=int, default=2, help="of DDP and ZeRO (2)")
    chosen, fields = parser.parse_known_args()
    words = [*RECIPE, *RANDOM_TEACHER, *fields]
    config = parse(words)
    part = ["--data.batch", str(config.data.batch // chosen.processes)]
    runs: dict[str, tuple[list[str], int, int | None]] = {
        "plain, a part": ([*words, *part], 1, None),
        "plain": (words, 1, None),
        "DDP": (words, chosen.processes, None),
        **{f"ZeRO-{stage}": (words, chosen.processes, stage) for stage in (0, 1, 2)},
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    for number in range(chosen.rounds):
        for name, (with_words, processes, stage) in sorted(runs.items(), reverse=number % 2 == 1):
            launcher = partial(accelerate, processes=processes, zero_stage=stage)
            found[name].append(measure_once(with_words, chosen.steps, launcher))
            print(f"round {number + 1}: {name} {found[name][-1]['ms_step']:.1f} ms a step", flush=True)
    planned = load_of(config, **DIGITS).gradient_bytes * 2 * (chosen.processes - 1)
    rows = rows_of(found, {name: run[1] for name, run in runs.items()}, planned)
    print(table(rows))
    print(f"appended to {record('launches', rows)}")


def rows_of(
    found: dict[str, list[dict[str, float]]], processes: dict[str, int], planned: int
) -> list[dict[str, Any]]:
    """Return a row for each run: medians over the rounds, `planned` bytes a step beside several processes."""
    part = next(iter(found))
    rows = []
    for name, rounds in found.items():
        middle = {key: median(r[key] for r in rounds) for key in rounds[0]}
        rows.append(
            {
                "launch": name,
                "processes": processes[name],
                "start_s": middle["start_s"],
                "ms_step": middle["ms_step"],
                "overhead_ms": median(r["ms_step"] - p["ms_step"] for r, p in zip(rounds, found[part])),
                "mb_step": middle["bytes_step"] / 1e6,
                "planned_mb_step": planned / 1e6 if processes[name] > 1 else None,
                "rounds": len(rounds),
            }
        )
    return rows


if __name__ == "__main__":
    main()
