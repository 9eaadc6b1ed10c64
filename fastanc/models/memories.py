"""What a method remembers of earlier batches: buffers of a player's module, so that a checkpoint has them.

Every process remembers its own batches alone; a checkpoint keeps each one's (`training.game`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastanc.batch import Outputs
from fastanc.models.taps import Wrapper


class Memory(nn.Module):
    """Base of modules whose buffers are what one process has seen."""


class Ring(Memory):
    """The last `size` rows [size, width]: zeros at first, then the oldest is overwritten."""

    rows: Tensor
    place: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(size, width))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, values: Tensor) -> None:
        """Put rows [B, width] in the places of the oldest; of more than there are places, the first."""
        size = len(self.rows)
        values = values[:size].to(self.rows.dtype)
        places = (self.place + torch.arange(len(values), device=self.rows.device)) % size
        self.rows.index_copy_(0, places, values)
        self.place.copy_((self.place + len(values)) % size)


class ClassMeans(Memory):
    """The mean features [K, D] of every class over all images so far; zeros for a class that was not seen."""

    means: Tensor
    counts: Tensor

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(num_classes, width))
        self.register_buffer("counts", torch.zeros(num_classes))

    @torch.no_grad()
    def push(self, features: Tensor, labels: Tensor) -> None:
        """Take in features [B, D] of images of the classes [B] int64."""
        # A product, not index_add: the same bits every time on a GPU.
        member = F.one_hot(labels, len(self.means)).T.to(self.means.dtype)
        added = member.sum(1)
        self.counts.add_(added)
        gap = member @ features.to(self.means.dtype) - added[:, None] * self.means
        self.means.add_(gap / self.counts.clamp_min(1)[:, None])


class Contrasted(nn.Module):
    """CRD's teacher side: its embedding, and a bank of both networks' latest embeddings with their classes."""

    def __init__(self, teacher_dim: int, width: int, size: int) -> None:
        super().__init__()
        self.embed = nn.Linear(teacher_dim, width)
        self.students, self.teachers, self.labels = Ring(size, width), Ring(size, width), Ring(size, 1)
        self.labels.rows.fill_(-1)
        self.scales = Scales()

    def forward(self, features: Tensor) -> Tensor:
        """Return the teacher's features [B, D] as unit vectors [B, width]."""
        return F.normalize(self.embed(features), dim=1)

    def negatives(self, labels: Tensor) -> Tensor:
        """Return which rows of the bank are of another class than each of [B] labels, [B, size] bool."""
        known = self.labels.rows[:, 0]
        return (known >= 0) & (known != labels[:, None])

    @torch.no_grad()
    def push(self, student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> None:
        """Take in unit vectors [B, width] of both networks; the first batch fixes the scales."""
        self.students.push(student)
        self.teachers.push(teacher)
        self.labels.push(labels[:, None])
        for which, anchors, bank in ((0, student, self.teachers), (1, teacher, self.students)):
            seen = self.labels.rows[:, 0] >= 0
            exps = (anchors.to(bank.rows.dtype) @ bank.rows.T / temperature).exp() * seen
            self.scales.fix(which, exps.sum() / (seen.sum() * len(anchors)))


class Scales(Memory):
    """Two numbers that the first batch fixes."""

    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("values", torch.zeros(2))

    def fix(self, which: int, value: Tensor) -> None:
        """Take a positive number, unless there is one."""
        old = self.values[which].clone()
        self.values[which] = torch.where(old > 0, old, value.to(old.dtype))


class Keeping(Wrapper):
    """A student, adapted or not, with a memory beside it."""

    def __init__(self, student: nn.Module, memory: Memory) -> None:
        super().__init__()
        self.student = student
        self.memory = memory

    def changed(self, out: Outputs) -> Outputs:
        """Return the outputs as they are."""
        return out
