"""A student as others run it: nothing of a game around it, its normalisation inside."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from fastanc.models.headless import features_in
from fastanc.models.taps import logits_of, unwrapped


class Classifier(nn.Module):
    """A student without taps, adapter and the like: images [B, C, H, W] float 0..1 -> logits [B, K].

    One that knows no classes gives its features [B, D].
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        own = copy.deepcopy(unwrapped(student)).cpu().eval().requires_grad_(False)
        own.to(memory_format=torch.contiguous_format)
        self.bare, self.headless = own.bare, own.headless
        self.register_buffer("scale", own.scale)
        self.register_buffer("shift", own.shift)

    @property
    def gives(self) -> str:
        """What an ONNX program calls its output."""
        return "features" if self.headless else "logits"

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits or features; the normalisation is inside."""
        return self.answer(torch.addcmul(self.shift, images, self.scale))

    def answer(self, normalised: Tensor) -> Tensor:
        """Return the logits or features of images that are normalised."""
        output = self.bare(normalised)
        return features_in(output) if self.headless else logits_of(output)


class Unchecked(Exception):
    """A file that may be right and cannot be run here; the message says why."""


def compare(logits: Tensor, expected: Tensor, path: Path, within: float = 1e-4) -> None:
    """Raise RuntimeError where a file's logits are not the student's, up to a share of the largest."""
    worst = (logits - expected).abs().max().item()
    if not worst <= within * max(1.0, expected.abs().max().item()):
        raise RuntimeError(
            f"{path} gives other logits than the student (by up to {worst:.2g}): nothing was"
            " written, leave that format out"
        )


def brief(error: Exception) -> str:
    """Return an error in one line."""
    return f"{type(error).__name__}: {(str(error) or 'no message').splitlines()[0]}"
