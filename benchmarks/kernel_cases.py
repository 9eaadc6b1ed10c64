"""What `benchmarks/kernels.py` times: every kernel and its reference at real shapes, tiny ones in the interpreter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastanc.kernels.backend import INTERPRETED
from fastanc.kernels.discriminator_move import discriminator_move, discriminator_move_reference
from fastanc.kernels.fooling_move import fooling_move, fooling_move_reference
from fastanc.kernels.small_set import (
    crop_flip,
    crop_flip_normalise,
    crop_flip_normalise_reference,
    crop_flip_reference,
)
from fastanc.kernels.teacher_tail import Tile, head_squared_error, head_squared_error_reference
from fastanc.kernels.teacher_tail_kl import head_kl, head_kl_reference

DEVICE = "cpu" if INTERPRETED else "cuda"
TILES = [
    Tile(32, 64, 64), Tile(32, 64, 128), Tile(32, 32, 128), Tile(64, 64, 64), Tile(64, 64, 128, stages=3),
    Tile(64, 128, 64, warps=8), Tile(128, 64, 64, warps=8, stages=3), Tile(128, 64, 128, warps=8, stages=3),
]  # fmt: skip
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


def _tail_cases(kernel: Function, reference: Function, tiles: bool) -> Iterator[Case]:
    half = torch.float16
    shapes = [(256, 1000, 2048), (512, 1000, 2048), (1024, 1000, 512), (512, 100, 64), (512, 10, 64)]
    for batch, classes, depth in [(8, 20, 32)] if INTERPRETED else shapes:
        for kind in ("fp16", "uint8") if (batch, classes) == (512, 1000) else ("fp16",):
            student = _randn(batch, classes, dtype=torch.bfloat16).requires_grad_()
            weight, bias = _randn(classes, depth, dtype=half) / depth**0.5, _randn(classes, dtype=half)
            rows, scale = _randn(batch, depth, dtype=half), None
            if kind == "uint8":
                rows, scale = (rows.abs() * 60).to(torch.uint8), torch.rand(batch, device=DEVICE) / 60
            for tile in TILES if tiles and depth == 2048 else (None,):
                named = "" if tile is None else ", tile " + "-".join(map(str, tile))
                yield Case(
                    f"B {batch}, K {classes}, D {depth}, {kind}{named}",
                    (student, rows, weight, bias, scale),
                    reference,
                    lambda *operands, tile=tile: kernel(*operands, tile=tile),
                )


def _move_cases(function: Callable[..., Any], reference: Callable[..., Any], samples: int) -> Iterator[Case]:
    """The moves on two samples (teacher, student: gradients of the weights) or on one (student: its own)."""

    def exact(keep: Tensor, *operands: Tensor) -> Tensor:
        return reference(*operands[:samples], operands[samples:], keep, 0.5).loss

    def autocast(keep: Tensor, *operands: Tensor) -> Tensor:
        with torch.autocast(DEVICE, torch.bfloat16):
            return exact(keep, *operands)

    def kernel(keep: Tensor, *operands: Tensor) -> Tensor:
        return function(*operands[:samples], operands[samples:], keep, 0.5).loss

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
        keep = torch.rand(batch, depth, device=DEVICE) < 0.5
        operands = (keep, *(teacher, student)[-samples:], *parameters)
        yield Case(f"B {batch}, D {depth}", operands, autocast, kernel, exact)


def _crop_cases() -> Iterator[Case]:
    images = torch.randint(
        0, 256, (64 if INTERPRETED else 50_000, 32, 32, 3), dtype=torch.uint8, device=DEVICE
    )
    mean, std = torch.rand(3, device=DEVICE), torch.rand(3, device=DEVICE) + 0.2

    def normalise(function: Function, *settings: torch.dtype) -> Function:
        return lambda images, index, boxes, flips, mean, std: function(
            images, index, boxes, flips, 32, mean, std, *settings
        )

    for batch in (4,) if INTERPRETED else (256, 1024):
        index = torch.randint(0, len(images), (batch,), device=DEVICE)
        boxes = torch.randint(-4, 5, (batch, 4), dtype=torch.int32, device=DEVICE)
        flips = torch.randint(0, 2, (batch,), dtype=torch.uint8, device=DEVICE)
        picks = (images, index, boxes, flips)
        yield Case(
            f"B {batch}, 32 px, uint8",
            picks,
            lambda images, index, boxes, flips: crop_flip_reference(images, index, boxes, flips, 32),
            lambda images, index, boxes, flips: crop_flip(images, index, boxes, flips, 32),
        )
        yield Case(
            f"B {batch}, 32 px, bf16",
            (*picks, mean, std),
            normalise(crop_flip_normalise_reference),
            normalise(crop_flip_normalise),
            normalise(crop_flip_normalise_reference, torch.float64),
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


CASES: dict[str, Callable[[bool], Iterator[Case]]] = {
    "head_squared_error": lambda tiles: _tail_cases(head_squared_error, head_squared_error_reference, tiles),
    "head_kl": lambda tiles: _tail_cases(head_kl, head_kl_reference, tiles),
    "discriminator_move": lambda _: _move_cases(discriminator_move, discriminator_move_reference, 2),
    "fooling_move": lambda _: _move_cases(fooling_move, fooling_move_reference, 1),
    "crop_flip": lambda _: _crop_cases(),
    "attention": lambda _: _attention_cases(),
}
"""Every kernel by name; the flag asks for other tiles too."""
