"""Loops over pixels that Numba compiles, for a CPU.

PyTorch goes through memory once for every sum; a loop takes a pixel through all of an operation while it is in a
register, and needs no picture in planes. The arithmetic is that of `look_ops` and `mixing`, which is what a GPU does
and what a machine without Numba does: the same bits. An operation is `op(work [B, H, W, C] uint8, rows [R] int64,
parameters [R, 6] int32, fill [C] uint8)`, C is 1 or 3, and changes those rows of `work` in place. None holds the
interpreter's lock, so the threads of a loader work side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

Loop = Callable[..., Any]


def loop(function: Loop) -> Loop:
    """Compile a function when it is first called; kept on disk for later processes where a folder can be written."""
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        return njit(function, cache=True, **options)
    except RuntimeError:  # there is none
        return njit(function, **options)
