"""Squared error on the logits (Ba & Caruana, NIPS 2014): the bar that an adversarial method has to pass."""

from __future__ import annotations

from dataclasses import dataclass

from fastanc.batch import Batch, Outputs
from fastanc.fields import Weight
from fastanc.losses import squared_error
from fastanc.methods.base import Method, Nets, Played, Reduction, sides


@Method.register_subclass("l2")
@dataclass(frozen=True, kw_only=True)
class L2(Method):
    """Match the teacher's logits; no labels: ANC without the game."""

    weight: Weight = 1.0
    """Factor of the squared error."""
    data_reduction: Reduction = "sum"
    """sum: over classes, as the papers write it; mean: K times smaller (the usual MSE)."""

    needs = frozenset({"logits"})

    def student_play(self, nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        """Minimise the distance of the logits."""
        teacher, student = sides(batch, out)
        return Played(
            {"data": self.weight * squared_error(student.logits, teacher.logits, self.data_reduction)}
        )
