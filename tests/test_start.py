"""What a run says before it trains, against what is known by hand of its set, its teacher and its cache."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastanc.models.lenet import LeNet5
from fastanc.parsing import parse
from fastanc.train import train
from support.tiny_run import LENETS, as_words

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

CLASSES = (136, 154, 151, 135, 143, 143, 151, 153, 138, 133)
IMAGES, ROW = sum(-(-count // 10) for count in CLASSES), 2 * 84 + 8
"""A tenth of the digits, rounded up in every class; bytes of a row: LeNet-5's 84 features as fp16, their checksum."""


def notes(tmp_path: Path, name: str, method: str = "anc", **fields: str) -> list[str]:
    """Train for a step or two and return what the run said."""
    words = {
        **LENETS,
        "method.type": method,
        "run.name": name,
        "run.out": str(tmp_path),
        "teacher.cache_dir": str(tmp_path / "cache"),
        "data.batch": "50",
        "data.share": "0.1",
        "schedule.epochs": "2",
        "schedule.warmup_epochs": "0",
        "run.max_steps": "1",
        **fields,
    }
    folder = train(parse(as_words(words)))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["text"] for line in lines if line["kind"] == "note"]


def the(said: list[str], start: str) -> str:
    """The one sentence that begins so."""
    (found,) = [text for text in said if text.startswith(start)]
    return found


def test_a_second_student_is_told_that_the_rows_are_there(tmp_path: Path) -> None:
    whole = {"teacher.cache": "fill", "run.max_steps": "0", "data.views": "2"}
    first = the(notes(tmp_path, "first", **whole), "cache: ")
    cost = f"2 views x {IMAGES:,} images x {ROW:,} bytes = {2 * IMAGES * ROW / 1e3:.4g} kB"
    assert "has 0.0% of 300 rows, the teacher adds the others" in first
    assert cost in first
    second = the(notes(tmp_path, "second", **whole), "cache: ")
    assert "has all 300 rows, the teacher does not run" in second
    longer = notes(tmp_path, "longer", **{**whole, "data.views": "4", "schedule.epochs": "4"})
    assert "has 50.0% of 600 rows" in the(longer, "cache: ")


def test_a_run_asks_for_no_more_views_than_it_has_epochs(tmp_path: Path) -> None:
    said = the(notes(tmp_path, "few", **{"teacher.cache": "fill", "data.views": "30"}), "cache: ")
    assert f"of {2 * IMAGES:,} rows" in said


def test_without_a_cache_the_passes_are_counted(tmp_path: Path) -> None:
    fields = {"data.views_per_image": "2", "data.views": "0", "data.batch": "50"}
    assert "6 passes" in the(notes(tmp_path, "off", **fields, **{"schedule.epochs": "3"}), "cache: off")


def test_no_cache_is_advised_where_it_could_hold_nothing(tmp_path: Path) -> None:
    stages = {"method.type": "fsp", "teacher.stages": "stem,layer1", "teacher.name": "resnet8"}
    said = notes(tmp_path, "fsp", **{**stages, "student.name": "resnet8", "student.stages": "stem,layer1"})
    assert the(said, "cache: ") == "cache: off, the teacher runs in every step, 2 passes"


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (
            "anc",
            "discriminator, student move in turn; it reads of the teacher features, logits; no label is read",
        ),
        ("kd", "the student alone learns; it reads of the teacher logits and labels"),
        ("supervised", "the student alone learns; it reads labels"),
    ],
)
def test_who_moves_and_what_is_read(tmp_path: Path, method: str, says: str) -> None:
    said = notes(tmp_path, method, method)
    assert the(said, "method ") == f"method {method}: {says}"
    assert (method == "supervised") == (not any(text.startswith("cache: ") for text in said))


def test_a_set_of_other_classes_than_the_teachers_is_said_not_to_be_measured(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for label in ("bee", "cat", "dgo"):
        for split, count in (("train", 20), ("val", 4)):
            (tmp_path / "set" / split / label).mkdir(parents=True)
            for k in range(count):
                pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "set" / split / label / f"{k}.png")
    fields = {
        "data.name": str(tmp_path / "set"),
        "data.share": "1",
        "data.image_px": "32",
        "data.resize_px": "32",
    }
    torch.save(LeNet5(10, in_channels=3, image_px=32).state_dict(), tmp_path / "ten.pth")
    fields["teacher.weights"] = str(tmp_path / "ten.pth")
    said = the(notes(tmp_path, "other", **fields), "the set has 3 classes and the networks have 10: ")
    assert "no top-1; teacher.classes says which" in said
    assert not any("classes and the networks" in text for text in notes(tmp_path, "same"))


def test_a_run_that_has_nothing_to_go_on_from_says_so(tmp_path: Path) -> None:
    said = notes(tmp_path, "first", **{"run.resume": "latest"})
    assert the(said, str(tmp_path)) == f"{tmp_path / 'first'} has no checkpoint to go on from: the run begins"


def test_the_schedule_in_steps(tmp_path: Path) -> None:
    fields = {"schedule.epochs": "5", "optimizer.lr": "0.25", "schedule.warmup_epochs": "0.5"}
    assert the(notes(tmp_path, "cosine", **fields), "schedule: ") == (
        "schedule: 5 epochs of 3 steps of 50 images = 15 steps, of which it makes 1; sgd at 0.25, cosine to 0 after"
        " 0.5 epochs of warm-up; a checkpoint every 3 steps"
    )
    fields = {"schedule.name": "step", "schedule.milestones": "0.5,0.75", "schedule.gamma": "0.2"}
    assert "times 0.2 at 50%, 75%;" in the(notes(tmp_path, "step", **fields), "schedule: ")


def test_a_teacher_that_guesses_is_a_warning_and_a_good_one_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = the(notes(tmp_path, "blind"), "warning: ")
    assert "the teacher's own top-1 is" in said
    assert "guessing has 10 %" in said
    printed = capsys.readouterr().err
    assert "\nwarning: the teacher's own top-1" in printed
    trained = {"student.name": "lenet5", "data.share": "1", "schedule.epochs": "3", "run.max_steps": "0"}
    notes(tmp_path, "teacher", "supervised", **trained)
    good = {"teacher.weights": str(tmp_path / "teacher" / "student.safetensors")}
    said = notes(tmp_path, "seeing", **good)
    assert float(the(said, "the teacher's own top-1 is").split()[5]) > 20
    assert not any(text.startswith("warning: ") for text in said)
