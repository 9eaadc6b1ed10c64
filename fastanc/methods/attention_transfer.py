"""Attention transfer (Zagoruyko & Komodakis, ICLR 2017): where the maps are bright, not what they say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastanc.batch import Batch, Outputs
from fastanc.fields import Temperature, Unit, Weight
from fastanc.later import nn, torch
from fastanc.losses import attention_transfer, kd_terms
from fastanc.methods.base import (
    Method,
    Nets,
    Played,
    TeacherSpec,
    paired_stages,
    sides,
    task_needs,
)

if TYPE_CHECKING:
    from fastanc.models.taps import Tapped


@Method.register_subclass("attention_transfer")
@dataclass(frozen=True, kw_only=True)
class AttentionTransfer(Method):
    """Spatial attentions of every stage beside the task, without an adapter.

    Attentions have no channels, and sizes are pooled to the smaller. Departs from the paper: its beta / 2
    multiplies a norm, here beta multiplies a mean (the authors' code).
    """

    beta: Weight = 1000.0
    """Factor of each stage's mean squared error of the unit-length attentions."""
    alpha: Unit = 0.0
    """Weight of the softened classes against the labels, 0..1; at 1 no labels are needed."""
    temperature: Temperature = 4.0
    """Softmax temperature of the KL."""

    @property
    def needs(self) -> frozenset[str]:
        """Stage maps, and what the task needs."""
        return task_needs(self.alpha) | {"stages"}

    def networks(self, student: Tapped, teacher: TeacherSpec) -> dict[str, nn.Module]:
        """Return the student; ValueError unless both networks have equally many stages."""
        paired_stages(student, teacher)
        return {"student": student}

    def student_play(self, nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        """Minimise task and attention distances."""
        teacher, student = sides(batch, out)
        assert teacher.stages is not None
        assert student.stages is not None
        pairs = zip(student.stages, teacher.stages, strict=True)
        distance = torch.stack([attention_transfer(s, t) for s, t in pairs]).sum()
        task = kd_terms(student.logits, teacher.logits, batch.labels, self.alpha, self.temperature)
        return Played({"attention": self.beta * distance, **task})
