"""The benchmarks' clock, their records, and the page made of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import harness
from benchmarks.harness import environment, measure, record, table
from benchmarks.results_table import regenerate


@pytest.fixture
def spend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Give `measure` clocks that only this moves, by milliseconds on the wall and of the processor."""
    wall_ms = cpu_ms = 0.0

    def spend(wall: float, cpu: float = 0.0) -> None:
        nonlocal wall_ms, cpu_ms
        wall_ms, cpu_ms = wall_ms + wall, cpu_ms + cpu

    clocks = SimpleNamespace(perf_counter=lambda: wall_ms / 1e3, process_time=lambda: cpu_ms / 1e3)
    monkeypatch.setattr(harness, "time", clocks)
    return spend


def test_measure_gives_median_and_spread_of_the_counted_calls(spend: Callable[..., None]) -> None:
    waits = iter([200, 200, *[8, 2, 80, 4, 6]])
    got = measure(lambda: spend(next(waits)), warmup=2, runs=5, cuda=False)
    assert got == pytest.approx({"ms": 6, "ms_p20": 3.6, "ms_p80": 22.4, "cpu_ms": 0})
    assert next(waits, None) is None


def test_processor_time_is_the_mean_of_the_counted_calls(spend: Callable[..., None]) -> None:
    work = iter([90, *[1, 2, 3, 4, 5]])
    got = measure(lambda: spend(10, next(work)), warmup=1, runs=5, cuda=False)
    assert got == pytest.approx({"ms": 10, "ms_p20": 10, "ms_p80": 10, "cpu_ms": 3})


@pytest.mark.gpu
def test_measure_waits_for_the_device() -> None:
    matrix = torch.randn(4096, 4096, device="cuda")
    got = measure(lambda: matrix @ matrix, cuda=True)
    assert got["ms"] > 2 * 4096**3 / 2e15 * 1e3  # no device reaches 2 PFLOP/s in fp32


def test_environment_names_what_a_number_depends_on() -> None:
    around = environment()
    assert around["torch"] == torch.__version__
    assert around["python"] == sys.version.split()[0]
    assert around["cores"] >= 1
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    ).stdout.strip()
    assert (around["commit"] or "") == head[:12]
    json.dumps(around)


def test_record_appends_one_line_a_run_named_after_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTANC_DATA", "/somewhere/data")
    monkeypatch.setattr(
        sys, "argv", ["bench.py", "--root=/somewhere/data/cifar10", "/other/place", "--n", "3", "a b"]
    )
    monkeypatch.setattr(harness, "environment", lambda: {"device": "NVIDIA H100 80GB HBM3"})
    first = record("step", [{"net": "resnet18", "images_per_s": 1.5}], tmp_path)
    assert record("step", [{"net": "resnet50"}], tmp_path) == first
    assert first.name == "step-nvidia-h100-80gb-hbm3.jsonl"
    runs = [json.loads(line) for line in first.read_text().splitlines()]
    assert [run["rows"] for run in runs] == [
        [{"net": "resnet18", "images_per_s": 1.5}],
        [{"net": "resnet50"}],
    ]
    assert runs[0]["command"].endswith(' --root=$FASTANC_DATA/cifar10 .../place --n 3 "a b"')
    assert "/other" not in first.read_text()


def test_table_aligns_and_fills() -> None:
    rows = [{"net": "a|b", "ms": 0.123456, "n": 12345}, {"net": "c", "ms": 54321.9, "late": True}]
    assert table(rows).splitlines() == [
        "| net  |     ms |      n | late |",
        "| ---- | -----: | -----: | ---- |",
        r"| a\|b | 0.1235 | 12,345 | –    |",
        "| c    | 54,322 |      – | True |",
    ]


def a_run(name: str, device: str, date: str, value: float) -> dict[str, Any]:
    around = {
        "device": device,
        "driver": None,
        "cpu": "Some CPU",
        "cores": 2,
        "load": 0.5,
        "python": "3.11.7",
        "torch": "2.15.0",
        "commit": "0123456789ab",
        "dirty": True,
        "date": date,
    }
    return {
        "benchmark": name,
        "command": f"python -m benchmarks.{name}",
        "environment": around,
        "rows": [{"ms": value}],
    }


def test_page_shows_the_newest_run_of_each_device_and_keeps_notes(tmp_path: Path) -> None:
    runs = [
        a_run("step", "GPU", "2026-03-02 10:00", 2.0),
        a_run("step", "GPU", "2026-03-01 10:00", 1.0),
        a_run("step", "CPU", "2026-01-01 10:00", 7.0),
        a_run("input", "CPU", "2026-01-01 10:00", 5.0),
    ]
    other = a_run("input", "CPU", "2025-01-01 10:00", 3.0)
    runs.append({**other, "command": "python -m benchmarks.input --rounds 9"})
    folders = [tmp_path / "results", tmp_path / "records"]
    for number, run in enumerate(runs):
        folders[number % 2].mkdir(exist_ok=True)
        with (folders[number % 2] / "rows.jsonl").open("a") as file:
            file.write(json.dumps(run) + "\n")
    page = tmp_path / "docs" / "results.md"
    text = regenerate(folders, page)
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        *("# Results", "## input", "### CPU", "### CPU", "## step", "### CPU", "### GPU")
    ]
    numbers = [line.strip("| ") for line in text.splitlines() if line.startswith("| ")]
    assert numbers[2::3] == ["5", "3", "7", "2"]
    for part in ("`python -m benchmarks.step`", "commit 0123456789ab with changes", "2026-03-02 10:00 UTC"):
        assert part in text
    assert "load 0.5 before; torch 2.15.0, python 3.11.7;" in text

    said = "<!-- note:step -->\nThe step is fast.\n\n- very\n<!-- /note -->"
    gone = "<!-- note:gone -->\nold\n<!-- /note -->"
    page.write_text(text.replace("<!-- note:step -->\n<!-- /note -->", said) + gone)
    again = regenerate(folders, page)
    assert said in again
    assert gone in again
    assert regenerate(folders, page) == again
    assert page.read_text() == again


def test_a_thread_that_waits_for_a_core_is_not_idle() -> None:
    """A real spinning thread is runnable, whatever processor time it gets; one that waits for a lock sleeps."""
    import threading

    from benchmarks.input import asleep

    stop, spins = threading.Event(), []

    def states(target: Callable[[], object]) -> list[bool]:
        thread = threading.Thread(target=target, daemon=True)
        thread.start()
        found = [asleep() for _ in range(50)]
        stop.set()
        thread.join()
        stop.clear()
        return found

    digest = __import__("hashlib").sha256

    def spin() -> None:  # a digest of 16 MB lets go of the interpreter
        while not stop.is_set():
            spins.append(digest(bytes(1 << 24)).digest())

    assert not all(states(spin))
