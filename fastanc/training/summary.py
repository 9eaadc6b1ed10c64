"""summary.json: what came out of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastanc.models.counting import count
from fastanc.training.best import Best
from fastanc.training.game import Game
from fastanc.training.settings import Pace, Settings


def summary_of(
    settings: Settings,
    game: Game,
    pace: Pace,
    best: Best | None,
    kernels: Sequence[str],
    result: Mapping[str, float],
    rates: Mapping[str, float],
) -> dict[str, Any]:
    """Return what a finished run says of itself, but for its wall time.

    Args:
        settings: what it was told.
        game: what was trained.
        pace: as it came out, which patience may have shortened.
        best: the best evaluation, where the run kept one.
        kernels: how the plays were executed.
        result: of the last evaluation.
        rates: `Monitor.rates`.
    """
    size = count(game.student)
    ended: dict[str, Any] = {}
    if best is not None:
        ended["best"] = best.said(pace.steps_per_epoch)
        if pace.total_steps != (total := settings.pace.total_steps):
            ended["ended"] = best.sentence(pace.total_steps, total)
    return {
        **settings.facts,
        "kernels": list(kernels),
        "params": size.parameters,
        "macs": size.macs,
        "epochs": pace.total_steps / pace.steps_per_epoch,
        "steps": pace.total_steps,
        "val": dict(result),
        **ended,
        **rates,
        "world": game.accelerator.num_processes,
        "device": str(game.accelerator.device),
    }
