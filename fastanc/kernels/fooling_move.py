"""The student's side of the game in one launch: the discriminator judges, the features' gradient comes back.

The discriminator is frozen meanwhile: no gradient of its weights is computed, and none of its layers' outputs
is written.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs
# (a kernel's arguments are what Triton makes of them: pointers, scalars, tiles)

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastanc.kernels.backend import blocks, jit, runs_kernels, tl
from fastanc.kernels.mlp import (
    Move,
    Widths,
    adversarial_sample,
    first_layer,
    judge,
    later_layers,
    matrix,
    operand,
    slope_at_first,
    slope_at_third,
    softplus,
    verdict,
    widths,
)


def fooling_move_reference(
    student: Tensor, parameters: Sequence[Tensor], keep: Tensor | None = None, drop: float = 0.0
) -> Move:
    """`fooling_move` in plain PyTorch, for a discriminator of any depth."""
    frozen = [p.detach() for p in parameters]
    judged = judge(adversarial_sample(student.to(frozen[0].dtype), keep, drop), frozen)
    loss = F.softplus(-judged).mean()
    return Move(loss, loss.detach()[None], judged.detach()[None])


@jit
def _fooling_kernel(
    student, student_b, student_d,  # [B, D]
    keep, keep_b, keep_d, gain,  # [B, D] uint8 or None
    w1, b1, w2, b2, w3, b3, w4, b4,
    gradient,  # [B, D], contiguous, written
    judged,  # [B] fp32, written
    partial,  # [programs] fp32, written
    B, D, H1, H2, H3,
    BB: tl.constexpr, BD: tl.constexpr, BJ: tl.constexpr, P1: tl.constexpr, P3: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0) * BB + tl.arange(0, BB)
    h = tl.arange(0, P1)
    h3 = tl.arange(0, P3)
    hidden1 = first_layer(
        student, student_b, student_d, keep, keep_b, keep_d, gain, w1, b1, b, h, B, D, H1, BB, BD, P1
    )
    hidden3 = later_layers(hidden1, w2, b2, w3, b3, None, 0, b, h, h3, B, H1, H2, H3, BB, BJ, P3)
    logits = verdict(hidden3, w4, b4, h3, H3)
    tl.store(judged + b, logits, mask=b < B)
    tl.store(partial + tl.program_id(0), tl.sum(tl.where(b < B, softplus(-logits), 0.0), 0) / B)
    slope = tl.where(b < B, -tl.sigmoid(-logits) / B, 0.0)
    slope3 = slope_at_third(slope, hidden3, w4, h3, H3)
    slope1 = slope_at_first(hidden1, slope3, w2, b2, w3, None, 0, b, h, h3, B, H1, H2, H3, BB, BJ, P1)
    for start in range(0, D, BD):
        d = start + tl.arange(0, BD)
        inside = (b < B)[:, None] & (d < D)[None, :]
        slope0 = tl.dot(operand(slope1), matrix(w1, h, d, H1, D))
        if keep is not None:
            kept = tl.load(keep + b[:, None] * keep_b + d[None, :] * keep_d, mask=inside, other=0)
            slope0 = tl.where(kept != 0, slope0 * gain, 0.0)
        tl.store(gradient + b[:, None] * D + d[None, :], slope0, mask=inside)


class _FoolingMove(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, student: Tensor, keep: Tensor | None, drop: float, hidden: Widths, *parameters: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, depth = student.shape
        pieces = hidden.pieces(depth, batch)
        programs = blocks(batch, pieces["BB"])
        gradient = torch.empty_like(student, memory_format=torch.contiguous_format)
        judged, partial = student.new_empty(batch + programs, dtype=torch.float32).split([batch, programs])
        mask = (None, 0, 0) if keep is None else (keep.view(torch.uint8), *keep.stride())
        weights = [p.contiguous() for p in parameters]
        _fooling_kernel[programs,](
            student, *student.stride(), *mask, 1 / (1 - drop), *weights, gradient, judged, partial,
            batch, depth, *hidden, **pieces,
        )  # fmt: skip
        ctx.save_for_backward(gradient)
        loss = partial.sum()
        terms, judged = loss.detach()[None], judged[None]
        ctx.mark_non_differentiable(terms, judged)
        return loss, terms, judged

    @staticmethod
    def backward(ctx: Any, outer: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer, None, None, None, *([None] * 8)


def fooling_move(
    student: Tensor, parameters: Sequence[Tensor], keep: Tensor | None = None, drop: float = 0.0
) -> Move:
    """BCE(D(drop(s)), 1) through a frozen discriminator, with the gradient of the student's features alone.

    ANC section 3.5 (the inverted label). The kernel takes the bf16 products of autocast and fp32 sums; use
    it where autocast is on. It reads, per sample, 2 D bytes (bf16) and twice D of the mask, per block of
    samples the weights twice; it writes 2 D bytes a sample.

    Args:
        student: [B, D], any float type, any strides.
        parameters: `list(discriminator.parameters())`; see `discriminator_move`.
        keep: [B, D] bool, the entries that dropout leaves; None keeps all.
        drop: dropout's probability; kept entries are divided by 1 - drop.

    Returns:
        Move with terms [1] and judged [1, B].
    """
    hidden = widths(parameters)
    if hidden is None or not runs_kernels(student):
        return fooling_move_reference(student, parameters, keep, drop)
    return Move(*_FoolingMove.apply(student, keep, drop, hidden, *parameters))
