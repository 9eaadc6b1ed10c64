"""Conditional adversarial networks (Xu, Hsu, Huang, BMVC 2018): a game on logits that knows the label.

The discriminator maps logits to K class logits and two source logits (Real is the teacher, Fake the student).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastanc.batch import Batch, Outputs
from fastanc.fields import BelowOne, Range, Weight, Width
from fastanc.later import Tensor, nn, torch
from fastanc.losses import (
    absolute_error,
    can_class_loss,
    can_fooling_loss,
    can_source_loss,
    cross_entropy,
    fp32,
    judgement_measures,
)
from fastanc.methods.base import WON, Method, Nets, Play, Played, Reduction, TeacherSpec, Watch, sides
from fastanc.optimizers import Decay, OptimizerConfig, Rate

if TYPE_CHECKING:
    from fastanc.models.taps import Tapped


@dataclass(frozen=True, kw_only=True)
class CanDiscriminatorOptimizer(OptimizerConfig):
    """The paper's: SGD with a hundredth of the student's 0.1; a class, so that setting one field keeps the others."""

    lr: Rate = 1e-3
    """Base learning rate."""
    weight_decay: Decay = 1e-4
    """L2 penalty."""


@Method.register_subclass("can")
@dataclass(frozen=True, kw_only=True)
class Can(Method):
    """Two players; the discriminator moves first.

    The paper's losses have no weights; ours are 1 by default, and 0 gives the rows of its Table 3. Departs from
    it: teacher and student pass through the discriminator in one batch in both plays, so that its BatchNorm does
    not give the source away; the teacher's logits belong to the student's view.
    """

    labels_weight: Weight = 1.0
    """Factor of the cross entropy with the labels (L_S)."""
    data_weight: Weight = 1.0
    """Factor of the L1 distance of the logits (L_L1)."""
    data_reduction: Reduction = "sum"
    """sum: over classes (eq. 6); mean: K times smaller."""
    game_weight: Weight = 1.0
    """Factor of the student's part of the game (L_GAN)."""
    saturating: bool = True
    """Student minimises log P(Fake), eq. 7 to the letter; false: -log P(Real)."""
    depth: Annotated[int, Range(0, 20)] = 3
    """Residual layers of the discriminator (Table 4 of the paper)."""
    width: Width | None = None
    """Width of the residual layers; none: as wide as K, which is tiny for ten classes."""
    dropout: BelowOne = 0.3
    """Dropout inside the discriminator, also active while the student moves."""
    discriminator_optimizer: CanDiscriminatorOptimizer = CanDiscriminatorOptimizer()
    """The discriminator's optimizer."""

    needs = frozenset({"logits", "labels"})

    @property
    def plays(self) -> tuple[Play, ...]:
        """Discriminator, then student."""
        return Play("discriminator", self.discriminator_play), Play("student", self.student_play)

    @property
    def watches(self) -> tuple[Watch, ...]:
        """A discriminator that has won."""
        return (WON,)

    def networks(self, student: Tapped, teacher: TeacherSpec) -> dict[str, nn.Module]:
        """Return student and discriminator."""
        from fastanc.models.discriminators import can_discriminator

        judge = can_discriminator(
            teacher.num_classes, width=self.width, depth=self.depth, dropout=self.dropout
        )
        return {"student": student, "discriminator": judge}

    def optimizers(self) -> dict[str, OptimizerConfig]:
        """Return the discriminator's optimizer."""
        return {"discriminator": self.discriminator_optimizer}

    def discriminator_play(self, nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        """Minimise -1/2 (L_A + L_DS)."""
        teacher, student = sides(batch, out)
        assert batch.labels is not None
        (class_t, source_t), (class_s, source_s) = _judge(nets, teacher.logits, student.logits.detach())
        terms = {
            "discriminate": 0.5 * can_source_loss(source_t, source_s),
            "classify": 0.5 * can_class_loss(class_t, class_s, batch.labels),
        }
        # The log odds of Real, as a game with one output would have them.
        return Played(terms, judgement_measures(_odds(source_t), _odds(source_s)))

    def student_play(self, nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        """Minimise L_S + L_L1 + 1/2 (L_A - L_DS), without the teacher's parts, which are constants."""
        teacher, student = sides(batch, out)
        assert batch.labels is not None
        _, (class_s, source_s) = _judge(nets, teacher.logits, student.logits)
        error = absolute_error(student.logits, teacher.logits, self.data_reduction)
        return Played(
            {
                "labels": self.labels_weight * cross_entropy(student.logits, batch.labels),
                "data": self.data_weight * error,
                "fool": 0.5 * self.game_weight * can_fooling_loss(source_s, self.saturating),
                "conditional": 0.5 * self.game_weight * cross_entropy(class_s, batch.labels),
            }
        )


def _judge(nets: Nets, teacher: Tensor, student: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return (class logits [B, K], source logits [B, 2]) of teacher and student from one joint pass."""
    judged = nets["discriminator"](torch.cat([fp32(teacher), fp32(student)]))
    k = teacher.shape[1]
    return [(half[:, :k], half[:, k:]) for half in judged.chunk(2)]


def _odds(source: Tensor) -> Tensor:
    return source[:, :1] - source[:, 1:]
