"""Several teachers as one: the mean of their logits or probabilities, and their features side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastanc.batch import Outputs
from fastanc.models import zoo
from fastanc.models.probe import checked
from fastanc.models.registered import num_classes_of, statistics_of
from fastanc.models.taps import Tapped
from fastanc.models.weights import weights_digest


class Ensemble(nn.Module):
    """Images [B, C, H, W] as a Tapped takes them -> the mean of the members' logits [B, K].

    Every member normalises by itself.

    `average` "probabilities" gives log(mean(softmax)) in the place of the mean logits. `features` "concatenated" are
    the members' side by side, "first" the first one's, "none" none. The mean logits of concatenated features are one
    linear map of them, W = [W_1 | ... | W_n] / n and b = mean(b_i): the ensemble's own head, by which a cache of the
    features gives the logits back. Where there is no such map the ensemble gives logits and features, both of which a
    cache then keeps.
    """

    normalises = True

    def __init__(self, members: Sequence[Tapped], *, average: str = "logits", features: str = "none") -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.average, self.features = average, features
        if features != "none":
            for member in members if features == "concatenated" else members[:1]:
                _require_features(member)
        heads = [member.head for member in members]
        if average == "logits" and members[0].num_classes and features == "concatenated" and all(heads):
            self.head = _joined([head for head in heads if head is not None])
        channels = len(members[0].mean)
        # What it wants done to its images: nothing.
        self.pretrained_cfg = {"mean": (0.0,) * channels, "std": (1.0,) * channels}

    @property
    def networks(self) -> list[Tapped]:
        """The members."""
        return [member for member in self.members if isinstance(member, Tapped)]

    def forward(self, images: Tensor) -> Tensor | Outputs:
        """Return the logits, with features that no head of the ensemble's own reads as Outputs."""
        outputs = [member(images) for member in self.members]
        features = self._features(outputs)
        if features is not None and hasattr(self, "head"):
            return self.head(features)
        logits = torch.stack([out.logits for out in outputs])
        if self.average == "probabilities":
            mean = logits.float().log_softmax(2).logsumexp(0) - torch.tensor(len(outputs)).log()
        else:
            mean = logits.mean(0)
        return mean if features is None else Outputs(mean, features)

    def _features(self, outputs: Sequence[Outputs]) -> Tensor | None:
        if self.features == "none":
            return None
        found = [out.features for out in outputs[: 1 if self.features == "first" else None]]
        return torch.cat([features for features in found if features is not None], dim=1)


def _require_features(member: Tapped) -> None:
    if member.feature_dim is None:
        raise ValueError(
            f"{member.title} of the ensemble has no features ({member.no_head or 'no linear head'}): set"
            " teacher.member_features to none, and take a method that reads logits"
        )


@torch.no_grad()
def _joined(heads: Sequence[nn.Linear]) -> nn.Linear:
    """Return the linear map from features side by side to the mean of the heads' logits."""
    width, count = sum(head.in_features for head in heads), len(heads)
    joined = nn.utils.skip_init(nn.Linear, width, heads[0].out_features)
    joined.weight.copy_(torch.cat([head.weight / count for head in heads], dim=1))
    joined.bias.zero_()
    for head in heads:
        if head.bias is not None:
            joined.bias.add_(head.bias / count)
    return joined.requires_grad_(False)


def joined(members: Sequence[Tapped], *, average: str = "logits", features: str = "none") -> Ensemble:
    """Return networks that were built as one; ValueError for other classes, equal weights or missing features."""
    _check_classes(members)
    seen: dict[str, str] = {}
    for member in members:
        digest = weights_digest(member)
        if digest in seen:
            raise ValueError(
                f"two members of the ensemble, {seen[digest]} and {member.title}, are the same network with the same"
                " weights: name each once"
            )
        seen[digest] = member.title
    return Ensemble(members, average=average, features=features)


def _check_classes(members: Sequence[Tapped]) -> None:
    counts = {member.num_classes for member in members}
    if len(counts) > 1:
        known = ", ".join(f"{member.title} {member.num_classes or 'none'}" for member in members)
        raise ValueError(f"the teachers of an ensemble know other classes ({known}): give some of one task")


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


def rejoined(given: Ensemble, *, average: str, features: str, in_channels: int, image_px: int) -> Ensemble:
    """Return an ensemble of the same members with another mean or with features, for which they are probed."""
    if (average, features) == (given.average, given.features):
        return given
    members = []
    for member in given.networks:
        fresh = Tapped(
            member.bare,
            mean=member.mean,
            std=member.std,
            num_classes=member.num_classes or num_classes_of(member.bare, in_channels, image_px),
            name=member.name,
            in_channels=in_channels,
            image_px=image_px,
        )
        members.append(checked(fresh))
    return joined(members, average=average, features=features)


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
