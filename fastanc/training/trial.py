"""The trial: the student trained on a batch of the run's shape, and nothing moved, before the first data is read."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from fastanc.batch import Batch
from fastanc.models.connectors import Shared
from fastanc.models.taps import Tapped, unwrapped
from fastanc.teacher.online import Online

_MOST = 2  # what goes through with two images goes through with more


def try_student(network: nn.Module, images: int, channels: int, image_px: int) -> tuple[str, ...]:
    """Pass a batch through the student in training mode; freeze what no output depends on, and say it.

    A parameter without a gradient stops several processes, which wait for it, and learns nothing in one. Buffers,
    gradients and random numbers stay as they are.

    Args:
        network: the student with what the method puts around it, in training mode.
        images: of a pass of one process.
        channels: of an image.
        image_px: its side.

    Returns:
        Sentences for the log.

    Raises:
        ValueError: it cannot be trained on such a batch, its logits are not finite, or nothing in it learns.
    """
    student, named = unwrapped(network), dict(network.named_parameters())
    learning = {name: weight for name, weight in named.items() if weight.requires_grad}
    if not learning:
        raise ValueError(
            f"the student {student.title} has no weights to train: let some require a gradient, or take another"
        )
    before = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        place = student.scale.device
        with torch.random.fork_rng([place] if place.type == "cuda" else []), torch.enable_grad():
            torch.default_generator.manual_seed(0)
            gradients = _gradients(network, student, list(learning.values()), images, channels, image_px)
    finally:
        with torch.no_grad():
            for buffer, kept in before:
                buffer.copy_(kept)
    unused = [name for name, gradient in zip(learning, gradients) if gradient is None]
    for name in unused:
        learning[name].requires_grad_(False)
    if not unused:
        return ()
    some = ", ".join(unused[:3]) + (f" and {len(unused) - 3} more" if len(unused) > 3 else "")
    return (f"the student's logits do not depend on {some}: these weights stay as they are",)


def try_teacher(teacher: Online, images: int, channels: int, image_px: int) -> None:
    """Pass a batch through the teacher as it will be run; ValueError where its logits are none, or not finite."""
    network = unwrapped(teacher.network)
    shape = (min(images, _MOST), channels, image_px, image_px)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, shape, dtype=torch.uint8, generator=generator).to(network.scale.device)
    nobody = np.zeros(len(pixels), np.int64)
    out = teacher.untouched(Batch(images=pixels, index=nobody, view=nobody, labels=None, step=0))
    parts = [part for part in (out.logits, out.features, out.descriptors) if part is not None]
    if not all(bool(part.isfinite().all()) for part in parts):
        raise ValueError(
            f"the teacher {network.title} gives numbers that are not finite: set teacher.precision to fp32 or bf16"
            " where it is fp16, else name sound weights"
        )
    sums = out.logits.double().sum(1)
    if bool((out.logits >= 0).all()) and bool(((sums - 1).abs() < 1e-3).all()) and network.num_classes > 1:
        # Distilled as logits they would be nearly uniform, silently; logits come to 1 by no chance.
        raise ValueError(
            f"the teacher {network.title} gives probabilities, whose sum is 1, in the place of logits: leave out the"
            " softmax at its end"
        )


def _gradients(
    network: nn.Module, student: Tapped, weights: list[Tensor], images: int, channels: int, image_px: int
) -> tuple[Tensor | None, ...]:
    count, place = min(images, _MOST), student.scale.device
    batch = torch.randint(256, (count, channels, image_px, image_px), dtype=torch.uint8, device=place)
    try:
        outputs = network.every(batch) if isinstance(network, Shared) else [network(batch)]
        out = outputs[0]
        parts = [part for o in outputs for part in (o.logits, o.features, *(o.stages or ()), o.descriptors)]
        total = torch.stack([part.float().sum() for part in parts if part is not None]).sum()
        gradients = torch.autograd.grad(total, weights, allow_unused=True)
    except Exception as error:  # whatever a network says to a batch that it cannot take
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
        raise ValueError(
            f"the student {student.title} cannot be trained on {images} image{'s' * (images != 1)} of {image_px} x"
            f" {image_px} in a process's pass ({reason}): change data.batch or data.image_px, or take another network"
        ) from error
    if not bool(out.logits.isfinite().all()):
        raise ValueError(
            f"the student {student.title} gives logits that are not finite: name sound weights, or another network"
        )
    return gradients
