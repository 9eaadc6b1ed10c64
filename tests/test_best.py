"""The best student of a run, and a run that ends when nothing better comes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import fastanc
from fastanc.cli import main as command
from fastanc.models import zoo
from fastanc.pipelines.catalogue import open_dataset
from fastanc.pipelines.order import evaluation_picks
from fastanc.pipelines.views import CentreCrop
from fastanc.train import main
from fastanc.training.metrics import read_metrics
from fastanc.training.run import Run
from support.tiny_run import LENETS, as_words

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

# A learning rate at which the evaluations go up and down; 11 steps an epoch, and an end between two epochs.
RUN = {
    "data.batch": "128",
    "method.type": "supervised",
    "schedule.epochs": "6",
    "run.max_steps": "58",
    "run.eval_every": "1",
    "run.log_every": "11",
    "optimizer.lr": "0.2",
    "schedule.warmup_epochs": "0",
}


def words(folder: Path, name: str, **fields: str) -> list[str]:
    own = {f"run.{key}": value for key, value in fields.items() if "__" not in key}
    other = {key.replace("__", "."): value for key, value in fields.items() if "__" in key}
    return as_words({**LENETS, **RUN, "run.out": str(folder), "run.name": name, **own, **other})


def trained(folder: Path, name: str, **fields: str) -> Path:
    assert main(words(folder, name, **fields)) == 0
    return folder / name


def evaluations(run: Path, metric: str) -> list[tuple[int, float]]:
    """(steps done, value) of a run's evaluations."""
    lines = read_metrics(run / "metrics.jsonl")
    return [(line["step"] + 1, line[metric]) for line in lines if line["kind"] == "val"]


def summary(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "summary.json").read_text()))


def errors_of(path: Path) -> tuple[float, float]:
    """(error in percent, cross-entropy) of a student's file on the digits, by PyTorch alone."""
    network, val = zoo.load_weights(path).eval(), open_dataset("digits", "val")
    (batch,) = val.batches(evaluation_picks(val.num_images, val.num_images), CentreCrop(32, 32))
    assert batch.labels is not None
    with torch.no_grad():
        logits = network(batch.images).logits.double()
    wrong = (logits.argmax(1) != batch.labels).double().mean().item()
    return 100 * wrong, torch.nn.functional.cross_entropy(logits, batch.labels).item()


def same(one: Path, other: Path) -> bool:
    return one.read_bytes() == other.read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that keeps the student of the lowest loss."""
    return trained(tmp_path_factory.mktemp("best"), "whole", best="loss", ema="0.5")


def test_the_file_is_the_student_of_the_best_evaluation(whole: Path) -> None:
    seen = evaluations(whole, "loss")
    assert [done for done, _ in seen] == [11, 22, 33, 44, 55, 58]
    steps, value = min(seen, key=lambda one: one[1])
    best = summary(whole)["best"]
    assert (best["metric"], best["value"], best["steps"]) == ("loss", value, steps)
    assert best["epoch"] == steps / 11
    assert errors_of(whole / "best.safetensors")[1] == pytest.approx(value, rel=1e-4)
    assert "ended" not in summary(whole)


@pytest.mark.parametrize("metric", ["error_pct", "top1"])
def test_lower_or_higher_is_better_by_its_name(tmp_path: Path, metric: str) -> None:
    run = trained(tmp_path, "x", best=metric, optimizer__lr="1.0")
    seen = evaluations(run, metric)
    best = summary(run)["best"]
    wanted = (min if metric == "error_pct" else max)(value for _, value in seen)
    assert best["value"] == wanted
    assert best["steps"] == next(done for done, value in seen if value == wanted)  # the first of equals
    error, _ = errors_of(run / "best.safetensors")
    assert error == pytest.approx(wanted if metric == "error_pct" else 100 - 100 * wanted)


@pytest.mark.parametrize("at", [22, pytest.param(30, marks=pytest.mark.slow), 44])
def test_a_run_that_goes_on_has_the_same_best_student(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Whether it was stopped in an epoch, or at its end before the evaluation, or after one that is made again."""
    fields = {"best": "loss", "ema": "0.5"}
    after = Run.after

    def stopped(self: Run, step: int, made: Any) -> None:
        self.interruption._asked = step + 1 == at
        after(self, step, made)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "after", stopped)
        assert main(words(tmp_path, "x", **fields)) == 75
    (tmp_path / "x" / "best.safetensors").write_bytes(b"of an evaluation that is made again")
    run = trained(tmp_path, "x", resume="latest", **fields)
    assert evaluations(run, "loss") == evaluations(whole, "loss")
    assert summary(run)["best"] == summary(whole)["best"]
    assert same(run / "best.safetensors", whole / "best.safetensors")
    assert same(run / "student.safetensors", whole / "student.safetensors")


def test_killed_between_checkpoint_and_evaluation_it_makes_that_up(tmp_path: Path, whole: Path) -> None:
    run = tmp_path / "x"
    shutil.copytree(whole, run)
    step = run / "checkpoints" / "step-00000055"
    kept = [
        line for line in read_metrics(run / "metrics.jsonl") if line["step"] < 54 or line["kind"] == "train"
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    (run / "best.safetensors").unlink()
    trained(tmp_path, "x", best="loss", ema="0.5", resume=str(step))
    assert sorted(evaluations(run, "loss")) == evaluations(whole, "loss")
    assert summary(run)["best"] == summary(whole)["best"]
    assert same(run / "best.safetensors", whole / "best.safetensors")


def test_patience_ends_a_run_as_a_finished_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields = {
        "best": "top1",
        "patience": "2",
        "max_steps": "0",
        "schedule__epochs": "9",
        "checkpoint_every": "7",
    }
    run = trained(tmp_path, "x", optimizer__lr="0.0", **fields)  # never better than at first
    assert [done for done, _ in evaluations(run, "top1")] == [11, 22, 33, 33]
    found = summary(run)
    assert (found["steps"], found["epochs"], found["best"]["steps"]) == (33, 3, 11)
    assert "2 evaluations without a top1 better than" in found["ended"]
    assert "after step 33 of 99" in found["ended"]
    notes = [line["text"] for line in read_metrics(run / "metrics.jsonl") if line["kind"] == "note"]
    assert notes.count(found["ended"]) == 1
    assert max(path.name for path in (run / "checkpoints").iterdir()) == "step-00000033"
    files = {path: path.read_bytes() for path in run.rglob("*") if path.suffix in (".safetensors", ".json")}
    trained(tmp_path, "x", optimizer__lr="0.0", resume="latest", **fields)
    assert "nothing to do" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in files} == files
    more = {**fields, "patience": "3"}  # it goes on where more is waited for
    trained(tmp_path, "x", optimizer__lr="0.0", resume="latest", **more)
    assert summary(run)["steps"] == 44


def test_killed_before_its_summary_an_ended_run_ends_again(tmp_path: Path) -> None:
    fields = {"best": "top1", "patience": "1", "optimizer__lr": "0.0"}
    run = trained(tmp_path, "x", **fields)
    found = summary(run)
    for name in ("summary.json", "student.safetensors"):
        (run / name).unlink()
    trained(tmp_path, "x", resume="latest", **fields)
    assert {key: summary(run)[key] for key in ("steps", "best", "val", "ended")} == {
        key: found[key] for key in ("steps", "best", "val", "ended")
    }


def test_agreement_is_measured_at_every_evaluation_where_it_decides(tmp_path: Path) -> None:
    fields = {"method__type": "kd", "best": "teacher_kl", "max_steps": "22"}
    run = trained(tmp_path, "x", **fields)
    seen = evaluations(run, "teacher_kl")
    assert [done for done, _ in seen] == [11, 22]
    assert summary(run)["best"]["value"] == min(value for _, value in seen)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"best": "agreement_pct"}, "run.best agreement_pct is not measured"),
        ({"best": "accuracy"}, "run.best"),
        ({"patience": "3"}, "set run.best"),
        ({"patience": "3", "best": "loss", "eval_every": "0"}, "run.eval_every"),
        ({"patience": "-1", "best": "loss"}, "run.patience"),
    ],
)
def test_a_wish_that_cannot_be_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fields: dict[str, str], said: str
) -> None:
    assert main(words(tmp_path, "x", **fields)) == 2
    (sentence,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fastanc:")]
    assert said in sentence
    assert not (tmp_path / "x").exists()


def test_export_and_report_know_the_best(
    tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert command(["export", str(whole), str(out), "--best", "--formats", "safetensors"]) == 0
    best, last = load_file(whole / "best.safetensors"), load_file(whole / "student.safetensors")
    written = load_file(out / "student.safetensors")
    assert all(torch.equal(written[key], best[key]) for key in best)
    assert summary(whole)["best"]["steps"] == 58 or any(
        not torch.equal(written[key], last[key]) for key in last
    )
    assert command(["report", str(whole)]) == 0
    assert f"{summary(whole)['best']['value']:.4g} at" in capsys.readouterr().out
    shutil.copytree(whole, tmp_path / "none", ignore=shutil.ignore_patterns("best*"))
    assert command(["export", str(tmp_path / "none"), str(out), "--best"]) == 2
    assert "best.safetensors" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_end_at_the_same_step(tmp_path: Path) -> None:
    package = Path(fastanc.__file__).parent
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0", "--config_file"]
    two = [*launch, str(package / "recipes" / "launch" / "cpu2.yaml"), str(package / "train.py")]
    fields = {"best": "top1", "patience": "1", "optimizer__lr": "0.0", "checkpoint_every": "1000"}
    done = subprocess.run(
        [*two, *words(tmp_path, "x", **fields)], capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = summary(tmp_path / "x")
    assert (found["world"], found["steps"], found["best"]["steps"]) == (2, 22, 11)
    assert [path.name for path in (tmp_path / "x" / "checkpoints").iterdir()] == ["step-00000022"]
