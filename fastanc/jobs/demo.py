"""The demonstration behind `make demo`: one teacher, three students, one table, on any machine."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from fastanc.jobs.report import summary_table, write_report
from fastanc.parsing import parse
from fastanc.train import train

_LEFT = ("teacher", "supervised", "anc-filling", "anc-cached", "cache", "report.html")


def demo(out: Path) -> Path:
    """Train teacher, supervised student and two ANC students on the digits; return the report's path.

    The second ANC student differs in its seed alone and rides on the teacher's cache that the first one filled.
    """
    folder = out / "demo"
    _start_over(folder)
    teacher = folder / "teacher" / "student.safetensors"
    beside = ["--teacher.weights", str(teacher), "--teacher.cache_dir", str(folder / "cache")]
    phases = [
        ("the teacher, on labels", ["--recipe", "digits_teacher", "--name", "teacher"]),
        ("a student on labels alone", ["--recipe", "digits_supervised", "--name", "supervised"]),
        ("a student by ANC, filling the cache", ["--recipe", "digits_anc", "--name", "anc-filling", *beside]),
        (
            "another ANC student, from the cache",
            [
                "--recipe",
                "digits_anc",
                "--name",
                "anc-cached",
                "--run.seed",
                "1",
                "--teacher.cache",
                "read",
                *beside,
            ],
        ),
    ]
    runs = []
    began = time.perf_counter()
    for number, (what, args) in enumerate(phases, 1):
        print(f"\n[{number}/{len(phases)}] {what}", flush=True)
        runs.append(train(parse([*args, "--out", str(folder)])))
    report = folder / "report.html"
    write_report(runs, report)
    print(f"\n{summary_table(runs)}\n\n{time.perf_counter() - began:.0f} s in all; report: {report}")
    return report


def _start_over(folder: Path) -> None:
    """Remove what an earlier demonstration left; FileExistsError for a folder that holds anything else."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    others = [name for name in names if name not in _LEFT and not name.startswith(".")]
    if others:
        raise FileExistsError(f"{folder} holds {others[0]}, which is no demonstration's: give another --out")
    shutil.rmtree(folder, ignore_errors=True)
