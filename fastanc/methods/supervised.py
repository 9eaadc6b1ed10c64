"""Plain supervised training: the baseline without a teacher, and how a missing teacher is made."""

from __future__ import annotations

from dataclasses import dataclass

from fastanc.batch import Batch, Outputs
from fastanc.losses import cross_entropy
from fastanc.methods.base import Method, MethodConfig, Nets, Play, Played, TeacherSpec


@MethodConfig.register_subclass("supervised")
@dataclass(frozen=True, kw_only=True)
class SupervisedConfig(MethodConfig):
    """Cross entropy with the labels."""

    needs_teacher = False

    label_smoothing: float = 0.0
    """Share of the label's weight that is spread over all classes, 0..1."""

    def build(self, teacher: TeacherSpec) -> Method:
        """Return the method; the teacher is not looked at."""
        return Supervised(self)


class Supervised(Method):
    """One player, one term."""

    needs = frozenset({"labels"})

    def __init__(self, config: SupervisedConfig):
        self.config = config
        self.plays = (Play("student", self.student_play),)

    def student_play(self, nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        """Minimise the cross entropy."""
        assert out is not None
        assert batch.labels is not None
        return Played({"labels": cross_entropy(out.logits, batch.labels, self.config.label_smoothing)})
