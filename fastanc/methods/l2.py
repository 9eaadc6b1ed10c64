"""Squared error on the logits (Ba & Caruana, NIPS 2014): the bar that an adversarial method has to pass."""

from __future__ import annotations

from dataclasses import dataclass

from fastanc.batch import Batch, Outputs
from fastanc.losses import LOGIT_REDUCTIONS, squared_error
from fastanc.methods.base import Method, MethodConfig, Nets, Play, Played, TeacherSpec, one_of, sides


@MethodConfig.register_subclass("l2")
@dataclass(frozen=True, kw_only=True)
class L2Config(MethodConfig):
    """Match the teacher's logits; no labels."""

    weight: float = 1.0
    """Factor of the squared error."""
    data_reduction: str = "sum"
    """sum: over classes, as the papers write it; mean: K times smaller (the usual MSE)."""

    def __post_init__(self) -> None:
        one_of("method.data_reduction", self.data_reduction, LOGIT_REDUCTIONS)

    def build(self, teacher: TeacherSpec) -> Method:
        """Return the method for a student of this teacher."""
        return L2(self)


class L2(Method):
    """ANC without the game."""

    needs = frozenset({"logits"})

    def __init__(self, config: L2Config):
        self.config = config
        self.plays = (Play("student", self.student_play),)

    def student_play(self, nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        """Minimise the distance of the logits."""
        teacher, student = sides(batch, out)
        error = squared_error(student.logits, teacher.logits, self.config.data_reduction)
        return Played({"data": self.config.weight * error})
