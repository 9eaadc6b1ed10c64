"""Knowledge squeezed adversarial network compression (Shu et al., arXiv 1904.05100).

An attention estimator on each stage squeezes its map to a descriptor. The teacher's estimators are trained
first (method ksanc_teacher, on the frozen teacher) and their descriptors arrive in `batch.target`; then the
student matches them, and the logits, and plays a conditional game on the logits (method ksanc).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from fastanc.batch import Batch, Outputs
from fastanc.fields import Fields, OneOf, Text, Weight, Width
from fastanc.later import Tensor, nn, torch
from fastanc.losses import (
    as_teacher,
    can_class_loss,
    cross_entropy,
    discriminator_loss,
    fooling_loss,
    fp32,
    judgement_measures,
    squared_error,
    weight_penalty,
)
from fastanc.methods.base import (
    WON,
    Method,
    Nets,
    Play,
    Played,
    Reduction,
    TeacherSpec,
    Watch,
    own_optimizer,
    paired_stages,
    sides,
)
from fastanc.optimizers import OptimizerConfig

if TYPE_CHECKING:
    from fastanc.models.taps import Tapped

Labels = Annotated[str, OneOf(("data", "teacher"))]


@dataclass(frozen=True, kw_only=True)
class SqueezeConfig(Fields):
    """How a stage map becomes a descriptor; the same on both sides of a game."""

    group = "method.squeeze"

    global_dim: Width = 128
    """Width of the global descriptor that every estimator is shown."""
    attend_on: Annotated[str, OneOf(("raw", "sum"))] = "raw"
    """raw: attention weighs the stage map (figure 2); sum: map plus global descriptor (equation)."""
    pooling: Annotated[str, OneOf(("sum", "mean"))] = "sum"
    """sum of the weighted map; mean divides by H W once more, as printed, and shallow stages vanish."""


@Method.register_subclass("ksanc_teacher")
@dataclass(frozen=True, kw_only=True)
class KsancTeacherTraining(Method):
    """Trains the teacher's estimators and their head by the task, before any student; the network never moves.

    The recipe's student is the teacher's network with its trained weights.
    """

    squeeze: SqueezeConfig = SqueezeConfig()
    """How a stage map becomes a descriptor."""
    labels: Labels = "data"
    """data: the set's labels; teacher: the arg max of the teacher's logits, no labels needed."""

    @property
    def needs(self) -> frozenset[str]:
        """The network's own stages, and whoever gives the labels."""
        return frozenset({"student_stages", "labels" if self.labels == "data" else "logits"})

    def networks(self, student: Tapped, teacher: TeacherSpec) -> dict[str, nn.Module]:
        """Return the frozen network with its estimators as the player."""
        from fastanc.models.ksanc_teacher import KsancTeacher

        return {"student": KsancTeacher(student, **asdict(self.squeeze))}

    def validated(self, student: Tapped, player: nn.Module) -> nn.Module:
        """Return the player: its logits are read from the descriptors, the student's would never change."""
        return player

    def save(self, nets: Nets, folder: Path) -> None:
        """Write estimators.safetensors, which teacher.estimators of a ksanc run names."""
        from fastanc.models.ksanc_teacher import KsancTeacher, save_estimators

        player = nets["student"]
        assert isinstance(player, KsancTeacher)
        save_estimators(player, folder / "estimators.safetensors")

    def student_play(self, nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        """Minimise the cross entropy of the descriptors' logits."""
        assert out is not None
        return Played({"labels": cross_entropy(out.logits, _labels(batch, self.labels))})


@Method.register_subclass("ksanc")
@dataclass(frozen=True, kw_only=True)
class Ksanc(Method):
    """Two players; the discriminator moves first.

    The paper's lambdas and mu are not published; all are 1 here, the weights' penalty small. Departs from it: the
    student adds -log P(label) where the printed min over S would subtract it (as in CAN); R(D) moves only the
    discriminator; the logits come from the networks' own heads, beside g^b; teacher and student pass through the
    discriminator in one batch, so that its BatchNorm does not give the source away.
    """

    squeeze: SqueezeConfig = SqueezeConfig()
    """How a stage map becomes a descriptor; as the teacher's estimators were trained."""
    labels: Labels = "data"
    """data: the set's labels; teacher: the arg max of the teacher's logits, no labels needed."""
    lambda_data: Weight = 1.0
    """Factor of the squared error on the logits (lambda 1)."""
    lambda_game: Weight = 1.0
    """Factor of the student's terms of the game (lambda 2)."""
    lambda_squeeze: Weight = 1.0
    """Factor of the squared error on the descriptors (lambda 3)."""
    mu: Weight = 1.0
    """Factor of -log D(s), the adversarial samples of the discriminator's regulariser."""
    mu_weights: Weight = 1e-4
    """Factor of |w| + w^2, summed over the discriminator's parameters; near 1 it switches the game off."""
    data_reduction: Reduction = "sum"
    """sum: over classes and descriptor entries; mean: smaller by their number."""
    saturating: bool = False
    """Student minimises log(1 - D), as printed, in place of -log D."""
    discriminator: Text = "batchnorm"
    """batchnorm: the paper's figure, 128 and 256 wide; or a layout such as 128-256-128; 1 + K outputs."""
    discriminator_optimizer: OptimizerConfig | None = None
    """The discriminator's optimizer; none takes the student's. Set one field and the rest are OptimizerConfig's."""

    @property
    def needs(self) -> frozenset[str]:
        """Logits and descriptors, and labels unless the teacher gives them."""
        return frozenset({"logits", "descriptors"} | ({"labels"} if self.labels == "data" else set()))

    @property
    def plays(self) -> tuple[Play, ...]:
        """Discriminator, then student."""
        return Play("discriminator", self.discriminator_play), Play("student", self.student_play)

    @property
    def watches(self) -> tuple[Watch, ...]:
        """A discriminator that has won."""
        return (WON,)

    def networks(self, student: Tapped, teacher: TeacherSpec) -> dict[str, nn.Module]:
        """Return the student with its estimators, and the discriminator; ValueError where the two do not fit."""
        from fastanc.models.attention import Squeezed, estimators_for
        from fastanc.models.discriminators import discriminator, ksanc_discriminator

        if not teacher.stage_channels:
            raise ValueError("ksanc needs the teacher's stages: name them in teacher.stages")
        if isinstance(teacher.network, Squeezed):
            theirs = teacher.network.estimators.options
            if any(theirs[key] != getattr(self.squeeze, key) for key in ("attend_on", "pooling")):
                raise ValueError(
                    f"the teacher's estimators attend on {theirs['attend_on']} and pool by"
                    f" {theirs['pooling']}: set method.squeeze likewise"
                )
        paired_stages(student, teacher)
        k, layout = teacher.num_classes, self.discriminator
        estimators = estimators_for(student, teacher.stage_channels, **asdict(self.squeeze))
        bn = layout == "batchnorm"
        return {
            "student": Squeezed(student, estimators),
            "discriminator": ksanc_discriminator(k, k + 1) if bn else discriminator(layout, k, k + 1),
        }

    def optimizers(self) -> dict[str, OptimizerConfig]:
        """Return the discriminator's optimizer unless it is the student's."""
        return own_optimizer("discriminator", self.discriminator_optimizer)

    def discriminator_play(self, nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        """Minimise -(L^o + L^C) and mu_w (|w| + w^2) - mu log D(s)."""
        teacher, student = sides(batch, out)
        judged_t, judged_s = _judge(nets, teacher.logits, student.logits.detach())
        weights = list(nets["discriminator"].parameters())
        penalty = weight_penalty(weights, 1) + weight_penalty(weights, 2)
        labels = _labels(batch, self.labels)
        terms = {
            "discriminate": discriminator_loss(judged_t[:, :1], judged_s[:, :1]),
            "classify": can_class_loss(judged_t[:, 1:], judged_s[:, 1:], labels),
            "regularise": self.mu * as_teacher(judged_s[:, :1]) + self.mu_weights * penalty,
        }
        return Played(terms, judgement_measures(judged_t[:, :1], judged_s[:, :1]))

    def student_play(self, nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        """Minimise lambda1 L_b + lambda2 (-log D(s) - log P(label | s)) + lambda3 L_is."""
        teacher, student = sides(batch, out)
        assert teacher.descriptors is not None
        assert student.descriptors is not None
        _, judged = _judge(nets, teacher.logits, student.logits)
        conditional = cross_entropy(judged[:, 1:], _labels(batch, self.labels))
        squeeze = squared_error(student.descriptors, teacher.descriptors, self.data_reduction)
        return Played(
            {
                "data": self.lambda_data * squared_error(student.logits, teacher.logits, self.data_reduction),
                "fool": self.lambda_game * fooling_loss(judged[:, :1], self.saturating),
                "conditional": self.lambda_game * conditional,
                "squeeze": self.lambda_squeeze * squeeze,
            }
        )


def _judge(nets: Nets, teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    """Return D's [B, 1 + K] of teacher and student, from one joint pass."""
    judged_t, judged_s = nets["discriminator"](torch.cat([fp32(teacher), fp32(student)])).chunk(2)
    return judged_t, judged_s


def _labels(batch: Batch, source: str) -> Tensor:
    """Return the set's labels or the teacher's arg max, [B] int64."""
    if source == "data":
        assert batch.labels is not None
        return batch.labels
    assert batch.target is not None
    return batch.target.logits.argmax(1)
