"""Which runs there are below a folder, and how far each came (`fastanc runs`)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastanc.plain_yaml import load_yaml
from fastanc.training.folder import owner_of, read_summary
from fastanc.training.metrics import read_metrics

_FILES = ("config.yaml", "metrics.jsonl", "summary.json")
_DEPTH = 3
FINISHED = "finished"
"""The state of a run that has its summary."""
_HEAD = (
    "run",
    "state",
    "method",
    "student",
    "teacher",
    "step",
    "epoch",
    "error",
    "agreement",
    "KL",
    "last written",
)
_WORDS = 5  # columns of words, aligned left


class Run(NamedTuple):
    """A run as far as it came."""

    folder: Path
    state: str
    """finished, running, or stopped (killed, or ended early)."""
    method: str
    student: str
    teacher: str
    step: int
    """Steps that are done, as its last line of metrics.jsonl says."""
    epoch: float
    epochs: str
    """Of the whole schedule, as the configuration says it."""
    val: dict[str, Any]
    """Its last evaluation."""
    written: float
    """Seconds since 1970."""


def is_run(folder: Path) -> bool:
    """Return whether a folder is a run's."""
    return any((folder / name).is_file() for name in _FILES)


def find_runs(folder: Path) -> list[Path]:
    """Return a folder if it is a run's, else the runs' folders up to three levels below it, by name.

    Raises FileNotFoundError where there is none.
    """
    if is_run(folder):
        return [folder]
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: name a run's, or one that holds runs")
    found = sorted(_below(folder, _DEPTH))
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no run: none of the folders below has config.yaml, metrics.jsonl or summary.json"
        )
    return found


def _below(folder: Path, depth: int) -> Iterator[Path]:
    try:
        inside = sorted(Path(entry.path) for entry in os.scandir(folder) if entry.is_dir())
    except OSError:
        return
    for one in inside:
        if is_run(one):
            yield one
        elif depth > 1 and not one.name.startswith("."):
            yield from _below(one, depth - 1)


def look_at(folder: Path) -> Run:
    """Return how far a run came; what a file does not say is empty."""
    config, lines, summary = _config(folder), lines_of(folder), read_summary(folder)
    steps = [line for line in lines if line["kind"] in ("train", "val")]
    tested = [line for line in lines if line["kind"] == "val"]
    last = max(steps, key=lambda line: line["step"]) if steps else {"step": -1, "epoch": 0.0}
    method = config.get("method", {})
    needs_teacher = summary is None or summary.get("teacher") is not None
    return Run(
        folder,
        FINISHED if summary is not None else "running" if owner_of(folder) else "stopped",
        str(method.get("type", "")),
        str(config.get("student", {}).get("name", "")),
        str(config.get("teacher", {}).get("name", "")) if needs_teacher else "",
        int(last["step"]) + 1,
        float(last["epoch"]),
        str(config.get("schedule", {}).get("epochs", "")),
        dict(tested[-1]) if tested else {},
        max((_written(folder / name) for name in _FILES), default=0.0),
    )


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # a run that starts over takes its files away
        return 0.0


def _config(folder: Path) -> dict[str, Any]:
    try:
        tree = load_yaml(folder / "config.yaml")
    except (OSError, ValueError):
        return {}
    return (
        {key: value for key, value in tree.items() if isinstance(value, dict)}
        if isinstance(tree, dict)
        else {}
    )


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl that say what such lines say, and leave out others."""
    try:
        found = read_metrics(folder / "metrics.jsonl")
    except OSError:
        return []
    return [line for line in found if _is_line(line)]


def _is_line(line: Any) -> bool:
    if not isinstance(line, dict) or not isinstance(line.get("step"), int):
        return False
    if line.get("kind") == "note":
        return isinstance(line.get("text"), str)
    return line.get("kind") in ("train", "val") and is_number(line.get("epoch"))


def is_number(value: Any) -> bool:
    """Return whether a value of a run's files is a number, nan and infinity included."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def describe(runs: Sequence[Run], root: Path) -> str:
    """Return a line for each run, by what was written last, as an aligned table; names are relative to `root`."""
    rows = [_row(run, root) for run in sorted(runs, key=lambda run: run.written)]
    table = [list(_HEAD), *rows]
    widths = [max(map(len, column)) for column in zip(*table)]
    lines = []
    for row in table:
        texts = [
            text.ljust(width) if k < _WORDS else text.rjust(width)
            for k, (text, width) in enumerate(zip(row, widths))
        ]
        lines.append("  ".join(texts).rstrip())
    return "\n".join(lines)


def _row(run: Run, root: Path) -> list[str]:
    name = run.folder.relative_to(root) if run.folder != root else Path(run.folder.resolve().name)
    shown = {"error_pct": "{:.2f} %", "agreement_pct": "{:.2f} %", "teacher_kl": "{:.4g}"}
    values = [
        text.format(run.val[key]) if is_number(run.val.get(key)) else "–" for key, text in shown.items()
    ]
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.written))
    epoch = f"{run.epoch:.4g}/{run.epochs}" if run.epochs else f"{run.epoch:.4g}"
    words = [str(name), run.state, *(text or "–" for text in (run.method, run.student, run.teacher))]
    return [*words, f"{run.step:,}", epoch, *values, when]
