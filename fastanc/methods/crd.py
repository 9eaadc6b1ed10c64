"""Contrastive representation distillation (Tian, Krishnan, Isola, ICLR 2020; code: RepDistiller)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastanc.batch import Batch, Outputs
from fastanc.fields import Positive, Temperature, Unit, Weight, Width
from fastanc.later import F, Tensor, nn
from fastanc.losses import kd_terms
from fastanc.losses_of_features import contrast
from fastanc.methods.base import (
    Method,
    Nets,
    Play,
    Played,
    TeacherSpec,
    Warming,
    bare,
    features_of,
    sides,
    task_needs,
    width_of,
)

if TYPE_CHECKING:
    from fastanc.models.taps import Tapped


@Method.register_subclass("crd")
@dataclass(frozen=True, kw_only=True)
class Crd(Warming):
    """Embeddings of one image by both networks attract each other, those of other classes' images repel.

    Departs from the authors' code: negatives are all images of other classes among the last `negatives` that this
    process has seen, where theirs are drawn from a bank with a row for every image of the set, whose number a method
    does not know; so embeddings are newer than an epoch, without momentum. The positive is the other network's
    embedding of this very view. The teacher's embedding is a player of its own: each half of the loss has a gradient
    for one side only.
    """

    width: Width = 128
    """Width of the embeddings."""
    negatives: Positive = 16384
    """Embeddings in the bank."""
    temperature: Temperature = 0.07
    """Softmax temperature of the similarities."""
    weight: Weight = 0.8
    """Factor of the contrastive loss."""
    alpha: Unit = 0.0
    """Weight of the softened classes against the labels, 0..1."""
    kd_temperature: Temperature = 4.0
    """Softmax temperature of the KL."""

    @property
    def needs(self) -> frozenset[str]:
        """Features, labels (of the negatives), and logits where they count."""
        return task_needs(self.alpha) | {"features", "labels"}

    @property
    def plays(self) -> tuple[Play, ...]:
        """Student, then the teacher's embedding: both with the embeddings from before."""
        return Play("student", self.student_play), Play("embedding", self.embedding_play)

    def networks(self, student: Tapped, teacher: TeacherSpec) -> dict[str, nn.Module]:
        """Return the student with its embedding, and the teacher's embedding with the bank."""
        from fastanc.models.memories import Contrasted
        from fastanc.models.taps import Adapted

        width = width_of(teacher, "crd")
        return {
            "student": Adapted(student, self.width),
            "embedding": Contrasted(width, self.width, self.negatives),
        }

    def remember(self, nets: Nets, batch: Batch, out: Outputs) -> None:
        """Put both networks' embeddings into the bank, before they are compared with it."""
        teacher, student = sides(batch, out)
        assert batch.labels is not None
        bank = bare(nets["embedding"])
        bank.push(_unit(student), bank(features_of(teacher)), batch.labels, self.temperature)

    def student_play(self, nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        """Minimise the half of the student as the anchor, and the task."""
        teacher, student = sides(batch, out)
        assert batch.labels is not None
        bank = bare(nets["embedding"])
        loss = contrast(
            _unit(student),
            bank(features_of(teacher)),
            bank.teachers.rows,
            bank.negatives(batch.labels),
            bank.scales.values[0],
            self.temperature,
        )
        task = kd_terms(student.logits, teacher.logits, batch.labels, self.alpha, self.kd_temperature)
        return Played({"contrast": self.weight * loss, **task})

    def embedding_play(self, nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        """Minimise the half of the teacher as the anchor."""
        teacher, student = sides(batch, out)
        assert batch.labels is not None
        bank = bare(nets["embedding"])
        loss = contrast(
            bank(features_of(teacher)),
            _unit(student),
            bank.students.rows,
            bank.negatives(batch.labels),
            bank.scales.values[1],
            self.temperature,
        )
        return Played({"embed": self.weight * loss})


def _unit(student: Outputs) -> Tensor:
    return F.normalize(features_of(student), dim=1)
