"""Every registered method: only the player on turn moves, `needs` is exact, losses stay as they were."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import os
from pathlib import Path

import draccus
import pytest
import torch
from torch import Tensor

from fastanc.batch import Batch
from fastanc.methods.anc import Anc
from fastanc.methods.base import Method, TeacherSpec, Warming
from fastanc.methods.can import CanDiscriminatorOptimizer
from fastanc.methods.datafree import GeneratorOptimizer
from fastanc.methods.ksanc import SqueezeConfig
from fastanc.optimizers import OptimizerConfig
from support.tiny_game import Game, make_game, tapped

GOLDEN = Path(__file__).parent / "golden"
NAMES = sorted(Method.get_known_choices())
SPEC = TeacherSpec(num_classes=5, feature_dim=9, stage_channels=(6, 9))


def _parameters(game: Game, name: str) -> list[Tensor]:
    return [p.detach().clone() for p in game.players[name].module.parameters()]


@pytest.mark.parametrize("name", NAMES)
def test_only_the_player_on_turn_moves(name: str) -> None:
    game = make_game(name)
    moves = game.moves(game.batch(0))
    for play in game.method.plays:
        before = {player: _parameters(game, player) for player in game.players}
        made, played = next(moves)
        assert made == play.player
        assert played.terms
        assert all(value.isfinite() and value.dim() == 0 for value in played.terms.values())
        assert not any(value.requires_grad for value in played.measures.values())
        for player in game.players:
            same = [torch.equal(a, b) for a, b in zip(before[player], _parameters(game, player), strict=True)]
            assert all(same) if player != play.player else not all(same)
            assert all(p.grad is None for p in game.players[player].module.parameters())
    assert next(moves, None) is None


@pytest.mark.parametrize("name", NAMES)
def test_every_player_has_a_play_and_columns_are_unique(name: str) -> None:
    game = make_game(name)
    assert {play.player for play in game.method.plays} == set(game.players)
    columns: dict[str, str] = {}
    for player, played in game.moves(game.batch(0)):
        for column in (*played.terms, *played.measures):
            assert columns.setdefault(column, player) == player


@pytest.mark.parametrize("name", NAMES)
def test_needs_are_exact(name: str) -> None:
    """The batch holds nothing but `needs`; spoil one of them and a term is spoilt."""
    assert make_game(name).step(0)  # runs with what it says, and with nothing else
    for need in make_game(name).method.needs - {"network", "latents", "student_stages"}:
        game = make_game(name)
        batch = game.batch(0)
        if need in ("labels", "soft_labels"):
            batch.labels = None
            with pytest.raises(AssertionError):
                _terms(game, batch)
            continue
        value = getattr(batch.target, need)
        spoilt = tuple(v * torch.nan for v in value) if need == "stages" else value * torch.nan
        batch.target = batch.target._replace(**{need: spoilt})
        assert not all(term.isfinite() for term in _terms(game, batch)), f"{name} does not read {need}"


def _terms(game: Game, batch: Batch) -> list[Tensor]:
    return [term for move in game.moves(batch) for term in move.played.terms.values()]


@pytest.mark.parametrize(
    ("name", "options", "needs"),
    [
        ("anc", {"on": "logits"}, {"logits"}),
        ("anc", {}, {"logits", "features"}),
        ("kd", {"alpha": 1.0}, {"logits"}),
        ("kd", {"alpha": 1.0, "hard": True}, {"logits"}),
        ("dist", {"labels_weight": 0.0}, {"logits"}),
        ("mlkd", {"labels_weight": 0.0}, {"logits"}),
        ("fitnets", {"alpha": 1.0}, {"logits", "stages"}),
        ("attention_transfer", {"alpha": 0.5}, {"logits", "stages", "soft_labels"}),
        ("fsp", {}, {"stages", "soft_labels"}),
        ("ksanc", {"labels": "teacher"}, {"logits", "descriptors"}),
        ("ksanc_teacher", {"labels": "teacher"}, {"logits", "student_stages"}),
        ("can", {}, {"logits", "labels"}),
        ("datafree", {}, {"network", "latents"}),
    ],
)
def test_needs_follow_the_options(name: str, options: dict[str, object], needs: set[str]) -> None:
    game = make_game(name, **options)
    assert game.method.needs == needs
    game.step(0)


@pytest.mark.parametrize("name", NAMES)
def test_losses_of_five_steps_are_as_they_were(name: str) -> None:
    """FASTANC_UPDATE_GOLDEN=1 writes them anew; say why in the commit."""
    game = make_game(name)
    losses = [[{k: v.item() for k, v in terms.items()} for terms in game.step(step)] for step in range(5)]
    path = GOLDEN / f"{name}.json"
    if os.environ.get("FASTANC_UPDATE_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        path.write_text(json.dumps({"relative_tolerance": 1e-7, "steps": losses}, indent=1) + "\n")
    kept = json.loads(path.read_text())
    tolerance = kept["relative_tolerance"]
    assert len(kept["steps"]) == len(losses)
    for step, (now, then) in enumerate(zip(losses, kept["steps"], strict=True)):
        for play, (ours, golden) in enumerate(zip(now, then, strict=True)):
            assert ours == pytest.approx(golden, rel=tolerance, abs=1e-12), f"step {step}, play {play}"


@pytest.mark.parametrize(
    "config",
    [Method.get_choice_class(name) for name in NAMES]
    + [SqueezeConfig, CanDiscriminatorOptimizer, GeneratorOptimizer, Warming],
)
def test_every_field_is_documented(config: type) -> None:
    body = ast.parse(inspect.getsource(config)).body[0].body
    documented = {
        field.target.id
        for field, text in zip(body, body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }
    bases = [base for base in config.__mro__[1:] if dataclasses.is_dataclass(base)]
    inherited = {field.name for base in bases for field in dataclasses.fields(base)}
    assert {field.name for field in dataclasses.fields(config)} - inherited <= documented
    assert config.__doc__
    assert not config.__doc__.startswith(config.__name__)  # dataclass's own


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("anc", {"on": "stages"}, "method.on is 'stages': it takes one of features, logits"),
        ("anc", {"regulariser": "dropout"}, "method.regulariser"),
        ("anc", {"dropout": 1.0}, "method.dropout is 1.0"),
        ("l2", {"data_reduction": "none"}, "method.data_reduction"),
        ("kd", {"alpha": 1.5}, "method.alpha is 1.5"),
        ("kd", {"hard": True, "standardised": True}, "does nothing with method.hard"),
        ("mlkd", {"temperatures": ()}, "method.temperatures is empty"),
        ("fitnets", {"hint_stage": 2}, "the teacher has 2 stages"),
        (
            "fitnets",
            {"regressor": "mlp"},
            "method.regressor is 'mlp': it takes one of linear, conv-bn-relu",
        ),
        ("ksanc", {"labels": "none"}, "method.labels"),
        ("datafree", {"student_steps": 0}, "method.student_steps is 0"),
        ("datafree", {"one_hot": 0, "information": 0, "activation": 0, "disagreement": 0}, "are all 0"),
        ("datafree", {}, "teacher.cache to off"),
    ],
)
def test_wrong_options_are_one_sentence(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Method.get_choice_class(name)(**options).networks(tapped(3, 9, seed=0), SPEC)
    assert "\n" not in str(caught.value)


def test_networks_that_do_not_fit_are_one_sentence() -> None:
    narrow, untapped = tapped(3, 4, seed=0), tapped(3, 4, seed=0)
    untapped.stage_names = ()
    for name in ("fitnets", "attention_transfer", "fsp", "ksanc"):
        method = Method.get_choice_class(name)()
        with pytest.raises(ValueError, match="the student has 0 and the teacher 2: name equally many"):
            method.networks(untapped, SPEC)
    with pytest.raises(ValueError, match="needs stage maps of tiny"):
        Method.get_choice_class("ksanc_teacher")().networks(untapped, SPEC)
    headless = tapped(3, 4, seed=0)
    headless.head_name = None
    with pytest.raises(ValueError, match="needs the features of tiny"):
        Method.get_choice_class("ksanc_teacher")().networks(headless, SPEC)
    with pytest.raises(ValueError, match="choose a pair of equal widths"):
        Method.get_choice_class("fsp")().networks(narrow, SPEC)
    with pytest.raises(ValueError, match="set method.on to logits"):
        Anc().networks(narrow, TeacherSpec(num_classes=5))


@pytest.mark.parametrize("name", ["anc", "ksanc", "datafree"])
def test_the_discriminator_takes_its_own_optimizer_or_the_students(name: str) -> None:
    own = OptimizerConfig(name="adam", lr=0.1)
    assert "discriminator" not in make_game(name).method.optimizers()
    game = make_game(name, discriminator_optimizer=own)
    assert game.method.optimizers()["discriminator"] == own
    assert isinstance(game.players["discriminator"].optimizer, torch.optim.Adam)


def test_setting_one_field_of_an_optimizer_keeps_the_papers_others() -> None:
    @dataclasses.dataclass(frozen=True)
    class Only:
        method: Method

    args = ["--method.type", "datafree", "--method.generator_optimizer.lr", "0.02"]
    parsed = draccus.parse(Only, args=args).method.generator_optimizer
    assert (parsed.name, parsed.lr, parsed.weight_decay) == ("adam", 0.02, 0.0)
    args = ["--method.type", "can", "--method.discriminator_optimizer.momentum", "0.5"]
    parsed = draccus.parse(Only, args=args).method.discriminator_optimizer
    assert (parsed.lr, parsed.momentum, parsed.weight_decay) == (1e-3, 0.5, 1e-4)


def test_frozen_parts_of_the_ksanc_teacher_stay() -> None:
    game = make_game("ksanc_teacher")
    before = {k: v.clone() for k, v in game.student.state_dict().items()}
    game.players["student"].module.train()
    for step in range(3):
        game.step(step)
    assert all(torch.equal(v, before[k]) for k, v in game.student.state_dict().items())
    assert not game.student.training
    assert game.players["student"].module.head.weight.requires_grad
