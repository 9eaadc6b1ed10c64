"""Compiled networks: the same student as eager ones, and one line where compiling fails."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fastanc.models import zoo
from fastanc.parsing import parse
from fastanc.train import train
from fastanc.training.compiling import compile_in_place
from support.tiny_run import LENETS, as_words

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

TINY = {
    **LENETS,
    "run.max_steps": "5",
    "data.batch": "16",
    "optimizer.lr": "0.01",
}


def students(out: Path, name: str, **options: str) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Train five steps of ANC through the public entry; return the weights and the notes."""
    fields = {**TINY, "run.out": str(out), "run.name": name, **options}
    folder = train(parse(as_words(fields)))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    notes = [line["text"] for line in lines if line["kind"] == "note"]
    return load_file(folder / "student.safetensors"), notes


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every compiler fail, as it does where there is none."""
    real = nn.Module.compile

    def backend(*_: Any) -> None:
        raise OSError("no C++ compiler\nand more lines")

    monkeypatch.setattr(nn.Module, "compile", lambda module, mode: real(module, backend=backend))


@pytest.mark.usefixtures("broken")
def test_a_compiler_that_fails_leaves_the_network_eager() -> None:
    network, images = zoo.build("lenet5", num_classes=10), torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    before = network(images).logits
    said = compile_in_place(network, images)
    assert said is not None
    assert said.startswith("torch.compile failed (BackendCompilerFailed: ")
    assert said.endswith(": running eager")
    assert "\n" not in said
    assert torch.equal(network(images).logits, before)


@pytest.mark.usefixtures("broken")
def test_a_run_whose_compiler_fails_says_so_and_goes_on(tmp_path: Path) -> None:
    eager, _ = students(tmp_path, "eager")
    fallen, notes = students(tmp_path, "fallen", **{"run.compile": "true"})
    assert sum("running eager" in note for note in notes) == 2  # student and teacher
    assert all(torch.equal(fallen[key], eager[key]) for key in eager)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_a_compiled_student_is_the_eager_one(tmp_path: Path) -> None:
    eager, _ = students(tmp_path, "eager")
    for mode in ("default", "reduce-overhead"):
        compiled, notes = students(tmp_path, mode, **{"run.compile": "true", "run.compile_mode": mode})
        assert not any("running eager" in note for note in notes)
        for key in eager:
            torch.testing.assert_close(compiled[key], eager[key], rtol=1e-4, atol=1e-5)


def test_a_mode_without_compiling_is_refused() -> None:
    with pytest.raises(ValueError, match=r"run\.compile_mode reduce-overhead does nothing alone"):
        parse(["--run.compile_mode", "reduce-overhead"])
