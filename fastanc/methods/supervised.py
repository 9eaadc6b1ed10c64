"""Plain supervised training: the baseline without a teacher, and how a missing teacher is made."""

from __future__ import annotations

from dataclasses import dataclass

from fastanc.batch import Batch, Outputs
from fastanc.losses import cross_entropy
from fastanc.methods.base import Method, Nets, Played


@Method.register_subclass("supervised")
@dataclass(frozen=True, kw_only=True)
class Supervised(Method):
    """Cross entropy with the labels."""

    needs = frozenset({"soft_labels"})

    def student_play(self, nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        """Minimise the cross entropy."""
        assert out is not None
        assert batch.labels is not None
        return Played({"labels": cross_entropy(out.logits, batch.labels)})
