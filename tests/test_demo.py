"""The demonstration: what it trains and says, that its next commands work, and whose labels are read."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import draccus
import numpy as np
import pytest
import torch
from torch import nn

import fastanc
from fastanc import cli
from fastanc.config import Config
from fastanc.jobs import demo as job
from fastanc.jobs.report import LINE, summary_table
from fastanc.jobs.study import cells
from fastanc.jobs.study_file import load
from fastanc.parsing import parse
from fastanc.training.folder import Owner, read_summary

datasets = pytest.importorskip("sklearn.datasets", reason="the digits come with scikit-learn")
pytest.importorskip("matplotlib")

FASTANC = Path(sys.executable).parent / "fastanc"
ROWS = {
    "teacher": "teacher",
    "few-labels": "76 labels",
    "no-labels": "no labels",
    "smaller": "no labels, lenet5_half",
}
"""A run of the demonstration -> the study's row that repeats it."""


def training_labels() -> np.ndarray:
    """The labels of the digits that are trained on: all but every fifth."""
    labels = datasets.load_digits().target
    return labels[np.arange(len(labels)) % 5 != 0]


def computed(config: Config) -> dict[str, Any]:
    """What decides a run's numbers, but for its seed: all but its place, and where its teacher lies."""
    tree = draccus.encode(config)
    for key in ("name", "out", "resume", "seed"):
        del tree["run"][key]
    for key in ("weights", "cache_dir", "cache"):
        del tree["teacher"][key]
    return tree


def test_the_study_repeats_what_the_demonstration_shows() -> None:
    first, grid = cells(load("digits_demo"), Path("runs"), 1.0, [])
    rows = {cell.row: computed(cell.config) for cell in [*first, *grid]}
    found = {phase.name: computed(parse(phase.words)) for phase in job.phases(Path("runs"))}
    assert found == {name: rows[row] for name, row in ROWS.items()}
    seeds = {cell.config.run.seed for cell in grid}
    assert len(seeds) >= 5
    assert seeds.isdisjoint({0, 1, 2}), "lenet5_half's rate and length were chosen on these"


def test_few_labels_are_76_and_get_the_steps_of_all_images() -> None:
    few, none = (parse(phase.words) for phase in job.phases(Path("runs"))[1:3])
    counts = np.bincount(training_labels())
    labelled = int(np.ceil(few.data.share * counts).sum())
    assert (labelled, int(counts.sum())) == (76, 1437)
    assert few.data.batch == none.data.batch
    steps = [n // config.data.batch * config.schedule.epochs for n, config in ((labelled, few), (1437, none))]
    assert steps == [232, 232]
    assert (few.method.reads_labels, none.method.reads_labels) == (True, False)


def small(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4)
    )


@pytest.mark.parametrize(("method", "reads"), [("anc", False), ("supervised", True)])
def test_labels_of_the_training_images_count_only_for_who_reads_them(
    tmp_path: Path, method: str, reads: bool
) -> None:
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (32, 16, 16, 3), np.uint8), np.arange(32) % 4
    students = []
    for name, shown in (("true", labels), ("shuffled", random.permutation(labels))):
        torch.manual_seed(0)
        teacher, student = small(8), small(4)
        result = fastanc.compress(
            teacher,
            student,
            (images, shown),
            val=(images, labels),
            method=method,
            image_px=16,
            batch=16,
            epochs=1,
            out=str(tmp_path / name),
            cache=str(tmp_path / f"cache-{name}"),
        )
        students.append(result.student.state_dict())
        summary = read_summary(result.folder)
        assert summary is not None
        assert (summary["images"], summary["labels"]) == (32, 32 if reads else 0)
    same = all(torch.equal(weight, students[1][key]) for key, weight in students[0].items())
    assert same is not reads


def finished(folder: Path, few: float, none: float) -> list[Path]:
    """The folders of a demonstration that came out so."""
    numbers = {
        "teacher": ("big", 2000, 0.5, 1000),
        "few-labels": ("middle", 1024, few, 400),
        "no-labels": ("middle", 0, none, 400),
        "smaller": ("tiny", 0, 3.25, 90),
    }
    for name, (student, labels, error, params) in numbers.items():
        (folder / name).mkdir(parents=True)
        summary: dict[str, Any] = {
            **{"name": name, "method": "supervised" if labels else "anc", "student": student},
            **{"images": max(labels, 2000), "labels": labels, "params": params, "macs": 12_345_678},
            **{"teacher": None if labels else "big", "teacher_source": None if labels else "fill"},
            **{"val": {"error_pct": error}, "wall_s": 7.4, "data_share": 0.1, "teacher_share": 0.25},
        }
        if not labels:
            summary["val"] |= {"agreement_pct": 97.5, "teacher_kl": 0.0491, "teacher_top1": 0.995}
        (folder / name / "summary.json").write_text(json.dumps(summary))
    return [folder / name for name in numbers]


def typed(said: str) -> list[str]:
    """The commands that it says to try next."""
    return re.findall(r"^    (.*?)  #", said[said.index("What to try next") :], flags=re.MULTILINE)


@pytest.mark.parametrize(("few", "none"), [(9.72, 1.94), (1.94, 9.72)])  # also where it is not as hoped
def test_it_ends_with_a_narrow_table_what_was_measured_and_what_to_type(
    tmp_path: Path, few: float, none: float
) -> None:
    runs = finished(tmp_path / "my runs" / "demo", few, none)
    text = job.ending(runs, tmp_path / "my runs")
    seen, _ = text.split("\n\n")
    lines = [line for line in summary_table(runs, LINE).splitlines() if not line.startswith("no room for")]
    assert [line.split()[0] for line in lines[2:]] == [run.name for run in runs]
    assert "labels" in lines[0]
    assert max(map(len, lines)) <= 119
    said = " ".join(seen.split())
    assert f"middle errs on {few:.2f} % of the validation images when it learns from 1,024 labels" in said
    assert (
        f"and on {none:.2f} % when it learns from the teacher's answers on 2,000 images and no labels" in said
    )
    assert "the teacher errs on 0.50 %" in said
    assert "tiny, with 9 % of the teacher's parameters" in said
    assert said.endswith("in 7 s: 3.25 %.")
    profile, export, train = (shlex.split(line)[1:] for line in typed(text))
    assert profile == ["profile", str(runs[3])]
    assert export[:2] == ["export", str(runs[2])]
    assert parse(train[1:]).teacher.weights == str(runs[0] / "student.safetensors")


def test_it_starts_over_where_only_demonstrations_were(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {phase.name for phase in job.phases(tmp_path)}
    folder = tmp_path / "demo"
    for name in (*own, "cache", "anc-filling"):  # the last is of an earlier version
        (folder / name).mkdir(parents=True)
    (folder / "report.html").write_text("old")
    owner = Owner(folder / "no-labels")
    assert cli.main(["demo", "--out", str(tmp_path)]) == 2
    assert "no-labels is being written" in capsys.readouterr().err
    owner.release()
    (folder / "mine").mkdir()
    assert cli.main(["demo", "--out", str(tmp_path)]) == 2
    assert "holds mine, which is no demonstration's" in capsys.readouterr().err
    assert (folder / "report.html").read_text() == "old"
    (folder / "mine").rmdir()
    job._start_over(folder, own)
    assert not folder.exists()


@pytest.mark.slow
def test_killed_it_starts_over_and_what_it_says_to_type_works(tmp_path: Path) -> None:
    command = [str(FASTANC), "demo"]
    env = {**os.environ, "PATH": f"{FASTANC.parent}{os.pathsep}{os.environ['PATH']}"}
    log = tmp_path / "runs" / "demo" / "teacher" / "metrics.jsonl"
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.DEVNULL) as killed:
        while not (log.is_file() and log.stat().st_size):
            assert killed.poll() is None
            time.sleep(0.1)
        killed.send_signal(signal.SIGKILL)
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr[-3000:]
    few, none = (read_summary(tmp_path / "runs" / "demo" / name) for name in ("few-labels", "no-labels"))
    assert few is not None
    assert none is not None
    assert (few["labels"], none["labels"]) == (76, 0)
    assert none["val"]["error_pct"] < few["val"]["error_pct"]
    runs = [tmp_path / "runs" / "demo" / name for name in ROWS]
    assert job.lesson({run.name: read_summary(run) or {} for run in runs}) in done.stdout
    assert read_summary(runs[3])["teacher_source"] == "read"  # type: ignore[index]
    commands = typed(done.stdout)
    assert len(commands) == 3
    for line in commands * 2:  # as one who comes back
        next_one = subprocess.run(
            line, shell=True, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=3000
        )
        assert next_one.returncode == 0, (line, next_one.stderr[-3000:])
    assert (tmp_path / "runs" / "demo-student" / "predict.py").is_file()
    assert (read_summary(tmp_path / "runs" / "game") or {})["teacher_source"] == "read"
