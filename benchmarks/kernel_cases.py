"""What `benchmarks/kernels.py` times: every kernel and its reference at real shapes, tiny ones in the interpreter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastanc import losses
from fastanc.kernels.backend import INTERPRETED
from fastanc.kernels.discriminator_move import discriminator_move, discriminator_move_reference
from fastanc.kernels.dropout import draw_seed, dropout_mask
from fastanc.kernels.fooling_move import fooling_move, fooling_move_reference
from fastanc.kernels.logit_losses import soft_kl, squared_error
from fastanc.kernels.small_set import crop_flip, crop_flip_reference

DEVICE = "cpu" if INTERPRETED else "cuda"
Function = Callable[..., Tensor]


class Case(NamedTuple):
    """One shape of one kernel."""

    shape: str
    operands: Sequence[Tensor | None]
    reference: Function
    kernel: Function | None = None
    """None: only the reference is timed, beside `least_bytes`."""
    exact: Function | None = None
    """What gives the truth on float64 operands; the reference unless it differs."""
    least_bytes: int = 0

    def call(self, function: Function) -> Sequence[Tensor]:
        """Return the function's result; if an operand asks for gradients, the result is a loss, then they."""
        return _graded(function, self.operands)

    def truth(self) -> Sequence[Tensor]:
        """Return the same of the reference in float64."""
        return _graded(self.exact or self.reference, [_wide(operand) for operand in self.operands])


def _graded(function: Function, operands: Sequence[Tensor | None]) -> Sequence[Tensor]:
    inputs = [operand for operand in operands if operand is not None and operand.requires_grad]
    result = function(*operands)
    return (result.detach(), *torch.autograd.grad(result, inputs)) if inputs else (result,)


def _wide(operand: Tensor | None) -> Tensor | None:
    if operand is None or not operand.is_floating_point():
        return operand
    return operand.detach().double().requires_grad_(operand.requires_grad)


def _randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, device=DEVICE).to(dtype)


def _loss_cases(kernel: Function, reference: Function) -> Iterator[Case]:
    shapes = [(256, 1000), (1024, 1000), (512, 100), (512, 10), (256, 21_841)]
    for batch, classes in [(8, 20)] if INTERPRETED else shapes:
        for dtype in (torch.bfloat16, torch.float32):
            student = _randn(batch, classes, dtype=dtype).requires_grad_()
            operands = (student, _randn(batch, classes))
            yield Case(f"B {batch}, K {classes}, {str(dtype)[6:]}", operands, reference, kernel)


def _move_cases(function: Callable[..., Any], reference: Callable[..., Any], samples: int) -> Iterator[Case]:
    """The moves on two samples (teacher, student: gradients of the weights) or on one (student: its own).

    All have the mask that the kernels draw; the reference, which is given it, draws as many numbers as for its own.
    """

    def exact(seed: Tensor, keep: Tensor, *operands: Tensor) -> Tensor:
        return reference(*operands[:samples], operands[samples:], keep, 0.5).loss

    def autocast(seed: Tensor, keep: Tensor, *operands: Tensor) -> Tensor:
        keep = keep & (torch.rand(keep.shape, device=DEVICE) >= 0)
        with torch.autocast(DEVICE, torch.bfloat16):
            return exact(seed, keep, *operands)

    def kernel(seed: Tensor, keep: Tensor, *operands: Tensor) -> Tensor:
        return function(*operands[:samples], operands[samples:], 0.5, seed).loss

    shapes = [(256, 64), (1024, 64), (512, 512), (256, 2048), (1024, 2048)]
    for batch, depth in [(8, 16)] if INTERPRETED else shapes:
        sizes = ((depth, 128), (128, 256), (256, 128), (128, 1))
        layers = [nn.Linear(*pair, device=DEVICE) for pair in sizes]
        parameters: list[Tensor] = [p for layer in layers for p in layer.parameters()]
        teacher, student = (
            _randn(batch, depth, dtype=torch.float16),
            _randn(batch, depth, dtype=torch.bfloat16),
        )
        if samples == 1:
            student.requires_grad_()
            parameters = [p.detach() for p in parameters]
        seed = draw_seed(student.device)
        operands = (seed, dropout_mask(seed, batch, depth, 0.5), *(teacher, student)[-samples:], *parameters)
        yield Case(f"B {batch}, D {depth}", operands, autocast, kernel, exact)


def _crop_cases() -> Iterator[Case]:
    images = torch.randint(
        0, 256, (64 if INTERPRETED else 50_000, 32, 32, 3), dtype=torch.uint8, device=DEVICE
    )
    for batch in (4,) if INTERPRETED else (256, 1024):
        index = torch.randint(0, len(images), (batch,), device=DEVICE)
        corners = torch.randint(0, 9, (batch, 2), device=DEVICE)
        flips = torch.randint(0, 2, (batch,), device=DEVICE)
        yield Case(
            f"B {batch}, 32 px, uint8",
            (images, index, corners, flips),
            lambda *picks: crop_flip_reference(*picks, 32, 4),
            lambda *picks: crop_flip(*picks, 32, 4),
        )


def _attention_cases() -> Iterator[Case]:
    def attention(maps: Tensor, weights: Tensor) -> Tensor:
        return (maps.float().square().mean(1) * weights).sum()

    for batch, channels, side in [(2, 8, 4)] if INTERPRETED else [(256, 256, 56), (256, 2048, 7)]:
        maps = _randn(batch, channels, side, side, dtype=torch.bfloat16)
        maps = maps.to(memory_format=torch.channels_last).requires_grad_()
        operands = (maps, _randn(batch, side, side))
        yield Case(
            f"{batch} x {channels} x {side} x {side}", operands, attention, least_bytes=6 * maps.numel()
        )


CASES: dict[str, Callable[[], Iterator[Case]]] = {
    "squared_error": lambda: _loss_cases(squared_error, losses.squared_error),
    "soft_kl": lambda: _loss_cases(soft_kl, losses.soft_kl),
    "discriminator_move": lambda: _move_cases(discriminator_move, discriminator_move_reference, 2),
    "fooling_move": lambda: _move_cases(fooling_move, fooling_move_reference, 1),
    "crop_flip": _crop_cases,
    "attention": _attention_cases,
}
"""Every kernel by name."""
