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
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

import psutil
import torch

from benchmarks.harness import ROOT
from benchmarks.results_table import PAGE, regenerate


class Ended(NamedTuple):
    """How a process ended, and what it had said by then."""

    failure: str | None
    output: str
    seconds: float


def run_limited(
    command: Sequence[str],
    limit_s: float,
    environment: Mapping[str, str] | None = None,
    *,
    heard: Callable[[str], None] = lambda line: None,
    grace_s: float = 0.0,
) -> Ended:
    """Run a command from the repository's root; after `limit_s` end it with all that it started.

    `heard` gets every line soon after it was said. The command is asked to end (SIGTERM) `grace_s` before it is.
    """
    began = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        lines = _Lines(said.fileno(), heard)
        try:
            code = _wait(process, limit_s - grace_s, lines)
            if code is None and grace_s:
                process.terminate()
                _wait(process, grace_s, lines)
        finally:
            _end(process)
        lines.read()
    return Ended(_failure(code, limit_s, lines.text), lines.text, time.perf_counter() - began)


class _Lines:
    """What a process writes into a file, line by line while it runs; its place in the file is left alone."""

    def __init__(self, descriptor: int, heard: Callable[[str], None]):
        self._descriptor, self._heard = descriptor, heard
        self._said, self._told = b"", 0

    @property
    def text(self) -> str:
        """All that was said so far."""
        return self._said.decode(errors="replace")

    def read(self) -> None:
        """Hear the lines that are new."""
        while new := os.pread(self._descriptor, 1 << 20, len(self._said)):
            self._said += new
        whole = self._said.rfind(b"\n") + 1
        for line in self._said[self._told : whole].decode(errors="replace").splitlines():
            self._heard(line)
        self._told = max(self._told, whole)


def _wait(process: subprocess.Popen[bytes], limit_s: float, lines: _Lines) -> int | None:
    """Return the exit code, or None where the process still runs after the limit."""
    until = time.perf_counter() + limit_s
    while time.perf_counter() < until:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(min(0.2, max(0.0, until - time.perf_counter())))
        lines.read()
    return process.poll()


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and its descendants; those of torchrun have sessions of their own."""
    if process.poll() is not None:
        return
    family = psutil.Process(process.pid).children(recursive=True)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()


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
        (["plays"], 600),
        (["cache", *small], 600),
        (["input"], 600),
        (["looks"], 600),
        (["looks_parity"], 200),
        (["step", *(["--compile"] if cuda else [])], 600),
        (["step", "--methods", *([] if cuda else ["--copies", "2"])], 600),
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
