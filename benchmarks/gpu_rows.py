"""What the parts of `benchmarks.gpu_check` share: a row of its table, and the word of what begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

Row = dict[str, Any]
FEW = 12
"""A rehearsal takes every so-manieth image."""


class Part(NamedTuple):
    """What is run in a process of its own: its rows as they are found, and its seconds."""

    run: Callable[[bool], Iterator[Row]]
    limit_s: float
    """It is ended after so many."""
    least_s: float
    """So many are kept for it, whatever the parts before it take."""


def row(case: str, says: str = "", **numbers: float | None) -> Row:
    """Return a line of the table."""
    known = {"images_per_s": None, "ms": None, "ratio": None, **numbers}
    return {"case": case, **known, "says": says}


def begin(case: str) -> None:
    """Say what is about to be measured, so that an end in the middle of it has a name."""
    print("CASE", case, flush=True)


def device_of(rehearse: bool) -> torch.device:
    """Return the device that the parts run on."""
    return torch.device("cpu" if rehearse else "cuda")
