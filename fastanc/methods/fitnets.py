"""FitNets (Romero et al., ICLR 2015): the student's regressed stage map matches the teacher's hint."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from fastanc.batch import Batch, Outputs
from fastanc.losses import hint, kd_terms
from fastanc.methods.base import (
    Method,
    MethodConfig,
    Nets,
    Play,
    Played,
    TeacherSpec,
    paired_stages,
    sides,
    task_needs,
)
from fastanc.models.taps import Tapped


@MethodConfig.register_subclass("fitnets")
@dataclass(frozen=True, kw_only=True)
class FitNetsConfig(MethodConfig):
    """Hint, then (or beside) distillation."""

    reads_stages = True

    hint_stage: int = 1
    """Number of the stage whose map is the hint, 0 is the shallowest, -1 the deepest."""
    hint_weight: float = 100.0
    """Factor of the mean squared error of the maps."""
    hint_steps: int = 0
    """Steps at the start that learn the hint alone, and nothing of it later (the paper's two stages);
    0 always learns both together."""
    alpha: float = 0.0
    """Weight of the softened classes against the labels, 0..1; at 1 no labels are needed."""
    temperature: float = 3.0
    """Softmax temperature of the KL."""

    def build(self, teacher: TeacherSpec) -> Method:
        """Return the method for a student of this teacher; ValueError for a stage that it does not have."""
        num = len(teacher.stage_channels)
        if not -num <= self.hint_stage < num:
            raise ValueError(f"method.hint_stage is {self.hint_stage}, but the teacher has {num} stages")
        return FitNets(self, teacher)


class FitNets(Method):
    """One player, whose regressor is a 1x1 convolution on the student's side.

    Departs from the paper: maps of unequal size are average-pooled to the smaller one where the paper sizes
    the regressor's kernel; the regressor is linear, because the maps of pre-activation networks are signed;
    the squared error is a mean with weight 100; a one-stage form is the default.
    """

    def __init__(self, config: FitNetsConfig, teacher: TeacherSpec):
        self.config = config
        self.channels = teacher.stage_channels
        self.needs = task_needs(config.alpha) | {"stages"}
        self.plays = (Play("student", self.student_play),)

    def networks(self, student: Tapped) -> dict[str, nn.Module]:
        """Return the student with its regressor."""
        own = paired_stages(student, self.channels)
        stage = self.config.hint_stage
        return {"student": Regressed(student, stage, nn.Conv2d(own[stage], self.channels[stage], 1))}

    def student_play(self, nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        """Minimise hint and task, or one after the other."""
        teacher, student = sides(batch, out)
        assert teacher.stages is not None
        assert student.stages is not None
        c = self.config
        guided = hint(student.stages[c.hint_stage], teacher.stages[c.hint_stage])
        task = kd_terms(student.logits, teacher.logits, batch.labels, c.alpha, c.temperature)
        # A resting term is multiplied by 0, not left out: DDP's static graph wants every weight every time.
        hinting, tasking = _phases(batch.step, c.hint_steps)
        terms = {name: tasking * term for name, term in task.items()}
        return Played({"hint": hinting * c.hint_weight * guided, **terms})


class Regressed(nn.Module):
    """A tapped student whose stage map passes through a regressor; `.network` is what is exported."""

    def __init__(self, student: Tapped, stage: int, regressor: nn.Module):
        super().__init__()
        self.network = student
        self.stage = stage
        self.regressor = regressor

    def forward(self, images: Tensor) -> Outputs:
        """Return the student's outputs with the stage's map regressed."""
        out = self.network(images)
        stages = list(out.stages)
        stages[self.stage] = self.regressor(stages[self.stage])
        return out._replace(stages=tuple(stages))


def _phases(step: int, hint_steps: int) -> tuple[float, float]:
    """Return the factors of hint and task at this step."""
    if hint_steps == 0:
        return 1.0, 1.0
    return (1.0, 0.0) if step < hint_steps else (0.0, 1.0)
