"""The direction of the teacher's features, without labels and head (AM-RADIO, Ranzinger et al., CVPR 2024, eq. 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastanc.batch import Batch, Outputs
from fastanc.fields import Weight
from fastanc.later import nn
from fastanc.losses_of_features import cosine_distance, smooth_l1
from fastanc.methods.base import Method, Nets, Played, TeacherSpec, features_of, sides, width_of

if TYPE_CHECKING:
    from fastanc.models.taps import Tapped


@Method.register_subclass("cosine")
@dataclass(frozen=True, kw_only=True)
class Cosine(Method):
    """1 - cos of the features, and a smooth L1 of them, by a linear map to the teacher's width.

    Labels and logits count for nothing, so the student's head learns nothing: put `kd` beside it (`sum`), or train
    the head later.
    """

    weight: Weight = 0.9
    """Factor of 1 - cos; RADIO's, which uses it of pooled features alone with 1."""
    smooth_l1: Weight = 0.1
    """Factor of the smooth L1, the mean over features, which teaches their length, too."""

    needs = frozenset({"features"})

    def networks(self, student: Tapped, teacher: TeacherSpec) -> dict[str, nn.Module]:
        """Return the student with a linear map to the teacher's width, where that is another."""
        from fastanc.models.taps import Adapted

        width = width_of(teacher, "cosine")
        return {"student": student if student.feature_dim == width else Adapted(student, width)}

    def student_play(self, nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        """Minimise both."""
        teacher, student = sides(batch, out)
        s, t = features_of(student), features_of(teacher)
        # Several processes wait for every weight's gradient, also for the head's, which is zero.
        head = 0.0 * student.logits.sum()
        return Played(
            {
                "cosine": self.weight * cosine_distance(s, t) + head,
                "smooth_l1": self.smooth_l1 * smooth_l1(s, t),
            }
        )
