"""Knowledge review (Chen, Liu, Zhao, Jia, CVPR 2021; code: ReviewKD): deep stages teach shallow ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastanc.batch import Batch, Outputs
from fastanc.fields import Temperature, Unit, Weight
from fastanc.later import nn
from fastanc.losses import kd_terms
from fastanc.losses_of_features import hierarchical
from fastanc.methods.base import (
    Method,
    Nets,
    Played,
    TeacherSpec,
    Warming,
    features_of,
    paired_stages,
    sides,
    task_needs,
    width_of,
)

if TYPE_CHECKING:
    from fastanc.models.taps import Tapped


@Method.register_subclass("reviewkd")
@dataclass(frozen=True, kw_only=True)
class ReviewKd(Warming):
    """HCL of the teacher's stage maps and features with the student's, fused from deep to shallow by attention.

    Departs from the authors' code: maps of unequal size are compared at the smaller one, where theirs takes the fused
    map to the teacher's size first; stage maps are what a stage gives, where theirs are before its last activation.
    """

    weight: Weight = 1.0
    """Factor of HCL: 1 for ResNet-34 -> 18 on ImageNet, 0.6 to 8 by pair elsewhere."""
    alpha: Unit = 0.0
    """Weight of the softened classes against the labels, 0..1; at 1 no labels are needed."""
    temperature: Temperature = 4.0
    """Softmax temperature of the KL."""

    @property
    def needs(self) -> frozenset[str]:
        """Stage maps, features, and what the task needs."""
        return task_needs(self.alpha) | {"stages", "features"}

    def networks(self, student: Tapped, teacher: TeacherSpec) -> dict[str, nn.Module]:
        """Return the student with its fusions; ValueError unless both have equally many stages, and features."""
        from fastanc.models.connectors import Reviewed

        own, width = paired_stages(student, teacher), width_of(teacher, "reviewkd")
        if student.feature_dim is None:
            raise ValueError(
                "reviewkd reads features, and the student has no last linear layer: set student.head"
            )
        channels = (*own, student.feature_dim)
        return {"student": Reviewed(student, channels, (*teacher.stage_channels, width))}

    def student_play(self, nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        """Minimise review and task."""
        teacher, student = sides(batch, out)
        assert teacher.stages is not None
        assert student.stages is not None
        s, t = (
            (*side.stages, features_of(side)[:, :, None, None])  # type: ignore[misc]
            for side in (student, teacher)
        )
        task = kd_terms(student.logits, teacher.logits, batch.labels, self.alpha, self.temperature)
        return Played({"review": self.weight * hierarchical(s, t), **task})
