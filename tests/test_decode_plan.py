from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from fastanc.pipelines.index.build import Index, build_index
from fastanc.pipelines.jpeg import probe as decode_plan
from fastanc.pipelines.jpeg.options import JpegOptions
from fastanc.pipelines.jpeg.probe import Probed, ask, probe
from support.images import class_folders


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
def test_the_cpu_s_plan_is_measured_in_its_own_process(index: Index) -> None:
    result = probe(index, "cpu", JpegOptions(decode="cpu", threads=1))
    assert result.failure is None
    assert result.images_per_s is not None
    assert result.images_per_s > 0


def test_the_fastest_plan_that_works_is_chosen(
    index: Index, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {
        "mixed_roi": Probed("mixed_roi", None, "crashed with SIGSEGV"),
        "mixed": Probed("mixed", 5400.0, None),
        "cpu": Probed("cpu", 6100.0, None),
    }
    monkeypatch.setattr(decode_plan, "probe", lambda index, device, options: found[options.decode])
    assert decode_plan.decide(index, "cuda", JpegOptions()) == "cpu"
    line = "decode plan: cpu (mixed_roi crashed with SIGSEGV, mixed 5400 images/s, cpu 6100 images/s)\n"
    assert capsys.readouterr().out == line
    found |= {plan: Probed(plan, None, "hung for 120 s") for plan in ("mixed", "cpu")}
    with pytest.raises(RuntimeError, match="no decode plan works on cuda: mixed_roi crashed with SIGSEGV"):
        decode_plan.decide(index, "cuda", JpegOptions())


def test_requests_are_plain_json(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = {}

    def recorded(command: list[str], request: dict, plan: str) -> Probed:
        sent.update(json.loads(json.dumps(request)))
        return Probed(plan, 1.0, None)

    monkeypatch.setattr(decode_plan, "ask", recorded)
    probe(index, "cuda:1", JpegOptions(decode="mixed", hw_decoder_load=0.0))
    assert sent["device"] == "cuda:1"
    assert JpegOptions(**sent["options"]).hw_decoder_load == 0.0
    assert len(sent["places"]) == len(sent["sizes"]) == 4
