"""Who is told what a run does: its monitor, and the trackers beside it."""

from __future__ import annotations

from pathlib import Path

from fastanc.pipelines.latents import LatentSet
from fastanc.training.claim import Claim
from fastanc.training.contact_sheet import contact_sheet
from fastanc.training.game import Game
from fastanc.training.inputs import Input
from fastanc.training.metrics import Monitor
from fastanc.training.processes import mean_over
from fastanc.training.settings import Pace, Settings
from fastanc.training.trackers import Trackers


def open_monitor(
    settings: Settings, source: Input, game: Game, folder: Path, pace: Pace, start: int
) -> Monitor:
    """Return the monitor of a run that goes on from step `start`; every process has one, and the main one writes."""
    return Monitor(
        folder,
        total_steps=pace.total_steps,
        steps_per_epoch=pace.steps_per_epoch,
        log_every=settings.log_every,
        images_per_step=source.order.batch,
        watches=game.method.watches,
        skip_nonfinite=settings.skip_nonfinite,
        teacher_cache=settings.teacher_cache,
        start_step=start,
        is_main=game.accelerator.is_main_process,
        reduce_mean=mean_over(game.accelerator),
    )


def open_trackers(
    settings: Settings, source: Input, claim: Claim, monitor: Monitor, start: int
) -> Trackers | None:
    """Start the trackers on the process that writes, and show them the views; None where a run has none."""
    if not settings.trackers:
        return None
    with monitor.pause():
        trackers = Trackers(
            settings.trackers,
            claim.folder,
            run=str(settings.facts["name"]),
            fields=claim.fields,
            start=start,
            say=monitor.note,
        )
        monitor.follow(trackers.line)
        if claim.begins and not isinstance(source.train, LatentSet):
            trackers.show("views", lambda: contact_sheet(source), start)
    return trackers
