"""Similarities to a queue of the teacher's features, without labels and head (lightly-train's first method)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastanc.batch import Batch, Outputs
from fastanc.fields import Positive, Temperature, Weight
from fastanc.later import F, nn
from fastanc.losses_of_features import queue_kl
from fastanc.methods.base import Method, Nets, Played, TeacherSpec, bare, features_of, sides, width_of

if TYPE_CHECKING:
    from fastanc.models.taps import Tapped


@Method.register_subclass("queue")
@dataclass(frozen=True, kw_only=True)
class FeatureQueue(Method):
    """KL of softmax(t q / T) and softmax(s q / T), q the teacher's latest features, all of unit length.

    Labels and logits count for nothing, so the student's head learns nothing: put `kd` beside it (`sum`), or train
    the head later. The queue is this process's own, as in the original, whose mixed images are no part of this.
    """

    size: Positive = 8192
    """Features in the queue; lightly-train takes a quarter to a half of a set below 20,000 images."""
    temperature: Temperature = 0.07
    """Softmax temperature of the similarities."""
    weight: Weight = 1.0
    """Factor of the KL."""

    needs = frozenset({"features"})

    def networks(self, student: Tapped, teacher: TeacherSpec) -> dict[str, nn.Module]:
        """Return the student with a linear map to the teacher's width and the queue beside it."""
        from fastanc.models.memories import Keeping, Ring
        from fastanc.models.taps import Adapted

        width = width_of(teacher, "queue")
        return {"student": Keeping(Adapted(student, width), Ring(self.size, width))}

    def remember(self, nets: Nets, batch: Batch, out: Outputs) -> None:
        """Put the teacher's features into the queue, before they are compared with it."""
        teacher, _ = sides(batch, out)
        bare(nets["student"]).memory.push(F.normalize(features_of(teacher), dim=1))

    def student_play(self, nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        """Minimise the KL."""
        teacher, student = sides(batch, out)
        s, t = (F.normalize(features_of(side), dim=1) for side in (student, teacher))
        kl = queue_kl(s, t, bare(nets["student"]).memory.rows, self.temperature)
        # Several processes wait for every weight's gradient, also for the head's, which is zero.
        return Played({"queue": self.weight * kl + 0.0 * student.logits.sum()})
