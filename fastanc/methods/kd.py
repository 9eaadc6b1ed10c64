"""Knowledge distillation by softened classes (Hinton, Vinyals, Dean 2015)."""

from __future__ import annotations

from dataclasses import dataclass

from fastanc.batch import Batch, Outputs
from fastanc.losses import kd_terms
from fastanc.methods.base import Method, MethodConfig, Nets, Play, Played, TeacherSpec, sides, task_needs


@MethodConfig.register_subclass("kd")
@dataclass(frozen=True, kw_only=True)
class KdConfig(MethodConfig):
    """alpha T^2 KL(teacher || student) + (1 - alpha) cross entropy."""

    alpha: float = 0.9
    """Weight of the teacher's word, 0..1; at 1 no labels are needed."""
    temperature: float = 4.0
    """Softmax temperature of the KL; the term is multiplied by its square."""

    def build(self, teacher: TeacherSpec) -> Method:
        """Return the method for a student of this teacher."""
        return Kd(self)


class Kd(Method):
    """Two terms, one player."""

    def __init__(self, config: KdConfig):
        self.config = config
        self.needs = task_needs(config.alpha) | {"logits"}
        self.plays = (Play("student", self.student_play),)

    def student_play(self, nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        """Minimise the weighted terms."""
        teacher, student = sides(batch, out)
        c = self.config
        return Played(kd_terms(student.logits, teacher.logits, batch.labels, c.alpha, c.temperature))
