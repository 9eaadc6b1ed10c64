"""A finished run that is lengthened by another: weights, order, rates, resume, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch

from fastanc.train import main
from fastanc.training.checkpoint import load
from fastanc.training.metrics import read_metrics
from fastanc.training.run import Run
from fastanc.training.schedule import extended
from support.tiny_run import LENETS, as_words

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

# A constant rate, so that two epochs and one more are the three epochs of one run.
RUN = {
    "data.batch": "128",
    "data.views": "3",
    "method.type": "supervised",
    "schedule.name": "constant",
    "schedule.warmup_epochs": "0",
    "schedule.epochs": "2",
    "optimizer.momentum": "0.9",
    "run.ema": "0.5",
    "run.log_every": "1",
}


def words(folder: Path, name: str, **fields: str) -> list[str]:
    own = {key.replace("__", "."): value for key, value in fields.items()}
    return as_words({**LENETS, **RUN, "run.out": str(folder), "run.name": name, **own})


def trained(folder: Path, name: str, **fields: str) -> Path:
    assert main(words(folder, name, **fields)) == 0
    return folder / name


def extending(parent: Path, epochs: int = 1, **fields: str) -> dict[str, str]:
    return {"run__parent": str(parent), "schedule__extend": str(epochs), **fields}


def summary(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "summary.json").read_text()))


def train_lines(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run / "metrics.jsonl") if line["kind"] == "train"]


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run of two epochs."""
    return trained(tmp_path_factory.mktemp("extension"), "parent")


def test_two_epochs_and_one_more_are_three(tmp_path: Path, parent: Path) -> None:
    before = {path: path.read_bytes() for path in parent.rglob("*") if path.is_file()}
    whole = trained(tmp_path, "whole", schedule__epochs="3")
    more = trained(tmp_path, "more", **extending(parent))
    ours, theirs = ((run / "checkpoints" / "step-00000033") for run in (more, whole))
    states = [load(path)[0] for path in (ours, theirs)]
    _assert_equal(*states)
    assert (more / "student.safetensors").read_bytes() == (whole / "student.safetensors").read_bytes()
    lines = train_lines(more)
    assert [line["step"] for line in lines] == [*range(22, 33)]
    assert [line["student/labels"] for line in lines] == [
        line["student/labels"] for line in train_lines(whole)[22:]
    ]
    found = summary(more)
    assert (found["parent"], found["parent_steps"], found["steps"]) == (str(parent), 22, 33)
    assert found["val"] == summary(whole)["val"]
    assert {path: path.read_bytes() for path in parent.rglob("*") if path.is_file()} == before


def _assert_equal(one: Any, other: Any) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            _assert_equal(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for a, b in zip(one, other):
            _assert_equal(a, b)
    else:
        assert one == other


def test_rates_are_the_last_ones_or_a_new_cosine(tmp_path: Path) -> None:
    step = {"schedule__name": "step", "schedule__milestones": "0.5"}
    parent = trained(tmp_path, "parent", **step)
    constant = trained(tmp_path, "constant", **step, **extending(parent))
    last = train_lines(parent)[-1]["lr"]
    assert last == pytest.approx(0.05 * 0.1)
    assert {line["lr"] for line in train_lines(constant)} == {last}
    again = trained(tmp_path, "again", **step, **extending(constant, 2, schedule__extend_name="cosine"))
    rates = [line["lr"] for line in train_lines(again)]
    assert rates == pytest.approx([0.05 * (1 + math.cos(math.pi * k / 22)) / 2 for k in range(22)])
    once_more = trained(tmp_path, "once_more", **step, **extending(again))
    assert {line["lr"] for line in train_lines(once_more)} == {rates[-1]}
    assert (summary(once_more)["parent_steps"], summary(once_more)["epochs"]) == (55, 6)


def test_the_formula_of_the_rates() -> None:
    assert extended(30, 20, 40, name="constant", last=0.25) == 0.25
    assert extended(20, 20, 40, name="cosine", last=0.25) == 1.0
    assert extended(30, 20, 40, name="cosine", last=0.25) == pytest.approx(0.5)


def test_a_run_of_an_older_version_says_no_last_rate_and_it_is_computed(tmp_path: Path) -> None:
    parent = trained(tmp_path, "parent", schedule__name="cosine")
    folder = parent / "checkpoints" / "step-00000022"
    meta = json.loads((folder / "meta.json").read_text())
    del meta["lr_factor"], meta["extension"], meta["config"]["run"]["parent"]
    for key in ("extend", "extend_name"):
        del meta["config"]["schedule"][key]
    (folder / "meta.json").write_text(json.dumps(meta))
    seal = json.loads((folder / "COMPLETE").read_text())
    data = (folder / "meta.json").read_bytes()
    seal["meta.json"] = [len(data), zlib.crc32(data)]
    (folder / "COMPLETE").write_text(json.dumps(seal))
    more = trained(tmp_path, "more", schedule__name="cosine", **extending(parent))
    assert {line["lr"] for line in train_lines(more)} == {train_lines(parent)[-1]["lr"]}


@pytest.mark.parametrize("at", [25, pytest.param(33, marks=pytest.mark.slow)])
def test_it_resumes_by_itself_when_the_parent_is_gone(
    tmp_path: Path, parent: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    copy = tmp_path / "parent"
    shutil.copytree(parent, copy)
    fields = extending(copy, 2, schedule__extend_name="cosine", run__best="loss")
    whole = trained(tmp_path, "whole", **fields)
    after = Run.after

    def stopped(self: Run, step: int, made: Any) -> None:
        self.interruption._asked = step + 1 == at
        after(self, step, made)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "after", stopped)
        assert main(words(tmp_path, "x", **fields)) == 75
    shutil.rmtree(copy)
    x = trained(tmp_path, "x", run__resume="latest", **fields)
    for name in ("student.safetensors", "best.safetensors"):
        assert (x / name).read_bytes() == (whole / name).read_bytes()
    same = ("parent", "parent_steps", "steps", "val", "best")
    assert [summary(x)[key] for key in same] == [summary(whole)[key] for key in same]


def test_started_over_it_begins_at_the_parent_s_end(tmp_path: Path, parent: Path) -> None:
    x = trained(tmp_path, "x", **extending(parent, 1, run__max_steps="27"))
    assert summary(x)["steps"] == 27
    trained(tmp_path, "x", **extending(parent, 1, run__resume="anew"))
    assert [line["step"] for line in train_lines(x)] == [*range(22, 33)]


def test_what_cannot_be_extended_is_one_sentence(
    tmp_path: Path, parent: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone, torn, open_end = (tmp_path / name for name in ("gone", "torn", "open"))
    for folder in (gone, torn, open_end):
        shutil.copytree(parent, folder)
    shutil.rmtree(gone / "checkpoints" / "step-00000022")
    (torn / "checkpoints" / "step-00000022" / "state.pt").write_bytes(b"torn")
    (open_end / "summary.json").unlink()
    for fields, said in (
        (extending(tmp_path / "nowhere"), "is not the folder of a finished run"),
        (extending(open_end), "is not the folder of a finished run"),
        (extending(gone), "it is not there"),
        (extending(torn), "state.pt has 4 bytes"),
        (extending(tmp_path / "x"), "own folder"),
        (extending(parent, 0), "set both"),
        ({"schedule__extend": "3"}, "set both"),
        (extending(parent, optimizer__lr="0.5"), "optimizer.lr"),
        (extending(parent, schedule__epochs="3"), "schedule.epochs"),
        (extending(parent, run__max_steps="22"), "run.max_steps 22"),
        (extending(parent, schedule__extend="-1"), "schedule.extend"),
    ):
        assert main(words(tmp_path, "x", **fields)) == 2, said
        (sentence,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fastanc:")]
        assert said in sentence
        assert not (tmp_path / "x").exists()
