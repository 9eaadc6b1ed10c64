"""From a configuration, and what a caller gives as objects, to the parts of a run.

Beside parsing, this file and `assemble_networks` alone read a configuration: they unpack every group and hand plain
values down, so that each part works and is tested without one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import draccus
import numpy as np
import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import set_seed

from fastanc.batch import Batch
from fastanc.cache.rows import PAGE
from fastanc.cache.store import Store
from fastanc.config import Config, DataConfig, default_fields, free_fields
from fastanc.methods.base import OF_TEACHER, TeacherSpec, check_needs
from fastanc.parsing import dump
from fastanc.pipelines.arrays import ArraySet
from fastanc.pipelines.catalogue import open_dataset, open_splits
from fastanc.pipelines.dataset import DataSet
from fastanc.pipelines.jpeg.options import JpegOptions
from fastanc.pipelines.latents import LatentSet
from fastanc.pipelines.order import share_of
from fastanc.pipelines.stored import stored_for
from fastanc.pipelines.views import CentreCrop, PadCrop, RandomResizedCrop, ViewRule
from fastanc.teacher.answers import Answers, CacheChoice, open_answers, open_store, open_val_answers
from fastanc.teacher.build import build_cache
from fastanc.teacher.filling import Filling
from fastanc.teacher.frozen import FrozenTeacher
from fastanc.training import inputs
from fastanc.training.assemble_networks import (
    NOTHING,
    Given,
    build_network,
    check_labels,
    compile_networks,
    open_teacher,
    said_of,
)
from fastanc.training.game import Game
from fastanc.training.inputs import Input, data_notes, input_note
from fastanc.training.players import Average, Players, check_classes, frozen_of, same_everywhere
from fastanc.training.processes import make_accelerator
from fastanc.training.run import Pace, Run, Settings
from fastanc.training.schedule import factor
from fastanc.training.trial import try_student, try_teacher

_GAME_SEED = 1_000_003


def open_run(config: Config, given: Given | None = None) -> Run:
    """Build the run of a configuration: ValueError or FileNotFoundError in one sentence where that cannot be."""
    began, given = time.perf_counter(), given or NOTHING
    accelerator = _accelerator(config)
    source = open_input(config, accelerator, given)
    pace = _pace(config, source.order.steps_per_epoch)
    game = _open_game(config, accelerator, source, given)
    notes = [*data_notes(source), *(note for note in (input_note(source), _beyond(config, pace)) if note)]
    val_answers: Callable[[], Answers] | None = None
    if game.teacher is not None:
        cache = _cache_choice(config)
        if "latents" in config.method.needs:
            cache = replace(cache, mode="off")
        val_answers = partial(
            open_val_answers, game.teacher, source.val, source.eval_rule, cache, source.device
        )
    return Run(
        source,
        game,
        _settings(config, source, game, pace),
        began=began,
        val_answers=val_answers,
        complete_cache=_completion(config, source, accelerator),
        notes=notes,
    )


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Teacher, input and cache of a configuration, without a student."""

    accelerator: Accelerator
    source: Input
    teacher: FrozenTeacher
    store: Store
    views: int
    """Views of every image that a run asks for."""
    epochs: int
    """Of a run."""

    @property
    def batches(self) -> Callable[[int, np.ndarray], Iterator[Batch]]:
        """View and image numbers -> batches of exactly these."""
        return partial(self.source.picked, max(1, self.source.order.batch // self.source.world))


def open_bench(config: Config, *, create: bool) -> Bench:
    """Open what `fastanc cache` works on; `create` makes the cache where there is none."""
    if "latents" in config.method.needs:
        raise ValueError(
            f"method.type {config.method.kind} trains on latent vectors, which no cache holds: name a method that"
            " trains on images, such as anc"
        )
    accelerator = make_accelerator(batch=config.data.batch)
    source = open_input(config, accelerator)
    teacher = open_teacher(config, source.train)
    store = open_store(teacher, source.train, source.rule, _cache_choice(config), create=create)
    return Bench(
        accelerator=accelerator,
        source=source,
        teacher=teacher,
        store=store,
        views=source.order.views or config.schedule.epochs * source.order.views_per_image,
        epochs=config.schedule.epochs,
    )


def _accelerator(config: Config) -> Accelerator:
    return make_accelerator(
        precision=config.run.precision,
        batch=config.data.batch,
        clip=config.optimizer.clip,
        accumulate=config.run.accumulate,
    )


def open_input(config: Config, accelerator: Accelerator, given: Given = NOTHING) -> Input:
    """Open the data sets of a configuration for one process.

    Of a method that trains on latent vectors only the validation set is opened.
    """
    data, seed = config.data, config.run.seed
    views, views_per_image = data.views or None, data.views_per_image
    train, val = _open_sets(config, given)
    _check_idle(config, train)
    if "latents" in config.method.needs:
        size, rank = data.steps_per_epoch * data.batch, accelerator.process_index
        latent_dim: int = getattr(config.method, "latent_dim")  # noqa: B009  (only these methods have the field)
        train, views, views_per_image = LatentSet(latent_dim, size, like=val, seed=seed, rank=rank), None, 1
    return inputs.open_input(
        train=train,
        val=val,
        rule=_training_rule(data, train),
        eval_rule=CentreCrop(data.image_px, data.resize_px),
        batch=data.batch,
        eval_batch=data.eval_batch,
        seed=seed,
        views=views,
        views_per_image=views_per_image,
        accelerator=accelerator,
        options=JpegOptions(threads=data.threads or None, prefetch=data.prefetch, decode=data.decode),
    )


def _open_sets(config: Config, given: Given) -> tuple[DataSet, DataSet]:
    """Return train and val, stored as the crops want them; of a method that trains on latent vectors val twice."""
    data = config.data
    whole: Any = data.name if given.train is None else given.train
    if "latents" in config.method.needs:
        val = given.val or open_dataset(whole, "val", data.root, val_share=data.val_share)
        return val, val
    if given.val is None:
        train, val = open_splits(whole, data.root, data.share, data.val_share)
    elif given.train is not None:  # nothing has to be held out
        train = given.train.subset(share_of(given.train.labels, given.train.num_images, data.share))
        val = given.val
    else:
        train, val = open_dataset(whole, "train", data.root, data.share, data.val_share), given.val
    train = stored_for(train, data.crop, data.image_px)
    return train, stored_for(val, "resized", data.image_px) if data.crop == "resized" else val


def _check_idle(config: Config, train: DataSet) -> None:
    """Raise ValueError for a field of the user's own words that does nothing in this run."""
    if "latents" in config.method.needs:
        return
    padded = isinstance(train, ArraySet)
    idle = {
        "data.min_scale": ("padded crops (data.crop resized draws others)", padded),
        "data.pad": ("resized crops (data.crop padded draws others)", not padded),
        "data.decode": (f"{train.name}, whose images are not decoded here", train.options is None),
        "data.steps_per_epoch": ("a method that trains on images", True),
    }
    for name, (what, does_nothing) in idle.items():
        if does_nothing and name in config.said:
            raise ValueError(f"{name} does nothing with {what}: leave it out")


def _training_rule(data: DataConfig, dataset: DataSet) -> ViewRule:
    """The rule of the training views, which follows from how the set is stored (`stored_for`)."""
    if isinstance(dataset, ArraySet):
        return PadCrop(data.image_px, data.view_seed, data.pad, data.flip)
    return RandomResizedCrop(data.image_px, data.view_seed, scale=(data.min_scale, 1.0), flip=data.flip)


def _pace(config: Config, steps_per_epoch: int) -> Pace:
    schedule_steps = config.schedule.epochs * steps_per_epoch
    return Pace(
        steps_per_epoch=steps_per_epoch,
        schedule_steps=schedule_steps,
        total_steps=min(schedule_steps, config.run.max_steps or schedule_steps),
        eval_every=config.run.eval_every,
        checkpoint_every=config.run.checkpoint_every,
    )


def _beyond(config: Config, pace: Pace) -> str | None:
    asked, schedule = config.run.max_steps, pace.schedule_steps
    if not asked or asked <= schedule:
        return None
    return (
        f"run.max_steps {asked} is beyond the schedule: the run ends after {schedule} steps, schedule.epochs makes it"
        " longer"
    )


def _settings(config: Config, source: Input, game: Game, pace: Pace) -> Settings:
    share, parts = config.data.batch // source.world, config.run.accumulate
    if share % parts:
        raise ValueError(
            f"run.accumulate {parts} does not divide the {share} images of a process: change one"
        )
    schedule = config.schedule
    return Settings(
        folder=config.run.folder,
        seed=config.run.seed,
        pace=pace,
        lr=config.optimizer.lr,
        lr_factor=partial(
            factor,
            total_steps=pace.schedule_steps,
            name=schedule.name,
            warmup_steps=round(schedule.warmup_epochs * pace.steps_per_epoch),
            milestones=schedule.milestones,
            gamma=schedule.gamma,
        ),
        parts=parts,
        log_every=config.run.log_every,
        skip_nonfinite=config.run.skip_nonfinite,
        keep=config.run.keep,
        resume=config.run.resume,
        cuda_graphs=config.run.compile_mode != "default",  # the other two use them
        teacher_cache=config.teacher.cache,
        text=dump(config),
        fields=draccus.encode(config),
        defaults=default_fields(config),
        origins=_origins(source, game),
        free=free_fields(config),
        facts={
            "name": config.run.name,
            "method": config.method.kind,
            "student": config.student.name,
            "teacher": config.teacher.name if game.teacher is not None else None,
            "dataset": config.data.name,
            "trained_on": "latent vectors" if "latents" in config.method.needs else _trained_on(config.data),
            "batch": config.data.batch,
            "seed": config.run.seed,
            "teacher_source": config.teacher.cache if game.answers is not None else None,
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


def _trained_on(data: DataConfig) -> str:
    return data.name if data.share == 1 else f"{100 * data.share:.3g} % of {data.name}"


def _cache_choice(config: Config) -> CacheChoice:
    teacher = config.teacher
    return CacheChoice(
        mode=teacher.cache,
        folder=Path(teacher.cache_dir),
        rows=teacher.rows,
        align=PAGE if teacher.pad_rows else 1,
        memory_bytes=int(teacher.memory_gib * 2**30),
    )


def _open_game(config: Config, accelerator: Accelerator, source: Input, given: Given) -> Game:
    """Build the networks, hand them to the players, open the teacher; ValueError where they do not fit."""
    method, images = config.method, source.train
    check_needs(method)
    teacher = open_teacher(config, images, given) if method.needs_teacher else None
    if teacher is not None and given.teacher is not None:
        same_everywhere(accelerator, teacher.network)
    num_classes = images.num_classes if teacher is None else teacher.network.num_classes
    if "labels" in method.needs:
        check_labels(config, images, num_classes)
    # A validation set may lack some of the training set's classes, whose numbers it shares.
    labels_count = source.val.labels is not None and images.num_classes == num_classes
    if teacher is None and not labels_count:
        raise ValueError(
            f"the validation set {source.val.name} has no labels, and without a teacher there is nothing to measure a"
            " student by: give it labels"
        )
    set_seed(config.run.seed)
    student = build_network(
        config.student, config.data, images, num_classes, given.student, method.taps_student, new_head=True
    )
    # A seed of their own: a student by name and one that is given meet the same opponents.
    set_seed(config.run.seed + _GAME_SEED)
    spec = TeacherSpec(num_classes) if teacher is None else teacher.spec
    check_classes(student, num_classes)
    networks = method.networks(student.train(), spec)  # a network that was given may come from an evaluation
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        # DeepSpeed views weights as bytes, which needs the contiguous layout.
        networks["student"].to(memory_format=torch.channels_last)
    share = config.data.batch // accelerator.num_processes // config.run.accumulate
    if teacher is not None:
        with torch.random.fork_rng():
            try_teacher(teacher.online(source.device), share, images.channels, config.data.image_px)
    notes = (
        *said_of(student, teacher),
        *try_student(networks["student"], max(share, 1), images.channels, config.data.image_px),
    )
    notes += compile_networks(config, accelerator, images.channels, networks["student"], teacher)
    if given.student is not None:  # each process may have drawn its own
        same_everywhere(accelerator, student)
    # Copied before the student is wrapped.
    average = Average(student, config.run.ema, accelerator.device) if config.run.ema else None
    players = Players(
        accelerator,
        networks,
        {"student": config.optimizer, **method.optimizers()},
        frozen=frozen_of(method, spec),
        skip_nonfinite=config.run.skip_nonfinite,
    )
    return Game(
        accelerator=accelerator,
        student=student,
        method=method,
        players=players,
        average=average,
        teacher=teacher,
        answers=_answers(config, source, teacher),
        labels_count=labels_count,
        notes=notes,
    )


def _answers(config: Config, source: Input, teacher: FrozenTeacher | None) -> Answers | None:
    if teacher is None:
        return None
    if "latents" in config.method.needs:  # the method plays the network itself
        teacher.network.to(source.device)
        return None
    reads = config.method.needs & OF_TEACHER
    return open_answers(
        teacher, source.train, source.rule, source.order, _cache_choice(config), reads, source.device
    )


def _completion(config: Config, source: Input, accelerator: Accelerator) -> Callable[[Filling], None] | None:
    """Return what adds the rows that an epoch's dropped remainder left out, once every view was walked through."""
    walked = source.order.views
    if walked is None or config.schedule.epochs * source.order.views_per_image < walked:
        return None

    def complete(teacher: Filling) -> None:
        teacher.flush()
        accelerator.wait_for_everyone()
        build_cache(
            teacher.store,
            range(walked),
            partial(source.picked, config.data.batch // source.world),
            teacher.online,
            rank=source.rank,
            world=source.world,
            wait=accelerator.wait_for_everyone,
            say=lambda sentence: None,
        )

    return complete
