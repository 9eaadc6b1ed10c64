"""What SRRL, ReviewKD and a sum of methods put around a student."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastanc.batch import Outputs
from fastanc.losses import fp32
from fastanc.models.taps import Tapped, Wrapper, changed_by


class Connected(Wrapper):
    """A student whose features pass a connector to the teacher's width, beside the teacher's head."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, student: Tapped, head: nn.Linear, *, rectified: bool) -> None:
        super().__init__()
        assert student.feature_dim is not None
        self.student = student
        linear = nn.Linear(student.feature_dim, head.in_features, bias=not rectified)
        parts = (linear, nn.BatchNorm1d(head.in_features), nn.ReLU()) if rectified else (linear,)
        self.connector = nn.Sequential(*parts)
        # The teacher's, which a run has anyway: not in a checkpoint.
        self.register_buffer("weight", head.weight.detach().float().clone(), persistent=False)
        bias = None if head.bias is None else head.bias.detach().float().clone()
        self.register_buffer("bias", bias, persistent=False)

    def changed(self, out: Outputs) -> Outputs:
        """Return the outputs with features [B, D of the teacher]."""
        return out._replace(features=self.connector(out.features))

    def through_head(self, features: Tensor) -> Tensor:
        """Return the teacher's logits [B, K] of features [B, D of the teacher]."""
        bias = None if self.bias is None else self.bias.to(features.dtype)
        return F.linear(features, self.weight.to(features.dtype), bias)


class Fusion(nn.Module):
    """ReviewKD's ABF: a map and what comes from the next deeper level -> a map for the teacher, one for the next."""

    def __init__(self, channels: int, middle: int, target: int, *, fuses: bool) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(channels, middle, 1, bias=False), nn.BatchNorm2d(middle))
        self.leave = nn.Sequential(
            nn.Conv2d(middle, target, 3, padding=1, bias=False), nn.BatchNorm2d(target)
        )
        self.attend = nn.Sequential(nn.Conv2d(2 * middle, 2, 1), nn.Sigmoid()) if fuses else None
        for block in (self.enter, self.leave):
            nn.init.kaiming_uniform_(next(block.parameters()), a=1)

    def forward(self, own: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return [B, target, H, W] and [B, middle, H, W]."""
        x = self.enter(own)
        if self.attend is not None:
            assert deeper is not None
            y = F.interpolate(deeper, x.shape[-2:], mode="nearest")
            shares = self.attend(torch.cat([x, y], dim=1))
            x = x * shares[:, :1] + y * shares[:, 1:]
        return self.leave(x), x


class Reviewed(Wrapper):
    """A student whose stage maps and features, fused from deep to shallow, have the teacher's channels."""

    def __init__(self, student: Tapped, channels: Sequence[int], targets: Sequence[int]) -> None:
        """Put fusions around a student; channels are of its stages, shallow to deep, then of its features."""
        super().__init__()
        self.student = student
        middle = min(512, channels[-1])
        self.fusions = nn.ModuleList(
            Fusion(own, middle, target, fuses=level < len(channels) - 1)
            for level, (own, target) in enumerate(zip(channels, targets, strict=True))
        )

    def changed(self, out: Outputs) -> Outputs:
        """Return the outputs with fused stage maps and features."""
        assert out.stages is not None
        assert out.features is not None
        maps = [*out.stages, out.features[:, :, None, None]]
        fused: list[Tensor] = []
        deeper: Tensor | None = None
        for own, fusion in zip(reversed(maps), reversed(self.fusions)):
            made, deeper = fusion(own, deeper)
            fused.insert(0, made)
        return out._replace(stages=tuple(fused[:-1]), features=fused[-1].flatten(1))


class Shared(Wrapper):
    """A tapped student that several methods have wrapped, each in its own way: images -> the tapped one's Outputs."""

    def __init__(self, student: Tapped, players: Sequence[nn.Module]) -> None:
        super().__init__()
        self.student = student
        self.players = nn.ModuleList(players)

    def changed(self, out: Outputs) -> Outputs:
        """Return the outputs as they are; what each method's wrappers make of them follows in its play."""
        return out

    def every(self, images: Tensor) -> list[Outputs]:
        """Return the tapped network's outputs and all that follow from them: what any weight may count for."""
        out = self(images)
        return [out, *(self.seen_by(number, out) for number in range(len(self.players)))]

    def seen_by(self, number: int, out: Outputs) -> Outputs:
        """Return what one method's wrappers make of the outputs, in fp32: a play is outside of the autocast."""
        wide = Outputs(
            fp32(out.logits),
            None if out.features is None else fp32(out.features),
            None if out.stages is None else tuple(map(fp32, out.stages)),
            out.descriptors,
        )
        return changed_by(self.players[number], wide)
