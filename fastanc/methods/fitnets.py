"""FitNets (Romero et al., ICLR 2015): the student's regressed stage map matches the teacher's hint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastanc.batch import Batch, Outputs
from fastanc.fields import Count, OneOf, Range, Temperature, Unit, Weight
from fastanc.later import nn
from fastanc.losses import hint, kd_terms
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


@Method.register_subclass("fitnets")
@dataclass(frozen=True, kw_only=True)
class FitNets(Method):
    """Hint, then (or beside) distillation; the regressor is a 1x1 convolution on the student's side.

    Departs from the paper: maps of unequal size are average-pooled to the smaller one where the paper sizes
    the regressor's kernel; the regressor is linear by default, because the maps of pre-activation networks are
    signed; the squared error is a mean with weight 100; a one-stage form is the default.
    """

    hint_stage: Annotated[int, Range(-100, 100)] = 1
    """Number of the stage whose map is the hint, 0 is the shallowest, -1 the deepest."""
    hint_weight: Weight = 100.0
    """Factor of the mean squared error of the maps."""
    regressor: Annotated[str, OneOf(("linear", "conv-bn-relu"))] = "linear"
    """linear: a 1x1 convolution; conv-bn-relu: BatchNorm and ReLU behind it, RepDistiller's form for maps of one
    size, which cannot reach negative values of the teacher's map."""
    hint_steps: Count = 0
    """Steps at the start that learn the hint alone, and nothing of it later (the paper's two stages);
    0 always learns both together."""
    alpha: Unit = 0.0
    """Weight of the softened classes against the labels, 0..1; at 1 no labels are needed."""
    temperature: Temperature = 3.0
    """Softmax temperature of the KL."""

    @property
    def needs(self) -> frozenset[str]:
        """Stage maps, and what the task needs."""
        return task_needs(self.alpha) | {"stages"}

    def networks(self, student: Tapped, teacher: TeacherSpec) -> dict[str, nn.Module]:
        """Return the student with its regressor; ValueError for a stage that the teacher does not have."""
        from fastanc.models.regressor import Regressed

        channels, stage = teacher.stage_channels, self.hint_stage
        if not -len(channels) <= stage < len(channels):
            raise ValueError(f"method.hint_stage is {stage}, but the teacher has {len(channels)} stages")
        own = paired_stages(student, teacher)
        regressor: nn.Module = nn.Conv2d(own[stage], channels[stage], 1)
        if self.regressor == "conv-bn-relu":
            regressor = nn.Sequential(regressor, nn.BatchNorm2d(channels[stage]), nn.ReLU())
        return {"student": Regressed(student, stage, regressor)}

    def ramp(self, term: str, step: int) -> float:
        """Return 0 for the terms that rest: not left out, since DDP's static graph wants every weight every time."""
        return in_phase(term == "hint", step, self.hint_steps)

    def student_play(self, nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        """Minimise hint and task, or one after the other."""
        teacher, student = sides(batch, out)
        assert teacher.stages is not None
        assert student.stages is not None
        guided = hint(student.stages[self.hint_stage], teacher.stages[self.hint_stage])
        task = kd_terms(student.logits, teacher.logits, batch.labels, self.alpha, self.temperature)
        return Played({"hint": self.hint_weight * guided, **task})
