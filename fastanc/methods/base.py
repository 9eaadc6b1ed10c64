"""What a method is: the networks of its game, one student pass, and the plays in the order they are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import draccus
import torch
from torch import Tensor, nn

from fastanc.batch import Batch, Outputs
from fastanc.losses import fp32
from fastanc.optimizers import OptimizerConfig

if TYPE_CHECKING:
    from fastanc.models.attention import Squeezed
    from fastanc.models.taps import Tapped

Nets = Mapping[str, nn.Module]


class Played(NamedTuple):
    """The result of one play."""

    terms: dict[str, Tensor]
    """Weighted scalars; their sum is the player's loss. A term's key is its column in metrics.jsonl."""
    measures: dict[str, Tensor] = {}
    """Detached scalars that are only logged."""


def mean_played(results: Sequence[Played]) -> Played:
    """Return the means of the terms and measures of several plays of one kind."""
    terms, measures = (
        {key: torch.stack([values[key].detach() for values in part]).mean() for key in part[0]}
        for part in ([r.terms for r in results], [r.measures for r in results])
    )
    return Played(terms, measures)


@dataclass(frozen=True)
class Play:
    """One player's move: the loss it minimises, and how often it moves in a step."""

    player: str
    loss: Callable[[Nets, Batch, Outputs | None], Played]
    repeats: int = 1


def sides(batch: Batch, out: Outputs | None) -> tuple[Outputs, Outputs]:
    """Return the teacher's and the student's outputs of this step."""
    assert batch.target is not None
    assert out is not None
    return batch.target, out


def seen(outputs: Outputs, on: str) -> Tensor:
    """Return what a discriminator sees of a network, fp32: its "features" [B, D] or its "logits" [B, K]."""
    values = outputs.features if on == "features" else outputs.logits
    assert values is not None
    return fp32(values)


def paired_stages(student: Tapped, teacher_channels: tuple[int, ...]) -> tuple[int, ...]:
    """Return the student's stage channels; ValueError unless both networks have equally many stages."""
    own = student.stage_channels() if student.stage_names else ()
    if not own or len(own) != len(teacher_channels):
        raise ValueError(
            f"this method pairs stage maps, but the student has {len(own)} and the teacher"
            f" {len(teacher_channels)}: name equally many in student.stages and teacher.stages"
        )
    return own


def one_of(field: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError naming the field when its value is none of the choices."""
    if value not in choices:
        raise ValueError(f"{field} {value!r} is unknown: use one of {', '.join(choices)}")


def task_needs(alpha: float) -> frozenset[str]:
    """Return what `losses.kd_terms` needs at this weight; ValueError outside 0..1."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"method.alpha is {alpha}: a weight between 0 (labels only) and 1 (teacher only)")
    return frozenset({"logits"} if alpha > 0 else ()) | frozenset({"labels"} if alpha < 1 else ())


@dataclass(frozen=True)
class TeacherSpec:
    """What a method may know of the teacher before the first batch."""

    num_classes: int
    feature_dim: int | None = None
    """D of the features; None where the teacher has no linear head."""
    stage_channels: tuple[int, ...] = ()
    """C_i of every stage map."""
    network: Tapped | Squeezed | None = None
    """The frozen teacher itself; None when its outputs come from the cache alone."""


class Method:
    """A compression method; one instance serves one run.

    Subclasses fill `needs`, `networks` and `plays`. The trainer freezes every player but the one on turn,
    so a loss may pass through any network of the game.
    """

    needs: frozenset[str] = frozenset()
    """Of "logits", "features", "stages", "descriptors" (the teacher's outputs), "network" (the teacher,
    with gradient to its input) and "labels"; without any of the outputs a batch may have no target."""
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

    def validated(self, student: Tapped, player: nn.Module) -> nn.Module:
        """Return what is evaluated: the student, without what the game has put around it."""
        return student

    def save(self, nets: Nets, folder: Path) -> None:
        """Write into a finished run's folder what the method leaves beside the student."""


@dataclass(frozen=True, kw_only=True)
class MethodConfig(draccus.PluginRegistry, discover_packages_path="fastanc.methods"):
    """A method's knobs; each method's file registers its own."""

    needs_teacher: ClassVar[bool] = True
    """Whether a run of this method has a teacher at all."""
    reads_stages: ClassVar[bool] = False
    """Whether the method reads stage maps, so that both networks are tapped there."""
    latent_dim: ClassVar[int | None] = None
    """Width of the latent vectors that a batch holds in the place of images; None for images."""

    @property
    def kind(self) -> str:
        """The registered name, as in `method: {type: NAME}`."""
        return self.get_choice_name(type(self))

    def build(self, teacher: TeacherSpec) -> Method:
        """Return the method for a student of this teacher."""
        raise NotImplementedError(f"{type(self).__name__} must define build()")
