"""The cached teacher's tail: row -> head -> squared error against the student's logits.

The teacher's logits never reach memory. A row is what the cache stores of a view: features in fp16, or in
uint8 with one scale per row. The head is a frozen matrix. Tensor cores multiply fp16 operands into fp32
(fp16 holds a uint8 exactly, and as many bits of a weight as TF32 does); the scale is applied to the
product. The gradient is written in the forward, so the backward is one multiplication. The loss is summed
from one partial sum per tile, in a fixed order: bitwise reproducible.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs
# (a kernel's arguments are what Triton makes of them: pointers, scalars, tiles)

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastanc.kernels.backend import blocks, jit, power_of_two, runs_kernels, tl


class Tile(NamedTuple):
    """How a [B, K] result is cut into programs, and how each one is run."""

    rows: int
    classes: int
    depth: int
    warps: int = 4
    stages: int = 4

    def options(self) -> dict[str, int]:
        """Return the kernels' compile-time options."""
        sizes = {"BB": self.rows, "BK": self.classes, "BD": self.depth}
        return sizes | {"num_warps": self.warps, "num_stages": self.stages}


def tile_for(batch: int, classes: int, depth: int) -> Tile:
    """Return the tile that gives a large GPU about one program per multiprocessor at K = 1000."""
    sides = min(64, power_of_two(classes)), min(64, power_of_two(depth))
    if batch > 512:
        return Tile(128, *sides, warps=8, stages=3)
    return Tile(64 if batch > 256 else 32, *sides)


def teacher_logits(rows: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None) -> Tensor:
    """The head's logits [B, K] of rows [B, D]: products in the weight's dtype, returned in fp32 or wider."""
    features = rows.to(weight.dtype)
    if scale is not None:
        features = features * scale.to(weight.dtype)[:, None]
    logits = F.linear(features, weight, None if bias is None else bias.to(weight.dtype))
    return logits.to(torch.promote_types(torch.float32, logits.dtype))


def head_squared_error_reference(
    student_logits: Tensor,
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """`head_squared_error` in plain PyTorch."""
    teacher = teacher_logits(rows, weight, bias, scale)
    return (student_logits.to(teacher.dtype) - teacher).square().sum(1).mean()


@jit
def teacher_tile(
    rows, rows_b, rows_d,  # [B, D] fp16 or uint8
    scale,  # [B] fp32 or None
    weight, weight_k, weight_d,  # [K, D]
    bias,  # [K] or None
    b, k, B, K, D,
    BB: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """The teacher's logits [b, k] in fp32."""
    logits = tl.zeros((BB, BK), dtype=tl.float32)
    for start in range(0, D, BD):
        d = start + tl.arange(0, BD)
        inside = (b < B)[:, None] & (d < D)[None, :]
        row = tl.load(rows + b[:, None] * rows_b + d[None, :] * rows_d, mask=inside, other=0)
        inside = (d < D)[:, None] & (k < K)[None, :]
        head = tl.load(weight + d[:, None] * weight_d + k[None, :] * weight_k, mask=inside, other=0)
        logits = tl.dot(row.to(tl.float16), head.to(tl.float16), logits)
    if scale is not None:
        logits *= tl.load(scale + b, mask=b < B, other=0)[:, None].to(tl.float32)
    if bias is not None:
        logits += tl.load(bias + k, mask=k < K, other=0)[None, :].to(tl.float32)
    return logits


@jit
def student_tile(student, student_b, student_k, b, k, B, K):
    """The student's logits [b, k] in fp32."""
    inside = (b < B)[:, None] & (k < K)[None, :]
    logits = tl.load(student + b[:, None] * student_b + k[None, :] * student_k, mask=inside, other=0)
    return logits.to(tl.float32)


@jit
def _squared_error_kernel(
    student, student_b, student_k,  # [B, K]
    rows, rows_b, rows_d, scale, weight, weight_k, weight_d, bias,
    gradient,  # [B, K], contiguous, written
    partial,  # [programs] fp32, written
    B, K, D,
    BB: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0) * BB + tl.arange(0, BB)
    k = tl.program_id(1) * BK + tl.arange(0, BK)
    inside = (b < B)[:, None] & (k < K)[None, :]
    teacher = teacher_tile(
        rows, rows_b, rows_d, scale, weight, weight_k, weight_d, bias, b, k, B, K, D, BB, BK, BD
    )
    difference = student_tile(student, student_b, student_k, b, k, B, K) - teacher
    difference = tl.where(inside, difference, 0.0)
    tl.store(gradient + b[:, None] * K + k[None, :], difference * (2.0 / B), mask=inside)
    program = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    tl.store(partial + program, tl.sum(tl.sum(difference * difference, 1), 0) / B)


class _SquaredError(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: Tensor | None,
        tile: Tile,
    ) -> Tensor:
        (batch, classes), depth = student.shape, rows.shape[1]
        grid = (blocks(batch, tile.rows), blocks(classes, tile.classes))
        gradient = torch.empty_like(student, memory_format=torch.contiguous_format)
        partial = student.new_empty(grid[0] * grid[1], dtype=torch.float32)
        _squared_error_kernel[grid](
            student, *student.stride(), rows, *rows.stride(), scale, weight, *weight.stride(), bias,
            gradient, partial, batch, classes, depth, **tile.options(),
        )  # fmt: skip
        ctx.save_for_backward(gradient)
        return partial.sum()

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer, None, None, None, None, None


def head_squared_error(
    student_logits: Tensor,
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """Squared distance of the student's logits to the head's of a cached row, summed over classes, mean
    over B.

    ANC eq. 3. At K = 1000, D = 2048, bf16 logits, it reads 4096 + 2000 bytes a row (uint8 rows 2048 + 2000)
    and the head once per batch, and writes 2000 a row. Plain PyTorch also writes and reads the teacher's
    logits: 4000 bytes a row more when compiled.

    Args:
        student_logits: [B, K], any float type, any strides; the only input that gets a gradient.
        rows: [B, D], fp16, or uint8 where there is a scale.
        weight: [K, D] of the frozen head; fp16 costs half the reading of fp32.
        bias: [K] of the head.
        scale: [B] fp32; a row's features are `rows * scale`.
        tile: how to cut the work; by default chosen from the shapes.

    Returns:
        Scalar, fp32 (fp64 off CUDA where the head is fp64).
    """
    if not runs_kernels(student_logits):
        return head_squared_error_reference(student_logits, rows, weight, bias, scale)
    tile = tile or tile_for(len(rows), len(weight), weight.shape[1])
    return _SquaredError.apply(student_logits, rows, weight, bias, scale, tile)
