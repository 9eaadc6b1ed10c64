"""Which of several spellings of one computation is the fastest that is right, measured where it will run.

A call makes loss and gradients once. What it costs depends on who is waited for: a host that cannot launch kernels as
fast as they run, or the device. So both are measured, and the spellings are compared by the one that bounds the step
they are part of. Which one is right is not a matter of trust: each is held to the same computation in float64.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

Call = Callable[[], Sequence[Tensor]]
"""Makes it once and returns the loss [] and then every gradient."""

TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2, "fp16": 1e-2}
"""Of loss and gradients, relative to their norm: sums of some thousand fp32 products, or of rounded operands."""
LEAST_GAIN = 0.05
"""Of its time; less is within what two measurements differ by."""
_WARM, _ROUNDS = 3, 20
_SECONDS = 2.0
_CYCLES_PER_S = 2e9


class Cost(NamedTuple):
    """Seconds of one call."""

    host_s: float
    """Until everything is launched."""
    device_s: float
    """That the device is busy; on a CPU the same."""

    def bound(self, of: Cost) -> float:
        """The part of it that a step waits for which is made of `of`."""
        return self.host_s if of.host_s > of.device_s else self.device_s


@dataclass(frozen=True)
class Trial:
    """One spelling, measured."""

    cost: Cost | None
    """None where it failed."""
    error: float = float("nan")
    """The largest distance of loss and gradients from float64, relative to their norm."""
    failure: str = ""
    """The first line of what went wrong."""


def cost_of(call: Call, device: torch.device, rounds: int = _ROUNDS) -> Cost:
    """Return what a call costs, after some that do not count: medians on a CPU, means on a GPU.

    It is made `rounds` times, or as often as goes into a second or two, but thrice at least.
    """
    began = time.perf_counter()
    for _ in range(_WARM):
        call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    rounds = max(3, min(rounds, int(_SECONDS * _WARM / max(time.perf_counter() - began, 1e-9))))
    if device.type != "cuda":
        taken = []
        for _ in range(rounds):
            began = time.perf_counter()
            call()
            taken.append(time.perf_counter() - began)
        return Cost(median(taken), median(taken))
    began = time.perf_counter()
    for _ in range(rounds):
        call()
    host_s = (time.perf_counter() - began) / rounds
    torch.cuda.synchronize(device)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    # The device sleeps until all is launched: the time between the events is its own, whatever launching takes.
    torch.cuda._sleep(int(min(1.5 * host_s * rounds, 1.0) * _CYCLES_PER_S))
    first.record()
    for _ in range(rounds):
        call()
    last.record()
    torch.cuda.synchronize(device)
    return Cost(host_s, first.elapsed_time(last) / 1e3 / rounds)


def distance(found: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """Return the largest ||found - truth|| / ||truth|| over loss and gradients; infinite where one is not finite.

    A gradient counts as at least a thousandth of the largest one: where its summands cancel, as those of a hinge's
    last bias do, what is left is rounding alone.
    """
    wide = [theirs.detach().double() for theirs in truth]
    least = 1e-3 * max((float(slope.norm()) for slope in wide[1:]), default=0.0)
    far = [0.0]
    for place, (ours, theirs) in enumerate(zip(found, wide, strict=True)):
        ours = ours.detach().double()
        if not ours.isfinite().all():
            return float("inf")
        size = max(float(theirs.norm()), least if place else 0.0, 1e-30)
        far.append(float((ours - theirs).norm()) / size)
    return max(far)


def tried(call: Call, truth: Sequence[Tensor], device: torch.device, seed: int) -> Trial:
    """Return how right a call is, from this seed, and how fast; whatever it raises is a result too."""
    try:
        torch.manual_seed(seed)
        error = distance(call(), truth)
        return Trial(cost_of(call, device), error)
    except Exception as error:  # a compiler's, the device's, a kernel's that does not fit: plain remains
        lines = [line for line in str(error).splitlines() if line.strip() and not line.endswith("raised:")]
        return Trial(None, failure=f"{type(error).__name__}: {lines[0] if lines else ''}"[:160])


def fastest(trials: Mapping[str, Trial], step: Cost, tolerance: float) -> str:
    """Return the name of the fastest right trial; the first one, unless another gains `LEAST_GAIN` on it.

    Args:
        trials: by name; the first is the one that is right by definition, and stays where nothing is gained.
        step: what the step costs that it is part of, which says whether host or device is waited for.
        tolerance: on the error; four times that of the first is always right.
    """
    first, *others = trials
    plain = trials[first]
    if plain.cost is None:
        return first
    best, least = first, (1 - LEAST_GAIN) * plain.cost.bound(step)
    for name in others:
        trial = trials[name]
        if trial.cost is None or not trial.error <= max(tolerance, 4 * plain.error):
            continue
        if (taken := trial.cost.bound(step)) < least:
            best, least = name, taken
    return best
