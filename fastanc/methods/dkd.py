"""Decoupled knowledge distillation (Zhao, Cui, Song, Qiu, Liang, CVPR 2022; code: mdistiller)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastanc.batch import Batch, Outputs
from fastanc.fields import Temperature, Weight
from fastanc.later import nn
from fastanc.losses import cross_entropy
from fastanc.losses_of_logits import check_more_than_two, decoupled, standardised
from fastanc.methods.base import Method, Nets, Played, TeacherSpec, Warming, sides

if TYPE_CHECKING:
    from fastanc.models.taps import Tapped


@Method.register_subclass("dkd")
@dataclass(frozen=True, kw_only=True)
class Dkd(Warming):
    """alpha TCKD + beta NCKD (eq. 7) + cross entropy; the KL on the target class apart from that on the others.

    Defaults are those of ResNet-32x4 -> 8x4 on CIFAR-100, but for the warm-up of 20 epochs, whose length in steps the
    batch decides (warmup_steps).
    """

    alpha: Weight = 1.0
    """Factor of TCKD, the KL of the target class against all others."""
    beta: Weight = 8.0
    """Factor of NCKD, the KL over the other classes: 2, 6 or 8 by pair on CIFAR-100; ResNet-18 on ImageNet 0.5."""
    temperature: Temperature = 4.0
    """Softmax temperature of both, which are multiplied by its square; 1 on ImageNet."""
    labels_weight: Weight = 1.0
    """Factor of the cross entropy."""
    standardised: bool = False
    """Both KLs are those of standardised logits (Sun et al. 2024)."""

    needs = frozenset({"logits", "labels"})

    @property
    def softened_at(self) -> tuple[float, ...] | None:
        """The temperature; standardised logits are of all classes."""
        return None if self.standardised else (self.temperature,)

    def networks(self, student: Tapped, teacher: TeacherSpec) -> dict[str, nn.Module]:
        """The student alone; ValueError for standardised logits of two classes."""
        if self.standardised:
            check_more_than_two(teacher.num_classes, "method.standardised", "set it to false")
        return super().networks(student, teacher)

    def student_play(self, nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        """Minimise the three terms."""
        teacher, student = sides(batch, out)
        assert batch.labels is not None
        s, t = student.logits, teacher.logits
        if self.standardised:
            s, t = standardised(s), standardised(t)
        target, others = decoupled(s, t, batch.labels, self.temperature)
        return Played(
            {
                "target": self.alpha * target,
                "others": self.beta * others,
                "labels": self.labels_weight * cross_entropy(student.logits, batch.labels),
            }
        )
