"""A run that is interrupted, politely or with kill -9, ends with the bits of the one that was left alone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

TRAIN = Path(__file__).parent.parent / "fastanc" / "train.py"
BASE = [
    *("--data.batch", "64", "--schedule.epochs", "3", "--run.log_every", "1", "--run.eval_every", "0"),
    *("--teacher.weights", "random", "--teacher.name", "resnet8", "--data.views", "2"),
    *("--teacher.rows", "fp32"),
]

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")


def start(folder: Path, name: str, *args: str) -> subprocess.Popen[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(TRAIN), *BASE, "--name", name, "--teacher.cache_dir", f"cache-{name}", *args]
    return subprocess.Popen(
        command, cwd=folder, env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )


def ended(process: subprocess.Popen[str], code: int = 0) -> str:
    """Wait for a run that is expected to end with this code and return what it said."""
    _, err = process.communicate(timeout=400)
    assert process.returncode == code, err[-3000:]
    return err


def wait_for_step(folder: Path, name: str, step: int) -> None:
    log = folder / "runs" / name / "metrics.jsonl"
    deadline = time.time() + 200
    while not (log.exists() and f'"step": {step},' in log.read_text()):
        assert time.time() < deadline, f"step {step} never came"
        time.sleep(0.02)


def assert_same_students(folder: Path, *names: str) -> None:
    first, *others = (load_file(folder / "runs" / name / "student.safetensors") for name in names)
    for other in others:
        assert first.keys() == other.keys()
        for key in first:
            assert torch.equal(first[key], other[key]), key


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that holds the untouched run `whole`."""
    path = tmp_path_factory.mktemp("interrupted")
    ended(start(path, "whole"))
    return path


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_asked_to_stop_it_saves_and_resumes_equal(folder: Path, number: signal.Signals) -> None:
    name = number.name
    run = start(folder, name)
    wait_for_step(folder, name, 30)
    asked = time.time()
    run.send_signal(number)
    said = [line for line in ended(run, os.EX_TEMPFAIL).splitlines() if line.startswith("fastanc:")]
    assert time.time() - asked < 5
    assert len(said) == 1
    assert "--run.resume latest" in said[0]
    ended(start(folder, name, "--resume", "latest"))
    assert_same_students(folder, "whole", name)


@pytest.mark.parametrize("rounds", [3, pytest.param(12, marks=pytest.mark.slow)])
def test_killed_at_random_moments_it_ends_equal(folder: Path, rounds: int) -> None:
    name, moments = f"killed-{rounds}", random.Random(rounds)
    options = ("--run.checkpoint_every", "7")
    for step in sorted(moments.sample(range(2, 78), rounds)):
        run = start(folder, name, *options, "--resume", "latest")
        wait_for_step(folder, name, step)
        time.sleep(moments.random() * 0.05)
        run.send_signal(signal.SIGKILL)
        run.communicate()
    ended(start(folder, name, *options, "--resume", "latest"))
    assert_same_students(folder, "whole", name)
