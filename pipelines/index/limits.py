"""The ranges of the numbers that `fastanc index` and `fastanc pack` take."""

from __future__ import annotations

from typing import Any

MOST_WORKERS, LARGEST_SIDE, BEST_QUALITY = 1024, 2**14, 100


def whole_number(name: str, value: Any, most: int) -> int:
    """Return a whole number from 1 to `most`; raises ValueError that names it where it is anything else."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or not 1 <= int(value) <= most:
        raise ValueError(f"{name} is {value}: it takes a whole number, from 1 to {most}")
    return int(value)
