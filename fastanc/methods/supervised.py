"""Plain supervised training: the baseline without a teacher, and how a missing teacher is made."""

from __future__ import annotations

from dataclasses import dataclass

from fastanc.batch import Batch, Outputs
from fastanc.fields import Unit
from fastanc.losses import cross_entropy
from fastanc.methods.base import Method, Nets, Played


@Method.register_subclass("supervised")
@dataclass(frozen=True, kw_only=True)
class Supervised(Method):
    """Cross entropy with the labels."""

    label_smoothing: Unit = 0.0
    """Share of the label's weight that is spread over all classes, 0..1."""

    needs = frozenset({"labels"})

    def student_play(self, nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        """Minimise the cross entropy."""
        assert out is not None
        assert batch.labels is not None
        return Played({"labels": cross_entropy(out.logits, batch.labels, self.label_smoothing)})
