"""Relations between the images of a batch: RKD, SP, PKT and CC (code of the first three: RepDistiller)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastanc.batch import Batch, Outputs
from fastanc.fields import OneOf, Temperature, Unit, Weight
from fastanc.later import Tensor
from fastanc.losses import kd_terms
from fastanc.losses_of_features import angles, correlation, distances, probabilistic, similarity
from fastanc.methods.base import (
    Method,
    Nets,
    Played,
    Warming,
    features_of,
    sides,
    task_needs,
)

_WEIGHTS = {"rkd": 1.0, "sp": 3000.0, "pkt": 30000.0, "cc": 1.0}


@Method.register_subclass("relations")
@dataclass(frozen=True, kw_only=True)
class Relations(Warming):
    """What the images' features are to each other is the same in both networks, whatever their widths.

    Related are the images of this process's part of the batch. Departs from the papers: pooled features for all four,
    where SP's is the last map, flattened, and CC maps both sides to 128 numbers first.
    """

    relation: Annotated[str, OneOf(("rkd", "sp", "pkt", "cc"))] = "rkd"
    """rkd: distances and angles; sp: rows of f f^T; pkt: cosines as probabilities; cc: a Gaussian kernel."""
    weight: Weight | None = None
    """Factor of the relations; none takes RepDistiller's 1 (rkd), 3000 (sp), 30000 (pkt); of cc 1, ours."""
    distance_weight: Weight = 25.0
    """Factor of rkd's distances."""
    angle_weight: Weight = 50.0
    """Factor of rkd's angles, of all triplets of a batch; at 0 they and their memory, B^3 numbers, are left out."""
    task: bool = True
    """Whether labels and softened classes count beside the relations; false where the teacher has no classes."""
    alpha: Unit = 0.0
    """Weight of the softened classes against the labels, 0..1; at 1 no labels are needed."""
    temperature: Temperature = 4.0
    """Softmax temperature of the KL."""

    @property
    def needs(self) -> frozenset[str]:
        """Features, and what the task needs."""
        return (task_needs(self.alpha) if self.task else frozenset()) | {"features"}

    def student_play(self, nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        """Minimise relations and task."""
        teacher, student = sides(batch, out)
        weight = _WEIGHTS[self.relation] if self.weight is None else self.weight
        found = self._related(features_of(student), features_of(teacher))
        terms = {name: weight * term for name, term in found.items()}
        if not self.task:  # several processes wait for the gradient of the student's head, too
            first = next(iter(terms))
            return Played({**terms, first: terms[first] + 0.0 * student.logits.sum()})
        task = kd_terms(student.logits, teacher.logits, batch.labels, self.alpha, self.temperature)
        return Played({**terms, **task})

    def _related(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        if self.relation != "rkd":
            formula = {"sp": similarity, "pkt": probabilistic, "cc": correlation}[self.relation]
            return {self.relation: formula(student, teacher)}
        terms = {"distances": self.distance_weight * distances(student, teacher)}
        if self.angle_weight:
            terms["angles"] = self.angle_weight * angles(student, teacher)
        return terms
