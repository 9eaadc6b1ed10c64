"""How a play can be executed.

`plain`, as its method writes it; `compiled`, by torch.compile; `captured`, compiled and replayed as a CUDA graph;
`triton`, by kernels written for it. A play is a formula of its method, and stays readable there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from fastanc import later
from fastanc.batch import Batch, Outputs
from fastanc.kernels.backend import INTERPRETED
from fastanc.methods.base import Method, Nets, Play, Played
from fastanc.training.compiling import prepare_compiler
from fastanc.training.fused import fused

Loss: TypeAlias = Callable[[Nets, Batch, Outputs | None], Played]
SPELLINGS = ("plain", "compiled", "captured", "triton")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How each play of a method is executed, in their order, and what a reader of the log should know of it."""

    names: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def plays(self, method: Method, nets: Nets) -> tuple[Play, ...]:
        """Return the method's plays, spelled so."""
        found = []
        for play, name in zip(method.plays, self.names, strict=True):
            loss = spelled(name, method, play, nets)
            assert loss is not None, (play.player, name)
            found.append(Play(play.player, loss))
        return tuple(found)


def plain(method: Method) -> Choice:
    """Every play as it is written."""
    return Choice(names=("plain",) * len(method.plays))


def spelled(name: str, method: Method, play: Play, nets: Nets) -> Loss | None:
    """Return a play's loss in one spelling; None where this method has no kernel, or no compiler, for it."""
    if name == "plain":
        return play.loss
    if name == "triton":
        return fused(method, play, nets)
    if play.derives:
        return None
    later.arrive()
    # The generator of eager mode: the same dropout mask, so that a spelling can be held to another.
    options: dict[str, Any] = {"fallback_random": True}
    if name == "compiled":
        prepare_compiler()
        compiled: Loss = torch.compile(play.loss, dynamic=False, options=options)
        return compiled
    return _captured(torch.compile(play.loss, dynamic=False, options={**options, "triton.cudagraphs": True}))


def _captured(loss: Loss) -> Loss:
    def replayed(nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        played = loss(nets, batch, out)
        # The next replay writes over what this one returns; the log reads it later.
        return Played(*({key: value.clone() for key, value in part.items()} for part in played))

    return replayed


def available(name: str, device: torch.device) -> bool:
    """Tell whether a spelling can be had on this device."""
    needs_gpu = name == "captured" or (name == "triton" and not INTERPRETED)
    return device.type == "cuda" or not needs_gpu


def said(method: Method, names: Sequence[str], how: str) -> str:
    """Return the choice in words, for the log."""
    plays = ", ".join(f"{name} ({play.player})" for play, name in zip(method.plays, names))
    return f"plays: {plays}{how}"
