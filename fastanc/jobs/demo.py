"""The demonstration behind `make demo`: a teacher, few labels, and what can be learned without any."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastanc.jobs.report import LINE, summary_table, write_report
from fastanc.parsing import parse
from fastanc.train import train
from fastanc.training.folder import owner_of, read_summary

SMALLER = "lenet5_half"
_REPORT = "report.html"
_LEFT_BEFORE = ("supervised", "anc-filling", "anc-cached")  # by earlier versions
_OWN_IMAGES = "fastanc init my.yaml --data FOLDER --teacher NAME --student NAME"


class Phase(NamedTuple):
    """One run of the demonstration."""

    name: str
    says: str
    words: list[str]
    """Of the command line `fastanc train`, but for name and place."""


def phases(folder: Path) -> list[Phase]:
    """Return the runs in their order; each but the first two is taught by the first, whose rows lie in the cache."""
    taught = ["--recipe", "digits_label_free", *_taught(folder)]
    return [
        Phase("teacher", "the teacher: a classifier that somebody has", ["--recipe", "digits_teacher"]),
        Phase("few-labels", "a student on the few labels there are", ["--recipe", "digits_few_labels"]),
        Phase(
            "no-labels",
            "the same student without labels; the teacher's rows are kept",
            [*taught, "--teacher.cache", "fill"],
        ),
        Phase(
            "smaller",
            "a smaller student, three times over the kept rows; the teacher does not run",
            # A network without BatchNorm, which ResNet-8's learning rate would drive apart; hence the bound, too.
            # Three times over the kept views, since they cost no teacher.
            [
                *(*taught, "--teacher.cache", "read", "--student.name", SMALLER),
                *("--optimizer.lr", "0.02", "--optimizer.clip", "1", "--schedule.epochs", "24"),
            ],
        ),
    ]


def _taught(folder: Path) -> list[str]:
    weights = folder / "teacher" / "student.safetensors"
    return ["--teacher.weights", str(weights), "--teacher.cache_dir", str(folder / "cache")]


def demo(out: Path) -> Path:
    """Train the teacher and the three students on the digits, say what was seen, and return the report's path.

    All are ordinary runs below `out`/demo. What an earlier demonstration left there is removed first.
    Raises FileExistsError where that folder holds anything else, ValueError where one is under way.
    """
    folder = out / "demo"
    plan = phases(folder)
    _start_over(folder, {phase.name for phase in plan})
    began = time.perf_counter()
    runs = []
    for number, phase in enumerate(plan, 1):
        print(f"\n[{number}/{len(plan)}] {phase.says}", flush=True)
        runs.append(train(parse([*phase.words, "--name", phase.name, "--out", str(folder)])))
    report = write_report(runs, folder / _REPORT)
    print(f"\n{summary_table(runs, LINE)}\n\n{time.perf_counter() - began:.0f} s in all; report: {report}")
    print(f"\n{ending(runs, out)}")
    return report


def ending(runs: Sequence[Path], out: Path) -> str:
    """Return what is said below the table of the finished runs: what was seen, and what to try next."""
    tries = "\n".join(
        f"    {shlex.join([_program(), *words])}  # {does}" for does, words in next_commands(out)
    )
    seen = lesson({run.name: read_summary(run) or {} for run in runs})
    own = f"Your own images and networks: `{_OWN_IMAGES}` writes a first recipe."
    return f"{seen}\n\nWhat to try next:\n{tries}\n{own}"


def lesson(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """Return what was seen, in sentences made of the runs' own numbers.

    Args:
        summaries: name of a phase -> its summary.json.
    """
    teacher, few, none, small = (
        summaries[name] for name in ("teacher", "few-labels", "no-labels", "smaller")
    )
    size = 100 * small["params"] / teacher["params"]
    return (
        f"What was seen: {few['student']} errs on {_error(few)} of the validation images when it learns from"
        f" {_labels(few)},\nand on {_error(none)} when it learns from the teacher's answers on"
        f" {none['images']:,} images and {_labels(none)}; the teacher errs on {_error(teacher)}.\n"
        f"{small['student']}, with {size:.0f} % of the teacher's parameters, learned"
        f" from the answers that were kept, in {small['wall_s']:.0f} s: {_error(small)}."
    )


def _error(summary: Mapping[str, Any]) -> str:
    return f"{summary['val']['error_pct']:.2f} %"


def _labels(summary: Mapping[str, Any]) -> str:
    return f"{summary['labels']:,} labels" if summary["labels"] else "no labels"


def next_commands(out: Path) -> list[tuple[str, list[str]]]:
    """Return (what it does, the words after `fastanc`) of commands that go on from what the demonstration left."""
    folder = out / "demo"
    again = [*_taught(folder), "--teacher.cache", "read", "--resume", "anew"]
    return [
        ("what compression bought: teacher and student side by side", ["profile", str(folder / "smaller")]),
        (
            "a folder for a deployer: weights, a program, predict.py, a card",
            ["export", str(folder / "no-labels"), str(out / "demo-student")],
        ),
        (
            "the same student by the adversarial game, from the same rows",
            ["train", "--recipe", "digits_anc", "--name", "game", "--out", str(out), *again],
        ),
    ]


def _program() -> str:
    """What to type: `fastanc` where the shell finds this one by its name, else where it lies."""
    here, found = Path(sys.executable).parent / "fastanc", shutil.which("fastanc")
    if not here.is_file() or (found is not None and os.path.samefile(found, here)):
        return "fastanc"
    return os.path.relpath(here) if here.is_relative_to(Path.cwd()) else str(here)


def _start_over(folder: Path, own: set[str]) -> None:
    """Remove what an earlier demonstration left."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    known = {*own, *_LEFT_BEFORE, "cache", _REPORT}
    others = [name for name in names if name not in known and not name.startswith(".")]
    if others:
        raise FileExistsError(f"{folder} holds {others[0]}, which is no demonstration's: give another --out")
    for name in names:
        if owner := owner_of(folder / name):
            raise ValueError(
                f"{folder / name} is being written ({owner}): wait for it, or give another --out"
            )
    shutil.rmtree(folder, ignore_errors=True)
