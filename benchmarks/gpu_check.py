"""Everything that needs a GPU, in three calls of under ten minutes each: `python -m benchmarks.gpu_check --call 1`.

Without --call all three are made in order; with --results it trains instead, see `gpu_results`. Each part has a
process and a time limit of its own; every row is written to benchmarks/results/ as it is found, so what a part had
found before it failed or was ended stays. docs/gpu.md says what each part answers. The images are FASTANC_DATA's. It
needs no installation: torch and accelerate, and DALI and draccus in a folder on PYTHONPATH, are enough; a part that
needs more says so in its row.

`--rehearse` runs the same parts at tiny sizes on the CPU and records nothing, unless --out says where.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import torch

from benchmarks.checkout import make_importable
from benchmarks.gpu_parts import CALL_S, CALLS, PARTS, allowance
from benchmarks.gpu_results import GRACE_S, JOBS, results
from benchmarks.gpu_rows import Row, row
from benchmarks.harness import RESULTS, ROOT, Recording, table
from benchmarks.run_all import run_limited

COMPILED = ROOT / "cache" / "inductor"
"""All parts and calls of a day find each other's compiled code here."""
RUNS = {name: part.run for name, part in [*PARTS.items(), *JOBS.items()]}
"""What has a process of its own."""
_OURS = ("fastanc", "benchmarks")


def work(name: str, rehearse: bool) -> None:
    """Run a part here, and print every row as soon as it is found."""
    try:
        for found in RUNS[name](rehearse):
            print("ROW", json.dumps(found), flush=True)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in _OURS:
            raise
        print("ROW", json.dumps(row("the rest", f"needs {package}")), flush=True)


def run_part(
    command: Sequence[str], name: str, limit_s: float, keep: Callable[[Row], None], grace_s: float = 0.0
) -> None:
    """Run a part's command; `keep` gets its rows as they are found, and one that says where it ended too early."""
    at, number = "its start", 0

    def heard(line: str) -> None:
        nonlocal at, number
        kind, _, text = line.partition(" ")
        if kind == "CASE":
            at = text
        elif kind == "ROW":
            number += 1
            keep({"part": name, **json.loads(text)})

    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    ended = run_limited(command, limit_s, environment, heard=heard, grace_s=grace_s)
    other = [line for line in ended.output.splitlines() if not line.startswith(("ROW ", "CASE "))]
    if ended.failure is not None:
        keep({"part": name, **row(f"ended in: {at}", f"FAILED: {ended.failure}")})
    if ended.failure is not None or "FAILED" in ended.output:
        print("\n".join(other[-60:])[-6000:], flush=True)
    print(f"{name}: {number} rows in {ended.seconds:.0f} s of {limit_s:.0f}", flush=True)


def call(names: Sequence[str], rehearse: bool, began: float, keep: Callable[[Row], None]) -> None:
    """Run the parts of one call within its seconds; a rehearsal has twice as many, its CPU may be a busy one."""
    slower = 2 if rehearse else 1
    for k, name in enumerate(names):
        left_s = CALL_S - (time.time() - began) / slower
        limit_s = allowance(names[k:], left_s) * slower
        if limit_s < 1:
            keep({"part": name, **row("all", "FAILED: no time was left")})
            continue
        run_part(command_of(name, rehearse), name, limit_s, keep)


def command_of(name: str, rehearse: bool) -> list[str]:
    """Return the command of a part's own process."""
    words = ["--rehearse"] if rehearse else []
    return [sys.executable, "-m", "benchmarks.gpu_check", "--part", name, *words]


def call_results(rehearse: bool, budget_s: float, began: float, keep: Callable[[Row], None]) -> None:
    """Find out what fits the seconds of a call, the most wanted first."""

    def start(name: str, limit_s: float) -> None:
        run_part(command_of(name, rehearse), name, limit_s, keep, GRACE_S)

    for name, found in results(JOBS, lambda: budget_s - (time.time() - began), start):
        keep({"part": name, **found})


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--call", type=int, choices=range(1, len(CALLS) + 1), help="one of the three calls")
    chosen.add_argument("--only", nargs="+", choices=list(PARTS), help="these parts, in one call")
    chosen.add_argument("--results", action="store_true", help="trainings and rates, as many as fit --budget")
    chosen.add_argument("--part", choices=list(RUNS), help=argparse.SUPPRESS)
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on the CPU; records nothing")
    parser.add_argument("--budget", type=float, default=CALL_S, help="seconds of --results (590)")
    parser.add_argument("--out", type=Path, help="folder of the results; benchmarks/results")
    return parser.parse_args()


def main() -> int:
    chosen = parsed()
    if not (chosen.rehearse or torch.cuda.is_available()):
        print("gpu-check needs a CUDA device and there is none: `--rehearse` runs its parts on the CPU.")
        return 0
    make_importable()
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(COMPILED))
    if chosen.part:
        work(chosen.part, chosen.rehearse)
        return 0
    if not (Path(os.environ.get("FASTANC_DATA", "")) / "imagenet-samples").is_dir():
        print(
            "note: FASTANC_DATA names no folder with imagenet-samples: the parts that read images will fail"
        )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the part that runs is ended too
    records = chosen.out is not None or not chosen.rehearse
    recording = Recording("gpu-check", chosen.out or RESULTS) if records else None
    rows: list[Row] = []

    def keep(found: Row) -> None:
        rows.append(found)
        print(f"  {found['part']}: {found['case']}: {found['says']}", flush=True)
        if recording is not None:
            recording.add(found)

    calls = [chosen.only] if chosen.only else CALLS if chosen.call is None else [CALLS[chosen.call - 1]]
    began = psutil.Process().create_time()  # importing torch took its part of the call
    if chosen.results:
        call_results(chosen.rehearse, chosen.budget, began, keep)
        calls = []
    for names in calls:
        call(names, chosen.rehearse, began, keep)
        began = time.time()
    print(table(rows))
    if recording is not None:
        print(f"written to {recording.path}")
    return 1 if any(found["says"].startswith("FAILED") for found in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
