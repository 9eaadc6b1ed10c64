"""The step by itself: in parts as in one piece, and in a loop of one's own."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastanc.batch import Batch, Outputs
from fastanc.methods.anc import Anc
from fastanc.methods.base import Method, Nets, Played
from fastanc.methods.supervised import Supervised
from fastanc.training.step import play
from support.tiny_game import Game, make_game

NAMES = sorted(Method.get_known_choices())
OVER_IMAGES = {"dist", "mlkd", "relations", "crd", "kdpp", "queue"}
"""Methods that relate the images of a batch, or remember them: a part is another batch."""


def statistics(game: Game, batch: Batch, parts: int) -> dict[str, Tensor]:
    """Return the running statistics of the student after one step."""
    torch.manual_seed(0)
    play(game.method, game.players, batch, parts)
    state = game.players["student"].module.state_dict()
    return {key: value.clone() for key, value in state.items() if "running" in key or "num_batches" in key}


@pytest.mark.parametrize("name", ["supervised", "l2", "anc", "fitnets", "can"])
@pytest.mark.parametrize("parts", [2, 3])
def test_running_statistics_move_once_for_every_part(name: str, parts: int) -> None:
    """As passing the parts one after the other moves them: the plain definition, by a copy of the student."""
    game = make_game(name)
    batch = game.batch(0)
    twin = copy.deepcopy(game.players["student"].module).train()
    for part in batch.parts(parts):
        twin(part.images)
    expected = twin.state_dict()
    found = statistics(game, batch, parts)
    assert [int(v) for k, v in found.items() if "num_batches" in k] == [parts] * 2
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-12, atol=0, msg=key)
    layers = [m for m in game.players["student"].module.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all(layer.track_running_stats for layer in layers)


@pytest.mark.parametrize("name", sorted({*NAMES} - {"datafree"} - OVER_IMAGES))
def test_parts_make_the_moves_of_the_whole(name: str) -> None:
    """In eval mode BatchNorm does not see the split, so means over parts are means over the batch, in float64."""
    results = []
    for parts in (1, 2):
        game = make_game(name, **({"dropout": 0.0} if name in ("anc", "can") else {}))
        for player in game.players.values():
            player.module.eval()
        made = play(game.method, game.players, game.batch(0), parts)
        assert [move.player for move in made] == [each.player for each in game.method.plays]
        results.append((made, game.weights()))
    (whole, one), (parted, other) = results
    for a, b in zip(whole, parted, strict=True):
        assert {k: v.item() for k, v in b.played.terms.items()} == pytest.approx(
            {k: v.item() for k, v in a.played.terms.items()}, rel=1e-9
        )
    for key, value in one.items():
        torch.testing.assert_close(other[key], value, rtol=1e-8, atol=1e-12, msg=key)


def test_play_returns_every_move_in_order() -> None:
    game = make_game("datafree", student_steps=2)
    made = play(game.method, game.players, game.batch(0))
    assert [move.player for move in made] == ["discriminator", "student"] * 2 + ["generator"]


def test_a_method_without_a_play_says_what_it_lacks() -> None:
    class Empty(Anc):
        student_play = Method.student_play

    with pytest.raises(TypeError, match=r"Empty must define student_play\(\), or plays"):
        play(Empty(), make_game("anc").players, make_game("anc").batch(0))


class Odd(Supervised):
    """A user's method whose play returns whatever it is given."""

    gives: Callable[[Tensor], object]

    def student_play(self, nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        assert out is not None
        return self.gives(out.logits)  # type: ignore[return-value]


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(
    "gives",
    [
        lambda z: z.mean(),
        lambda z: {"data": z.mean()},
        lambda z: None,
        lambda z: Played({"data": z.mean(1)}),
        lambda z: Played({"data": 1.0}),
        lambda z: Played({}),
        lambda z: Played({"data": z.detach().mean()}),
    ],
)
def test_a_play_that_gives_no_loss_names_its_method(gives: Callable[[Tensor], object], parts: int) -> None:
    game, odd = make_game("supervised"), Odd()
    object.__setattr__(odd, "gives", gives)
    with pytest.raises(ValueError, match="method Odd: the play of the student must return Played"):
        play(odd, game.players, game.batch(0), parts)


def test_a_term_grows_outside_of_its_play() -> None:
    """DKD's warm-up: min(step / warmup_steps, 1) of all but the labels' term, in one piece and in parts."""
    for step, factor in [(0, 0.0), (1, 0.25), (3, 0.75), (4, 1.0), (9, 1.0)]:
        for parts in (1, 2):
            found, whole = (
                play(game.method, game.players, game.batch(step), parts)[0].played.terms
                for game in (make_game("dkd", warmup_steps=4), make_game("dkd"))
            )
            assert found.keys() == {"target", "others", "labels"}
            for name, term in found.items():
                expected = whole[name] * (1.0 if name == "labels" else factor)
                torch.testing.assert_close(term, expected, rtol=1e-15, atol=0)
