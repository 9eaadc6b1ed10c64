"""DIST: relations in the place of values (Huang, You, Wang, Qian, Xu, NeurIPS 2022; code: DIST_KD)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastanc.batch import Batch, Outputs
from fastanc.fields import Temperature, Weight
from fastanc.later import nn
from fastanc.losses import cross_entropy
from fastanc.losses_of_logits import check_more_than_two, correlation_losses
from fastanc.methods.base import Method, Nets, Played, TeacherSpec, Warming, sides

if TYPE_CHECKING:
    from fastanc.models.taps import Tapped


@Method.register_subclass("dist")
@dataclass(frozen=True, kw_only=True)
class Dist(Warming):
    """beta (1 - Pearson within rows) + gamma (1 - Pearson within columns) of the softened classes, + cross entropy.

    The second correlation is over the images of this process's part of the batch, as in the authors' code.
    """

    beta: Weight = 2.0
    """Factor of the relations between classes; the authors' beta 1 times their weight 2 of the distillation."""
    gamma: Weight = 2.0
    """Factor of the relations between images, likewise."""
    temperature: Temperature = 1.0
    """Softmax temperature, whose square multiplies both terms; 4 on CIFAR."""
    labels_weight: Weight = 1.0
    """Factor of the cross entropy; 0 needs no labels, and more than two classes."""

    @property
    def needs(self) -> frozenset[str]:
        """Logits, and labels where they count."""
        return frozenset({"logits", "soft_labels"} if self.labels_weight else {"logits"})

    @property
    def softened_at(self) -> tuple[float, ...] | None:
        """The temperature."""
        return (self.temperature,)

    def networks(self, student: Tapped, teacher: TeacherSpec) -> dict[str, nn.Module]:
        """The student alone; ValueError for two classes without labels."""
        if not self.labels_weight:
            instead = "set method.type to kd with method.alpha 1, or method.labels_weight above 0"
            check_more_than_two(teacher.num_classes, "method.type dist without labels", instead)
        return super().networks(student, teacher)

    def student_play(self, nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        """Minimise the three terms."""
        teacher, student = sides(batch, out)
        classes, images = correlation_losses(student.logits, teacher.logits, self.temperature)
        terms = {"classes": self.beta * classes, "images": self.gamma * images}
        if self.labels_weight:
            assert batch.labels is not None
            terms["labels"] = self.labels_weight * cross_entropy(student.logits, batch.labels)
        return Played(terms)
