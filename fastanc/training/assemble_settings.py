"""From a configuration to what a run is told: its length, its folder, what its files say of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import draccus
from accelerate import Accelerator

from fastanc.config import Config, DataConfig, completed, free_fields
from fastanc.early import check_trackers
from fastanc.models.counting import num_parameters
from fastanc.models.taps import unwrapped
from fastanc.parsing import dump
from fastanc.pipelines.latents import LatentSet
from fastanc.pipelines.places import make_cache_folder
from fastanc.training.claim import Claim
from fastanc.training.extension import Extension
from fastanc.training.game import Game
from fastanc.training.inputs import Input
from fastanc.training.schedule import extended, factor
from fastanc.training.settings import Pace, Settings
from fastanc.training.spellings import available


def open_claim(config: Config, accelerator: Accelerator) -> Claim:
    """Claim the run's folder; ValueError also where the run could not be what it is told to be."""
    check_trackers(config.run.trackers)
    share, parts = config.data.batch // accelerator.num_processes, config.run.accumulate
    if share % parts:
        raise ValueError(
            f"run.accumulate {parts} does not divide the {share} images of a process: change one"
        )
    if not available(config.run.kernels, accelerator.device):
        raise ValueError(
            f"run.kernels {config.run.kernels} needs a GPU, and there is none here: set it to auto"
        )
    return Claim(
        config.run.folder,
        config.run.resume,
        config.run.keep,
        accelerator,
        fields=draccus.encode(config),
        completed=partial(completed, config),
        free=free_fields(config),
        parent=None if config.run.parent is None else Path(config.run.parent),
    )


def pace_of(config: Config, steps_per_epoch: int, extension: Extension | None = None) -> Pace:
    """How long the run is, and when what is due; ValueError where run.max_steps leaves nothing of an extension."""
    schedule_steps = config.schedule.epochs * steps_per_epoch
    if extension is not None:
        schedule_steps = extension.steps + config.schedule.extend * steps_per_epoch
        if 0 < config.run.max_steps <= extension.steps:
            raise ValueError(
                f"run.max_steps {config.run.max_steps} counts the {extension.steps} steps of run.parent too, and"
                " leaves none: set it to 0"
            )
    return Pace(
        steps_per_epoch=steps_per_epoch,
        schedule_steps=schedule_steps,
        total_steps=min(schedule_steps, config.run.max_steps or schedule_steps),
        eval_every=config.run.eval_every,
        checkpoint_every=config.run.checkpoint_every,
    )


def _factor_of(config: Config, pace: Pace, extension: Extension | None) -> Callable[[int], float]:
    """Step -> what every base learning rate is multiplied with."""
    schedule = config.schedule
    plain = partial(
        factor,
        total_steps=schedule.epochs * pace.steps_per_epoch,
        name=schedule.name,
        warmup_steps=round(schedule.warmup_epochs * pace.steps_per_epoch),
        milestones=schedule.milestones,
        gamma=schedule.gamma,
    )
    if extension is None:
        return plain
    return partial(
        extended,
        start=extension.steps,
        total_steps=pace.schedule_steps,
        name=schedule.extend_name,
        last=plain(extension.steps - 1) if extension.factor is None else extension.factor,
    )


def settings_of(
    config: Config, source: Input, game: Game, pace: Pace, extension: Extension | None = None
) -> Settings:
    """What the run is told."""
    lengthens = {} if extension is None else {"parent": extension.parent, "parent_steps": extension.steps}
    return Settings(
        seed=config.run.seed,
        pace=pace,
        lr=config.optimizer.lr,
        lr_factor=_factor_of(config, pace, extension),
        parts=config.run.accumulate,
        log_every=config.run.log_every,
        skip_nonfinite=config.run.skip_nonfinite,
        cuda_graphs=config.run.compile_mode != "default",  # the other two use them
        # What a stopwatch chooses may differ from start to start.
        kernels="plain" if config.run.deterministic and config.run.kernels == "auto" else config.run.kernels,
        memory=_memory(),
        precision=config.run.precision,
        teacher_cache=config.teacher.cache,
        best=config.run.best,
        patience=config.run.patience,
        trackers=config.run.trackers,
        text=dump(config),
        origins=_origins(source, game),
        facts={
            "name": config.run.name,
            "method": config.method.kind,
            "student": config.student.name,
            "teacher": game.teacher.name if game.teacher is not None else None,
            "teacher_params": None
            if game.teacher is None
            else num_parameters(unwrapped(game.teacher.network)),
            "dataset": config.data.name,
            "trained_on": "latent vectors" if "latents" in config.method.needs else _trained_on(config.data),
            "images": None if isinstance(source.train, LatentSet) else source.train.num_images,
            "labels": source.train.num_images if config.method.reads_labels else 0,
            "batch": config.data.batch,
            "seed": config.run.seed,
            "teacher_source": config.teacher.cache if game.answers is not None else None,
            **lengthens,
        },
    )


def _origins(source: Input, game: Game) -> dict[str, str]:
    """What a run learns from: a path or a class of the same name may hold another."""
    origins = {} if game.teacher is None else {"teacher": game.teacher.digest}
    if not isinstance(source.train, LatentSet):
        origins["training set"] = str(source.train.describe()["fingerprint"])[:16]
    # Its numbers would not be comparable with those before.
    origins["validation set"] = str(source.val.describe()["fingerprint"])[:16]
    origins["number of steps per epoch"] = str(source.order.steps_per_epoch)
    return origins


def _memory() -> Path | None:
    try:
        return make_cache_folder("kernels")
    except ValueError:  # measured anew at every start
        return None


def _trained_on(data: DataConfig) -> str:
    return data.name if data.share == 1 else f"{100 * data.share:.3g} % of {data.name}"
