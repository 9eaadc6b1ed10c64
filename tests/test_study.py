"""A study: the grid, the scale, the table, and the same table after a kill."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from fastanc.config import Config
from fastanc.jobs.study import cells, run_study
from fastanc.jobs.study_file import Study, chosen, load, study_names
from fastanc.jobs.study_table import Row, as_html, as_text, read_row, verdict
from fastanc.models import zoo
from fastanc.parsing import with_teacher

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

STUDY = """
title: two methods on the digits
recipe: digits_anc
grid:
  - l2: {method.type: l2}
    anc: {method.type: anc, method.discriminator: 16-16}
seeds: [0, 1]
set: {run.max_steps: 4, run.log_every: 1, run.checkpoint_every: 1, run.eval_every: 0, data.batch: 16,
      data.views: 1, teacher.name: lenet5, teacher.weights: TEACHER, teacher.recipe: null, student.name: lenet5_half,
      optimizer.lr: 0.01}
paper: {anc: 8.08}
protocol: [the teacher is not trained]
"""


def written(folder: Path, text: str = STUDY) -> Path:
    path = folder / "small.yaml"
    teacher = zoo.build("lenet5", num_classes=10)
    zoo.save_weights(teacher, folder / "teacher.safetensors")
    path.write_text(text.replace("TEACHER", str(folder / "teacher.safetensors")))
    return path


def start(study: Path, out: Path) -> subprocess.Popen[str]:
    code = "import sys; from fastanc.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "study", str(study), "--scale", "0.1", "--out", str(out)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, env=env, text=True, **pipes)


def without_time(path: Path) -> dict[str, object]:
    content = json.loads(path.read_text())
    for row in content["rows"]:
        del row["wall_s"]
    return content


@pytest.mark.slow
def test_killed_in_the_middle_and_started_again_gives_the_same_table(tmp_path: Path) -> None:
    study = written(tmp_path)
    whole = run_study(load(str(study)), tmp_path / "whole", 0.1)
    for attempt in range(5):  # a busy machine may see the third run's first checkpoint when the run is over
        out = tmp_path / f"killed-{attempt}"
        process = start(study, out)
        third = out / "anc-seed0" / "checkpoints"
        deadline = time.time() + 1800  # of a hang
        while process.poll() is None and not (third.is_dir() and any(third.iterdir())):
            assert time.time() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if not (out / "anc-seed0" / "summary.json").exists():
            break
    assert not (out / "anc-seed0" / "summary.json").exists()
    kept = (out / "l2-seed0" / "summary.json").stat().st_mtime_ns
    again = run_study(load(str(study)), out, 0.1)
    assert (out / "l2-seed0" / "summary.json").stat().st_mtime_ns == kept
    assert without_time(tmp_path / "whole" / "table.json") == without_time(out / "table.json")
    assert again.splitlines()[0] == whole.splitlines()[0] == "two methods on the digits"
    content = json.loads((out / "table.json").read_text())
    assert [(row["name"], row["n"], row["paper"]) for row in content["rows"]] == [
        ("l2", 2, None),
        ("anc", 2, 8.08),
    ]
    for text in (again, (out / "report.html").read_text()):
        assert "SCALED: 0.1 of the full schedule" in text
        assert "the teacher is not trained" in text
    assert len([*(out / "cache").iterdir()]) == 2  # of the views, and of the validation set
    cut = out / "anc-seed1" / "summary.json"  # as a kill left it before files appeared whole
    os.truncate(cut, 40)
    assert read_row("anc", [cut.parent], "error_pct", None).values == ()
    run_study(load(str(study)), out, 0.1)
    assert without_time(tmp_path / "whole" / "table.json") == without_time(out / "table.json")
    with pytest.raises(ValueError, match=r"optimizer\.lr 0\.01, the study now has 0\.02"):
        run_study(load(str(study)), out, 0.1, ["--optimizer.lr", "0.02"])


def configs(study: Study, out: Path, scale: float = 1.0, *fields: str) -> list[Config]:
    first, grid = cells(study, out, scale, fields)
    return [cell.config for cell in (*first, *grid)]


def test_grid_is_every_combination_with_every_seed(tmp_path: Path) -> None:
    axes = (
        {"a": {"optimizer.lr": 0.5}, "b": {"optimizer.lr": 0.25}},
        {"x": {}, "y": {"method.dropout": 0.0}},
    )
    study = Study(title="t", recipe="digits_anc", grid=axes, seeds=(3, 4), set={"data.batch": 32})
    made = configs(study, tmp_path, 1.0, "--data.pad", "2")
    assert len({config.run.name for config in made}) == len(made) == 8
    got = {(c.optimizer.lr, c.method.dropout, c.run.seed) for c in made}  # type: ignore[attr-defined]
    assert got == {(lr, p, s) for lr in (0.5, 0.25) for p in (0.5, 0.0) for s in (3, 4)}
    assert {(c.data.batch, c.data.pad, c.teacher.cache_dir) for c in made} == {
        (32, 2, str(tmp_path / "cache"))
    }


def test_seeds_take_turns(tmp_path: Path) -> None:
    study = Study(title="t", recipe="digits_anc", grid=({"a": {}, "b": {}},), seeds=(3, 4))
    names = [config.run.name for config in configs(study, tmp_path)]
    assert names == ["a-seed3", "b-seed3", "a-seed4", "b-seed4"]


def test_some_rows_of_a_study(tmp_path: Path) -> None:
    axes = ({"a": {}, "b": {}}, {"x": {}, "y": {}})
    study = Study(title="t", recipe="cifar_anc", grid=axes, paper={"a · x": 1.0, "b · y": 2.0})
    some = chosen(study, ["b"], [5, 6], "digits_anc")
    made = configs(some, tmp_path)
    assert [c.run.name for c in made] == ["b-x-seed5", "b-y-seed5", "b-x-seed6", "b-y-seed6"]
    assert {c.data.name for c in made} == {"digits"}
    assert (some.paper, some.title) == ({}, "t; but on other data or networks, see below")
    assert chosen(study, ["b"], [], None).paper == {"b · y": 2.0}
    assert chosen(study, [], [], None, ["--optimizer.lr", "0.1"]) == study
    assert chosen(study, [], [], None, ["--data.name", "digits"]).paper == {}
    assert some.protocol == ("only the rows with b", "recipe digits_anc in the place of cifar_anc")
    assert chosen(study, [], [], None) == study
    with pytest.raises(ValueError, match="--only 'c' is no option of the study: it has a, b, x, y"):
        chosen(study, ["c"], [], None)


def test_scale_shortens_the_schedule_the_data_and_the_teachers(tmp_path: Path) -> None:
    options = {
        "schedule.epochs": 100,
        "schedule.warmup_epochs": 5.0,
        "teacher.weights": "nowhere/t/student.safetensors",
    }
    study = Study(title="t", recipe="digits_anc", grid=({"a": {}},), set=options)
    (full,), (short,) = configs(study, tmp_path), configs(study, tmp_path, 0.04)
    assert (full.schedule.epochs, full.schedule.warmup_epochs, full.data.share) == (100, 5, 1)
    assert (short.schedule.epochs, short.schedule.warmup_epochs) == (20, 1)
    assert short.data.share == pytest.approx(0.2)
    (latent,) = configs(replace(study, recipe="lenet_datafree"), tmp_path, 0.04)
    assert (latent.schedule.epochs, latent.data.share) == (4, 1)
    assert full.teacher.weights == options["teacher.weights"]
    assert short.teacher.weights == str(tmp_path / "teacher-t" / "student.safetensors")
    with pytest.raises(ValueError, match="--scale"):
        configs(study, tmp_path, 1.5)


def test_table_by_hand(tmp_path: Path) -> None:
    values = [8.0, 9.0, 10.0]
    folders = [tmp_path / str(i) for i in range(4)]
    for folder, value in zip(folders, values, strict=False):
        folder.mkdir()
        (folder / "summary.json").write_text(json.dumps({"val": {"error_pct": value}, "wall_s": 1.0}))
        lines = [{"kind": "train", "step": 0, "wall_s": 2.0}, {"kind": "train", "step": 1, "wall_s": 4.0}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    row = read_row("a", folders, "error_pct", 8.08, [5, 7, 8, 9])
    assert row == Row("a", (8.0, 9.0, 10.0), (4.0, 4.0, 4.0), 4, 8.08, (5, 7, 8), {"error_pct": 9.0})
    assert row.mean == statistics.mean(values)
    assert row.spread == 1.0  # sqrt((1 + 0 + 1) / (3 - 1))
    text = as_text("title", [row, Row("b", (), (), 2)], "error_pct", ["a note"])
    assert "a       9.00    1.00  3 of 4     4.0   8.08         +0.92" in text
    assert "b          –       –  0 of 2       –      –             –" in text
    assert read_row("a", folders, "accuracy_pct", None).values == (92.0, 91.0, 90.0)
    assert "<b>" not in as_html("<b>", [row], "error_pct", [])


def test_verdict_by_hand() -> None:
    """Means 9 and 12, variances 1, three runs each: t = 3 / sqrt(2 / 3) = 3.674 at 4 degrees, p = 0.0214."""
    pytest.importorskip("scipy")

    def row(name: str, *values: float) -> Row:
        return Row(name, values, (), len(values))

    best, far, single = row("best", 8, 9, 10), row("far", 11, 12, 13), row("single", 99)
    said = verdict([far, best, single], "error_pct")
    assert said is not None
    assert "best row, best," in said
    assert said.endswith(": far")
    # Holm asks of the smallest of two p for less than 0.025, of three for less than 0.0167.
    assert verdict([best, far, row("near", 8, 9, 11)], "error_pct").endswith(": far")
    assert verdict([best, far, row("near", 8, 9, 11), row("too", 8, 9, 11)], "error_pct").endswith(": none")
    # More is better: the same numbers as accuracies.
    assert "best row, far," in verdict([best, far], "accuracy_pct")
    # No spread at all: different means are told apart, equal ones are not.
    assert verdict([row("a", 1, 1), row("b", 2, 2)], "error_pct").endswith(": b")
    assert verdict([row("a", 1, 1), row("b", 1, 1), row("c", 2, 2)], "error_pct").endswith(": c")
    assert verdict([best, single], "error_pct") is None


def test_wrong_studies_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="known ones are"):
        load("no_such_study")
    with pytest.raises(ValueError, match="which is no row"):
        load(str(written(tmp_path, STUDY.replace("{anc: 8.08}", "{bnc: 8.08}"))))
    with pytest.raises(ValueError, match="gird"):
        load(str(written(tmp_path, STUDY.replace("grid:", "gird:"))))
    for own in ("run.name", "run.out"):
        with pytest.raises(ValueError, match=rf"{own} is what the study itself gives every run"):
            load(str(written(tmp_path, STUDY.replace("method.discriminator", own))))
    wrong = load(str(written(tmp_path, STUDY.replace("method.discriminator", "method.discriminatr"))))
    with pytest.raises(ValueError, match=r"method\.discriminatr"):
        cells(wrong, tmp_path, 1.0, [])


@pytest.mark.parametrize("name", study_names())
def test_every_study_that_is_shipped_can_be_read(name: str, tmp_path: Path) -> None:
    study = load(name)
    made = configs(study, tmp_path)
    assert len({config.run.name for config in made}) == len(made)
    assert study.protocol
    assert len(configs(study, tmp_path, 0.01)) == len(made)


def test_the_published_comparisons_name_networks_that_fit_each_other(tmp_path: Path) -> None:
    study = load("cifar100_zoo")
    pairs, methods = study.grid
    _, grid = cells(study, tmp_path, 1.0, [])
    assert len(grid) == len(pairs) * len(methods) * len(study.seeds)
    for cell in grid[: len(grid) // len(study.seeds)]:
        config = cell.config
        if config.method.needs_teacher:  # without its weights, the recipe trains this very network
            teacher, student = with_teacher(config)
            assert (teacher.student.name, student) == (config.teacher.name, config)
        light = "mobile" in config.student.name or "shuffle" in config.student.name
        assert config.optimizer.lr == (0.01 if light else 0.05)
        epochs = [share * config.schedule.epochs for share in config.schedule.milestones]
        assert epochs == [150, 180, 210]
    published = {
        row: value for row, value in study.paper.items() if row.startswith("resnet32x4 -> resnet8x4")
    }
    assert published["resnet32x4 -> resnet8x4 · kd"] == 73.33  # Tian et al. 2020, table 1
    assert min(published.values()) == 71.90
    assert max(published.values()) == 76.62
