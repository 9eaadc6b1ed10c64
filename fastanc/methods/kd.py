"""Knowledge distillation by softened classes (Hinton, Vinyals, Dean 2015)."""

from __future__ import annotations

from dataclasses import dataclass

from fastanc.batch import Batch, Outputs
from fastanc.fields import Temperature, Unit
from fastanc.losses import kd_terms
from fastanc.methods.base import Method, Nets, Played, sides, task_needs


@Method.register_subclass("kd")
@dataclass(frozen=True, kw_only=True)
class Kd(Method):
    """alpha T^2 KL(teacher || student) + (1 - alpha) cross entropy."""

    alpha: Unit = 0.9
    """Weight of the teacher's word, 0..1; at 1 no labels are needed."""
    temperature: Temperature = 4.0
    """Softmax temperature of the KL; the term is multiplied by its square."""

    @property
    def needs(self) -> frozenset[str]:
        """Logits, and labels where they count."""
        return task_needs(self.alpha) | {"logits"}

    def student_play(self, nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        """Minimise the weighted terms."""
        teacher, student = sides(batch, out)
        return Played(kd_terms(student.logits, teacher.logits, batch.labels, self.alpha, self.temperature))
