"""Every kernel against its reference, compiled and not: `python -m benchmarks.kernels` on a CUDA machine.

Forward and backward together, each call with a cold L2: CUDA events around one call, after 512 MB were written. The
`_graph` columns replay a CUDA graph: the device's time without the launches', which is what a busy step sees, and
what decides. A kernel wins where its graph is faster than the graph of the compiled reference: by more than 5 % in
the geometric mean over its shapes, and on no shape slower by more than 5 %. A kernel that does not win is deleted.

Needs torch, Triton and NumPy. Each kernel has a process of its own: all compile side by side, then each is timed
alone; what fails is a row. `--rehearse` runs tiny shapes in Triton's interpreter on the CPU and records nothing.

Not written: kernels for the attention maps of AT and KSANC, mean_c A^2 and the attention-weighted sum. Forward reads
A once and backward reads and writes it once, 6 B C H W bytes in bf16, whoever writes the code; the row `attention`
holds what the compiled formula takes beside those bytes at the device's own copy speed: the most a kernel could gain.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import IO, Any

import torch
from torch import Tensor

from benchmarks.harness import ROOT, record, table
from benchmarks.kernel_cases import CASES, DEVICE, Case
from fastanc.kernels.backend import INTERPRETED

LIMIT_S = 150


def graph(call: Callable[[], object]) -> Callable[[], object]:
    """Return the replay of a CUDA graph of a call that has run before."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        call()
    return captured.replay


def cold_us(call: Callable[[], object], runs: int = 30) -> float:
    """Return the median time of one call with a cold L2, in microseconds."""
    if INTERPRETED:
        start_s = time.perf_counter()
        call()
        return 1e6 * (time.perf_counter() - start_s)
    flush = torch.empty(1 << 29, dtype=torch.uint8, device=DEVICE)
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(runs)]
    for began, ended in marks:
        flush.zero_()
        began.record()
        call()
        ended.record()
    torch.cuda.synchronize()
    return 1e3 * statistics.median(began.elapsed_time(ended) for began, ended in marks)


def distance(ours: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """Return ||ours - truth|| / ||truth|| over all results together."""
    mine, true = (torch.cat([part.double().flatten() for part in parts]) for parts in (ours, truth))
    return float((mine - true).norm() / true.norm())


def prepare(case: Case) -> dict[str, Callable[[], object]]:
    """Return the calls to time, each compiled and run once."""
    functions = {"eager": case.reference}
    if not INTERPRETED:
        functions["compiled"] = torch.compile(case.reference, dynamic=False)
    if case.kernel is not None:
        functions["kernel"] = case.kernel
    calls: dict[str, Callable[[], object]] = {name: partial(case.call, f) for name, f in functions.items()}
    for call in calls.values():
        call()
    graphed = [] if INTERPRETED else [name for name in calls if name != "eager"]
    return {**calls, **{f"{name}_graph": graph(calls[name]) for name in graphed}}


def timed(kernel: str, case: Case, calls: Mapping[str, Callable[[], object]]) -> dict[str, Any]:
    """Return the row of a case."""
    row: dict[str, Any] = {"kernel": kernel, "shape": case.shape}
    row |= {f"{name}_us": round(cold_us(call), 1) for name, call in calls.items()}
    if case.kernel is not None:
        truth = case.truth()
        row["reference_error"] = distance(case.call(case.reference), truth)
        row["kernel_error"] = distance(case.call(case.kernel), truth)
    if "kernel_graph_us" in row:
        row["speedup"] = round(row["compiled_graph_us"] / row["kernel_graph_us"], 3)
    if case.least_bytes and not INTERPRETED:
        source = torch.empty(1 << 29, dtype=torch.uint8, device=DEVICE)
        target = torch.empty_like(source)
        row["least_us"] = round(cold_us(lambda: target.copy_(source)) * case.least_bytes / (2 << 29), 1)
    return row


def work(kernel: str) -> None:
    """Prepare one kernel's cases, wait for a line on the standard input, time them, print the rows."""
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    ready = []
    for case in CASES[kernel]():
        try:
            ready.append((case, prepare(case)))
        except Exception:
            rows.append(failure(kernel, case.shape, traceback.format_exc()))
    print("READY", flush=True)
    sys.stdin.readline()
    for case, calls in ready:
        try:
            rows.append(timed(kernel, case, calls))
        except Exception:
            rows.append(failure(kernel, case.shape, traceback.format_exc()))
    print("ROWS " + json.dumps(rows), flush=True)


def failure(kernel: str, shape: str, text: str) -> dict[str, Any]:
    """Return the row of what failed; the whole text goes to the standard error."""
    print(text, file=sys.stderr)
    lines = [line for line in text.splitlines() if line.strip()] or ["no word"]
    return {"kernel": kernel, "shape": shape, "failure": lines[-1][:200]}


class Worker:
    """A process that prepares one kernel's cases, and times them when told to."""

    def __init__(self, kernel: str, environment: Mapping[str, str]):
        self.kernel = kernel
        self.errors: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 - lives as long as the process
        command = [sys.executable, "-m", "benchmarks.kernels", "--worker", kernel]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=self.errors, text=True, env=environment, cwd=ROOT
        )
        self.alarm = threading.Timer(LIMIT_S, self.process.kill)
        self.alarm.start()

    def wait(self) -> None:
        """Return when the worker is ready, or has ended."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("READY"):
                return

    def rows(self) -> list[dict[str, Any]]:
        """Let the worker time its cases; return its rows, or one that says why there are none."""
        try:
            said, _ = self.process.communicate("go\n")
        except BrokenPipeError:
            said = ""
        self.alarm.cancel()
        with self.errors as errors:
            errors.seek(0)
            complaints = errors.read()
        answers = [line for line in said.splitlines() if line.startswith("ROWS ")]
        if answers:
            sys.stderr.writelines(f"{line}\n" for line in complaints.splitlines() if "Error" in line)
            return json.loads(answers[-1].removeprefix("ROWS "))
        return [failure(self.kernel, "all", complaints or f"ended with {self.process.wait()}")]


def decisions(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per kernel: whether it wins, by the rule on top."""
    decided = []
    for kernel in dict.fromkeys(row["kernel"] for row in rows):
        own = [row for row in rows if row["kernel"] == kernel]
        gains = [row["speedup"] for row in own if "speedup" in row]
        if not gains:
            continue
        mean = math.exp(statistics.fmean(map(math.log, gains)))
        wins = mean > 1.05 and min(gains) > 0.95 and not any("failure" in row for row in own)
        verdict = "wins" if wins else "does not win"
        decided.append({"kernel": kernel, "shape": "all", "speedup": round(mean, 3), "verdict": verdict})
    return decided


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes in the interpreter, on the CPU")
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES), help="these kernels")
    parser.add_argument("--worker", choices=list(CASES), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.worker:
        return work(chosen.worker)
    environment = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "2"}
    if chosen.rehearse:
        environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    elif not torch.cuda.is_available():
        parser.error("there is no CUDA device: add --rehearse to run tiny shapes in the interpreter")
    began = time.perf_counter()
    workers = [Worker(kernel, environment) for kernel in chosen.only]
    for worker in workers:
        worker.wait()
    rows = [row for worker in workers for row in worker.rows()]
    rows += decisions(rows)
    print(table(rows))
    print(f"{time.perf_counter() - began:.0f} s")
    if not chosen.rehearse:
        print(f"appended to {record('kernels', rows)}")
    return None


if __name__ == "__main__":
    main()
