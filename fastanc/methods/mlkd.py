"""Multi-level logit distillation (Jin, Wang, Lin, CVPR 2023; code: logit-standardization-KD's MLKD)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastanc.batch import Batch, Outputs
from fastanc.fields import Temperature, Weight
from fastanc.later import nn, torch
from fastanc.losses import cross_entropy, soft_kl
from fastanc.losses_of_logits import check_more_than_two, gram_losses, standardised
from fastanc.methods.base import Method, Nets, Played, TeacherSpec, Warming, sides

if TYPE_CHECKING:
    from fastanc.models.taps import Tapped


@Method.register_subclass("mlkd")
@dataclass(frozen=True, kw_only=True)
class Mlkd(Warming):
    """KL, batch Gram and class Gram of the softened classes at several temperatures, + cross entropy.

    Departs from the authors' code: one view of an image, not a weak and a strong one, and every term with the paper's
    weight, where the code's masks halve those of the weak view. The Gram matrices are of this process's part of the
    batch.
    """

    temperatures: tuple[Temperature, ...] = (2.0, 3.0, 4.0, 5.0, 6.0)
    """Softmax temperatures; every term is summed over them."""
    instance_weight: Weight = 0.9
    """Factor of T^2 KL."""
    batch_weight: Weight = 0.9
    """Factor of the squared distance of the images' Gram matrices, over B."""
    class_weight: Weight = 0.9
    """Factor of the squared distance of the classes' Gram matrices, over K."""
    labels_weight: Weight = 0.1
    """Factor of the cross entropy; 0 needs no labels."""
    standardised: bool = False
    """The KL is that of standardised logits, the Gram matrices are not (Sun et al. 2024; weights 9 there)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperatures:
            raise ValueError("method.temperatures is empty: name one or more, such as 2,4")

    @property
    def needs(self) -> frozenset[str]:
        """Logits, and labels where they count."""
        return frozenset({"logits", "soft_labels"} if self.labels_weight else {"logits"})

    @property
    def softened_at(self) -> tuple[float, ...] | None:
        """The temperatures; standardised logits are of all classes."""
        return None if self.standardised else self.temperatures

    def networks(self, student: Tapped, teacher: TeacherSpec) -> dict[str, nn.Module]:
        """The student alone; ValueError for standardised logits of two classes."""
        if self.standardised:
            check_more_than_two(teacher.num_classes, "method.standardised", "set it to false")
        return super().networks(student, teacher)

    def student_play(self, nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        """Minimise the four terms."""
        teacher, student = sides(batch, out)
        s, t = student.logits, teacher.logits
        images, classes = gram_losses(s, t, self.temperatures)
        if self.standardised:
            s, t = standardised(s), standardised(t)
        instance = torch.stack([soft_kl(s, t, temperature) for temperature in self.temperatures]).sum()
        terms = {
            "instance": self.instance_weight * instance,
            "images": self.batch_weight * images,
            "classes": self.class_weight * classes,
        }
        if self.labels_weight:
            assert batch.labels is not None
            terms["labels"] = self.labels_weight * cross_entropy(student.logits, batch.labels)
        return Played(terms)
