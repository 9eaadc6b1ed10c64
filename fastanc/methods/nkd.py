"""Normalised knowledge distillation (Yang, Zeng, Li, Zhang, Yuan, Li, ICCV 2023; code: cls_KD)."""

from __future__ import annotations

from dataclasses import dataclass

from fastanc.batch import Batch, Outputs
from fastanc.fields import Temperature, Weight
from fastanc.losses import cross_entropy
from fastanc.losses_of_logits import normalised
from fastanc.methods.base import Method, Nets, Played, Warming, sides


@Method.register_subclass("nkd")
@dataclass(frozen=True, kw_only=True)
class Nkd(Warming):
    """-p_t log p_s on the target class + gamma T^2 CE on the others, renormalised, + cross entropy."""

    gamma: Weight = 1.5
    """Factor of the term on the other classes."""
    temperature: Temperature = 1.0
    """Softmax temperature of the term on the other classes, which is multiplied by its square."""
    labels_weight: Weight = 1.0
    """Factor of the cross entropy."""

    needs = frozenset({"logits", "labels"})

    @property
    def softened_at(self) -> tuple[float, ...] | None:
        """1 of the target class, the temperature of the others."""
        return (1.0, self.temperature)

    def student_play(self, nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        """Minimise the three terms."""
        teacher, student = sides(batch, out)
        assert batch.labels is not None
        target, others = normalised(student.logits, teacher.logits, batch.labels, self.temperature)
        return Played(
            {
                "target": target,
                "others": self.gamma * others,
                "labels": self.labels_weight * cross_entropy(student.logits, batch.labels),
            }
        )
