"""One training step of any method: the student's one pass, then every player's move in its turn.

This is the only spelling of a step: the trainer, the tests, the benchmarks and a user's own loop call `play`.

In parts, a step needs the memory of one part only. Its gradients must be those of the whole batch, so a player moves
when all of its parts have gone through; the student's pass is then made anew for every play, since holding the passes
of all parts would be the whole batch's memory again. Two things follow. A play of another player never reaches the
student's weights, so its passes keep nothing for a gradient. And BatchNorm's running statistics must move once for
every part, as if each had passed once: they move in the first play's passes (whose weights are those of the one pass
that a step in one piece makes) and rest in the others, which normalise by their batch all the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastanc.batch import Batch
from fastanc.methods.base import Method, Play, Played
from fastanc.training.players import Players


class Move(NamedTuple):
    """A play that was made."""

    player: str
    played: Played


def play(
    method: Method, players: Players, batch: Batch, parts: int = 1, plays: Sequence[Play] | None = None
) -> list[Move]:
    """Make one training step and return its moves, in order.

    Args:
        method: whose plays are made.
        players: of `method.networks`; they are moved.
        batch: the step's input; `batch.target` holds the teacher's outputs where the method reads them.
        parts: into which the batch is cut, for less memory; terms and measures are then means over the parts.
        plays: the method's own, spelled otherwise (`choices.Choice.plays`).
    """
    return list(moves(method, players, batch, parts, plays))


def moves(
    method: Method, players: Players, batch: Batch, parts: int = 1, plays: Sequence[Play] | None = None
) -> Iterator[Move]:
    """Make a step move by move: `play` for whoever wants to look between two moves."""
    plays = method.plays if plays is None else plays
    if parts > 1:
        return _in_parts(method, players, batch.parts(parts), plays)
    return _whole(method, players, batch, plays)


def _whole(method: Method, players: Players, batch: Batch, plays: Sequence[Play]) -> Iterator[Move]:
    with players.turn("student") as nets:
        out = method.forward(nets, batch)
    for made in plays:
        player = made.player
        with players.turn(player) as nets:
            played = _ramped(method, player, batch.step, made.loss(nets, batch, out))
            players.update(player, played.terms)
        _settle(method, players, played)
        yield Move(player, played)


def _in_parts(
    method: Method, players: Players, parts: Sequence[Batch], plays: Sequence[Play]
) -> Iterator[Move]:
    for number, made in enumerate(plays):
        results: list[Played] = []
        through = partial(_part_through, method, players, made, results, number == 0)
        players.update_in_parts(made.player, [partial(through, part) for part in parts])
        played = _mean(results)
        _settle(method, players, played)
        yield Move(made.player, played)


def _part_through(
    method: Method, players: Players, made: Play, results: list[Played], first: bool, part: Batch
) -> Mapping[str, Tensor]:
    """Let one part of a batch pass the student and a play, and return the play's terms; `results` keeps them too."""
    own = made.player == "student"
    with (
        torch.set_grad_enabled(own),
        players.turn("student") as nets,
        _statistics(nets["student"], move=first),
    ):
        out = method.forward(nets, part)
    with players.turn(made.player) as nets:
        results.append(_ramped(method, made.player, part.step, made.loss(nets, part, out)))
    return results[-1].terms


def _checked(method: Method, player: str, played: object) -> Played:
    """Return what a play gave; ValueError naming the method where that is no loss that can be minimised."""
    terms = played.terms if isinstance(played, Played) else None
    if (
        not isinstance(played, Played)
        or not isinstance(terms, Mapping)
        or not all(isinstance(term, Tensor) and term.dim() == 0 for term in terms.values())
        or not any(term.requires_grad for term in terms.values())
    ):
        raise ValueError(
            f"method {type(method).__name__}: the play of the {player} must return Played({{name: term}}), each"
            f" term a scalar tensor, of which some depend on the {player}'s weights"
        )
    return played


def _ramped(method: Method, player: str, step: int, played: object) -> Played:
    """Return what a play gave, the student's terms with the weight that they have at this step.

    Here and not in the play: one that is compiled would be compiled anew for every step's number.
    """
    checked = _checked(method, player, played)
    if player != "student":
        return checked
    factors = {name: method.ramp(name, step) for name in checked.terms}
    if all(factor == 1 for factor in factors.values()):
        return checked
    return checked._replace(terms={name: factors[name] * term for name, term in checked.terms.items()})


def _settle(method: Method, players: Players, played: Played) -> None:
    if played.state:
        method.settle(players.modules(), players.agreed(played.state))


@contextmanager
def _statistics(network: nn.Module, move: bool) -> Iterator[None]:
    """Let BatchNorm's running statistics move in this pass, or rest; it normalises by the batch in both."""
    layers = [] if move else [m for m in network.modules() if isinstance(m, _BatchNorm)]
    resting = [layer for layer in layers if layer.training and layer.track_running_stats]
    for layer in resting:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in resting:
            layer.track_running_stats = True


def _mean(results: Sequence[Played]) -> Played:
    """Return the means of what several plays of one kind gave."""
    return Played(
        *(
            {key: torch.stack([values[key].detach() for values in part]).mean(0) for key in part[0]}
            for part in zip(*results)
        )
    )
