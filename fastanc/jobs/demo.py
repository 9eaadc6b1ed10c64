"""The demonstration behind `make demo`: one teacher, three students, one table, on any machine."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from fastanc.jobs.report import summary_table, write_report
from fastanc.parsing import parse
from fastanc.train import train


def demo(out: Path) -> Path:
    """Train teacher, supervised student and two ANC students on the digits; return the report's path.

    The second ANC student differs in its seed alone and rides on the teacher's cache that the first one filled.
    """
    folder = out / "demo"
    shutil.rmtree(folder, ignore_errors=True)
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
