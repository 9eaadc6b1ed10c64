"""metrics.jsonl, its resume, the bottleneck line, and the warnings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from fastanc.methods.anc import Anc
from fastanc.methods.l2 import L2
from fastanc.training.bottleneck import Clock, bottleneck
from fastanc.training.metrics import Monitor, read_metrics


def opened(run_dir: Path, **options: Any) -> Monitor:
    settings = {
        "total_steps": 20,
        "log_every": 5,
        "images_per_step": 8,
        "is_main": True,
        "steps_per_epoch": 10,
    }
    return Monitor(run_dir, **{**settings, **options})


def feed(
    monitor: Monitor,
    steps: range,
    won: float = 0.5,
    loss: float | None = None,
    measure: str = "won",
    **times: float,
) -> None:
    for step in steps:
        monitor.step(
            step,
            {"student/l2": torch.tensor(float(step) if loss is None else loss, requires_grad=True)},
            {measure: torch.tensor(won, dtype=torch.bfloat16)},
            lr=0.1,
            **{"data_s": 0.0, "teacher_s": 0.0, **times},
        )


def lines(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run_dir / "metrics.jsonl") if line["kind"] == kind]


def test_lines_hold_window_means_and_epochs(tmp_path: Path) -> None:
    monitor = opened(tmp_path, total_steps=12)
    feed(monitor, range(12))
    monitor.validation(12, {"error_pct": 12.5})
    train = lines(tmp_path, "train")
    assert [line["step"] for line in train] == [4, 9, 11]
    assert [line["student/l2"] for line in train] == [2.0, 7.0, 10.5]
    assert [line["epoch"] for line in train] == [0.5, 1.0, 1.2]
    assert train[0]["won"] == 0.5
    assert train[0]["lr"] == 0.1
    assert lines(tmp_path, "val") == [{"kind": "val", "step": 11, "epoch": 1.2, "error_pct": 12.5}]


def test_rates_and_shares_are_of_the_wall_time_without_pauses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now_s)
    monitor = opened(tmp_path, total_steps=10)
    now_s += 30.0  # compilation
    feed(monitor, range(5))
    for step in range(5, 10):
        now_s += 0.5
        if step == 7:
            with monitor.pause():
                now_s += 60.0
        feed(monitor, range(step, step + 1), data_s=0.05, teacher_s=0.2)
    first, last = lines(tmp_path, "train")
    assert first["images_per_s"] == pytest.approx(8 * 5 / 30)
    assert last["images_per_s"] == pytest.approx(8 * 5 / 2.5)
    assert last["data_share"] == pytest.approx(0.1)
    assert last["teacher_share"] == pytest.approx(0.4)
    assert last["wall_s"] == pytest.approx(92.5)  # the run's own clock goes on in a pause
    assert monitor.rates["images_per_s"] == pytest.approx(last["images_per_s"])  # without the compilation


def test_nothing_is_read_from_the_device_between_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    for name in ("item", "tolist", "cpu", "__float__", "__bool__"):
        original = getattr(torch.Tensor, name)

        def spy(tensor: torch.Tensor, *args: Any, _original: Any = original, _name: str = name) -> Any:
            reads.append(_name)
            return _original(tensor, *args)

        monkeypatch.setattr(torch.Tensor, name, spy)
    monitor = opened(tmp_path)
    feed(monitor, range(4))
    assert reads == []
    feed(monitor, range(4, 5))
    assert reads == ["tolist"]


def test_resumed_file_has_the_steps_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    monitor = opened(whole)
    feed(monitor, range(10))
    monitor.validation(10, {"loss": 1.0})
    feed(monitor, range(10, 20))

    monitor = opened(cut)
    feed(monitor, range(10))
    monitor.validation(10, {"loss": 1.0})
    feed(monitor, range(10, 18))  # the last checkpoint was written before step 10
    with (cut / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')  # killed while writing
    wall_s = lines(cut, "train")[1]["wall_s"]
    monitor = opened(cut, start_step=10)
    assert [line["step"] for line in read_metrics(cut / "metrics.jsonl")] == [4, 9, 9]
    feed(monitor, range(10, 20))

    def key(line: dict[str, Any]) -> tuple[Any, ...]:
        return line["kind"], line["step"], line["epoch"], line.get("student/l2")

    assert [key(x) for x in read_metrics(cut / "metrics.jsonl")] == [
        key(x) for x in read_metrics(whole / "metrics.jsonl")
    ]
    assert lines(cut, "train")[2]["wall_s"] > wall_s


def test_lines_survive_sigkill(tmp_path: Path) -> None:
    code = f"""
        import os, signal, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        from test_monitor import feed, opened
        monitor = opened(Path({str(tmp_path)!r}))
        feed(monitor, range(12))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env={**os.environ}, check=False)
    assert done.returncode == -9
    assert [line["step"] for line in lines(tmp_path, "train")] == [4, 9]


def test_first_term_that_is_not_finite_is_named(tmp_path: Path) -> None:
    monitor = opened(tmp_path)
    feed(monitor, range(2))
    feed(monitor, range(2, 3), loss=float("nan"))
    with pytest.raises(ValueError, match="student/l2 is nan at step 2"):
        feed(monitor, range(3, 5), loss=float("inf"))
    assert lines(tmp_path, "train") == []
    assert "step 2" in lines(tmp_path, "note")[0]["text"]


def test_a_measure_that_is_not_finite_is_null_in_valid_json(tmp_path: Path) -> None:
    feed(opened(tmp_path), range(5), won=float("nan"))
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["won"] is None


def test_another_process_writes_nothing_but_takes_part_in_the_mean(tmp_path: Path) -> None:
    seen = []

    def reduce_mean(values: torch.Tensor) -> torch.Tensor:
        seen.append(len(values))
        return values / 2

    feed(opened(tmp_path / "other", is_main=False, reduce_mean=reduce_mean), range(5))
    assert seen == [10]
    assert not (tmp_path / "other").exists()
    feed(opened(tmp_path / "main", reduce_mean=reduce_mean), range(5))
    assert lines(tmp_path / "main", "train")[0]["student/l2"] == 1.0


@pytest.mark.parametrize(("won", "notes"), [([0.99] * 6, 1), ([0.99, 0.99, 0.5] * 2, 0), ([0.97] * 6, 0)])
def test_one_warning_when_the_discriminator_wins_three_windows(
    tmp_path: Path, won: list[float], notes: int
) -> None:
    monitor = opened(tmp_path, total_steps=30, watches=Anc().watches)
    for window, value in enumerate(won):
        feed(monitor, range(5 * window, 5 * window + 5), won=value)
    found = [line["text"] for line in lines(tmp_path, "note") if "has won" in line["text"]]
    assert len(found) == notes


@pytest.mark.parametrize(("judged", "notes"), [([0.99] * 6, 1), ([0.99, 0.99, 0.7] * 2, 0)])
def test_one_warning_when_the_game_is_idle(tmp_path: Path, judged: list[float], notes: int) -> None:
    monitor = opened(tmp_path, total_steps=30, watches=Anc().watches)
    for window, value in enumerate(judged):
        feed(monitor, range(5 * window, 5 * window + 5), won=value, measure="d_adversarial")
    found = [line["text"] for line in lines(tmp_path, "note")]
    assert len(found) == notes
    assert all("the game is idle" in text for text in found)


def test_a_method_without_a_discriminator_is_told_nothing_of_one(tmp_path: Path) -> None:
    monitor = opened(tmp_path, total_steps=30, watches=L2().watches)
    feed(monitor, range(30), won=1.0)
    assert lines(tmp_path, "note") == []


def test_bottleneck_is_said_once_after_100_steps(tmp_path: Path) -> None:
    monitor = opened(tmp_path, total_steps=300, log_every=20)
    feed(monitor, range(300))
    notes = lines(tmp_path, "note")
    assert [note["step"] for note in notes] == [99, 99]
    assert notes[0]["text"].startswith("bound by compute")


def test_what_is_left_is_said_in_time_after_100_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Clock, "rates", lambda self, images: {**RATES, "images_per_s": 2.0 * images})
    feed(opened(tmp_path, total_steps=300, log_every=20), range(300))
    assert [note["text"].partition(" at")[0] for note in lines(tmp_path, "note")][1:] == [
        "expected: 01:40 for the 200 steps that are left"  # two steps a second
    ]


def test_a_run_of_100_steps_expects_nothing_more(tmp_path: Path) -> None:
    feed(opened(tmp_path, total_steps=100, log_every=20), range(100))
    assert ["expected" in note["text"] for note in lines(tmp_path, "note")] == [False]


RATES = {
    "images_per_s": 800.0,
    "data_share": 0.01,
    "teacher_share": 0.01,
    "cpu_share": 0.5,
    "cores": 4,
    "read_bytes_per_s": 0.0,
}


@pytest.mark.parametrize(
    ("bound", "rates"),
    [
        ("compute", {}),
        ("teacher", {"teacher_share": 0.6, "data_share": 0.2}),
        ("decode", {"data_share": 0.6, "cpu_share": 0.95, "read_bytes_per_s": 90e6}),
        ("decode", {"data_share": 0.6, "cpu_share": 0.2}),
        ("storage", {"data_share": 0.6, "cpu_share": 0.2, "read_bytes_per_s": 90e6}),
    ],
)
def test_bottleneck_names_the_bound(bound: str, rates: dict[str, float]) -> None:
    assert bottleneck({**RATES, **rates}).startswith(f"bound by {bound}:")


def test_bottleneck_says_shares_and_what_remains_without_the_wait() -> None:
    for cache, advice in (
        ("off", "--teacher.cache fill"),
        ("fill", "are being kept"),
        ("read", "faster storage"),
    ):
        assert advice in bottleneck({**RATES, "teacher_share": 0.3}, cache)
    line = bottleneck({**RATES, "data_share": 0.5, "teacher_share": 0.3})
    for part in ("compute 20%", "data 50%", "teacher 30%", "at 800 images/s", "up to 4,000 images/s"):
        assert part in line
    assert "\n" not in line


def test_bound_by_decode_it_says_how_many_cores_would_feed_the_step() -> None:
    line = bottleneck({**RATES, "data_share": 0.6, "cpu_share": 0.95})
    assert "about 11 cores in place of 4" in line  # 4 cores feed 0.39 of what the step would take


def test_progress_is_readable_off_a_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now_s)
    monitor = opened(tmp_path)
    for step in range(20):
        now_s += 1.0
        feed(monitor, range(step, step + 1))
    error = capfd.readouterr().err
    assert "step 5/20  epoch 0.50  ETA 00:15  8 images/s" in error
    assert "step 10/20" not in error  # a line every ten seconds
    assert "step 15/20  epoch 1.50  ETA 00:05" in error
    assert "step 20/20" in error
    assert "\r" not in error
