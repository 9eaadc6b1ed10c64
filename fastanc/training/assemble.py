"""From a configuration, and what a caller gives as objects, to the parts of a run.

Beside parsing, the files of this name alone read a configuration: they unpack every group and hand plain values down,
so that each part works and is tested without one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import set_seed

from fastanc.batch import Batch
from fastanc.cache.store import Store
from fastanc.config import Config
from fastanc.methods.base import OF_TEACHER, TeacherSpec, check_needs
from fastanc.pipelines.dataset import DataSet
from fastanc.pipelines.order import KEYED, TABLE
from fastanc.pipelines.viewing import Views
from fastanc.teacher.answers import Answers, open_answers, open_store, open_val_answers
from fastanc.teacher.build import build_cache
from fastanc.teacher.filling import Filling
from fastanc.teacher.frozen import AUTOCAST, FrozenTeacher
from fastanc.training.assemble_compiled import compile_game
from fastanc.training.assemble_input import cache_choice, open_input
from fastanc.training.assemble_named import build_network
from fastanc.training.assemble_networks import (
    NOTHING,
    Given,
    check_classless,
    check_labels,
    names_of_classes,
    open_teacher,
    said_of,
)
from fastanc.training.assemble_notes import notes_of, unmeasured
from fastanc.training.assemble_settings import open_claim, pace_of, settings_of
from fastanc.training.claim import Claim
from fastanc.training.game import Game
from fastanc.training.groups import note_of
from fastanc.training.inputs import Input, data_notes, input_note
from fastanc.training.player import Average
from fastanc.training.players import Players, check_classes, frozen_of, same_everywhere
from fastanc.training.processes import make_accelerator
from fastanc.training.run import Run
from fastanc.training.trial import try_student, try_teacher

_GAME_SEED = 1_000_003


def open_run(config: Config, given: Given | None = None) -> Run:
    """Build the run of a configuration: ValueError or FileNotFoundError in one sentence where that cannot be."""
    began, given = time.perf_counter(), given or NOTHING
    accelerator = _accelerator(config)
    claim = open_claim(config, accelerator)
    try:
        return _open_run(config, accelerator, claim, given, began)
    except BaseException:
        claim.release()
        raise


def _open_run(config: Config, accelerator: Accelerator, claim: Claim, given: Given, began: float) -> Run:
    teacher_of = _teacher_of(config, given)
    # A run goes on with the order that it, or the run that it lengthens, began with.
    permutation = claim.kept("order", TABLE) or KEYED
    source = open_input(
        config, accelerator, given, teacher_of if _caches(config) else None, permutation=permutation
    )
    pace = pace_of(config, source.order.steps_per_epoch, claim.extension)
    game = _open_game(config, accelerator, source, given, teacher_of)
    if config.run.compile:
        game = replace(game, notes=(*game.notes, *compile_game(config, source, game)))
    input_said = input_note(source)
    notes = [*data_notes(source), *([input_said] if input_said else []), *game.notes]
    if accelerator.is_main_process:
        notes += notes_of(config, source, pace, game.answers, claim.extension)
    val_answers: Callable[[], Answers] | None = None
    if game.teacher is not None:
        cache = cache_choice(config)
        if "latents" in config.method.needs:
            cache = replace(cache, mode="off")
        val_answers = partial(
            open_val_answers, game.teacher, source.val, Views(source.eval_rule), cache, source.device
        )
    return Run(
        source,
        game,
        settings_of(config, source, game, pace, claim.extension),
        claim,
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
    """Passes over the images in a run."""

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
    accelerator = make_accelerator(batch=config.data.batch, deterministic=config.run.deterministic)
    teacher_of = _teacher_of(config, NOTHING)
    source = open_input(config, accelerator, teacher=teacher_of)
    teacher = teacher_of(source.train)
    store = open_store(teacher, source.train, source.views, cache_choice(config), create=create)
    return Bench(
        accelerator=accelerator,
        source=source,
        teacher=teacher,
        store=store,
        views=source.order.views or config.schedule.epochs * source.order.views_per_image,
        epochs=config.schedule.epochs * source.order.views_per_image,
    )


def open_images(config: Config) -> Input:
    """Open the input of a run alone, decoded as without a cache; ValueError where the method has no images."""
    if "latents" in config.method.needs:
        raise ValueError(
            f"method.type {config.method.kind} trains on latent vectors, of which there are no views: name a method"
            " that trains on images, such as anc"
        )
    return open_input(config, _accelerator(config))


def _accelerator(config: Config) -> Accelerator:
    return make_accelerator(
        precision=config.run.precision,
        batch=config.data.batch,
        clip=config.optimizer.clip,
        accumulate=config.run.accumulate,
        deterministic=config.run.deterministic,
    )


def _teacher_of(config: Config, given: Given) -> Callable[[DataSet], FrozenTeacher]:
    """Return what opens the teacher of a training set, once: a cache may be asked for before the networks are."""
    opened: list[FrozenTeacher] = []

    def teacher(images: DataSet) -> FrozenTeacher:
        if not opened:
            opened.append(open_teacher(config, images, given))
        return opened[0]

    return teacher


def _caches(config: Config) -> bool:
    """Whether a run keeps or reads the teacher's rows."""
    method = config.method
    return method.needs_teacher and "latents" not in method.needs and config.teacher.cache != "off"


def _open_game(
    config: Config,
    accelerator: Accelerator,
    source: Input,
    given: Given,
    teacher_of: Callable[[DataSet], FrozenTeacher],
) -> Game:
    """Build the networks, hand them to the players, open the teacher; ValueError where they do not fit."""
    method, images = config.method, source.train
    check_needs(method)
    teacher = teacher_of(images) if method.needs_teacher else None
    if teacher is not None and config.top_rows:
        teacher.fields(config.teacher.rows)  # refused now, where there are too few classes
    if teacher is not None and given.teacher is not None:
        same_everywhere(accelerator, teacher.network)
    num_classes = images.num_classes if teacher is None else teacher.network.num_classes
    check_classless(config, teacher)
    if method.reads_labels:
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
        config.student,
        config.data,
        images,
        num_classes,
        given.student,
        method.taps_student,
        new_head=True,
        headless=num_classes == 0,
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
        with torch.random.fork_rng([source.device] if source.device.type == "cuda" else []):
            try_teacher(teacher.online(source.device), share, images.channels, config.data.image_px)
    notes = (
        *said_of(student, teacher),
        *try_student(networks["student"], max(share, 1), images.channels, config.data.image_px),
        *note_of(networks["student"], config.optimizer),
        *unmeasured(source, num_classes),
    )
    if given.student is not None:  # each process may have drawn its own
        same_everywhere(accelerator, student)
    # Copied before the student is wrapped.
    average = None
    if config.run.ema:
        average = Average(student, config.run.ema, accelerator.device, warmup=config.run.ema_warmup)
    players = Players(
        accelerator,
        networks,
        {"student": config.optimizer, **method.optimizers()},
        frozen={name: teacher.played for name in frozen_of(method, spec) if teacher is not None},
        skip_nonfinite=config.run.skip_nonfinite,
        constant_rates=method.constant_rates,
    )
    return Game(
        accelerator=accelerator,
        student=student,
        method=method,
        players=players,
        average=average,
        teacher=teacher,
        answers=_answers(config, source, teacher),
        autocast=AUTOCAST[config.run.precision],
        labels_count=labels_count,
        classes=names_of_classes(config, images, num_classes, given),
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
        teacher, source.train, source.views, source.order, cache_choice(config), reads, source.device
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
            arranged=source.views.arranged,
            say=lambda sentence: None,
        )

    return complete
