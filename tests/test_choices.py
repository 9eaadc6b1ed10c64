"""How the plays of a run are executed: the fastest spelling that is right, chosen once, and kept."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fastanc.batch import Batch
from fastanc.kernels.choice import Cost, Trial, cost_of, distance, fastest, tried
from fastanc.methods.anc import Anc
from fastanc.methods.base import Method, Nets, Play, Played
from fastanc.methods.kd import Kd
from fastanc.models import zoo
from fastanc.parsing import parse
from fastanc.train import train
from fastanc.training import play_trials
from fastanc.training.choices import choose, choose_for_all
from fastanc.training.players import Players, players_of
from fastanc.training.spellings import Choice, Loss, plain
from fastanc.training.step import play
from support.tiny_run import LENETS, as_words

CPU = torch.device("cpu")
LONG = 10**9
compiles = pytest.mark.skipif(
    shutil.which("g++") is None or os.environ.get("ATEN_CPU_CAPABILITY") == "default",
    reason="torch.compile needs a C++ compiler on the CPU, and torch 2.15's code without vectors is no C++",
)


# ---- the verdict


def trials(**found: tuple[float, float, float]) -> dict[str, Trial]:
    """Name -> host ms, device ms, error."""
    return {
        name: Trial(Cost(host / 1e3, device / 1e3), error) for name, (host, device, error) in found.items()
    }


@pytest.mark.parametrize(("host_s", "device_s", "wanted"), [(2.0, 1.0, "captured"), (1.0, 2.0, "triton")])
def test_what_the_step_waits_for_decides(host_s: float, device_s: float, wanted: str) -> None:
    found = trials(plain=(9, 9, 1e-7), captured=(1, 5, 1e-7), triton=(3, 2, 1e-7))
    assert fastest(found, Cost(host_s, device_s), 1e-4) == wanted


def test_less_than_a_twentieth_is_no_gain() -> None:
    on_device = Cost(0.0, 1.0)
    assert fastest(trials(plain=(9, 100, 0), compiled=(1, 96, 0)), on_device, 1e-4) == "plain"
    assert fastest(trials(plain=(9, 100, 0), compiled=(1, 94, 0)), on_device, 1e-4) == "compiled"


@pytest.mark.parametrize(("error", "wanted"), [(9e-5, "compiled"), (2e-4, "plain"), (float("nan"), "plain")])
def test_what_is_not_right_is_never_the_fastest(error: float, wanted: str) -> None:
    assert fastest(trials(plain=(9, 9, 1e-7), compiled=(1, 1, error)), Cost(0, 1), 1e-4) == wanted


def test_what_failed_is_a_row_and_no_choice() -> None:
    def broken() -> list[Tensor]:
        raise RuntimeError("out of shared memory\nand more lines")

    failed = tried(broken, [torch.ones(())], CPU, seed=0)
    assert failed.failure == "RuntimeError: out of shared memory"
    assert fastest({**trials(plain=(9, 9, 0)), "triton": failed}, Cost(0, 1), 1e-4) == "plain"


def test_the_distance_is_the_worst_tensor_s() -> None:
    truth = [torch.tensor(2.0), torch.tensor([3.0, 4.0])]
    assert distance([torch.tensor(2.0), torch.tensor([3.0, 4.5])], truth) == pytest.approx(0.1)
    assert distance([torch.tensor(2.0), torch.tensor([3.0, float("nan")])], truth) == float("inf")


def test_a_gradient_whose_summands_cancel_counts_as_a_thousandth_of_the_largest() -> None:
    loss, large = torch.tensor(1e6), torch.tensor([3.0, 4.0])
    truth = [loss, large, torch.tensor(0.0)]
    assert distance([loss, large, torch.tensor(1e-8)], truth) == pytest.approx(2e-6)
    assert distance([loss, large, torch.tensor(1e-3)], truth) == pytest.approx(
        0.2
    )  # a small one that is wrong


def test_a_call_is_made_warm_and_then_so_many_times() -> None:
    made: list[int] = []
    cost = cost_of(lambda: made.append(0) or [], CPU, rounds=7)
    assert len(made) == 7 + 3
    assert cost.host_s == cost.device_s > 0
    made.clear()
    cost_of(lambda: made.append(0) or time.sleep(1) or [], CPU, rounds=7)
    assert len(made) == 3 + 3  # seconds are enough, however long a call takes


# ---- the choice


def game(method: Method) -> tuple[Players, Batch]:
    torch.manual_seed(0)
    teacher, student = (zoo.build(name, num_classes=10) for name in ("lenet5", "lenet5_half"))
    images, labels = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8), torch.randint(0, 10, (16,))
    batch = Batch(images, np.arange(16), np.zeros(16, np.int64), labels)
    with torch.no_grad():
        batch.target = teacher.eval()(images)
    return players_of(method, student, teacher), batch


def chosen(method: Method, **options: Any) -> Choice:
    players, batch = game(method)
    return choose(
        method, players, batch, **{"wanted": "auto", "precision": "fp32", "steps_left": LONG, **options}
    )


@pytest.fixture
def spelling(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Played], Played]], list[str]]:
    """Put a spelling in the compiler's place that changes what a play returns; it says what was asked for."""

    def put(change: Callable[[Played], Played]) -> list[str]:
        asked: list[str] = []

        def spelled(name: str, method: Method, play: Play, nets: Nets) -> Loss | None:
            asked.append(name)
            if name == "plain":
                return play.loss
            return None if name == "triton" else lambda *given: change(play.loss(*given))

        def timed(call: Callable[[], object], *_: object, **__: object) -> Cost:
            call()
            return next(costs)

        costs = iter([Cost(2e-3, 2e-3), Cost(1e-3, 1e-3)] * 2)
        monkeypatch.setattr(play_trials, "spelled", spelled)
        monkeypatch.setattr("fastanc.kernels.choice.cost_of", timed)
        return asked

    return put


def test_of_a_right_and_a_wrong_spelling_the_wrong_one_is_not_taken(spelling: Any) -> None:
    spelling(lambda played: played)
    one_play = Kd(alpha=1.0)
    assert chosen(one_play).names == ("compiled",)
    spelling(lambda played: played._replace(terms={key: 1.001 * term for key, term in played.terms.items()}))
    assert chosen(one_play).names == ("plain",)


def test_a_gradient_that_is_wrong_alone_is_seen(spelling: Any) -> None:
    def bent(played: Played) -> Played:
        terms = {key: 1.01 * term - (0.01 * term).detach() for key, term in played.terms.items()}
        return played._replace(terms=terms)

    spelling(bent)
    assert chosen(Kd(alpha=1.0)).names == ("plain",)


def test_plays_that_cost_too_little_are_not_tried(spelling: Any) -> None:
    asked = spelling(lambda played: played)
    assert chosen(Kd(alpha=1.0), steps_left=29_000) == plain(Kd(alpha=1.0))  # 58 s
    assert asked == []


def test_a_play_that_cannot_be_tried_stays_plain_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def narrow(module: nn.Module) -> nn.Module:
        raise torch.OutOfMemoryError("CUDA out of memory\nand more lines")

    monkeypatch.setattr(play_trials, "_double", narrow)
    choice = chosen(Kd(alpha=1.0))
    assert choice.names == ("plain",)
    assert choice.notes == ("plays: plain, no other could be tried (OutOfMemoryError: CUDA out of memory)",)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_a_checkpoint_kept_is_taken_or_said_to_be_impossible() -> None:
    method = Kd(alpha=1.0)
    players, batch = game(method)
    options = {"wanted": "auto", "precision": "fp32", "steps_left": 1}

    def taken(*kept: str) -> Choice:
        return choose_for_all(players.accelerator, method, players, batch, kept=kept, **options)

    assert taken("compiled") == Choice(names=("compiled",))
    anew = taken("captured")
    assert anew.names == ("plain",)
    assert anew.notes[0].startswith("plays: captured (student) before, which this device has not")


def test_a_choice_is_remembered_for_the_same_game_alone(spelling: Any, tmp_path: Path) -> None:
    spelling(lambda played: played)
    first = chosen(Kd(alpha=1.0), memory=tmp_path)
    (path,) = tmp_path.iterdir()
    assert json.loads(path.read_text())["names"] == ["compiled"]
    asked = spelling(lambda played: played)
    again = chosen(Kd(alpha=1.0), memory=tmp_path)
    assert (again.names, asked) == (first.names, [])
    assert "earlier start" in again.notes[0]
    path.write_text('{"names": ["fast"]}')
    spelling(lambda played: played)
    assert chosen(Kd(alpha=1.0), memory=tmp_path).names == ("compiled",)  # damaged: measured again
    spelling(lambda played: played)
    chosen(Kd(alpha=1.0, temperature=2.0), memory=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@compiles
@pytest.mark.parametrize(
    "method", [pytest.param(Anc(), marks=pytest.mark.slow), Kd(alpha=0.5)], ids=lambda method: method.kind
)
def test_choosing_moves_nothing_and_a_compiled_step_is_the_plain_one(method: Method) -> None:
    (players, batch), (others, _) = game(method), game(method)
    state = {name: {k: v.clone() for k, v in m.state_dict().items()} for name, m in players.modules().items()}
    draws = torch.get_rng_state()
    choice = choose(method, players, batch, wanted="compiled", precision="fp32", steps_left=LONG)
    assert set(choice.names) == {"compiled"}
    assert torch.equal(torch.get_rng_state(), draws)
    for name, module in players.modules().items():
        assert all(torch.equal(value, state[name][key]) for key, value in module.state_dict().items())
        assert all(weight.grad is None for weight in module.parameters())
    with players.turn("student") as nets:
        plays = choice.plays(method, nets)
    for step in range(3):
        torch.manual_seed(step)
        made = play(method, players, batch, plays=plays)
        torch.manual_seed(step)  # the same dropout masks
        for ours, theirs in zip(made, play(method, others, batch)):
            for key, term in theirs.played.terms.items():
                torch.testing.assert_close(ours.played.terms[key], term, rtol=1e-4, atol=1e-5)
    for name, module in players.modules().items():
        for ours, theirs in zip(module.parameters(), others.modules()[name].parameters()):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_a_spelling_that_cannot_be_had_is_refused_in_a_sentence(spelling: Any) -> None:
    def failing(played: Played) -> Played:
        raise RuntimeError("no compiler\nand more lines")

    spelling(failing)
    for wanted, why in (("compiled", "RuntimeError: no compiler"), ("triton", "no play of Kd has it")):
        with pytest.raises(ValueError, match=rf"^run\.kernels {wanted}.*{why}.*set it to auto$"):
            chosen(Kd(alpha=1.0), wanted=wanted)


# ---- in a run


def run(out: Path, name: str, **options: str) -> Path:
    fields = {
        **LENETS,
        "run.out": str(out),
        "run.name": name,
        "data.batch": "16",
        "run.max_steps": "6",
        **options,
    }
    return train(parse(as_words(fields)))


@compiles
def test_a_run_says_its_choice_and_goes_on_with_it(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    whole = run(tmp_path, "whole", **{"run.kernels": "compiled", "method.type": "kd", "method.alpha": "1"})
    assert json.loads((whole / "summary.json").read_text())["kernels"] == ["compiled"]
    assert "plays: compiled (student), as run.kernels says" in (whole / "metrics.jsonl").read_text()
    words = {"run.kernels": "compiled", "method.type": "kd", "method.alpha": "1", "run.checkpoint_every": "1"}
    cut = run(tmp_path, "cut", **words, **{"run.max_steps": "3"})
    (meta,) = sorted((cut / "checkpoints").glob("step-00000003/meta.json"))
    assert json.loads(meta.read_text())["kernels"] == ["compiled"]
    run(tmp_path, "cut", **words, **{"run.resume": "latest"})
    ours, theirs = (load_file(folder / "student.safetensors") for folder in (cut, whole))
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())


@pytest.mark.parametrize("name", ["captured", "triton"])
def test_a_gpu_s_spelling_without_one_is_refused_before_anything_is_built(tmp_path: Path, name: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match=rf"run\.kernels {name} needs a GPU"):
        run(tmp_path, "x", **{"run.kernels": name})
    assert not list(tmp_path.iterdir())


def test_a_module_that_stands_for_torch_gives_way_to_it() -> None:
    from fastanc import later, losses

    later.arrive()
    assert losses.F is nn.functional
    assert later.torch is torch
