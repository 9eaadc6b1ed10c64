"""The decode plan of a GPU: how it is measured, chosen and remembered; no GPU is needed for that."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastanc.pipelines.index.build import Index, build_index, index_path
from fastanc.pipelines.jpeg import plan as plans
from fastanc.pipelines.jpeg import probe as probing
from fastanc.pipelines.jpeg.jpeg_set import JpegSet
from fastanc.pipelines.jpeg.options import JpegOptions
from fastanc.pipelines.jpeg.plan import decide, plan_path
from fastanc.pipelines.jpeg.probe import Probed, ask, probe
from support.decoders import CPU_PLANS
from support.images import class_folders
from support.machine import Machine


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return build_index(class_folders(tmp_path / "set", one=4), workers=1, progress=False)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_whatever_ends_a_probe_is_put_into_words() -> None:
    crash = python("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert ask(crash, {}, "mixed_roi") == Probed("mixed_roi", None, "crashed with SIGSEGV")
    error = python("raise RuntimeError('no decoder')")
    assert ask(error, {}, "mixed") == Probed("mixed", None, "failed: RuntimeError: no decoder")
    hang = python("import time; time.sleep(60)")
    assert ask(hang, {}, "cpu", timeout_s=1.0) == Probed("cpu", None, "hung for 1 s")
    echo = python("import json, sys; print('noise'); print(json.load(sys.stdin)['rate'])")
    assert ask(echo, {"rate": 12.5}, "cpu") == Probed("cpu", 12.5, None)


@pytest.mark.slow
@pytest.mark.parametrize("plan", CPU_PLANS)
def test_the_cpu_s_plan_is_measured_in_its_own_process(index: Index, plan: str) -> None:
    result = probe(index, "cpu", JpegOptions(decode=plan, threads=1))
    assert result.failure is None
    assert result.images_per_s is not None
    assert result.images_per_s > 0


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.mark.parametrize(
    ("cpu", "mixed", "roi", "plan"),
    [
        (1000, 1090, None, "cpu"),  # no more than noise
        (1000, 1110, None, "mixed"),
        (1000, 1090, 1200, "mixed_roi"),
        (1000, 900, 800, "cpu"),
        (None, 5, None, "mixed"),
    ],
)
def test_another_plan_must_be_worth_it(
    index: Index, machine: Machine, cpu: float | None, mixed: float | None, roi: float | None, plan: str
) -> None:
    machine.race(cpu, mixed, roi)
    found = decide(index, "cuda", JpegOptions())
    assert found.plan == plan
    assert found.source.startswith("measured just now: mixed_roi ")


def test_a_plan_is_measured_once_and_then_remembered(index: Index, machine: Machine) -> None:
    memory = plan_path(index.source)
    assert memory is not None
    assert memory.parent == index_path(index.source).parent
    machine.race(1000, 5000)
    assert decide(index, "cuda", JpegOptions(), memory).plan == "mixed"
    machine.race(1000, 900)  # noise, the next morning
    again = decide(index, "cuda:0", JpegOptions(), memory)
    assert (again.plan, machine.measured) == ("mixed", 3)
    assert again.source.startswith(f"remembered in {memory}")
    machine.gpu = "NVIDIA A100"
    assert decide(index, "cuda", JpegOptions(), memory).plan == "cpu"
    assert decide(index, "cuda", JpegOptions(threads=7), memory).plan == "cpu"
    assert decide(index, "cuda", JpegOptions(hw_decoder_load=0.0), memory).plan == "cpu"
    assert machine.measured == 12
    machine.gpu = "NVIDIA H100"
    assert decide(index, "cuda", JpegOptions(), memory).plan == "mixed"
    assert machine.measured == 12


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"format": 1}',
        b'{"format": 1, "plans": [{"plan": "gpu", "key": {}}]}',
    ],
)
def test_a_damaged_memory_is_decided_anew(
    index: Index, machine: Machine, capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes
) -> None:
    memory = tmp_path / "set.decode.json"
    memory.write_bytes(content)
    machine.race(1000, 5000)
    assert decide(index, "cuda", JpegOptions(), memory).source.startswith("measured just now")
    assert f"{memory} is not readable: the decode plan is measured anew\n" in capsys.readouterr().out
    assert decide(index, "cuda", JpegOptions(), memory).source.startswith("remembered")
    assert "readable" not in capsys.readouterr().out


def test_a_memory_that_cannot_be_written_is_named(
    index: Index, machine: Machine, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    machine.race(1000, 5000)
    assert decide(index, "cuda", JpegOptions(), tmp_path / "file" / "set.decode.json").plan == "mixed"
    assert (
        "cannot be written (File exists), so the decode plan is measured at every start"
        in capsys.readouterr().out
    )


def test_of_two_runs_that_measure_at_the_same_time_the_first_counts(
    index: Index, machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    memory = tmp_path / "set.decode.json"
    machine.race(1000, 900)
    slow = plans.probe

    def overtaken(*request: Any) -> Probed:
        monkeypatch.setattr(plans, "probe", slow)
        machine.race(1000, 5000)
        assert decide(index, "cuda", JpegOptions(), memory).plan == "mixed"
        machine.race(1000, 900)
        return slow(*request)

    monkeypatch.setattr(plans, "probe", overtaken)
    assert decide(index, "cuda", JpegOptions(), memory).plan == "mixed"


def test_where_no_plan_works_nothing_is_remembered(index: Index, machine: Machine, tmp_path: Path) -> None:
    machine.race(None, None)
    with pytest.raises(RuntimeError, match="no decode plan works on cuda: mixed_roi crashed with SIGSEGV"):
        decide(index, "cuda", JpegOptions(), tmp_path / "set.decode.json")
    assert not (tmp_path / "set.decode.json").exists()


def test_a_set_and_its_parts_share_a_memory(index: Index, machine: Machine) -> None:
    memory = plan_path(index.source)
    data = JpegSet("toy", index, (0,), (1,), memory=memory)
    machine.race(1000, 5000)
    assert data.on("cuda").options.decode == "mixed"
    machine.race(1000, 900)
    part = data.subset(np.array([0, 2])).on("cuda", JpegOptions())
    assert (part.options.decode, machine.measured) == ("mixed", 3)
    assert part.plan_source.startswith("remembered in ")
    assert data.on("cuda", JpegOptions(decode="cpu")).plan_source == ""


def test_requests_are_plain_json(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = {}

    def recorded(command: list[str], request: dict, plan: str) -> Probed:
        sent.update(json.loads(json.dumps(request)))
        return Probed(plan, 1.0, None)

    monkeypatch.setattr(probing, "ask", recorded)
    probe(index, "cuda:1", JpegOptions(decode="mixed", hw_decoder_load=0.0))
    assert sent["device"] == "cuda:1"
    assert JpegOptions(**sent["options"]).hw_decoder_load == 0.0
    assert len(sent["places"]) == len(sent["sizes"]) == 4
