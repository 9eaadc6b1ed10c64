"""A compiled play is compiled once: whatever changes from step to step is not asked for inside it."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

from fastanc import later
from fastanc.methods.base import Play
from fastanc.training.step import play
from support.tiny_game import make_game

STEPS = 5
# Two phases, or a ramp, within the steps; the rest as they come.
CASES: dict[str, dict[str, object]] = {
    "fitnets": {"hint_steps": 2, "hint_stage": 0, "alpha": 0.5},
    "fsp": {"flow_steps": 2, "alpha": 0.5},
    **{name: {"warmup_steps": 4} for name in ("kd", "dkd", "nkd", "dist", "mlkd")},
    **{name: {} for name in ("l2", "attention_transfer", "anc", "can", "supervised", "reviewkd")},
    "sum": {
        "parts": ({"type": "fitnets", "hint_steps": 2, "hint_stage": 0}, {"type": "dkd", "warmup_steps": 4})
    },
}


@pytest.fixture(autouse=True)
def _afresh():
    # The first backward pass of a process decides whether autograd has threads; after the compiler's fake devices it
    # has some, and no later test could fork.
    torch.ones(1, requires_grad=True).sum().backward()
    later.arrive()
    torch._dynamo.reset()
    counters.clear()


@pytest.mark.parametrize("name", CASES)
def test_no_play_is_compiled_anew_for_a_step(name):
    """Dynamo's own count of graphs, and the terms beside those of the plays as they are written."""
    written, game = (make_game(name, **CASES[name]) for _ in range(2))
    compiled = [
        Play(made.player, torch.compile(made.loss, dynamic=False, backend="eager"))
        for made in game.method.plays
    ]
    graphs = []
    for step in range(STEPS):
        torch.manual_seed(step)
        terms = [
            move.played.terms for move in play(game.method, game.players, game.batch(step), plays=compiled)
        ]
        graphs.append(counters["stats"]["unique_graphs"])
        torch.manual_seed(step)
        for ours, theirs in zip(
            terms, play(written.method, written.players, written.batch(step)), strict=True
        ):
            assert ours.keys() == theirs.played.terms.keys()
            for key, term in theirs.played.terms.items():
                torch.testing.assert_close(ours[key], term, rtol=1e-9, atol=1e-12)
    assert graphs[0] > 0
    assert graphs[1:] == graphs[:1] * (STEPS - 1)


def test_the_count_would_show_it():
    """A play that asks for the step is compiled for every one."""
    game = make_game("l2")

    def asks(nets, batch, out):
        played = game.method.student_play(nets, batch, out)
        return played._replace(terms={key: batch.step * term for key, term in played.terms.items()})

    loss = torch.compile(asks, dynamic=False, backend="eager")
    graphs = []
    for step in range(1, 4):
        play(game.method, game.players, game.batch(step), plays=[Play("student", loss)])
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] < graphs[1] < graphs[2]
