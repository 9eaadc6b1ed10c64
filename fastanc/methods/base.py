"""What a method is: the networks of its game, one student pass, and the plays in the order they are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import draccus
from torch import Tensor, nn

from fastanc.batch import Batch, Outputs
from fastanc.optimizers import OptimizerConfig

if TYPE_CHECKING:
    from fastanc.models.taps import Tapped

Nets = Mapping[str, nn.Module]


class Played(NamedTuple):
    """The result of one play."""

    terms: dict[str, Tensor]
    """Weighted scalars; their sum is the player's loss. A term's key is its column in metrics.jsonl."""
    measures: dict[str, Tensor] = {}
    """Detached scalars that are only logged."""


@dataclass(frozen=True)
class Play:
    """One player's move: the loss it minimises, and how often it moves in a step."""

    player: str
    loss: Callable[[Nets, Batch, Outputs | None], Played]
    repeats: int = 1


@dataclass(frozen=True)
class TeacherSpec:
    """What a method may know of the teacher before the first batch."""

    num_classes: int
    feature_dim: int | None = None
    """D of the features; None where the teacher has no linear head."""
    stage_channels: tuple[int, ...] = ()
    """C_i of every stage map."""
    network: Tapped | None = None
    """The frozen teacher itself; None when its outputs come from the cache alone."""


class Method:
    """A compression method; one instance serves one run.

    Subclasses fill `needs`, `networks` and `plays`. The trainer freezes every player but the one on turn,
    so a loss may pass through any network of the game.
    """

    needs: frozenset[str] = frozenset()
    """Of "logits", "features", "stages", "descriptors" (the teacher's) and "labels"."""
    plays: tuple[Play, ...] = ()

    def networks(self, student: Tapped) -> dict[str, nn.Module]:
        """Return every player by name; "student" may carry an adapter."""
        return {"student": student}

    def optimizers(self) -> dict[str, OptimizerConfig]:
        """Return the optimizers of the players other than the student."""
        return {}

    def forward(self, nets: Nets, batch: Batch) -> Outputs | None:
        """Run the student once; every play of the step reads this result."""
        return nets["student"](batch.images)


@dataclass(frozen=True, kw_only=True)
class MethodConfig(draccus.PluginRegistry, discover_packages_path="fastanc.methods"):
    """A method's knobs; each method's file registers its own."""

    def build(self, teacher: TeacherSpec) -> Method:
        """Return the method for a student of this teacher."""
        raise NotImplementedError(f"{type(self).__name__} must define build()")
