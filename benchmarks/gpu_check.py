"""Everything that needs a GPU, in one command of at most ten minutes: `python -m benchmarks.gpu_check`.

The tests marked `gpu`, the decode plans on real images, the kernels, the training step, the frozen teacher, and the
way from JPEG to updated student. Each part has a process and a time limit of its own, and what it had found before
it failed stays in the table. The images are FASTANC_DATA's imagenet-samples.

`--rehearse` runs the same parts at tiny sizes on the CPU and records nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import torch

from benchmarks.gpu_parts import PARTS, Row, row
from benchmarks.harness import record, table
from benchmarks.run_all import run_limited

TOTAL_S = 590


def work(name: str, rehearse: bool) -> None:
    """Run a part here, and print every row as soon as it is found."""
    for found in PARTS[name].run(rehearse):
        print("ROW", json.dumps(found), flush=True)


def check(rehearse: bool, only: list[str]) -> list[Row]:
    """Run the parts one after another and return their rows; a part that fails adds one that says so."""
    began, rows = time.perf_counter(), []
    for name in only:
        left_s = TOTAL_S - (time.perf_counter() - began)
        limit_s = PARTS[name].limit_s * (2 if rehearse else 1)  # the CPU may be a busy one
        command = [sys.executable, "-m", "benchmarks.gpu_check", "--part", name]
        flags = ["--rehearse"] if rehearse else []
        ended = run_limited([*command, *flags], max(1, min(limit_s, left_s)))
        lines = [line[4:] for line in ended.output.splitlines() if line.startswith("ROW ")]
        found = [{"part": name, **json.loads(line)} for line in lines]
        if ended.failure is not None:
            found.append({"part": name, **row("the rest", f"FAILED: {ended.failure}")})
        print(f"{name}: {len(found)} rows in {ended.seconds:.0f} s", flush=True)
        rows += found
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on the CPU; records nothing")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="these parts")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if not (chosen.rehearse or torch.cuda.is_available()):
        print("gpu-check needs a CUDA device and there is none: `--rehearse` runs its parts on the CPU.")
        return 0
    if chosen.part:
        work(chosen.part, chosen.rehearse)
        return 0
    rows = check(chosen.rehearse, chosen.only)
    print(table(rows))
    if not chosen.rehearse:
        print(f"appended to {record('gpu-check', rows)}")
    return 1 if any(found["says"].startswith("FAILED") for found in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
