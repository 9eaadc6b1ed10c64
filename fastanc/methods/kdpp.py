"""KD++: features along the teacher's class means (Wang et al. 2023; code: Knowledge-Distillation-via-ND)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastanc.batch import Batch, Outputs
from fastanc.fields import Temperature, Weight
from fastanc.later import nn
from fastanc.losses import cross_entropy, soft_kl
from fastanc.losses_of_features import direction
from fastanc.methods.base import (
    Method,
    Nets,
    Played,
    TeacherSpec,
    Warming,
    bare,
    features_of,
    sides,
    width_of,
)

if TYPE_CHECKING:
    from fastanc.models.taps import Tapped


@Method.register_subclass("kdpp")
@dataclass(frozen=True, kw_only=True)
class KdPp(Warming):
    """T^2 KL + a term that draws the features along the teacher's class means and beyond its norms, + cross entropy.

    Defaults are those of ResNet-56 -> 20 on CIFAR-100. Departs from the authors' code: the class means are running
    means over the teacher's features of all images that this process has seen so far, where theirs come from a pass
    over the training set; a linear adapter, without BatchNorm and dropout, where the widths differ; the warm-up is of
    both terms.
    """

    kd_weight: Weight = 1.0
    """Factor of the KL: 1 to 4 by pair on CIFAR-100."""
    direction_weight: Weight = 2.0
    """Factor of the direction and norm term: 0.5 to 2 by pair on CIFAR-100."""
    temperature: Temperature = 4.0
    """Softmax temperature of the KL, which is multiplied by its square."""
    labels_weight: Weight = 1.0
    """Factor of the cross entropy."""

    needs = frozenset({"features", "logits", "labels"})

    def networks(self, student: Tapped, teacher: TeacherSpec) -> dict[str, nn.Module]:
        """Return the student, with an adapter where the widths differ, and the class means beside it."""
        from fastanc.models.memories import ClassMeans, Keeping
        from fastanc.models.taps import Adapted

        width = width_of(teacher, "kdpp")
        player = student if student.feature_dim == width else Adapted(student, width)
        return {"student": Keeping(player, ClassMeans(teacher.num_classes, width))}

    def remember(self, nets: Nets, batch: Batch, out: Outputs) -> None:
        """Take the teacher's features into the class means."""
        teacher, _ = sides(batch, out)
        assert batch.labels is not None
        bare(nets["student"]).memory.push(features_of(teacher), batch.labels)

    def student_play(self, nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        """Minimise the three terms."""
        teacher, student = sides(batch, out)
        assert batch.labels is not None
        means = bare(nets["student"]).memory.means[batch.labels]
        drawn = direction(features_of(student), features_of(teacher), means)
        return Played(
            {
                "soft": self.kd_weight * soft_kl(student.logits, teacher.logits, self.temperature),
                "direction": self.direction_weight * drawn,
                "labels": self.labels_weight * cross_entropy(student.logits, batch.labels),
            }
        )
