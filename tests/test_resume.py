"""A run killed in mid-epoch and resumed ends with the bits of the uninterrupted one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fastanc.parsing import parse
from fastanc.pipelines.order import TABLE
from fastanc.train import train
from fastanc.training import assemble
from fastanc.training.metrics import read_metrics

TRAIN = Path(__file__).parent.parent / "fastanc" / "train.py"
# 1438 images are 11 steps an epoch; one view, so that the second epoch reads what the first one filled.
BASE = [
    *("--data.batch", "128", "--schedule.epochs", "2", "--run.checkpoint_every", "4", "--run.log_every", "1"),
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


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def train_here(name: str, *args: str) -> dict[str, torch.Tensor]:
    """Train in this process and return the student."""
    return load_file(train(parse([*BASE, "--name", name, *args])) / "student.safetensors")


def assert_same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    """Compare two students bit for bit."""
    assert one.keys() == two.keys()
    for key in one:
        assert torch.equal(one[key], two[key]), key


def lines(name: str) -> list[dict[str, object]]:
    """Return what a run has logged of its steps."""
    path = Path("runs") / name / "metrics.jsonl"
    return [line for line in read_metrics(path) if line["kind"] == "train"] if path.exists() else []


@pytest.mark.parametrize("cache", [pytest.param("off", marks=pytest.mark.slow), "fill"])
def test_killed_and_resumed_equals_uninterrupted(cache: str) -> None:
    options = ["--teacher.cache", cache, "--teacher.rows", "fp32"]
    whole = train_here("whole", *options, "--teacher.cache_dir", "cache-a")
    options += ["--teacher.cache_dir", "cache-b"]
    command = [sys.executable, str(TRAIN), *BASE, "--name", "killed", *options]
    killed = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.time() + 1800  # of a hang
    while time.time() < deadline and killed.poll() is None and len(lines("killed")) < 14:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)  # in the middle of the second epoch
    killed.wait()
    assert not (Path("runs") / "killed" / "student.safetensors").exists()
    assert_same(whole, train_here("killed", *options, "--resume", "latest"))
    assert (
        [line["step"] for line in lines("killed")]
        == [line["step"] for line in lines("whole")]
        == list(range(22))
    )
    assert [line["student/data"] for line in lines("killed")] == [
        line["student/data"] for line in lines("whole")
    ]


@pytest.mark.slow  # test_viewing has the same in a few steps
def test_cached_student_is_the_online_student() -> None:
    online = train_here("online", "--teacher.cache", "off")
    assert_same(online, train_here("filling", "--teacher.rows", "fp32"))
    assert_same(online, train_here("riding", "--teacher.rows", "fp32", "--teacher.cache", "read"))
    half = train_here("half", "--teacher.rows", "fp16")
    floats = [key for key in online if online[key].is_floating_point()]
    one, two = (torch.cat([state[key].flatten() for key in floats]) for state in (online, half))
    difference = ((one - two).norm() / one.norm()).item()
    print(f"fp16 rows: the student differs by {difference:.1e} of its norm")
    assert 0 < difference < 0.02  # rounding to 11 bits, grown by 22 steps


def test_checkpoint_of_another_student_is_refused() -> None:
    train_here("x", "--run.max_steps", "5")
    with pytest.raises(ValueError, match="student.name 'resnet8', this run has 'resnet14'"):
        train_here("x", "--run.max_steps", "8", "--resume", "latest", "--student.name", "resnet14")
    with pytest.raises(ValueError, match="--run.resume latest continues it"):
        train_here("x", "--run.max_steps", "8")


def change_meta(name: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Change what lies beside the state of a run's only checkpoint."""
    (mark,) = (Path("runs") / name / "checkpoints").glob("step-*/COMPLETE")
    meta = mark.with_name("meta.json")
    kept = json.loads(meta.read_text())
    change(kept)
    meta.write_text(json.dumps(kept))
    seal = json.loads(mark.read_text())
    seal["meta.json"] = [meta.stat().st_size, zlib.crc32(meta.read_bytes())]
    mark.write_text(json.dumps(seal))


def test_a_run_goes_on_with_the_order_that_it_began_with(monkeypatch: pytest.MonkeyPatch) -> None:
    base = ["--teacher.name", "lenet5", "--student.name", "lenet5_half", "--teacher.cache", "off"]
    base += ["--run.keep", "1", "--run.max_steps"]
    with monkeypatch.context() as earlier:
        earlier.setattr(assemble, "KEYED", TABLE)
        whole = train_here("whole", *base, "8")
        train_here("old", *base, "4")
    change_meta("old", lambda meta: meta.pop("order"))  # which earlier versions did not write
    train_here("old", *base, "6", "--run.resume", "latest")
    assert_same(train_here("old", *base, "8", "--run.resume", "latest"), whole)
    new = train_here("new", *base, "8")
    assert any((new[key] != whole[key]).any() for key in new)
    change_meta("new", lambda meta: meta.update(order="another"))
    with pytest.raises(ValueError, match="the order of the images 'another' is none that this version knows"):
        train_here("new", *base, "9", "--run.resume", "latest")


def test_a_checkpoint_from_before_a_field_existed_goes_on(tmp_path: Path) -> None:
    """The field had the value that is now its default; with another value it is another run."""
    base = ["--teacher.cache", "off", "--run.max_steps", "4"]
    train_here("old", *base)

    def older(meta: dict[str, Any]) -> None:
        del meta["config"]["data"]["val_share"], meta["config"]["teacher"]["classes"]

    change_meta("old", older)
    more = ["--teacher.cache", "off", "--run.max_steps", "6", "--run.resume", "latest"]
    with pytest.raises(ValueError, match=r"data\.val_share 0\.05, this run has 0\.2"):
        train_here("old", *more, "--data.val_share", "0.2")
    train_here("old", *more)
    assert [line["step"] for line in lines("old")] == list(range(6))


def test_cache_of_another_teacher_is_refused_with_what_differs() -> None:
    train_here("x", "--schedule.epochs", "1")
    other = ["--teacher.name", "resnet14", "--teacher.cache", "read"]
    with pytest.raises(FileNotFoundError, match="teacher.name") as caught:
        train_here("y", *other)
    assert "resnet8" in str(caught.value)
    assert "resnet14" in str(caught.value)
