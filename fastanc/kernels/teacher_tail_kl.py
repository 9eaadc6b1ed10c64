"""The cached teacher's tail with Hinton's loss: row -> head -> softened softmax -> KL against the student's.

A softmax needs its whole row, and a row's classes are spread over programs. So there are two launches: the
first leaves, per tile of classes, the online softmax's parts; the second puts them together, computes its
tile's logits again and writes the gradient. The teacher's logits never reach memory. See `teacher_tail.py`
for rows and head.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs
# (a kernel's arguments are what Triton makes of them: pointers, scalars, tiles)

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastanc.kernels.backend import blocks, jit, power_of_two, runs_kernels, tl
from fastanc.kernels.teacher_tail import Tile, student_tile, teacher_logits, teacher_tile, tile_for


def head_kl_reference(
    student_logits: Tensor,
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """`head_kl` in plain PyTorch."""
    teacher = teacher_logits(rows, weight, bias, scale)
    log_p = F.log_softmax(teacher / temperature, dim=1)
    log_q = F.log_softmax(student_logits.to(teacher.dtype) / temperature, dim=1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * temperature**2


@jit
def _softmax_part(logits, counted):
    """Largest logit and sum of exp(logit - largest) of each row of a tile."""
    largest = tl.max(tl.where(counted, logits, float("-inf")), 1)
    return largest, tl.sum(tl.where(counted, tl.exp(logits - largest[:, None]), 0.0), 1)


@jit
def _parts_kernel(
    student, student_b, student_k,  # [B, K]
    rows, rows_b, rows_d, scale, weight, weight_k, weight_d, bias,
    parts,  # [5, tiles, B] fp32, written: teacher's max and sum, student's max and sum, sum of e^t (t - s)
    cold,  # 1 / temperature
    B, K, D,
    BB: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0) * BB + tl.arange(0, BB)
    k = tl.program_id(1) * BK + tl.arange(0, BK)
    # a row beyond the batch takes part with finite logits and is not stored
    counted = (k < K)[None, :]
    t = cold * teacher_tile(
        rows, rows_b, rows_d, scale, weight, weight_k, weight_d, bias, b, k, B, K, D, BB, BK, BD
    )
    s = cold * student_tile(student, student_b, student_k, b, k, B, K)
    t_max, t_sum = _softmax_part(t, counted)
    s_max, s_sum = _softmax_part(s, counted)
    crossed = tl.sum(tl.where(counted, tl.exp(t - t_max[:, None]) * (t - s), 0.0), 1)
    place = parts + tl.program_id(1) * B + b
    plane = tl.num_programs(1) * B
    tl.store(place, t_max, mask=b < B)
    tl.store(place + plane, t_sum, mask=b < B)
    tl.store(place + 2 * plane, s_max, mask=b < B)
    tl.store(place + 3 * plane, s_sum, mask=b < B)
    tl.store(place + 4 * plane, crossed, mask=b < B)


@jit
def _gradient_kernel(
    student, student_b, student_k,
    rows, rows_b, rows_d, scale, weight, weight_k, weight_d, bias,
    parts,
    gradient,  # [B, K], contiguous, written
    partial,  # [row blocks] fp32, written
    cold, B, K, D,
    TILES: tl.constexpr, BB: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0) * BB + tl.arange(0, BB)
    k = tl.program_id(1) * BK + tl.arange(0, BK)
    tile = tl.arange(0, TILES)
    known = (tile < tl.num_programs(1))[:, None] & (b < B)[None, :]
    place = parts + tile[:, None] * B + b[None, :]
    plane = tl.num_programs(1) * B
    # a row beyond the batch reads one pretended tile, so that nothing divides 0 by 0
    absent = tl.where(tile == 0, 0.0, float("-inf"))[:, None]
    t_max = tl.where(known, tl.load(place, mask=known, other=0), absent)
    s_max = tl.where(known, tl.load(place + 2 * plane, mask=known, other=0), absent)
    t_top = tl.max(t_max, 0)
    s_top = tl.max(s_max, 0)
    share = tl.exp(t_max - t_top[None, :])
    t_sum = tl.sum(share * tl.load(place + plane, mask=known, other=1), 0)
    s_sum = tl.sum(tl.exp(s_max - s_top[None, :]) * tl.load(place + 3 * plane, mask=known, other=1), 0)
    t_lse = t_top + tl.log(t_sum)
    s_lse = s_top + tl.log(s_sum)
    if tl.program_id(1) == 0:
        crossed = tl.sum(share * tl.load(place + 4 * plane, mask=known, other=0), 0)
        divergence = tl.where(b < B, crossed / t_sum - t_lse + s_lse, 0.0)
        tl.store(partial + tl.program_id(0), tl.sum(divergence, 0) / (B * cold * cold))

    t = cold * teacher_tile(
        rows, rows_b, rows_d, scale, weight, weight_k, weight_d, bias, b, k, B, K, D, BB, BK, BD
    )
    s = cold * student_tile(student, student_b, student_k, b, k, B, K)
    excess = tl.exp(s - s_lse[:, None]) - tl.exp(t - t_lse[:, None])
    inside = (b < B)[:, None] & (k < K)[None, :]
    tl.store(gradient + b[:, None] * K + k[None, :], excess / (B * cold), mask=inside)


class _Kl(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: Tensor | None,
        temperature: float,
        tile: Tile,
    ) -> Tensor:
        (batch, classes), depth = student.shape, rows.shape[1]
        grid = (blocks(batch, tile.rows), blocks(classes, tile.classes))
        parts = student.new_empty((5, grid[1], batch), dtype=torch.float32)
        partial = student.new_empty(grid[0], dtype=torch.float32)
        gradient = torch.empty_like(student, memory_format=torch.contiguous_format)
        operands = (
            student, *student.stride(), rows, *rows.stride(), scale, weight, *weight.stride(), bias, parts
        )  # fmt: skip
        sizes = (1 / temperature, batch, classes, depth)
        _parts_kernel[grid](*operands, *sizes, **tile.options())
        tiles = power_of_two(grid[1], least=1)
        _gradient_kernel[grid](*operands, gradient, partial, *sizes, TILES=tiles, **tile.options())
        ctx.save_for_backward(gradient)
        return partial.sum()

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer, None, None, None, None, None, None


def head_kl(
    student_logits: Tensor,
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    temperature: float = 1.0,
    tile: Tile | None = None,
) -> Tensor:
    """T^2 KL(teacher || student) of logits softened by T, mean over B, the teacher's from a cached row.

    Hinton et al. 2015. At K = 1000, D = 2048, bf16 logits, it reads twice 4096 + 2000 bytes a row and the
    head, writes 2000 a row, and 20 bytes a row and tile of classes in between.

    Args:
        student_logits: [B, K], any float type, any strides; the only input that gets a gradient.
        rows: [B, D], fp16, or uint8 where there is a scale.
        weight: [K, D] of the frozen head.
        bias: [K] of the head.
        scale: [B] fp32; a row's features are `rows * scale`.
        temperature: softmax temperature, > 0.
        tile: how to cut the work; by default chosen from the shapes.

    Returns:
        Scalar, fp32 (fp64 off CUDA where the head is fp64).
    """
    if not runs_kernels(student_logits):
        return head_kl_reference(student_logits, rows, weight, bias, scale, temperature)
    tile = tile or tile_for(len(rows), len(weight), weight.shape[1])
    return _Kl.apply(student_logits, rows, weight, bias, scale, temperature, tile)
