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
    dropped,
    first_layer,
    judge,
    later_layers,
    mask_of,
    matrix,
    operand,
    seed_of,
    slope_at_first,
    slope_at_third,
    softplus,
    verdict,
    widths,
)

_PROGRAMS = 128  # as many as a large GPU runs at once


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
    seed, drop,  # [1] int64 or None, and the probability
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
    hidden1 = first_layer(student, student_b, student_d, seed, drop, w1, b1, b, h, B, D, H1, BB, BD, P1)
    hidden3 = later_layers(hidden1, w2, b2, w3, b3, None, 0, b, h, h3, B, H1, H2, H3, BB, BJ, P3)
    logits = verdict(hidden3, w4, b4, h3, H3)
    if tl.program_id(1) == 0:
        tl.store(judged + b, logits, mask=b < B)
        tl.store(partial + tl.program_id(0), tl.sum(tl.where(b < B, softplus(-logits), 0.0), 0) / B)
    slope = tl.where(b < B, -tl.sigmoid(-logits) / B, 0.0)
    slope3 = slope_at_third(slope, hidden3, w4, h3, H3)
    slope1 = slope_at_first(hidden1, slope3, w2, b2, w3, None, 0, b, h, h3, B, H1, H2, H3, BB, BJ, P1)
    # each program of a block of samples has judged all of it, and writes its own columns of the gradient
    for start in range(tl.program_id(1) * BD, D, tl.num_programs(1) * BD):
        d = start + tl.arange(0, BD)
        inside = (b < B)[:, None] & (d < D)[None, :]
        slope0 = tl.dot(operand(slope1), matrix(w1, h, d, H1, D))
        tl.store(gradient + b[:, None] * D + d[None, :], dropped(slope0, seed, drop, b, d, D), mask=inside)


class _FoolingMove(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, student: Tensor, seed: Tensor | None, drop: float, hidden: Widths, *parameters: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, depth = student.shape
        pieces = hidden.pieces(depth, batch)
        programs, columns = blocks(batch, pieces["BB"]), blocks(depth, pieces["BD"])
        gradient = student.new_empty((batch, depth), dtype=torch.float32)  # fp16 may not hold it unscaled
        judged, partial = student.new_empty(batch + programs, dtype=torch.float32).split([batch, programs])
        weights = [p.contiguous() for p in parameters]
        _fooling_kernel[programs, max(1, min(columns, _PROGRAMS // programs))](
            student, *student.stride(), seed, drop, *weights, gradient, judged, partial,
            batch, depth, *hidden, **pieces,
        )  # fmt: skip
        ctx.save_for_backward(gradient)
        ctx.dtype = student.dtype
        loss = partial.sum()
        terms, judged = loss.detach()[None], judged[None]
        ctx.mark_non_differentiable(terms, judged)
        return loss, terms, judged

    @staticmethod
    def backward(ctx: Any, outer: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * outer).to(ctx.dtype), *[None] * 11


def fooling_move(
    student: Tensor, parameters: Sequence[Tensor], drop: float = 0.0, seed: Tensor | None = None
) -> Move:
    """BCE(D(drop(s)), 1) through a frozen discriminator, with the gradient of the student's features alone.

    ANC section 3.5 (the inverted label). The kernel takes the bf16 products of autocast and fp32 sums. It reads,
    per sample, 2 D bytes (bf16), per program the weights twice; it writes 4 D bytes a sample.

    Args:
        student: [B, D], any float type, any strides.
        parameters: `list(discriminator.parameters())`; see `discriminator_move`.
        drop: dropout's probability; kept entries are divided by 1 - drop.
        seed: of the mask, [1] int64; see `discriminator_move`.

    Returns:
        Move with terms [1] and judged [1, B].
    """
    hidden = widths(parameters)
    seed = seed_of(student, drop, seed)
    if hidden is None or not runs_kernels(student):
        return fooling_move_reference(student, parameters, mask_of(student, drop, seed), drop)
    return Move(*_FoolingMove.apply(student, seed, drop, hidden, *parameters))
