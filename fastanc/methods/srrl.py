"""Softmax regression representation learning (Yang, Martinez, Bulat, Tzimiropoulos, ICLR 2021; code: KD_SRRL)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastanc.batch import Batch, Outputs
from fastanc.fields import OneOf, Weight
from fastanc.later import nn
from fastanc.losses import cross_entropy, squared_error
from fastanc.methods.base import (
    Method,
    Nets,
    Played,
    TeacherSpec,
    Warming,
    bare,
    features_of,
    sides,
    width_of,
)

if TYPE_CHECKING:
    from fastanc.models.taps import Tapped


@Method.register_subclass("srrl")
@dataclass(frozen=True, kw_only=True)
class Srrl(Warming):
    """Connected features match the teacher's, and so do the logits that the teacher's head makes of them.

    Both errors are means, as in the authors' code. Departs from it: the connector stands behind the pooling, a linear
    map where theirs is a 1x1 convolution on the last map.
    """

    feature_weight: Weight = 1.0
    """Factor of the mean squared error of the features."""
    head_weight: Weight = 1.0
    """Factor of the mean squared error of the logits behind the teacher's head."""
    labels_weight: Weight = 1.0
    """Factor of the cross entropy of the student's own logits."""
    connector: Annotated[str, OneOf(("linear-bn-relu", "linear"))] = "linear-bn-relu"
    """linear-bn-relu: as the authors'; linear: for features of a teacher that may be negative."""

    needs = frozenset({"features", "logits", "soft_labels"})

    def networks(self, student: Tapped, teacher: TeacherSpec) -> dict[str, nn.Module]:
        """Return the student with its connector; ValueError where either side has no head."""
        from fastanc.models.connectors import Connected

        width_of(teacher, "srrl")
        if student.feature_dim is None:
            raise ValueError(
                "srrl reads features, and the student has no last linear layer: set student.head"
            )
        head = None if teacher.network is None else teacher.network.head
        if head is None:
            raise ValueError("srrl reads the teacher's head, and there is none: set teacher.head")
        return {"student": Connected(student, head, rectified=self.connector == "linear-bn-relu")}

    def student_play(self, nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        """Minimise the three terms."""
        teacher, student = sides(batch, out)
        assert batch.labels is not None
        connected = features_of(student)
        through = bare(nets["student"]).through_head(connected)
        return Played(
            {
                "features": self.feature_weight * squared_error(connected, features_of(teacher), "mean"),
                "head": self.head_weight * squared_error(through, teacher.logits, "mean"),
                "labels": self.labels_weight * cross_entropy(student.logits, batch.labels),
            }
        )
