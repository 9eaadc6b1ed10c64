"""How a game stands on held-out views: every player in eval mode, outputs of all processes side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fastanc.batch import Batch, Outputs
from fastanc.losses import fp32
from fastanc.models.sizes import one_size, passed
from fastanc.training.game import Game

SAMPLE = 2048
"""Validation images that are looked at: a distance of two clouds falls with their size, so it is the same always."""


@torch.no_grad()
def examine(game: Game, batches: Iterable[Batch], teacher: Callable[[Batch], Outputs]) -> dict[str, float]:
    """Return what the method says of validation images (`Method.examined`), on every process the same.

    The student is the one that trains, with its adapter and without a moving average.

    Args:
        game: whose method `examines`.
        batches: this process's part of the sample, as large as every other process's.
        teacher: batch -> Outputs.
    """
    nets = game.players.modules()
    ours: list[Outputs] = []
    theirs: list[Outputs] = []
    size = 0
    with _resting(nets.values()):
        for batch in batches:
            size = max(size, len(batch.images))
            with torch.autocast(batch.images.device.type, game.autocast, enabled=game.autocast is not None):
                student = nets["student"]
                ours.append(passed(student, batch.images, size if one_size(student) else 0))
            theirs.append(teacher(batch))
        sides = (_gathered(game, side) for side in (ours, theirs))
        found = game.method.examined(nets, *sides)
    return dict(zip(found, torch.stack([value.double() for value in found.values()]).tolist()))


def _gathered(game: Game, outputs: list[Outputs]) -> Outputs:
    """Return logits and features of all processes' images, fp32."""

    def whole(values: list[Tensor]) -> Tensor:
        found: Tensor = game.accelerator.gather(fp32(torch.cat(values)).contiguous())
        return found

    features = [out.features for out in outputs if out.features is not None]
    return Outputs(whole([out.logits for out in outputs]), whole(features) if features else None)


@contextmanager
def _resting(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Put networks into eval mode for a while."""
    modes = {module: module.training for network in networks for module in network.modules()}
    for module in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
