"""Gradients summed over parts of a batch are the whole batch's; an update whose loss is not finite is left out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn

from fastanc.optimizers import OptimizerConfig
from fastanc.parsing import parse
from fastanc.train import train
from fastanc.training.players import Players
from support.tiny_run import LENETS, as_words

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

# No BatchNorm and no dropout: nothing but the sum of gradients may differ.
FIELDS = {
    **LENETS,
    "run.max_steps": "4",
    "run.log_every": "2",
    "data.batch": "32",
    "schedule.warmup_epochs": "0",
    "optimizer.clip": "0.5",
}
METHODS = {
    "supervised": {"method.type": "supervised"},
    "anc": {"method.type": "anc", "method.dropout": "0"},
    "fitnets": {"method.type": "fitnets"},
}


def words(folder: Path, name: str, **options: str) -> list[str]:
    fields = {**FIELDS, "run.out": str(folder), "run.name": name, **options}
    return as_words(fields)


def student(folder: Path, name: str, **options: str) -> dict[str, Tensor]:
    return load_file(train(parse(words(folder, name, **options))) / "student.safetensors")


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    for key, weight in one.items():
        torch.testing.assert_close(weight, other[key], rtol=1e-4, atol=2e-6, msg=key)


@pytest.mark.parametrize("method", METHODS)
def test_four_parts_equal_the_whole_batch(tmp_path: Path, method: str) -> None:
    whole = student(tmp_path, "whole", **METHODS[method])
    parts = student(tmp_path, "parts", **METHODS[method], **{"run.accumulate": "4"})
    assert_close(parts, whole)
    terms = [
        json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-2])
        for name in ("whole", "parts")
    ]
    for key in (key for key in terms[0] if "/" in key):
        assert terms[1][key] == pytest.approx(terms[0][key], rel=1e-4), key


def test_four_parts_are_not_one(tmp_path: Path) -> None:
    whole = student(tmp_path, "whole", **METHODS["supervised"])
    other = student(tmp_path, "other", **METHODS["supervised"], **{"run.seed": "1"})
    with pytest.raises(AssertionError):
        assert_close(whole, other)


@pytest.mark.parametrize("launch", ["cpu2", pytest.param("zero1_cpu2", marks=pytest.mark.slow)])
def test_two_processes_with_two_parts_equal_one_with_the_whole_batch(tmp_path: Path, launch: str) -> None:
    if launch != "cpu2":
        pytest.importorskip("deepspeed", reason="the extra deepspeed is not installed")
    whole = student(tmp_path, "whole", **METHODS["anc"])
    root = Path(__file__).parent.parent / "fastanc"
    files = {"cpu2": root / "recipes" / "launch" / "cpu2.yaml", "zero1_cpu2": tmp_path / "zero.yaml"}
    (tmp_path / "zero.yaml").write_text(
        "distributed_type: DEEPSPEED\nnum_processes: 2\nnum_machines: 1\nmachine_rank: 0\nmain_process_port: 0\n"
        "mixed_precision: 'no'\nuse_cpu: true\ndeepspeed_config: {zero_stage: 1, gradient_clipping: 0.5}\n"
    )
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(files[launch])),
        *("--main_process_port", "0", str(root / "train.py")),
    ]
    options = words(tmp_path, launch, **METHODS["anc"], **{"run.accumulate": "2"})
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_close(load_file(tmp_path / launch / "student.safetensors"), whole)


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_an_error_between_two_parts_stops_nobody_who_trains_later(broken: int) -> None:
    """Neither the same players nor others of the process: Accelerate keeps in one place whether a step is due."""

    def players() -> Players:
        torch.manual_seed(0)
        return Players(
            Accelerator(cpu=True), {"student": nn.Linear(3, 1)}, {"student": OptimizerConfig(lr=0.1)}
        )

    def parts_of(made: Players, breaks: int | None = None) -> list[Callable[[], dict[str, Tensor]]]:
        def part(number: int) -> dict[str, Tensor]:
            if number == breaks:
                raise KeyError
            return {"loss": made["student"].wrapped(torch.full((2, 3), 1.0 + number)).square().mean()}

        return [partial(part, number) for number in range(3)]

    def moved(made: Players) -> Tensor:
        made.update_in_parts("student", parts_of(made))
        return made["student"].module.weight.detach().clone()

    untouched = players()
    begin = untouched["student"].module.weight.detach().clone()
    wanted = moved(untouched)
    assert not torch.equal(wanted, begin)
    disturbed = players()
    with pytest.raises(KeyError):
        disturbed.update_in_parts("student", parts_of(disturbed, broken))
    other = players()  # another run in the same process, whole batches
    other.update("student", {"loss": other["student"].wrapped(torch.ones(2, 3)).square().mean()})
    assert not torch.equal(other["student"].module.weight, begin)
    assert torch.equal(moved(disturbed), wanted)


def test_parts_that_do_not_divide_the_batch_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"run\.accumulate 5 does not divide the 32 images"):
        student(tmp_path, "five", **METHODS["supervised"], **{"run.accumulate": "5"})
    with pytest.raises(ValueError, match=r"run\.skip_nonfinite leaves out whole updates"):
        parse(words(tmp_path, "both", **{"run.accumulate": "2", "run.skip_nonfinite": "1"}))


def test_an_update_with_a_loss_that_is_not_finite_is_left_out_so_many_times() -> None:
    sgd = OptimizerConfig(lr=0.1, momentum=0.9, weight_decay=0.1)
    torch.manual_seed(0)
    network, twin = nn.Linear(3, 1), nn.Linear(3, 1)
    twin.load_state_dict(network.state_dict())
    players = Players(Accelerator(cpu=True), {"student": network}, {"student": sgd}, skip_nonfinite=2)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for factor in (1.0, float("nan"), 2.0, float("inf"), 3.0):
        x = torch.randn(4, 3)
        with players.turn("student") as nets:
            players.update("student", {"loss": factor * nets["student"](x).square().mean()})
        if factor < 4:
            optimizer.zero_grad()
            (factor * twin(x).square().mean()).backward()
            optimizer.step()
    torch.testing.assert_close(network.weight, twin.weight)
    assert players.spoiled() is None
    with players.turn("student") as nets:
        players.update("student", {"loss": float("nan") * nets["student"](x).mean()})
    assert players.spoiled() == "student"


PLUGIN = """
from dataclasses import dataclass
import torch
from fastanc.methods.base import Method, Played

@Method.register_subclass("bursting")
@dataclass(frozen=True, kw_only=True)
class Bursting(Method):
    needs = frozenset({"labels"})
    def student_play(self, nets, batch, out):
        loss = torch.nn.functional.cross_entropy(out.logits, batch.labels)
        return Played({"loss": loss / 0 if batch.step in (1, 2) else loss})
"""


def test_a_run_goes_on_past_as_many_as_the_option_says(tmp_path: Path) -> None:
    file = tmp_path / "bursting.py"
    file.write_text(PLUGIN)
    game = {"plugin": str(file), "method.type": "bursting"}
    with pytest.raises(ValueError, match=r"student/loss is inf at step 1.*no checkpoint yet"):
        student(tmp_path, "none", **game)
    with pytest.raises(ValueError, match="student/loss is inf at step 2"):
        student(tmp_path, "one", **game, **{"run.skip_nonfinite": "1"})
    weights = student(tmp_path, "two", **game, **{"run.skip_nonfinite": "2"})
    assert all(torch.isfinite(weight).all() for weight in weights.values())
    notes = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").open()]
    said = [line["text"] for line in notes if line["kind"] == "note" and "left out" in line["text"]]
    assert [text.split(":")[0] for text in said] == [
        f"the student's update of step {k} was left out" for k in (1, 2)
    ]
