"""Which code works on a CPU's pixels: Numba's loops where Numba is, else PyTorch's operations, with the same bits."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch


class Loops(NamedTuple):
    """Numba's loops."""

    ops: dict[str, Callable[..., Any]]
    """Of the looks, by their names in `look_policies.OPS`."""
    mixed: Callable[..., Any]


@cache
def _compiled() -> Loops | None:
    try:
        from numba import config

        from fastanc.pipelines import colour_loops, place_loops
    except (ImportError, OSError):  # not installed, or not for this NumPy or this system
        return None
    if config.DISABLE_JIT:  # type: ignore[attr-defined]
        return None
    return Loops(colour_loops.LOOPS | place_loops.LOOPS, place_loops.mixed)


def loops_for(device: torch.device) -> Loops | None:
    """Return what works on a device's pixels in the place of PyTorch's operations; None where these do."""
    return _compiled() if device.type == "cpu" else None
