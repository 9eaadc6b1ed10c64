"""Trackers: what they are told, what becomes of a run when they fail, and how a run that goes on is told of."""

from __future__ import annotations

import io
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from PIL import Image
from safetensors.torch import load_file

import fastanc
from fastanc import early
from fastanc.parsing import parse
from fastanc.train import main
from fastanc.training.assemble import open_images
from fastanc.training.contact_sheet import contact_sheet
from fastanc.training.metrics import read_metrics
from support.tiny_run import LENETS, as_words

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

SHORT = {"data.batch": "16", "run.log_every": "4", "run.max_steps": "12", "run.checkpoint_every": "4"}


def words(folder: Path, *more: str, **fields: str) -> list[str]:
    chosen = {**LENETS, **SHORT, "run.out": str(folder), "run.name": "x"}
    return [*as_words(chosen), *as_words({f"run.{key}": value for key, value in fields.items()}), *more]


def trained(folder: Path, *more: str, **fields: str) -> Path:
    assert main(words(folder, *more, **fields)) == 0
    return folder / fields.get("name", "x")


def notes(run: Path) -> list[str]:
    return [line["text"] for line in read_metrics(run / "metrics.jsonl") if line["kind"] == "note"]


def numbers(run: Path) -> Iterator[tuple[str, int, float]]:
    """(tag, step, value) of every number of metrics.jsonl."""
    for line in read_metrics(run / "metrics.jsonl"):
        if line["kind"] != "note":
            for key, value in line.items():
                if key not in ("kind", "step"):
                    yield f"{line['kind']}/{key}", line["step"], value


def events(folder: Path) -> Any:
    """TensorBoard's own reader, with everything that it keeps."""
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="TensorBoard is not installed"
    )
    found = reader.EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    found.Reload()
    return found


def assert_told(run: Path) -> None:
    """TensorBoard has every number of metrics.jsonl, at its step, once."""
    found = events(run / "tensorboard")
    told = [(tag, e.step, e.value) for tag in found.Tags()["scalars"] for e in found.Scalars(tag)]
    expected = sorted(numbers(run))
    assert [one[:2] for one in sorted(told)] == [one[:2] for one in expected]
    for (*_, value), (*_, wanted) in zip(sorted(told), expected):
        assert value == torch.tensor(wanted).item()  # as float32


def test_tensorboard_has_every_number_the_fields_and_the_views(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    run = trained(tmp_path, trackers="tensorboard")
    assert_told(run)
    (image,) = events(run / "tensorboard").Images("views")
    assert image.step == 0
    shown = Image.open(io.BytesIO(image.encoded_image_string))
    expected = contact_sheet(open_images(parse(["--config_path", str(run / "config.yaml")])))
    assert shown.tobytes() == expected.tobytes()
    (path,) = run.glob("tensorboard/*/hparams.yml")
    fields = yaml.safe_load(path.read_text())
    assert (fields["data.batch"], fields["method.type"]) == (16, "anc")
    assert fields["optimizer.lr"] == 0.05
    assert json.loads(fields["run.trackers"]) == ["tensorboard"]


def test_a_run_that_goes_on_is_the_same_one_and_no_step_is_told_twice(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    run = trained(tmp_path, trackers="tensorboard", max_steps="8")
    known = (run / "trackers.json").read_text()
    step_4 = str(run / "checkpoints" / "step-00000004")
    trained(tmp_path, trackers="tensorboard", resume=step_4)  # steps 4 to 7 are made again
    assert_told(run)
    assert (run / "trackers.json").read_text() == known
    assert len([*run.glob("tensorboard/*/hparams.yml")]) == 1
    before = {path: path.read_bytes() for path in run.rglob("*tfevents*")}
    trained(tmp_path, trackers="tensorboard", resume="latest")  # nothing is left to do, nor to tell
    assert {path: path.read_bytes() for path in run.rglob("*tfevents*")} == before
    trained(tmp_path, trackers="tensorboard", resume="anew", max_steps="4")
    assert_told(run)


class Told(GeneralTracker):
    """A tracker that keeps what it is told, and fails where `fails` says so."""

    name = "tensorboard"
    requires_logging_directory = True
    fails: str = ""
    kind: type[BaseException] = RuntimeError

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__()
        self.lines: list[dict[str, float]] = []
        self.ended = 0
        type(self).last = self
        self._do("init")

    def _do(self, what: str) -> None:
        if what == self.fails:
            raise self.kind(f"{what} is out of order")

    @property
    def tracker(self) -> object:
        return self

    def start(self) -> None:
        self._do("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._do("fields")

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        self._do("log")
        self.lines.append(values)

    def log_images(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        self._do("images")

    def finish(self) -> None:
        self.ended += 1
        self._do("end")


@pytest.fixture(scope="module")
def untold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run without trackers."""
    return trained(tmp_path_factory.mktemp("untold"))


@pytest.mark.parametrize("fails", ["", "init", "start", "fields", "images", "log", "end"])
@pytest.mark.parametrize("kind", [RuntimeError, SystemExit])
def test_a_tracker_that_fails_ends_no_run_and_moves_no_number(
    tmp_path: Path, untold: Path, monkeypatch: pytest.MonkeyPatch, fails: str, kind: type[BaseException]
) -> None:
    broken = type("Broken", (Told,), {"fails": fails, "kind": kind})
    sound = type("Sound", (Told,), {"name": "mlflow"})
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "tensorboard", broken)
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "mlflow", sound)
    monkeypatch.setattr(sound, "info", type("Info", (), {"run_id": "7"}), raising=False)
    monkeypatch.setattr(early, "find_spec", lambda name: object())
    run = trained(tmp_path, trackers="tensorboard,mlflow")
    said = [note for note in notes(run) if "tracker" in note]
    assert len(said) == bool(fails)
    if fails:
        assert "tensorboard" in said[0]
        assert f"{fails} is out of order" in said[0]
    assert broken.last.ended == (fails not in ("init", "start"))
    assert len(sound.last.lines) == 4  # three of the training, one of the evaluation
    assert sound.last.ended == 1
    weights, others = load_file(run / "student.safetensors"), load_file(untold / "student.safetensors")
    assert all(torch.equal(weights[key], others[key]) for key in others)


def test_a_run_without_trackers_leaves_nothing_of_them(untold: Path) -> None:
    assert not (untold / "trackers.json").exists()
    assert not (untold / "tensorboard").exists()


def test_what_is_no_number_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "tensorboard", Told)
    monkeypatch.setattr(early, "find_spec", lambda name: object())
    from fastanc.training.trackers import Trackers

    (tmp_path / "trackers.json").write_text("[torn")
    trackers = Trackers(["tensorboard"] * 2, tmp_path, run="x", fields={}, start=0, say=pytest.fail)
    trackers.line({"kind": "train", "step": 3, "lr": 0.5, "a": None, "b": float("nan"), "c\n:é": 1})
    trackers.line({"kind": "note", "step": 3, "text": "hello"})
    assert Told.last.lines == [{"train/lr": 0.5, "train/c__é": 1}]


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio", "mlflow"])
def test_a_missing_package_is_said_before_anything_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setattr(early, "find_spec", lambda asked: None)
    assert main(words(tmp_path, trackers=name)) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert f"pip install 'fastanc[{name}]'" in said[0]
    assert not (tmp_path / "x").exists()


def test_an_unknown_tracker_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(tmp_path, trackers="tensorboard,comet")) == 2
    assert "run.trackers" in capsys.readouterr().err


@pytest.mark.slow
def test_one_of_two_processes_tells(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    package = Path(fastanc.__file__).parent
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0", "--config_file"]
    two = [*launch, str(package / "recipes" / "launch" / "cpu2.yaml"), str(package / "train.py")]
    done = _run([*two, *words(tmp_path, trackers="tensorboard")])
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "x"
    assert len([*(run / "tensorboard").glob("events*")]) == 1
    assert_told(run)


def _run(command: list[str], **env: str) -> subprocess.CompletedProcess[str]:
    everything = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    return subprocess.run(command, env=everything, capture_output=True, text=True, timeout=1800)


def _off_line(tmp_path: Path, name: str, **env: str) -> Path:
    """Train, go on, and return the run's folder; in processes of their own, for what these packages keep in one."""
    for fields in ({"max_steps": "8"}, {"resume": "latest"}):
        command = [sys.executable, "-m", "fastanc.train", *words(tmp_path, trackers=name, **fields)]
        done = _run(command, **env)
        assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "x"
    assert [note for note in notes(run) if "tracker" in note] == []
    return run


@pytest.mark.slow
def test_mlflow_s_own_store_has_one_run_with_every_number(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    places = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_ARTIFACT_ROOT": str(tmp_path)}
    where = os.getcwd()
    os.chdir(tmp_path)  # where MLflow puts pictures
    try:
        run = _off_line(tmp_path, "mlflow", **places)
    finally:
        os.chdir(where)
    client = mlflow.MlflowClient(uri)
    (found,) = client.search_runs([client.get_experiment_by_name("fastanc").experiment_id])
    assert found.info.run_name == "x"
    assert found.data.params["data.batch"] == "16"
    told = [
        (tag, point.step, point.value)
        for tag in found.data.metrics
        for point in client.get_metric_history(found.info.run_id, tag)
    ]
    assert sorted(told) == sorted(numbers(run))
    assert [one.path for one in client.list_artifacts(found.info.run_id)] == ["views.png"]


@pytest.mark.slow
def test_trackio_s_own_database_has_every_number(tmp_path: Path) -> None:
    pytest.importorskip("trackio", reason="Trackio is not installed")
    run = _off_line(tmp_path, "trackio", TRACKIO_DIR=str(tmp_path / "trackio"))
    with sqlite3.connect(tmp_path / "trackio" / "fastanc.db") as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics").fetchall()
    told = [(k, step, v) for _, step, text in rows for k, v in json.loads(text).items() if "/" in k]
    assert {name for name, *_ in rows} == {"x"}
    assert sorted(told) == sorted(numbers(run))


def _wandb_records(data: bytes) -> Iterator[bytes]:
    """The records of an off-line file: LevelDB's log, behind a header of seven bytes."""
    at, record = 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part of one
            yield record
            record = b""


@pytest.mark.slow
def test_weights_and_biases_off_line_has_every_number(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="Weights & Biases is not installed")
    from wandb.proto import wandb_internal_pb2

    run = _off_line(tmp_path, "wandb", WANDB_MODE="offline", WANDB_DIR=str(tmp_path))
    files = sorted(tmp_path.rglob("*.wandb"))
    assert len(files) == 2
    assert len({path.name for path in files}) == 1  # one run, by its number, which a sync makes one of
    told = set()
    for path in files:
        for data in _wandb_records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.HasField("history"):
                items = {
                    i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item
                }
                told |= {(k, items["_step"], v) for k, v in items.items() if k.startswith(("train/", "val/"))}
    assert told == set(numbers(run))
