"""The losses on logits, value and gradient in one pass: a program reads a row of the student and of the teacher.

The teacher's logits are given, so they have the same bits whoever computed them. The gradient is written beside
the value, in fp32 (fp16 may not hold it before it is scaled), so the backward is one multiplication. A row's value
is summed by one program in a fixed order, and the rows' by torch: bitwise reproducible. The references are the
formulas of `losses.py` themselves.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs
# (a kernel's arguments are what Triton makes of them: pointers, scalars, tiles)

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastanc import losses
from fastanc.kernels.backend import jit, power_of_two, runs_kernels, tl

_WIDEST = 2048


@jit
def _row(logits, stride, k, K, beyond):
    """Entries k of a row in fp32; `beyond` it as given."""
    return tl.load(logits + k * stride, mask=k < K, other=beyond).to(tl.float32)


@jit
def _squared_error_kernel(
    student, student_b, student_k,  # [B, K]
    teacher, teacher_b, teacher_k,  # [B, K]
    gradient,  # [B, K], contiguous, written
    partial,  # [B] fp32, written
    factor,  # of a squared difference in the loss
    K,
    BLOCK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    total = 0.0
    for start in range(0, K, BLOCK):
        k = start + tl.arange(0, BLOCK)
        s = _row(student + b * student_b, student_k, k, K, 0)
        difference = s - _row(teacher + b * teacher_b, teacher_k, k, K, 0)
        tl.store(gradient + b * K + k, 2.0 * factor * difference, mask=k < K)
        total += tl.sum(difference * difference, 0)
    tl.store(partial + b, total * factor)


@jit
def _log_sum(logits, stride, cold, K, BLOCK: tl.constexpr):
    """Largest of a row's logits, and the logarithm of the sum of e^(cold (logit - largest))."""
    largest = _row(logits, stride, tl.arange(0, BLOCK), K, float("-inf"))
    for start in range(BLOCK, K, BLOCK):
        largest = tl.maximum(largest, _row(logits, stride, start + tl.arange(0, BLOCK), K, float("-inf")))
    top = tl.max(largest, 0)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, K, BLOCK):
        total += tl.exp(cold * (_row(logits, stride, start + tl.arange(0, BLOCK), K, float("-inf")) - top))
    return top, tl.log(tl.sum(total, 0))


@jit
def _soft_kl_kernel(
    student, student_b, student_k,  # [B, K]
    teacher, teacher_b, teacher_k,  # [B, K]
    gradient,  # [B, K], contiguous, written
    partial,  # [B] fp32, written
    cold,  # 1 / temperature
    value_factor, slope_factor,  # T^2 / B, T / B
    K,
    BLOCK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    student += b * student_b
    teacher += b * teacher_b
    top_q, log_q = _log_sum(student, student_k, cold, K, BLOCK)
    top_p, log_p = _log_sum(teacher, teacher_k, cold, K, BLOCK)
    total = 0.0
    for start in range(0, K, BLOCK):
        k = start + tl.arange(0, BLOCK)
        q = cold * (_row(student, student_k, k, K, 0) - top_q) - log_q
        p = cold * (_row(teacher, teacher_k, k, K, 0) - top_p) - log_p
        tl.store(gradient + b * K + k, slope_factor * (tl.exp(q) - tl.exp(p)), mask=k < K)
        total += tl.sum(tl.where(k < K, tl.exp(p) * (p - q), 0.0), 0)
    tl.store(partial + b, total * value_factor)


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, kernel: Any, factors: tuple[float, ...]
    ) -> Tensor:
        batch, classes = student.shape
        gradient = student.new_empty((batch, classes), dtype=torch.float32)
        partial = student.new_empty(batch, dtype=torch.float32)
        kernel[batch,](
            student, *student.stride(), teacher, *teacher.stride(), gradient, partial, *factors, classes,
            BLOCK=min(_WIDEST, power_of_two(classes)), num_warps=4,
        )  # fmt: skip
        ctx.save_for_backward(gradient)
        ctx.dtype = student.dtype
        return partial.sum()

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * outer).to(ctx.dtype), None, None, None


def _fits(student: Tensor, teacher: Tensor) -> bool:
    wide = torch.float64 in (student.dtype, teacher.dtype)
    same = student.dim() == 2 and student.shape == teacher.shape and student.numel() > 0
    return runs_kernels(student) and same and not wide and not teacher.requires_grad


def squared_error(student: Tensor, teacher: Tensor, reduction: str = "sum") -> Tensor:
    """`losses.squared_error`, its value and the student's gradient in one launch.

    Args:
        student: [B, K], fp32, bf16 or fp16, any strides; the only input that gets a gradient here, a teacher that
            asks for one goes through the formula.
        teacher: [B, K], likewise.
        reduction: over the classes, "sum" or "mean".

    Returns:
        Scalar fp32.
    """
    if not _fits(student, teacher):
        return losses.squared_error(student, teacher, reduction)
    entries = len(student) if reduction == "sum" else student.numel()
    return _apply(student, teacher, _squared_error_kernel, 1 / entries)


def soft_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """`losses.soft_kl`, its value and the student's gradient in one launch.

    Args:
        student, teacher: as `squared_error` takes them.
        temperature: of both softmaxes, > 0.

    Returns:
        Scalar fp32.
    """
    if not _fits(student, teacher):
        return losses.soft_kl(student, teacher, temperature)
    batch = len(student)
    return _apply(
        student, teacher, _soft_kl_kernel, 1 / temperature, temperature**2 / batch, temperature / batch
    )


def _apply(student: Tensor, teacher: Tensor, kernel: Callable[..., Any], *factors: float) -> Tensor:
    loss: Tensor = _WithGradient.apply(student, teacher, kernel, factors)
    return loss
