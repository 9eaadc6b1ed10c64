"""What a run is told, in plain values: how long it is, what is due when, what its files say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How long a run is, and when what is due; counted in steps that are done."""

    steps_per_epoch: int
    schedule_steps: int
    """Of the whole schedule."""
    total_steps: int
    """After which this run ends."""
    eval_every: int
    """Epochs; 0 is at the end only."""
    checkpoint_every: int
    """Steps; 0 is at the end of every epoch."""

    def saves(self, done: int) -> bool:
        """Whether a checkpoint is due: at its time, and at the end, which may come before."""
        return done == self.total_steps or done % (self.checkpoint_every or self.steps_per_epoch) == 0

    def evaluates(self, done: int) -> bool:
        """Whether an evaluation is due; the one at the very end is not meant."""
        epoch, rest = divmod(done, self.steps_per_epoch)
        return rest == 0 and done < self.total_steps and self.eval_every > 0 and epoch % self.eval_every == 0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run is told, in plain values."""

    seed: int
    pace: Pace
    lr: float
    """The student's base learning rate."""
    lr_factor: Callable[[int], float]
    """Step -> what every base learning rate is multiplied with."""
    parts: int
    """Into which a process cuts its batch."""
    log_every: int
    skip_nonfinite: int
    cuda_graphs: bool
    kernels: str
    """auto, plain, compiled, captured or triton: how the plays are executed."""
    precision: str
    memory: Path | None
    """Folder of what was measured at earlier starts."""
    teacher_cache: str
    best: str | None
    """The number of an evaluation by which the best student is kept; None keeps none."""
    patience: int
    """Evaluations without a better one after which the run ends; 0 never ends it."""
    trackers: tuple[str, ...]
    """Who is told what metrics.jsonl is told."""
    text: str
    """The configuration as a file."""
    origins: Mapping[str, str]
    """Digests of what is learnt from: a run that goes on must learn from the same."""
    facts: Mapping[str, Any]
    """What summary.json says beside what was measured."""
