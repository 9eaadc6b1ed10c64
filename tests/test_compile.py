"""Compiled networks: the same student as eager ones, no graph that nobody uses, one line where compiling fails."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, fx, nn
from torch._dynamo.backends.common import aot_autograd

from fastanc import cli
from fastanc.batch import Batch, Outputs
from fastanc.parsing import parse
from fastanc.train import train
from fastanc.training.compiling import compile_in_place, warm_up
from fastanc.training.validate import evaluate
from support.tiny_run import LENETS, as_words

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

TINY = {
    **LENETS,
    "run.max_steps": "4",
    "data.batch": "16",
    "optimizer.lr": "0.01",
}
COMPILED = {"run.compile": "true"}


def students(out: Path, name: str, **options: str) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Train some steps of ANC through the public entry; return the weights and the notes."""
    fields = {**TINY, "run.out": str(out), "run.name": name, **options}
    folder = train(parse(as_words(fields)))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    notes = [line["text"] for line in lines if line["kind"] == "note"]
    return load_file(folder / "student.safetensors"), notes


def compile_by(monkeypatch: pytest.MonkeyPatch, backend: Any) -> None:
    """Let a backend of the test's compile every network."""
    real = nn.Module.compile
    torch._dynamo.reset()
    monkeypatch.setattr(
        nn.Module, "compile", lambda module, mode, dynamic: real(module, backend=backend, dynamic=dynamic)
    )


def fails(*_: Any) -> None:
    raise OSError("no C++ compiler\nand more lines")


class Counting:
    """A backend that runs its graphs as they are and counts the calls of each."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, graph: fx.GraphModule, _: Any) -> Callable[..., Any]:
        number = len(self.calls)
        self.calls.append(0)

        def run(*values: Any) -> Any:
            self.calls[number] += 1
            return graph.forward(*values)

        return run


@pytest.mark.parametrize(
    "backend", [fails, aot_autograd(fw_compiler=lambda graph, _: graph, bw_compiler=fails)]
)
def test_a_run_whose_compiler_fails_says_so_and_goes_on(
    backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eager, _ = students(tmp_path, "eager")
    compile_by(monkeypatch, backend)
    fallen, notes = students(tmp_path, "fallen", **COMPILED)
    said = [note for note in notes if "running eager" in note]
    # The teacher never goes back, so that half a compiler serves it.
    assert len(said) == (2 if backend is fails else 1)
    assert set(said) == {"torch.compile failed (OSError: no C++ compiler): running eager"}
    assert all(torch.equal(fallen[key], eager[key]) for key in eager)


@pytest.mark.parametrize("options", [{}, {"student.name": "lenet5"}, {"run.accumulate": "2"}])
def test_every_graph_that_is_compiled_is_used(
    options: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting()
    compile_by(monkeypatch, counting)
    students(tmp_path, "run", **COMPILED, **{"run.precision": "bf16", "data.eval_batch": "64"}, **options)
    # Teacher and student, each at the size of a step and of an evaluation, whose last batch is smaller. In parts
    # the student passes for another player without a gradient, and for itself with one.
    assert len(counting.calls) == (5 if "run.accumulate" in options else 4)
    assert min(counting.calls) > 2, counting.calls


def test_a_cache_that_has_every_row_leaves_the_teacher_uncompiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = {"teacher.cache": "fill", "teacher.cache_dir": str(tmp_path / "cache"), "schedule.epochs": "1"}
    students(tmp_path, "first", **cache, **{"data.batch": "256", "run.max_steps": "0"})
    counting = Counting()
    compile_by(monkeypatch, counting)
    students(tmp_path, "second", **cache, **COMPILED, **{"data.batch": "256", "run.max_steps": "0"})
    assert len(counting.calls) == 2


def test_a_cache_is_built_by_one_graph_and_holds_the_teacher_s_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """1,437 images in batches of 256: the last one, and a row of it, is passed as the others are."""
    words = ["--teacher.cache_dir", str(tmp_path), "--run.compile", "true", "--data.batch", "256"]
    words = [*as_words(LENETS), *words]
    counting = Counting()
    compile_by(monkeypatch, counting)
    assert cli.main(["cache", "build", *words]) == 0
    assert counting.calls == [1 + 6]  # the warm-up, and the view
    monkeypatch.undo()
    assert cli.main(["cache", "verify", "--teacher", "50", *words]) == 0
    assert "1,437 rows, 0 missing" in capsys.readouterr().out


def test_a_build_whose_compiler_fails_says_so_and_builds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compile_by(monkeypatch, fails)
    words = ["--teacher.cache_dir", str(tmp_path), "--run.compile", "true", "--data.batch", "256"]
    assert cli.main(["cache", "build", *as_words(LENETS), *words]) == 0
    said = capsys.readouterr().out
    assert "torch.compile failed (OSError: no C++ compiler): running eager" in said
    assert "1,437 rows" in said


@pytest.mark.parametrize("name", ["resnet8", "lenet5"])
def test_compiling_moves_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = {"student.name": name, "run.max_steps": "2", "run.ema": "0.5"}
    eager, _ = students(tmp_path, "eager", **short)
    counting = Counting()
    compile_by(monkeypatch, counting)
    compiled, notes = students(tmp_path, "compiled", **short, **COMPILED)
    assert counting.calls
    assert not any("running eager" in note for note in notes)
    # Of a ResNet also the statistics of BatchNorm and how many batches they have seen.
    assert all(torch.equal(compiled[key], eager[key]) for key in eager)


def test_a_warm_up_puts_buffers_and_random_numbers_back() -> None:
    network = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(3))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    drawn = torch.random.get_rng_state()

    def action() -> None:
        network(torch.randn(4, 3, 2, 2))
        assert network[1].num_batches_tracked == 1
        raise RuntimeError

    said = warm_up(action, network)
    assert said == "torch.compile failed (RuntimeError: no reason given): running eager"
    assert all(torch.equal(network.state_dict()[key], before[key]) for key in before)
    assert torch.equal(torch.random.get_rng_state(), drawn)


class Sizes(nn.Module):
    """Gives image i the i-th row of a table of logits; eager it keeps the sizes that it was asked for."""

    def __init__(self, logits: Tensor):
        super().__init__()
        self.logits, self.sizes = nn.Parameter(logits), set[int]()

    def forward(self, images: Tensor) -> Outputs:
        if not torch.compiler.is_compiling():
            self.sizes.add(len(images))
        return Outputs(self.logits[images.flatten().long()])


def test_the_last_batch_of_an_evaluation_is_compiled_as_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    counting = Counting()
    compile_by(monkeypatch, counting)
    labels, numbers = torch.randint(10, (103,)), np.arange(103)
    network = Sizes(torch.randn(103, 10))

    def examined() -> dict[str, float]:
        parts = [numbers[k : k + 32] for k in range(0, 103, 32)]
        images = [torch.from_numpy(part).float().view(-1, 1, 1, 1) for part in parts]
        batches = [Batch(image, part, part, labels[part]) for image, part in zip(images, parts)]
        return evaluate(network, batches, lambda counts: counts, 103)

    eager = examined()
    assert network.sizes == {32, 7}  # nothing is added where nothing is compiled
    compile_in_place(network)
    assert examined() == eager
    assert counting.calls == [4]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_a_compiled_student_is_the_eager_one(tmp_path: Path) -> None:
    eager, _ = students(tmp_path, "eager")
    for mode in ("default", "reduce-overhead"):
        compiled, notes = students(tmp_path, mode, **COMPILED, **{"run.compile_mode": mode})
        assert not any("running eager" in note for note in notes)
        for key in eager:
            torch.testing.assert_close(compiled[key], eager[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
def test_graphs_and_a_step_in_parts_are_refused(mode: str) -> None:
    graphs = ["--run.compile", "true", "--run.compile_mode", mode]
    assert parse(graphs).run.compile_mode == mode
    with pytest.raises(ValueError, match=rf"run\.compile_mode {mode} .* or run\.accumulate to 1$"):
        parse([*graphs, "--run.accumulate", "2"])


def test_processes_of_a_node_share_its_cores_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(24)))
    monkeypatch.setattr(config, "compile_threads", 24)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "5")
    compile_in_place(nn.Linear(1, 1))
    assert config.compile_threads == 24  # the user's word is torch's to read
    monkeypatch.delenv("TORCHINDUCTOR_COMPILE_THREADS")
    compile_in_place(nn.Linear(1, 1))
    assert config.compile_threads == 3
    assert os.environ["TORCHINDUCTOR_COMPILE_THREADS"] == "3"  # of those that are yet to import it


def test_a_mode_without_compiling_is_refused() -> None:
    with pytest.raises(ValueError, match=r"run\.compile_mode reduce-overhead does nothing alone"):
        parse(["--run.compile_mode", "reduce-overhead"])
