"""The discriminator's whole move in two launches: three samples, BCE-with-logits, every weight's gradient.

The first launch takes blocks of samples through all layers and back (`mlp.py`) and leaves the layers'
outputs and the loss's slopes, 2 (H1 + H2 + H3) entries in bf16 a sample: 2 KB for 128-256-128, which stay
in the L2. The second one multiplies them into the weights' gradients, one tile of one layer per program,
each over all samples in a fixed order: unlike atomics, bitwise reproducible.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs
# (a kernel's arguments are what Triton makes of them: pointers, scalars, tiles)

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastanc.kernels.backend import blocks, jit, power_of_two, runs_kernels, tl
from fastanc.kernels.mlp import (
    OPERAND,
    Move,
    Widths,
    adversarial_sample,
    first_layer,
    judge,
    later_layers,
    mask_of,
    operand,
    sample,
    seed_of,
    slope_at_first,
    slope_at_third,
    softplus,
    verdict,
    widths,
)

_TILE = {"BO": 32, "BI": 64, "BM": 64}


def discriminator_move_reference(
    teacher: Tensor,
    student: Tensor,
    parameters: Sequence[Tensor],
    keep: Tensor | None = None,
    drop: float = 0.0,
) -> Move:
    """`discriminator_move` in plain PyTorch, for a discriminator of any depth."""
    t, s = (sample.detach().to(parameters[0].dtype) for sample in (teacher, student))
    judged = judge(torch.cat([t, s, adversarial_sample(s, keep, drop)]), parameters).view(3, -1)
    terms = F.softplus(torch.stack([-judged[0], judged[1], -judged[2]])).mean(1)
    return Move(terms.sum(), terms.detach(), judged.detach())


@jit
def _judge_kernel(
    teacher, teacher_b, teacher_d,  # [B, D]
    student, student_b, student_d,  # [B, D]
    seed, drop,  # [1] int64 or None, and the probability
    w1, b1, w2, b2, w3, b3, w4, b4,
    acts, acts_b,  # [3B, H1 + H2 + H3] bf16, written
    slopes, slopes_b,  # [3B, H1 + H2 + H3 + 1] bf16, written
    judged,  # [3, B] fp32, written
    partial,  # [3, blocks of B] fp32, written
    B, D, H1, H2, H3,
    BB: tl.constexpr, BD: tl.constexpr, BJ: tl.constexpr, P1: tl.constexpr, P3: tl.constexpr,
):  # fmt: skip
    which = tl.program_id(1)
    b = tl.program_id(0) * BB + tl.arange(0, BB)
    h = tl.arange(0, P1)
    h3 = tl.arange(0, P3)
    inside = (b < B)[:, None]
    if which == 0:
        hidden1 = first_layer(teacher, teacher_b, teacher_d, None, drop, w1, b1, b, h, B, D, H1, BB, BD, P1)
    elif which == 1:
        hidden1 = first_layer(student, student_b, student_d, None, drop, w1, b1, b, h, B, D, H1, BB, BD, P1)
    else:
        hidden1 = first_layer(student, student_b, student_d, seed, drop, w1, b1, b, h, B, D, H1, BB, BD, P1)
    acts += which * B * acts_b
    slopes += which * B * slopes_b
    tl.store(acts + b[:, None] * acts_b + h[None, :], hidden1, mask=inside & (h < H1)[None, :])
    hidden3 = later_layers(hidden1, w2, b2, w3, b3, acts + H1, acts_b, b, h, h3, B, H1, H2, H3, BB, BJ, P3)
    place3 = b[:, None] * acts_b + H1 + H2 + h3[None, :]
    tl.store(acts + place3, hidden3, mask=inside & (h3 < H3)[None, :])

    logits = verdict(hidden3, w4, b4, h3, H3)
    tl.store(judged + which * B + b, logits, mask=b < B)
    sign = tl.where(which == 1, 1.0, -1.0)  # targets 1, 0, 1
    loss = tl.where(b < B, softplus(sign * logits), 0.0)
    tl.store(partial + which * tl.num_programs(0) + tl.program_id(0), tl.sum(loss, 0) / B)
    slope = tl.where(b < B, sign * tl.sigmoid(sign * logits) / B, 0.0)
    tl.store(slopes + b * slopes_b + H1 + H2 + H3, slope, mask=b < B)

    slope3 = slope_at_third(slope, hidden3, w4, h3, H3)
    place3 = b[:, None] * slopes_b + H1 + H2 + h3[None, :]
    tl.store(slopes + place3, slope3, mask=inside & (h3 < H3)[None, :])
    slope1 = slope_at_first(
        hidden1, slope3, w2, b2, w3, slopes + H1, slopes_b, b, h, h3, B, H1, H2, H3, BB, BJ, P1
    )
    tl.store(slopes + b[:, None] * slopes_b + h[None, :], slope1, mask=inside & (h < H1)[None, :])


@jit
def _slope_tile(slopes, slopes_b, m, o, rows, outs):
    """Slopes [m, o] of one layer."""
    return tl.load(
        slopes + m[:, None] * slopes_b + o[None, :], mask=(m < rows)[:, None] & (o < outs)[None, :], other=0
    )


@jit
def _store_tile(flat, weight, bias, o, i, outs, ins, tile_i):
    """Write a tile of a layer's weight gradient, and the bias's from the tiles of the first column."""
    tl.store(flat + o[:, None] * ins + i[None, :], weight, mask=(o < outs)[:, None] & (i < ins)[None, :])
    if tile_i == 0:
        tl.store(flat + outs * ins + o, bias, mask=o < outs)


@jit
def _layer_gradient(
    acts, acts_b, slopes, slopes_b, flat, tile, rows, outs, ins,
    BO: tl.constexpr, BI: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """One tile of a later layer's gradient: slopes^T acts, summed over all samples."""
    across = tl.cdiv(ins, BI)
    o = (tile // across) * BO + tl.arange(0, BO)
    i = (tile % across) * BI + tl.arange(0, BI)
    weight = tl.zeros((BO, BI), dtype=tl.float32)
    bias = tl.zeros((BO,), dtype=tl.float32)
    for start in range(0, rows, BM):
        m = start + tl.arange(0, BM)
        slope = _slope_tile(slopes, slopes_b, m, o, rows, outs)
        act = tl.load(
            acts + m[:, None] * acts_b + i[None, :], mask=(m < rows)[:, None] & (i < ins)[None, :], other=0
        )
        weight = tl.dot(tl.trans(operand(slope)), operand(act), weight)
        bias += tl.sum(slope.to(tl.float32), 0)
    _store_tile(flat, weight, bias, o, i, outs, ins, tile % across)


@jit
def _first_gradient(
    teacher, teacher_b, teacher_d, student, student_b, student_d, seed, drop,
    slopes, slopes_b, flat, tile, B, D, H1, BO: tl.constexpr, BI: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """One tile of the first layer's gradient; its inputs are the three samples themselves."""
    across = tl.cdiv(D, BI)
    o = (tile // across) * BO + tl.arange(0, BO)
    i = (tile % across) * BI + tl.arange(0, BI)
    weight = tl.zeros((BO, BI), dtype=tl.float32)
    bias = tl.zeros((BO,), dtype=tl.float32)
    for start in range(0, B, BM):
        b = start + tl.arange(0, BM)
        on_teacher = _slope_tile(slopes, slopes_b, b, o, B, H1)
        on_student = _slope_tile(slopes + B * slopes_b, slopes_b, b, o, B, H1)
        on_adversarial = _slope_tile(slopes + 2 * B * slopes_b, slopes_b, b, o, B, H1)
        t = sample(teacher, teacher_b, teacher_d, None, drop, b, i, B, D)
        s = sample(student, student_b, student_d, None, drop, b, i, B, D)
        a = sample(student, student_b, student_d, seed, drop, b, i, B, D)
        weight = tl.dot(tl.trans(operand(on_teacher)), operand(t), weight)
        weight = tl.dot(tl.trans(operand(on_student)), operand(s), weight)
        weight = tl.dot(tl.trans(operand(on_adversarial)), operand(a), weight)
        bias += tl.sum(
            on_teacher.to(tl.float32) + on_student.to(tl.float32) + on_adversarial.to(tl.float32), 0
        )
    _store_tile(flat, weight, bias, o, i, H1, D, tile % across)


@jit
def _weights_kernel(
    teacher, teacher_b, teacher_d, student, student_b, student_d, seed, drop,
    acts, acts_b, slopes, slopes_b, partial, parts,
    flat,  # the gradient of all parameters, in their order, fp32, written
    loss, terms,  # scalar and [3], fp32, written
    B, D, H1, H2, H3,
    PARTS: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    rows = 3 * B
    second = tl.cdiv(H1, BO) * tl.cdiv(D, BI)
    third = second + tl.cdiv(H2, BO) * tl.cdiv(H1, BI)
    fourth = third + tl.cdiv(H3, BO) * tl.cdiv(H2, BI)
    last = fourth + tl.cdiv(H3, BI)
    flat2 = flat + H1 * D + H1
    flat3 = flat2 + H2 * H1 + H2
    flat4 = flat3 + H3 * H2 + H3
    tile = tl.program_id(0)
    if tile < second:
        _first_gradient(
            teacher, teacher_b, teacher_d, student, student_b, student_d, seed, drop,
            slopes, slopes_b, flat, tile, B, D, H1, BO, BI, BM,
        )  # fmt: skip
    elif tile < third:
        _layer_gradient(acts, acts_b, slopes + H1, slopes_b, flat2, tile - second, rows, H2, H1, BO, BI, BM)
    elif tile < fourth:
        _layer_gradient(
            acts + H1, acts_b, slopes + H1 + H2, slopes_b, flat3, tile - third, rows, H3, H2, BO, BI, BM
        )
    elif tile < last:
        at = H1 + H2
        slopes += at + H3
        _layer_gradient(acts + at, acts_b, slopes, slopes_b, flat4, tile - fourth, rows, 1, H3, 16, BI, BM)
    else:
        part = tl.arange(0, PARTS)
        total = 0.0
        for which in range(3):
            term = tl.sum(tl.load(partial + which * parts + part, mask=part < parts, other=0), 0)
            tl.store(terms + which, term)
            total += term
        tl.store(loss, total)


def _launch(
    teacher: Tensor,
    student: Tensor,
    seed: Tensor | None,
    drop: float,
    parameters: Sequence[Tensor],
    hidden: Widths,
) -> tuple[Move, Tensor]:
    """Return the move and the gradient of all parameters, flat."""
    batch, depth = student.shape
    pieces, wide = hidden.pieces(depth, batch), sum(hidden)
    stride = 16 * blocks(wide + 1, 16)
    acts, slopes = student.new_empty((2, 3 * batch, stride), dtype=OPERAND).unbind()
    parts = blocks(batch, pieces["BB"])
    move = Move(*(student.new_empty(shape, dtype=torch.float32) for shape in ((), (3,), (3, batch))))
    partial = student.new_empty(3 * parts, dtype=torch.float32)
    flat = student.new_empty(sum(p.numel() for p in parameters), dtype=torch.float32)
    samples = (teacher, *teacher.stride(), student, *student.stride(), seed, drop)
    sizes = (batch, depth, *hidden)
    weights = [p.contiguous() for p in parameters]
    _judge_kernel[parts, 3](
        *samples, *weights, acts, stride, slopes, stride, move.judged, partial, *sizes, **pieces
    )
    outs, ins = (*hidden, 1), (depth, *hidden)
    tiles = sum(blocks(o, _TILE["BO"]) * blocks(i, _TILE["BI"]) for o, i in zip(outs, ins))
    _weights_kernel[tiles + 1,](
        *samples, acts, stride, slopes, stride, partial, parts, flat, move.loss, move.terms, *sizes,
        PARTS=power_of_two(parts, least=1), **_TILE, num_warps=4, num_stages=3,
    )  # fmt: skip
    return move, flat


class _DiscriminatorMove(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        teacher: Tensor,
        student: Tensor,
        seed: Tensor | None,
        drop: float,
        hidden: Widths,
        *parameters: Tensor,
    ) -> tuple[Tensor, ...]:
        move, flat = _launch(teacher, student, seed, drop, parameters, hidden)
        ctx.save_for_backward(flat)
        ctx.like = [(p.shape, p.dtype) for p in parameters]
        ctx.mark_non_differentiable(move.terms, move.judged)
        return tuple(move)

    @staticmethod
    def backward(ctx: Any, outer: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        (flat,) = ctx.saved_tensors
        pieces = (flat * outer).split([shape.numel() for shape, _ in ctx.like])
        return *[None] * 5, *(piece.view(shape).to(dtype) for piece, (shape, dtype) in zip(pieces, ctx.like))


def discriminator_move(
    teacher: Tensor,
    student: Tensor,
    parameters: Sequence[Tensor],
    drop: float = 0.0,
    seed: Tensor | None = None,
) -> Move:
    """BCE(D(t), 1) + BCE(D(s), 0) + BCE(D(drop(s)), 1), with the gradient of D's parameters alone.

    ANC eq. 2 and 7. The kernels take the bf16 products of autocast and fp32 sums. They read, per sample, 2 D bytes
    (bf16) in each launch, per block of samples the weights twice, write and read 2 KB of scratch a sample
    (128-256-128), and write the gradient once; the dropout mask is drawn where it is read.

    Args:
        teacher: [B, D], any float type, any strides; no gradient.
        student: [B, D], likewise.
        parameters: `list(discriminator.parameters())`, weights [out, in] and biases [out] in turn; the
            kernels hold three hidden layers of at most 256, another discriminator goes through the reference.
        drop: dropout's probability; kept entries are divided by 1 - drop. At 0 the adversarial sample is the
            student's.
        seed: of the mask, [1] int64, see `dropout.dropout_mask`; by default a new one, see `dropout.draw_seed`.

    Returns:
        Move with terms [3] and judged [3, B], in the order teacher, student, adversarial.
    """
    hidden = widths(parameters)
    seed = seed_of(student, drop, seed)
    if hidden is None or not runs_kernels(student):
        return discriminator_move_reference(teacher, student, parameters, mask_of(student, drop, seed), drop)
    return Move(*_DiscriminatorMove.apply(teacher, student, seed, drop, hidden, *parameters))
