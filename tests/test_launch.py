"""Real launches of the real entry point: three spellings, another working directory, two processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastanc.train import main

TRAIN = Path(__file__).parent.parent / "fastanc" / "train.py"
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
FORMS = {
    "script path": [*LAUNCH, "--num_processes", "1", "--cpu", str(TRAIN)],
    "module": [*LAUNCH, "--num_processes", "1", "--cpu", "-m", "fastanc.train"],
    "command": [str(Path(sys.executable).parent / "fastanc"), "train"],
}
SHORT = ["--data.name", "digits", "--run.max_steps", "3", "--data.batch", "16", "--run.log_every", "1"]
RANDOM_TEACHER = ["--teacher.weights", "random", "--teacher.name", "resnet8"]

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")


def run(command: list[str], cwd: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run one command in another folder and return what it said."""
    everything = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    return subprocess.run(
        [*command, *args], cwd=cwd, env=everything, capture_output=True, text=True, timeout=1800
    )


@pytest.mark.parametrize("form", FORMS)
def test_every_form_trains_from_another_folder(tmp_path: Path, form: str) -> None:
    done = run(FORMS[form], tmp_path, *SHORT, *RANDOM_TEACHER, "--name", "x")
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((tmp_path / "runs" / "x" / "summary.json").read_text())
    assert summary["steps"] == 3
    assert summary["method"] == "anc"
    assert (tmp_path / "runs" / "x" / "student.safetensors").is_file()


def test_script_path_is_off_the_module_path(tmp_path: Path) -> None:
    # A file of ours with the name of a standard module would be imported instead of it if fastanc/ were on the path.
    copy = tmp_path / "fastanc"
    shutil.copytree(TRAIN.parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(TRAIN.parent.parent / "pipelines", tmp_path / "pipelines")
    (copy / "profile.py").write_text("raise SystemExit('the poisoned twin was imported')\n")
    done = run([sys.executable, str(copy / "train.py")], tmp_path, "--recipe", "nothing-like-it")
    assert "poisoned" not in done.stderr + done.stdout
    assert "there is no recipe" in done.stderr
    assert done.returncode == 2


def test_two_processes_train_and_end_equal(tmp_path: Path) -> None:
    two = [*LAUNCH, "--config_file", str(TRAIN.parent / "recipes" / "launch" / "cpu2.yaml"), str(TRAIN)]
    done = run(two, tmp_path, *SHORT, *RANDOM_TEACHER, "--name", "two")
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((tmp_path / "runs" / "two" / "summary.json").read_text())
    assert summary["world"] == 2
    weights = load_file(tmp_path / "runs" / "two" / "student.safetensors")
    assert all(torch.isfinite(w).all() for w in weights.values())
    assert "weights agree on all 2 processes" in done.stdout + done.stderr
    assert "broadcast_buffers" not in done.stderr  # every process would say that it is deprecated


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--recipe", "digits_ank"], ["digits_ank", "known recipes"]),
        (["--optimizer.lrr", "1"], ["optimizer.lrr", "did you mean optimizer.lr"]),
        (["--data.root", "gone", "--data.name", "imagenette", *RANDOM_TEACHER], ["gone", "imagenette"]),
        (["--data.name", "empty", *RANDOM_TEACHER], ["empty"]),
        (["--data.name", "fashion_mnist"], ["digits_teacher", "fashion_mnist"]),
        (["--teacher.weights", "gone.pt", "--teacher.recipe", "null"], ["gone.pt"]),
        (["--teacher.cache", "read", "--teacher.weights", "random"], ["cache build"]),
    ],
)
def test_bad_input_is_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    args: list[str],
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty" / "train").mkdir(parents=True)
    assert main(args) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fastanc:")]
    assert len(said) == 1
    for word in words:
        assert word in said[0]
