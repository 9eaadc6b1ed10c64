"""How every benchmark measures, describes the machine, and keeps its numbers."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastanc.files import make_folder, write_text

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
RECORDS = ROOT / "benchmarks" / "records" / "results"
_DRIVER = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
_PACKAGES = {"triton": "triton", "dali": "nvidia-dali-cuda130", "accelerate": "accelerate"}


# As a run has it (`processes.choose_kernels`): what is compared with fastanc gets cuDNN's fastest kernels too.
torch.backends.cudnn.benchmark = True


def measure(
    fn: Callable[[], object], *, warmup: int = 3, runs: int = 20, cuda: bool | None = None
) -> dict[str, float]:
    """Return the time of one call of `fn`: median, spread, and the processor time it took.

    Args:
        fn: what is measured; on a GPU it need not wait for the device.
        warmup: calls that are not counted.
        runs: calls that are counted.
        cuda: time with CUDA events; by default where there is a GPU.

    Returns:
        `ms`, `ms_p20`, `ms_p80` over the runs, and `cpu_ms`, the mean processor time of all threads.
    """
    cuda = torch.cuda.is_available() if cuda is None else cuda
    for _ in range(warmup):
        fn()
    if cuda:
        torch.cuda.synchronize()
    cpu_s = time.process_time()
    times = _cuda_times(fn, runs) if cuda else _wall_times(fn, runs)
    cpu_ms = 1e3 * (time.process_time() - cpu_s) / runs
    low, middle, high = np.percentile(times, [20, 50, 80])
    return {"ms": float(middle), "ms_p20": float(low), "ms_p80": float(high), "cpu_ms": cpu_ms}


def _wall_times(fn: Callable[[], object], runs: int) -> list[float]:
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        fn()
        times.append(1e3 * (time.perf_counter() - began))
    return times


def _cuda_times(fn: Callable[[], object], runs: int) -> list[float]:
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(runs)]
    for began, ended in marks:
        began.record()
        fn()
        ended.record()
    torch.cuda.synchronize()
    return [began.elapsed_time(ended) for began, ended in marks]


def environment() -> dict[str, Any]:
    """Return what a number depends on: device, processor, load, versions, commit, date (UTC)."""
    gpu = torch.cuda.is_available()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    processor = _processor()
    return {
        "device": torch.cuda.get_device_name() if gpu else f"{processor}, {cores} cores",
        "driver": _output(*_DRIVER) if gpu else None,
        "cpu": processor,
        "cores": cores,
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        **{key: _version(package) for key, package in _PACKAGES.items()},
        **_commit(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M"),
    }


class Recording:
    """One run's line in NAME-DEVICE.jsonl, written anew with every row: what was found before an end stays."""

    def __init__(self, name: str, results: Path = RESULTS):
        """Begin the line, with the command and the environment of now.

        Args:
            name: the benchmark's; it becomes a heading of docs/results.md.
            results: the folder of all results, RECORDS for what is run once.
        """
        around = environment()
        slug = re.sub(r"[^a-z0-9]+", "-", around["device"].lower()).strip("-")
        self.path = results / f"{name}-{slug}.jsonl"
        self._rows: list[dict[str, Any]] = []
        self._line = {"benchmark": name, "command": _command(), "environment": around, "rows": self._rows}
        self._at = len(self._lines())

    def _lines(self) -> list[str]:
        return self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []

    def add(self, *rows: Mapping[str, Any]) -> None:
        """Put rows into the line; keys are columns, units belong into the keys."""
        self._rows += [dict(row) for row in rows]
        lines = self._lines()
        lines[self._at : self._at + 1] = [json.dumps(self._line, ensure_ascii=False)]
        make_folder(self.path.parent)
        write_text(self.path, "\n".join(lines) + "\n")


def record(name: str, rows: Sequence[Mapping[str, Any]], results: Path = RESULTS) -> Path:
    """Append one run's rows to NAME-DEVICE.jsonl in `results`, with its command and environment; return the file.

    Args:
        name: the benchmark's; it becomes a heading of docs/results.md.
        rows: one mapping per measurement; keys are columns, units belong into the keys.
        results: the folder of all results, RECORDS for what is run once.
    """
    recording = Recording(name, results)
    recording.add(*rows)
    return recording.path


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a Markdown table; the columns are all keys in order of appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    numeric = [all(type(row.get(c)) in (int, float, type(None)) for row in rows) for c in columns]
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(3, *map(len, column)) for column in zip(columns, *cells)]

    def line(texts: Sequence[str]) -> str:
        fitted = (t.rjust(w) if n else t.ljust(w) for t, w, n in zip(texts, widths, numeric))
        return f"| {' | '.join(fitted)} |"

    rule = line(["-" * (w - 1) + ":" if n else "-" * w for w, n in zip(widths, numeric)])
    return "\n".join([line(columns), rule, *map(line, cells)])


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if type(value) is int else str(value).replace("|", "\\|")


def _command() -> str:
    """Return the command line without the paths of this machine."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    start = f"python -m {spec.name}" if spec else f"python {Path(sys.argv[0]).name}"
    words = map(_portable, sys.argv[1:])
    return " ".join([start, *(f'"{word}"' if " " in word else word for word in words)])


def _portable(argument: str) -> str:
    option, equals, value = argument.rpartition("=")
    data = os.environ.get("FASTANC_DATA")
    if data and value.startswith(data.rstrip("/")):
        value = "$FASTANC_DATA" + value[len(data.rstrip("/")) :]
    elif value.startswith("/"):
        value = f".../{Path(value).name}"
    return option + equals + value


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> dict[str, Any]:
    """Return the commit, and whether the tree differs from it elsewhere than in the results themselves."""
    commit = _output("git", "rev-parse", "--short=12", "HEAD")
    written = (RESULTS, RECORDS, ROOT / "docs" / "results.md")
    apart = [f":!{path.relative_to(ROOT).as_posix()}" for path in written]
    changed = _output("git", "status", "--porcelain", "--", ".", *apart)
    return {"commit": commit, "dirty": None if changed is None else bool(changed)}


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
