"""Triton, where it is installed, and the question whether a tensor can be given to a kernel.

The kernels of this package run compiled on CUDA tensors, and on any tensor in Triton's interpreter, which
`TRITON_INTERPRET=1` in the environment of a fresh process switches on; the tests use it.
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

from torch import Tensor

try:
    import triton
    from triton import language
except ImportError:  # torch's CPU wheels come without it: the kernels are then defined and never launched
    triton = None
    language = SimpleNamespace(constexpr=lambda value: value, float32=None, bfloat16=None)

tl: Any = language
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def jit(function: Any) -> Any:
    """Mark a Triton kernel; without Triton it stays a plain function."""
    return function if triton is None else triton.jit(function)


def runs_kernels(tensor: Tensor) -> bool:
    """Return whether kernels can take this tensor: on CUDA, or anywhere in the interpreter."""
    return triton is not None and (tensor.is_cuda or INTERPRETED)


def blocks(size: int, block: int) -> int:
    """Return how many blocks cover `size` entries."""
    return -(-size // block)


def power_of_two(size: int, least: int = 16) -> int:
    """Return the smallest power of two that is at least `size` and `least` (a tensor core's side)."""
    return max(least, 1 << (size - 1).bit_length())
