"""Whole runs with the game's knobs: resumed, in two processes, and what their evaluations say of the game."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor

from fastanc.jobs.report import write_report
from fastanc.jobs.study import cells
from fastanc.jobs.study_file import load as load_study
from fastanc.parsing import parse
from fastanc.train import train
from fastanc.training.checkpoint import load
from fastanc.training.metrics import read_metrics
from fastanc.training.processes import end_processes
from support.processes import forked
from support.tiny_run import LENETS, as_words

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

KNOBS = {
    "method.type": "anc",
    "method.game_share": "0.3",
    "method.replay": "24",
    "method.discriminators": "2",
    "method.discriminator": "16-16",
    "method.standardise": "teacher",
    "method.noise": "0.3",
    "method.noise_steps": "9",
    "method.spectral_norm": "true",
    "method.condition": "softmax",
    "method.gradient_penalty": "0.5",
    "method.discriminator_steps": "2",
}


def words(folder: Path, name: str, steps: int, **options: str) -> list[str]:
    fields = {**LENETS, "data.batch": "16", "optimizer.lr": "0.01", "run.checkpoint_every": "3"}
    fields |= {
        "run.out": str(folder),
        "run.name": name,
        "run.max_steps": str(steps),
        "teacher.rows": "fp32",
        "run.seed": "3",
    }
    return as_words({**fields, **options})


def run(folder: Path, name: str, steps: int, **options: str) -> dict[str, Any]:
    """Train some steps of sixteen digits and return what the last checkpoint holds."""
    path = train(parse(words(folder, name, steps, **options)))
    return load(path / "checkpoints" / f"step-{steps:08d}")[0]


def modules(state: dict[str, Any]) -> dict[str, Tensor]:
    return {f"{name}.{key}": v for name, one in state["players"].items() for key, v in one["module"].items()}


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    ours, theirs = modules(one), modules(other)
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


def test_stopped_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    whole = run(tmp_path, "whole", 6, **KNOBS)
    run(tmp_path, "cut", 3, **KNOBS)
    assert_same(whole, run(tmp_path, "cut", 6, **KNOBS, **{"run.resume": "latest"}))


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    whole = run(tmp_path, "whole", 12, **KNOBS)
    held = modules(whole)
    assert held["discriminator.balance.sums"].min() > 0
    assert held["discriminator.replay.seen"].item() == 24
    assert held["discriminator.made"].item() == 24
    code = "import sys; from fastanc.train import main; sys.exit(main())"
    command = [sys.executable, "-c", code, *words(tmp_path, "killed", 12, **KNOBS)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 1800  # of a hang
    while killed.poll() is None and not [*(tmp_path / "killed" / "checkpoints").glob("step-*")]:
        assert time.time() < deadline
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert_same(whole, run(tmp_path, "killed", 12, **KNOBS, **{"run.resume": "latest"}))


def as_process(rank: int, port: int, work: Callable[[], object]) -> int:
    def child() -> None:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="true")
        AcceleratorState._reset_state(reset_partial_state=True)
        torch.set_num_threads(1)
        work()
        end_processes()

    return forked(child)


def test_two_processes_have_one_game(tmp_path: Path) -> None:
    """Each process writes down what it holds: all but the replayed rows, which are its own, is the same."""

    def work() -> None:
        run(tmp_path, "whole", 6, **KNOBS)
        run(tmp_path, "cut", 3, **KNOBS)
        run(tmp_path, "cut", 6, **KNOBS, **{"run.resume": "latest"})

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [as_process(rank, port, work) for rank in (0, 1)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    whole, resumed = (load(tmp_path / name / "checkpoints" / "step-00000006")[0] for name in ("whole", "cut"))
    assert_same(whole, resumed)
    rows = next(value for value in whole["memories"] if value.dim() == 3)
    assert not torch.equal(rows[0], rows[1])
    lines = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    assert any("weights agree on all 2 processes" in line.get("text", "") for line in lines)
    val = [line for line in lines if line["kind"] == "val"][-1]
    assert 0 < val["pull_share"] < 1


def test_an_evaluation_says_how_the_game_stands(tmp_path: Path) -> None:
    knobs = {"method.type": "anc", "method.health": "true", "run.eval_every": "1"}
    folders = [
        train(parse(words(tmp_path, name, 4, **knobs, **{"student.name": student, "run.log_every": "1"})))
        for name, student in (("narrow", "lenet5_half"), ("wide", "lenet5"))
    ]
    for folder in folders:
        summary = json.loads((folder / "summary.json").read_text())["val"]
        assert 0 <= summary["held_won"] <= 1
        assert summary["distance"] > 0
        assert 0 < summary["pull_share"] < 1
        steps = [line for line in read_metrics(folder / "metrics.jsonl") if line["kind"] == "train"]
        assert all(line["pull_game"] > 0 for line in steps)
        assert all(line["pull_data"] > 0 for line in steps)
    text = write_report(folders, tmp_path / "report.html").read_text()
    said = f"{summary['distance']:.3g}, held-out views told apart {summary['held_won']:.1%}"
    assert f"wide {said}, the game&#x27;s pull {summary['pull_share']:.1%}" in text


def test_with_weight_0_the_student_is_that_of_l2(tmp_path: Path) -> None:
    """To the last bit: what only watches moves nothing."""
    equal = {"method.data_reduction": "sum", "method.game_weight": "0", "student.name": "lenet5"}
    watched = run(tmp_path, "watched", 3, **{"method.type": "anc", "method.health": "true"}, **equal)
    alone = run(tmp_path, "l2", 3, **{"method.type": "l2", "student.name": "lenet5"})
    ours, theirs = (state["players"]["student"]["module"] for state in (watched, alone))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_the_study_of_the_game_is_read(tmp_path: Path) -> None:
    study = load_study("game")
    _, grid = cells(study, tmp_path, 1.0, ())
    kinds = {cell.row: cell.config.method for cell in grid}
    assert study.base == "l2"
    assert len(grid) == 5 * len(kinds)
    assert {row for row, method in kinds.items() if method.kind != "anc"} == {"l2", "kd"}
    rows = [str(method) for method in kinds.values()]
    assert len(set(rows)) == len(rows)  # no two rows are one setting
    assert all(getattr(method, "examines", True) for row, method in kinds.items() if row not in ("l2", "kd"))
