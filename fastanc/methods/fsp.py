"""Flow of the solution procedure (Yim et al., CVPR 2017): how a network gets from one stage to the next."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from fastanc.batch import Batch, Outputs
from fastanc.losses import fsp, kd_terms
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


@MethodConfig.register_subclass("fsp")
@dataclass(frozen=True, kw_only=True)
class FspConfig(MethodConfig):
    """FSP matrices of consecutive stages, beside the task or before it."""

    reads_stages = True

    weight: float = 50.0
    """Factor of each matrix's mean squared error."""
    flow_steps: int = 0
    """Steps at the start that learn the matrices alone, and nothing of them later (the paper's two stages); 0
    always learns both together."""
    alpha: float = 0.0
    """Weight of the softened classes against the labels, 0..1; at 1 no labels are needed."""
    temperature: float = 4.0
    """Softmax temperature of the KL."""

    def build(self, teacher: TeacherSpec) -> Method:
        """Return the method for a student of this teacher."""
        return Fsp(self, teacher)


class Fsp(Method):
    """One player; both networks must have the same stage channels, as in the paper.

    Departs from the paper: the matrices relate the ends of consecutive stages (RepDistiller), not the first
    and last map within a stage; a one-stage form is the default.
    """

    def __init__(self, config: FspConfig, teacher: TeacherSpec):
        self.config = config
        self.channels = teacher.stage_channels
        self.needs = task_needs(config.alpha) | {"stages"}
        self.plays = (Play("student", self.student_play),)

    def networks(self, student: Tapped) -> dict[str, nn.Module]:
        """Return the student; ValueError when its stages are not as wide as the teacher's."""
        own = paired_stages(student, self.channels)
        if own != self.channels:
            raise ValueError(
                f"fsp compares matrices of channels, but the student's stages have {own} and the teacher's"
                f" {self.channels}: choose a pair of equal widths or another method"
            )
        return {"student": student}

    def student_play(self, nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        """Minimise matrices and task, or one after the other."""
        teacher, student = sides(batch, out)
        assert teacher.stages is not None
        assert student.stages is not None
        c = self.config
        pairs = zip(pairwise(student.stages), pairwise(teacher.stages), strict=True)
        distance = torch.stack([fsp(s, t) for s, t in pairs]).sum()
        task = kd_terms(student.logits, teacher.logits, batch.labels, c.alpha, c.temperature)
        # A resting term is multiplied by 0, not left out: DDP's static graph wants every weight every time.
        flowing = float(c.flow_steps == 0 or batch.step < c.flow_steps)
        tasking = float(c.flow_steps == 0 or batch.step >= c.flow_steps)
        terms = {name: tasking * term for name, term in task.items()}
        return Played({"flow": flowing * c.weight * distance, **terms})
