"""Several teachers as one: the mean of their logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastanc.models import zoo
from fastanc.models.registered import statistics_of
from fastanc.models.taps import Tapped


class Ensemble(nn.Module):
    """Images [B, C, H, W] float 0..1 -> the mean of the members' logits [B, K]; each normalises by itself."""

    def __init__(self, members: Sequence[Tapped]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        channels = len(members[0].mean)
        # What it wants done to its images: nothing.
        self.pretrained_cfg = {"mean": (0.0,) * channels, "std": (1.0,) * channels}

    def forward(self, images: Tensor) -> Tensor:
        """Return the mean logits."""
        return torch.stack([member(images).logits for member in self.members]).mean(0)


def ensemble(teachers: Sequence[nn.Module | str]) -> Ensemble:
    """Return networks, or names with published weights, as one teacher.

    A network's own statistics normalise its images (a Tapped's, timm's pretrained_cfg), else ImageNet's do, or 0.5
    and 0.25 where it does not read three channels.
    Raises ValueError for an empty list, a name without weights, or teachers of different classes.
    """
    members = [_member(teacher) for teacher in teachers]
    if not members:
        raise ValueError("teacher is an empty list: give at least one network or name")
    counts = [member.num_classes for member in members if member.num_classes]
    if len(set(counts)) > 1:
        raise ValueError(
            f"the teachers of an ensemble know {sorted(set(counts))} classes: give some of one task"
        )
    return Ensemble(members)


def _member(teacher: nn.Module | str) -> Tapped:
    if isinstance(teacher, Tapped):
        return teacher
    if isinstance(teacher, str):
        classes = zoo.own_classes(teacher, None, image_px=224)
        if classes is None:
            raise ValueError(
                f"teacher {teacher!r} of an ensemble has no weights: write NAME@WEIGHTS, or give a network"
            )
        return zoo.build(teacher, num_classes=classes, image_px=224)
    mean, std = statistics_of(teacher)
    # As `zoo.tap` does for a single one.
    channels = next((m.in_channels for m in teacher.modules() if isinstance(m, nn.Conv2d)), 3)
    usual = (
        (zoo.IMAGENET_MEAN, zoo.IMAGENET_STD) if channels == 3 else ((0.5,) * channels, (0.25,) * channels)
    )
    # The number of classes is found with the ensemble's own; a member is only ever asked for its logits.
    return Tapped(
        teacher,
        mean=mean or usual[0],
        std=std or usual[1],
        num_classes=0,
        name=type(teacher).__name__,
    )
