"""Plays by kernels, in steps as train.py makes them, against the methods' own plays.

The kernels run in Triton's interpreter, so this file runs itself once more in a process of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from fastanc.batch import Batch, Outputs
from fastanc.kernels.backend import INTERPRETED
from fastanc.methods.anc import Anc
from fastanc.methods.base import Method, Nets, Play, Played
from fastanc.methods.can import Can
from fastanc.methods.kd import Kd
from fastanc.methods.l2 import L2
from fastanc.training import fused as module
from fastanc.training.fused import fused
from fastanc.training.players import Players, players_of
from fastanc.training.step import Move, play
from support.interpreter import passes_in_the_interpreter
from support.tiny_game import BATCH, NUM_CLASSES, PX, SGD, tapped

in_the_interpreter = pytest.mark.skipif(not INTERPRETED, reason="runs in the interpreter's process")
LAYOUT = "20-33-24"


@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter's process")
@pytest.mark.slow
def test_in_the_interpreter() -> None:
    assert passes_in_the_interpreter(__file__)


class Fused:
    """What a step reads of a method, with every play by kernels."""

    def __init__(self, method: Method):
        self.forward, self.ramp = method.forward, method.ramp
        self.plays = tuple(Play(each.player, partial(self._loss, method, each)) for each in method.plays)

    @staticmethod
    def _loss(method: Method, made: Play, nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        loss = fused(method, made, nets)
        assert loss is not None
        return loss(nets, batch, out)


def players(method: Method) -> Players:
    teacher, student = (tapped(*channels, seed=seed).float() for channels, seed in (((6, 9), 1), ((3, 4), 3)))
    torch.manual_seed(4)
    return players_of(method, student, teacher, SGD)


def batch_of(step: int) -> Batch:
    torch.manual_seed(1000 + step)
    teacher = tapped(6, 9, seed=1).float().eval()
    images = torch.rand(BATCH, 3, PX, PX)
    with torch.no_grad():
        target = teacher(images)
    return Batch(images, labels=torch.randint(NUM_CLASSES, (BATCH,)), step=step, target=target)


def train(method: Method, how: Callable[[Method], object], parts: int) -> tuple[list[Move], list[Tensor]]:
    """Make two steps; return all moves, and every player's weights after them."""
    game = players(method)
    moves = [move for step in range(2) for move in play(how(method), game, batch_of(step), parts)]
    return moves, [w.detach() for net in game.modules().values() for w in net.state_dict().values()]


@in_the_interpreter
@pytest.mark.parametrize(
    ("method", "parts"),
    [
        (Anc(dropout=0, discriminator=LAYOUT, lambda_data=0.3), 1),
        (Anc(dropout=0, discriminator=LAYOUT, regulariser_sample="clean", on="logits"), 1),
        (Anc(dropout=0, discriminator=LAYOUT, data_reduction="mean"), 2),
        (Kd(alpha=0.9, temperature=4), 1),
        (Kd(alpha=1, temperature=1), 2),
        (L2(weight=0.2, data_reduction="mean"), 1),
    ],
    ids=str,
)
def test_steps_by_kernels_are_the_plain_steps(method: Method, parts: int) -> None:
    plain, weights = train(method, lambda method: method, parts)
    ours, own_weights = train(method, Fused, parts)
    assert len(ours) == 2 * len(method.plays)
    for mine, move in zip(ours, plain, strict=True):
        assert mine.player == move.player
        for values, truth in zip(mine.played, move.played, strict=True):
            assert list(values) == list(truth)
            for key in truth:
                torch.testing.assert_close(values[key], truth[key], rtol=1e-4, atol=1e-6, msg=key)
    torch.testing.assert_close(own_weights, weights, rtol=1e-4, atol=1e-5)


def draws(method: Anc, how: Callable[[Method], object], count: int) -> Tensor:
    """Return every term of both plays, [count, 4], on one batch, with weights at rest."""
    nets = players(method).modules()
    batch = batch_of(0)
    out = method.forward(nets, batch)
    torch.manual_seed(7)
    rows = []
    for _ in range(count):
        played = [made.loss(nets, batch, out) for made in how(method).plays]
        rows.append(torch.stack([term.detach() for each in played for term in each.terms.values()]))
    return torch.stack(rows)


@in_the_interpreter
@pytest.mark.parametrize(("shown", "count"), [("dropped", 8), ("clean", 3)])
def test_with_dropout_the_terms_have_the_plain_terms_mean(shown: str, count: int) -> None:
    method = Anc(dropout=0.4, discriminator=LAYOUT, regulariser_sample=shown)
    ours, plain = draws(method, Fused, count), draws(method, lambda method: method, 500)
    spread = plain.std(0)
    assert (spread > 1e-6).tolist() == [False, shown == "dropped", True, False]
    assert ((ours.std(0) > 1e-6) == (spread > 1e-6)).all()
    far = (ours.mean(0) - plain.mean(0)).abs()
    assert (far <= 4 * spread / count**0.5 + 1e-5).all(), (ours.mean(0), plain.mean(0), spread)


class Other(L2):
    """A user's method with formulas of its own."""

    def student_play(self, nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        return Played({"data": 2 * super().student_play(nets, batch, out).terms["data"]})


@pytest.mark.parametrize(
    ("method", "made"),
    [
        (Anc(), [True, True]),
        (Anc(saturating=True), [True, False]),
        (Anc(regulariser="l2"), [False, True]),
        (Anc(regulariser="none"), [False, True]),
        (Anc(discriminator="256-256"), [False, False]),
        (Anc(discriminator="128-500-128"), [False, False]),
        (Anc(discriminator="8conv-16-16"), [False, False]),
        (Kd(alpha=0.5), [True]),
        (Kd(alpha=0), [False]),
        (L2(), [True]),
        (Other(), [False]),
        (Can(), [False, False]),
    ],
    ids=str,
)
def test_what_kernels_can_make(method: Method, made: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    nets = players(method).modules()
    if not INTERPRETED:
        assert [fused(method, each, nets) for each in method.plays] == [None] * len(made)
    monkeypatch.setattr(module, "runs_kernels", lambda _: True)
    assert [fused(method, each, nets) is not None for each in method.plays] == made
