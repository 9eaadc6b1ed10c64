"""Learning rates as pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Sequence


def factor(
    step: int,
    total_steps: int,
    *,
    name: str = "cosine",
    warmup_steps: int = 0,
    milestones: Sequence[float] = (),
    gamma: float = 0.1,
) -> float:
    """Return what every base learning rate is multiplied with at this step (counted from 0).

    Warm-up climbs linearly to 1 at `warmup_steps`; `cosine` then falls to 0 at `total_steps`, `step` multiplies
    by `gamma` at each milestone (a share of the run), `constant` stays.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if name == "cosine":
        done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    if name == "step":
        return gamma ** sum(step >= share * total_steps for share in milestones)
    assert name == "constant", name
    return 1.0


def extended(step: int, start: int, total_steps: int, *, name: str, last: float) -> float:
    """Return what every base learning rate is multiplied with at a step of an extension from `start` on.

    `constant` stays at `last`, what it was multiplied with in the step before `start`; `cosine` falls anew from 1 to
    0 at `total_steps`, without a warm-up.
    """
    return factor(step - start, total_steps - start) if name == "cosine" else last
