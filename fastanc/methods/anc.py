"""Adversarial network compression (Belagiannis, Farshad, Galasso 2018): a game on features, no labels.

Per step: the discriminator learns to tell the teacher's features (1) from the student's (0), held back by a
regulariser; then the student fools it with dropped features while it matches the teacher's logits (eq. 8).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastanc.batch import Batch, Outputs
from fastanc.fields import BelowOne, OneOf, Text, Weight
from fastanc.later import F, Tensor, nn, torch
from fastanc.losses import (
    as_teacher,
    discriminator_loss,
    fooling_loss,
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
    seen,
    sides,
    width_of,
)
from fastanc.optimizers import OptimizerConfig

if TYPE_CHECKING:
    from fastanc.models.taps import Tapped

IDLE = Watch(
    "d_adversarial",
    0.98,
    "the game is idle: the discriminator took the adversarial sample for the teacher's ({mean:.3f}) over {windows}"
    " windows, so the student's adversarial term has nothing left to teach; in anc set method.regulariser_sample"
    " to clean",
)


@Method.register_subclass("anc")
@dataclass(frozen=True, kw_only=True)
class Anc(Method):
    """Two players; the discriminator moves first (paper, section 3.5).

    The paper's main results are the defaults: features, dropout, adversarial samples, lambda 1. Departs from it:
    each of the two plays draws its own dropout mask (same distribution, no state kept); an adapter on the
    student's side where the feature widths differ (the paper's are equal).
    """

    on: Annotated[str, OneOf(("features", "logits"))] = "features"
    """What the discriminator sees: features (the input of the last linear layer) or logits."""
    dropout: BelowOne = 0.5
    """Probability of dropping an entry of the adversarial sample, and of nothing else; 0 switches it off."""
    regulariser: Annotated[str, OneOf(("none", "l1", "l2", "adversarial"))] = "adversarial"
    """What holds the discriminator back: none, l1 (eq. 6), l2 (eq. 5) or adversarial samples (eq. 7)."""
    regulariser_sample: Annotated[str, OneOf(("dropped", "clean"))] = "dropped"
    """Adversarial samples that the discriminator is shown as the teacher's: dropped (paper) or clean."""
    mu: Weight = 0.99
    """Factor of the l1 or l2 penalty; with penalty_reduction sum the paper's 0.99 switches the game off."""
    penalty_reduction: Reduction = "sum"
    """sum or mean over the discriminator's weights and biases in the l1 or l2 penalty."""
    lambda_data: Weight = 1.0
    """Factor of the squared error on the logits (lambda of eq. 4)."""
    data_reduction: Reduction = "sum"
    """sum: over classes (eq. 3); mean: K times smaller."""
    data: Annotated[str, OneOf(("logits", "features"))] = "logits"
    """What the squared error is of: logits (eq. 3), or features, for a teacher without classes."""
    saturating: bool = False
    """Student minimises log(1 - D), eq. 4 to the letter, in place of the inverted label of section 3.5."""
    discriminator: Text = "128-256-128"
    """Layout of the discriminator's hidden layers (Table 1 of the paper)."""
    discriminator_optimizer: OptimizerConfig | None = None
    """The discriminator's optimizer; none takes the student's. Set one field and the rest are OptimizerConfig's."""

    def __post_init__(self) -> None:
        super().__post_init__()

    @property
    def needs(self) -> frozenset[str]:
        """What the squared error is of, and what the discriminator sees."""
        return frozenset({self.data, self.on})

    @property
    def plays(self) -> tuple[Play, ...]:
        """Discriminator, then student."""
        return Play("discriminator", self.discriminator_play), Play("student", self.student_play)

    @property
    def watches(self) -> tuple[Watch, ...]:
        """Either side of the game may fall asleep."""
        return WON, IDLE

    def networks(self, student: Tapped, teacher: TeacherSpec) -> dict[str, nn.Module]:
        """Return student (with an adapter where the widths differ) and discriminator."""
        from fastanc.models.discriminators import discriminator
        from fastanc.models.taps import Adapted

        width = teacher.num_classes if self.on == "logits" else teacher.feature_dim
        if width is None:
            raise ValueError("the teacher has no last linear layer to tap: set method.on to logits")
        target = width_of(teacher, "anc") if "features" in self.needs else None
        unequal = target is not None and student.feature_dim != target
        player = Adapted(student, target) if unequal and target is not None else student
        return {"student": player, "discriminator": discriminator(self.discriminator, width)}

    def optimizers(self) -> dict[str, OptimizerConfig]:
        """Return the discriminator's optimizer unless it is the student's."""
        return own_optimizer("discriminator", self.discriminator_optimizer)

    def discriminator_play(self, nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        """Minimise BCE(D(t), 1) + BCE(D(s), 0) + R(D)."""
        teacher, student = sides(batch, out)
        t, s = seen(teacher, self.on), seen(student, self.on).detach()
        samples = [t, s]
        if self.regulariser == "adversarial":
            samples.append(self.adversarial(s) if self.regulariser_sample == "dropped" else s)
        on_t, on_s, *on_adversarial = nets["discriminator"](torch.cat(samples)).chunk(len(samples))
        terms = {"discriminate": discriminator_loss(on_t, on_s)}
        if self.regulariser == "adversarial":
            terms["regularise"] = as_teacher(on_adversarial[0])
        elif self.regulariser != "none":
            power = 1 if self.regulariser == "l1" else 2
            penalty = weight_penalty(nets["discriminator"].parameters(), power, self.penalty_reduction)
            terms["regularise"] = self.mu * penalty
        return Played(terms, judgement_measures(on_t, on_s))

    def student_play(self, nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        """Minimise BCE(D(drop(s)), 1) + lambda ||z_t - z_s||^2."""
        teacher, student = sides(batch, out)
        on_adversarial = nets["discriminator"](self.adversarial(seen(student, self.on)))
        s, t = (seen(side, self.data) for side in (student, teacher))
        error = squared_error(s, t, self.data_reduction)
        return Played(
            {
                "fool": fooling_loss(on_adversarial, self.saturating),
                "data": self.lambda_data * error,
            },
            {"d_adversarial": on_adversarial.detach().sigmoid().mean()},
        )

    def adversarial(self, sample: Tensor) -> Tensor:
        """Return the adversarial sample: dropout is the generator's noise."""
        return F.dropout(sample, self.dropout)
