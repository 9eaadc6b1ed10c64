"""Flow of the solution procedure (Yim et al., CVPR 2017): how a network gets from one stage to the next."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from fastanc.batch import Batch, Outputs
from fastanc.fields import Count, Temperature, Unit, Weight
from fastanc.later import nn, torch
from fastanc.losses import fsp, kd_terms
from fastanc.methods.base import (
    Method,
    Nets,
    Played,
    TeacherSpec,
    in_phase,
    paired_stages,
    sides,
    task_needs,
)

if TYPE_CHECKING:
    from fastanc.models.taps import Tapped


@Method.register_subclass("fsp")
@dataclass(frozen=True, kw_only=True)
class Fsp(Method):
    """FSP matrices of consecutive stages, beside the task or before it; both networks have equal channels.

    Departs from the paper: the matrices relate the ends of consecutive stages (RepDistiller), not the first
    and last map within a stage; a one-stage form is the default. RepDistiller's further matrix, from the stem to
    the first stage, comes with `stem` before the names in student.stages and teacher.stages.
    """

    weight: Weight = 50.0
    """Factor of each matrix's mean squared error."""
    flow_steps: Count = 0
    """Steps at the start that learn the matrices alone, and nothing of them later (the paper's two stages); 0
    always learns both together."""
    alpha: Unit = 0.0
    """Weight of the softened classes against the labels, 0..1; at 1 no labels are needed."""
    temperature: Temperature = 4.0
    """Softmax temperature of the KL."""

    @property
    def needs(self) -> frozenset[str]:
        """Stage maps, and what the task needs."""
        return task_needs(self.alpha) | {"stages"}

    def networks(self, student: Tapped, teacher: TeacherSpec) -> dict[str, nn.Module]:
        """Return the student; ValueError when its stages are not as wide as the teacher's."""
        own = paired_stages(student, teacher)
        if own != teacher.stage_channels:
            raise ValueError(
                f"fsp compares matrices of channels, but the student's stages have {own} and the teacher's"
                f" {teacher.stage_channels}: choose a pair of equal widths or another method"
            )
        return {"student": student}

    def ramp(self, term: str, step: int) -> float:
        """Return 0 for the terms that rest: not left out, since DDP's static graph wants every weight every time."""
        return in_phase(term == "flow", step, self.flow_steps)

    def student_play(self, nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        """Minimise matrices and task, or one after the other."""
        teacher, student = sides(batch, out)
        assert teacher.stages is not None
        assert student.stages is not None
        pairs = zip(pairwise(student.stages), pairwise(teacher.stages), strict=True)
        distance = torch.stack([fsp(s, t) for s, t in pairs]).sum()
        task = kd_terms(student.logits, teacher.logits, batch.labels, self.alpha, self.temperature)
        return Played({"flow": self.weight * distance, **task})
