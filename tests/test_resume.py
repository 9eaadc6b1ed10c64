"""A run killed in mid-epoch and resumed ends with the bits of the uninterrupted one."""

from __future__ import annotations

import json
import os
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
    *("--data.batch", "64", "--schedule.epochs", "2", "--run.checkpoint_every", "5", "--run.log_every", "1"),
    *(
        "--teacher.weights",
        "random",
        "--teacher.name",
        "resnet8",
        "--run.eval_every",
        "0",
        "--data.views",
        "1",
    ),
]

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")


def start(folder: Path, name: str, *args: str) -> subprocess.Popen[str]:
    """Start a training run in a folder."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(TRAIN), *BASE, "--name", name, *args]
    return subprocess.Popen(
        command, cwd=folder, env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for a run that is expected to end well."""
    _, err = process.communicate(timeout=400)
    assert process.returncode == 0, err[-3000:]


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """Return the student a run left behind."""
    return load_file(folder / "runs" / name / "student.safetensors")


def assert_same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    """Compare two students bit for bit."""
    assert one.keys() == two.keys()
    for key in one:
        assert torch.equal(one[key], two[key]), key


@pytest.mark.parametrize("cache", ["off", "fill"])
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, cache: str) -> None:
    options = ["--teacher.cache", cache, "--teacher.rows", "fp32"]
    whole = start(tmp_path, "whole", *options, "--teacher.cache_dir", "cache-a")
    finish(whole)
    killed = start(tmp_path, "killed", *options, "--teacher.cache_dir", "cache-b")
    log = tmp_path / "runs" / "killed" / "metrics.jsonl"
    deadline = time.time() + 300
    while time.time() < deadline and not (log.exists() and '"step": 28' in log.read_text()):
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "runs" / "killed" / "student.safetensors").exists()
    finish(start(tmp_path, "killed", *options, "--teacher.cache_dir", "cache-b", "--resume", "latest"))
    assert_same(weights(tmp_path, "whole"), weights(tmp_path, "killed"))
    steps = {
        name: [
            r["step"]
            for r in map(json.loads, (tmp_path / "runs" / name / "metrics.jsonl").open())
            if r["kind"] == "train"
        ]
        for name in ("whole", "killed")
    }
    assert steps["whole"] == steps["killed"] == sorted(set(steps["whole"]))


def test_cached_student_is_the_online_student(tmp_path: Path) -> None:
    common = ["--data.views", "2", "--schedule.epochs", "3"]
    finish(start(tmp_path, "online", *common, "--teacher.cache", "off"))
    for rows in ("fp32", "fp16"):
        finish(start(tmp_path, f"fill-{rows}", *common, "--teacher.rows", rows))
    finish(start(tmp_path, "read-fp32", *common, "--teacher.cache", "fill", "--teacher.rows", "fp32"))
    online = weights(tmp_path, "online")
    assert_same(online, weights(tmp_path, "fill-fp32"))
    assert_same(online, weights(tmp_path, "read-fp32"))
    half = weights(tmp_path, "fill-fp16")
    difference = max(
        (half[k].float() - online[k].float()).abs().max().item()
        for k in online
        if online[k].is_floating_point()
    )
    assert 0 < difference < 0.2


def test_checkpoint_of_another_student_is_refused(tmp_path: Path) -> None:
    finish(start(tmp_path, "x", "--run.max_steps", "6"))
    other = start(tmp_path, "x", "--run.max_steps", "8", "--resume", "latest", "--student.name", "resnet14")
    _, err = other.communicate(timeout=300)
    assert other.returncode == 2
    assert "student.name 'resnet8'" in err
    assert "resnet14" in err
    again = start(tmp_path, "x", "--run.max_steps", "8")
    _, err = again.communicate(timeout=300)
    assert again.returncode == 2
    assert "--run.resume latest" in err
