"""Knowledge distillation by softened classes (Hinton, Vinyals, Dean 2015), and what else is called so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastanc.batch import Batch, Outputs
from fastanc.fields import OneOf, Temperature, Unit, Weight
from fastanc.later import Tensor, nn
from fastanc.losses import cross_entropy, soft_kl
from fastanc.losses_of_logits import binary_cross_entropy, check_more_than_two, hard_label, standardised
from fastanc.methods.base import Method, Nets, Played, TeacherSpec, Warming, sides, task_needs

if TYPE_CHECKING:
    from fastanc.models.taps import Tapped


@Method.register_subclass("kd")
@dataclass(frozen=True, kw_only=True)
class Kd(Warming):
    """alpha T^2 KL(teacher || student) + (1 - alpha) cross entropy."""

    alpha: Unit = 0.9
    """Weight of the teacher's word, 0..1; at 1 no labels are needed."""
    temperature: Temperature = 4.0
    """Softmax temperature of the KL; the term is multiplied by its square."""
    soft_factor: Weight = 1.0
    """A further factor of the teacher's term; with standardised logits the authors take 10 (alpha 0.9, T 2)."""
    standardised: bool = False
    """The KL is that of standardised logits, which have mean 0 and deviation 1 in every row (Sun et al. 2024)."""
    hard: bool = False
    """The teacher's arg max in the place of its softened classes (DeiT); the temperature does nothing then."""
    labels_loss: Annotated[str, OneOf(("ce", "bce"))] = "ce"
    """The labels' term: ce, cross entropy, or bce, the mean of each class's own, K times smaller."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hard and self.standardised:
            raise ValueError("method.standardised does nothing with method.hard: set one of them to false")

    @property
    def needs(self) -> frozenset[str]:
        """Logits, and labels where they count."""
        return task_needs(self.alpha) | {"logits"}

    @property
    def softened_at(self) -> tuple[float, ...] | None:
        """The temperature; none of the arg max, and standardised logits are of all classes."""
        if self.standardised:
            return None
        return (self.temperature,) if self.alpha > 0 and not self.hard else ()

    @property
    def is_plain(self) -> bool:
        """Whether the formula is Hinton's, without a further option."""
        return not (self.standardised or self.hard) and self.soft_factor == 1 and self.labels_loss == "ce"

    def networks(self, student: Tapped, teacher: TeacherSpec) -> dict[str, nn.Module]:
        """The student alone; ValueError for standardised logits of two classes."""
        if self.standardised and self.alpha > 0:
            check_more_than_two(teacher.num_classes, "method.standardised", "set it to false")
        return super().networks(student, teacher)

    def student_play(self, nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        """Minimise the weighted terms; one of weight 0 is left out."""
        teacher, student = sides(batch, out)
        terms = {}
        if self.alpha > 0:
            terms["soft"] = self.alpha * self.soft_factor * self._soft(student, teacher)
        if self.alpha < 1:
            assert batch.labels is not None
            loss = cross_entropy if self.labels_loss == "ce" else binary_cross_entropy
            terms["labels"] = (1 - self.alpha) * loss(student.logits, batch.labels)
        return Played(terms)

    def _soft(self, student: Outputs, teacher: Outputs) -> Tensor:
        if self.hard:
            return hard_label(student.logits, teacher.logits)
        if self.standardised:
            return soft_kl(standardised(student.logits), standardised(teacher.logits), self.temperature)
        return soft_kl(student.logits, teacher.logits, self.temperature)
