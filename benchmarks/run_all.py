"""Every benchmark at a size that fits the machine, then docs/results.md: `python -m benchmarks.run_all`.

Each runs in a process group of its own with a time limit; one that fails is a line, not the end.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from benchmarks.harness import ROOT
from benchmarks.results_table import PAGE, regenerate


class Ended(NamedTuple):
    """How a process ended, and what it had said by then."""

    failure: str | None
    output: str
    seconds: float


def run_limited(
    command: Sequence[str], limit_s: float, environment: Mapping[str, str] | None = None
) -> Ended:
    """Run a command from the repository's root; after `limit_s` end it with all its children."""
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        said.seek(0)
        output = said.read()
    return Ended(_failure(code, limit_s, output), output, time.perf_counter() - began)


def _failure(code: int | None, limit_s: float, output: str) -> str | None:
    if code is None:
        return f"not done after {limit_s:.0f} s"
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    lines = output.strip().splitlines() or [f"exit code {code}"]
    return lines[-1][:300] if code else None


def plan(cuda: bool) -> list[tuple[list[str], float]]:
    """Return the benchmarks with their arguments, and the seconds each may take."""
    small = [] if cuda else ["--rows", "20000", "--rounds", "3"]
    chosen: list[tuple[list[str], float]] = [
        (["kernels", *([] if cuda else ["--rehearse"])], 400),
        (["kernels_compiled"], 600),
        (["cache", *small], 600),
        (["input"], 600),
        (["step", *(["--compile"] if cuda else [])], 600),
        (["end_to_end"], 600),
        (["sources", "--data.views", "1"], 600),
        *(
            [] if cuda else [(["launches", "--rounds", "1"], 600.0)]
        ),  # of CPU processes; gpu_check has the others
    ]
    return [job for job in chosen if importlib.util.find_spec(f"benchmarks.{job[0][0]}")]


def main() -> int:
    failed = 0
    for (name, *arguments), limit_s in plan(torch.cuda.is_available()):
        command = " ".join([f"python -m benchmarks.{name}", *arguments])
        print(f"== {command}", flush=True)
        ended = run_limited([sys.executable, "-m", f"benchmarks.{name}", *arguments], limit_s)
        tables = [line for line in ended.output.splitlines() if line.startswith("|")]
        print("\n".join(tables) if ended.failure is None else f"FAILED: {ended.failure}")
        print(f"({ended.seconds:.0f} s)\n", flush=True)
        failed += ended.failure is not None
    regenerate()
    print(f"wrote {PAGE.relative_to(ROOT)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
