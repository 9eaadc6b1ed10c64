"""KSANC's task-driven attention: stage maps squeezed to descriptors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastanc.batch import Outputs
from fastanc.models.taps import Tapped, Wrapper


class StageAttention(nn.Module):
    """One stage's estimator: map [B, C, H, W] and global descriptor [B, G, 1, 1] -> descriptor [B, C].

    Lhat = L + conv(g), M = softmax over H x W of conv(Lhat), g~ = M * (L or Lhat), pooled (KSANC, 3.2).
    """

    def __init__(self, channels: int, global_dim: int, *, attend_on: str, pooling: str) -> None:
        super().__init__()
        self.lift = nn.Conv2d(global_dim, channels, 1)
        self.score = nn.Conv2d(channels, 1, 1, bias=False)
        self.attend_on = attend_on
        self.pooling = pooling

    def forward(self, stage: Tensor, descriptor: Tensor) -> Tensor:
        """Return the squeezed descriptor [B, C]."""
        lifted = stage + self.lift(descriptor)
        weights = self.score(lifted).flatten(2).softmax(dim=2)
        values = (stage if self.attend_on == "raw" else lifted).flatten(2)
        attended = values * weights
        return attended.sum(2) if self.pooling == "sum" else attended.mean(2)


class AttentionEstimators(nn.Module):
    """A network's attention estimators on all its stage maps: Outputs -> squeezed descriptors [B, F].

    F is the sum of the target channels. The student's side gets `target_channels`, the teacher's C_i, and a
    1x1 channel transform in front of each estimator; the teacher's side leaves them out. The global
    descriptor g^b is a linear map of the features to `global_dim` numbers. `attend_on` "raw" multiplies the
    attention with the stage map (the paper's figure), "sum" with map plus descriptor (its equation);
    `pooling` "sum" is the attention-weighted sum, "mean" divides it by H * W as printed.
    Raises ValueError for an option that is neither, or when the numbers of stages differ.
    """

    def __init__(
        self,
        feature_dim: int,
        stage_channels: Sequence[int],
        target_channels: Sequence[int] | None = None,
        *,
        global_dim: int = 128,
        attend_on: Literal["raw", "sum"] = "raw",
        pooling: Literal["sum", "mean"] = "sum",
    ) -> None:
        super().__init__()
        if attend_on not in ("raw", "sum"):
            raise ValueError(f"attend_on {attend_on!r} is unknown: use raw or sum")
        if pooling not in ("sum", "mean"):
            raise ValueError(f"pooling {pooling!r} is unknown: use sum or mean")
        targets = tuple(stage_channels if target_channels is None else target_channels)
        if len(targets) != len(stage_channels):
            raise ValueError(
                f"the student has {len(stage_channels)} stage maps and the teacher {len(targets)}: "
                "name equally many stages of both"
            )
        self.options = {"global_dim": global_dim, "attend_on": attend_on, "pooling": pooling}
        self.descriptor_dim = sum(targets)
        self.describe = nn.Conv2d(feature_dim, global_dim, 1)
        self.transforms = nn.ModuleList(
            nn.Identity() if target_channels is None else nn.Conv2d(own, target, 1)
            for own, target in zip(stage_channels, targets)
        )
        self.estimators = nn.ModuleList(
            StageAttention(channels, global_dim, attend_on=attend_on, pooling=pooling) for channels in targets
        )

    def forward(self, outputs: Outputs) -> Tensor:
        """Return the squeezed descriptors of all stages, concatenated, [B, F]."""
        assert outputs.features is not None
        assert outputs.stages is not None
        descriptor = self.describe(outputs.features[:, :, None, None])
        squeezed = [
            estimate(transform(stage), descriptor)
            for stage, transform, estimate in zip(outputs.stages, self.transforms, self.estimators)
        ]
        return torch.cat(squeezed, dim=1)


class Squeezed(Wrapper):
    """A tapped network with its estimators: images -> Outputs with descriptors; `.student` is exported."""

    def __init__(self, student: Tapped, estimators: AttentionEstimators):
        super().__init__()
        self.student = student
        self.estimators = estimators
        self.name, self.num_classes, self.feature_dim = student.name, student.num_classes, student.feature_dim
        self.stage_names = student.stage_names

    @property
    def head(self) -> nn.Linear | None:
        """The network's last linear layer."""
        return self.student.head

    def stage_channels(self, image_px: int | None = None, in_channels: int | None = None) -> tuple[int, ...]:
        """Return C_i of every stage map of the network."""
        return self.student.stage_channels(image_px, in_channels)

    def changed(self, out: Outputs) -> Outputs:
        """Return the network's outputs with the descriptors [B, F] of all stages, shallow to deep."""
        return out._replace(descriptors=self.estimators(out))


def estimators_for(
    network: Tapped, target_channels: Sequence[int] | None = None, **options: Any
) -> AttentionEstimators:
    """Return estimators for a network's stages; ValueError where it has none, or no features."""
    if not network.stage_names:
        raise ValueError(
            f"ksanc needs stage maps of {network.name}: name modules in student.stages and teacher.stages"
        )
    if network.feature_dim is None:
        why = network.no_head or "name one"
        raise ValueError(f"ksanc needs the features of {network.name}, which has no linear head: {why}")
    return AttentionEstimators(network.feature_dim, network.stage_channels(), target_channels, **options)
