"""From a configuration, and what a caller gives as objects, to the parts of a run.

Beside parsing this is the only file that reads a configuration: it unpacks every group and hands plain values down,
so that each part works and is tested without one.
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
from torch import nn

from fastanc.batch import Batch
from fastanc.cache.store import Store
from fastanc.config import Config, DataConfig, NetworkConfig, free_fields
from fastanc.methods.base import OF_TEACHER, Method, TeacherSpec, spec_of
from fastanc.models import zoo
from fastanc.models.attention import Squeezed, estimators_for
from fastanc.models.calibration import calibrate_batchnorm
from fastanc.models.classes import pick_classes, read_columns
from fastanc.models.folding import fold_batchnorm
from fastanc.models.ksanc_teacher import load_estimators
from fastanc.models.taps import Tapped
from fastanc.parsing import dump
from fastanc.pipelines.arrays import ArraySet
from fastanc.pipelines.catalogue import open_dataset
from fastanc.pipelines.dataset import DataSet
from fastanc.pipelines.jpeg.options import JpegOptions
from fastanc.pipelines.latents import LatentSet
from fastanc.pipelines.views import CentreCrop, PadCrop, RandomResizedCrop, ViewRule
from fastanc.teacher.answers import Answers, CacheChoice, open_answers, open_store, open_val_answers
from fastanc.teacher.build import build_cache
from fastanc.teacher.filling import Filling
from fastanc.teacher.frozen import FrozenTeacher
from fastanc.training import inputs
from fastanc.training.compiling import compile_in_place
from fastanc.training.game import Game
from fastanc.training.inputs import Input, input_note
from fastanc.training.players import Average, Players, frozen_of
from fastanc.training.processes import make_accelerator
from fastanc.training.run import Pace, Run, Settings
from fastanc.training.schedule import factor

_GAME_SEED = 1_000_003
_TEACHER_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a caller hands over as objects, in the place of names; None leaves a name's."""

    teacher: nn.Module | None = None
    student: nn.Module | None = None
    train: DataSet | None = None
    val: DataSet | None = None


NOTHING = Given()


def open_run(config: Config, given: Given | None = None) -> Run:
    """Build the run of a configuration: ValueError or FileNotFoundError in one sentence where that cannot be."""
    began, given = time.perf_counter(), given or NOTHING
    accelerator = _accelerator(config)
    source = open_input(config, accelerator, given)
    pace = _pace(config, source.order.steps_per_epoch)
    game = _open_game(config, accelerator, source, given)
    notes = [note for note in (input_note(source),) if note]
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


@dataclass(frozen=True, kw_only=True)
class Sketch:
    """The networks of a configuration without weights and data, to be counted."""

    student: Tapped
    players: dict[str, nn.Module]
    method: Method
    row_bytes: int
    """Of a cached row; 0 without a cache."""
    batch: int


def sketch(config: Config, *, classes: int, channels: int) -> Sketch:
    """Build a configuration's networks for a data set of so many classes and channels, which is not opened."""
    empty, names = np.zeros((1, 1, 1, channels), np.uint8), [str(k) for k in range(classes)]
    images = ArraySet("sketch", empty, None, names, (0.5,) * channels, (0.25,) * channels)
    method = config.method

    def bare(network: NetworkConfig, stages: bool) -> Tapped:
        named = replace(network, name=network.name.split("@")[0], weights=None)
        return _network(named, config.data, images, classes, None, stages)

    student = bare(config.student, method.taps_student)
    spec, row_bytes = TeacherSpec(classes), 0
    if method.needs_teacher:
        tapped = bare(config.teacher, method.taps_teacher)
        spec = spec_of(tapped)
        if config.teacher.cache != "off":
            squeezes = "descriptors" in method.needs
            network = Squeezed(tapped, estimators_for(tapped)) if squeezes else tapped
            teacher = FrozenTeacher(network=network, name=config.teacher.name)
            fields = teacher.fields(config.teacher.rows)
            row_bytes = sum(part.row_bytes for field in fields for part in field.parts())
    return Sketch(
        student=student,
        players=method.networks(student, spec),
        method=method,
        row_bytes=row_bytes,
        batch=config.data.batch,
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
    train: DataSet
    if "latents" in config.method.needs:
        val = given.val or open_dataset(data.name, "val", data.root)
        size, rank = data.steps_per_epoch * data.batch, accelerator.process_index
        latent_dim: int = getattr(config.method, "latent_dim")  # noqa: B009  (only these methods have the field)
        train, views, views_per_image = LatentSet(latent_dim, size, like=val, seed=seed, rank=rank), None, 1
    elif given.train is not None:
        train, val = given.train, given.val or given.train
    else:
        val = given.val or open_dataset(data.name, "val", data.root)
        train = open_dataset(data.name, "train", data.root, data.share)
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


def _training_rule(data: DataConfig, dataset: DataSet) -> ViewRule:
    """The rule of the training views: padded crops of small images, random resized crops of others."""
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


def _trained_on(data: DataConfig) -> str:
    return data.name if data.share == 1 else f"{100 * data.share:.3g} % of {data.name}"


def _cache_choice(config: Config) -> CacheChoice:
    teacher = config.teacher
    return CacheChoice(
        mode=teacher.cache,
        folder=Path(teacher.cache_dir),
        rows=teacher.rows,
        memory_bytes=int(teacher.memory_gib * 2**30),
    )


def _open_game(config: Config, accelerator: Accelerator, source: Input, given: Given) -> Game:
    """Build the networks, hand them to the players, open the teacher; ValueError where they do not fit."""
    method, images = config.method, source.train
    teacher = open_teacher(config, images, given) if method.needs_teacher else None
    num_classes = images.num_classes if teacher is None else teacher.network.num_classes
    if "labels" in method.needs:
        _check_labels(config, images, num_classes)
    set_seed(config.run.seed)
    student = _network(
        config.student, config.data, images, num_classes, given.student, method.taps_student, new_head=True
    )
    # A seed of their own: a student by name and one that is given meet the same opponents.
    set_seed(config.run.seed + _GAME_SEED)
    spec = TeacherSpec(num_classes) if teacher is None else teacher.spec
    if student.num_classes != num_classes:
        raise ValueError(
            f"the student gives {student.num_classes} logits where {num_classes} classes are to be learnt: give one"
            f" with {num_classes}"
        )
    networks = method.networks(student.train(), spec)  # a network that was given may come from an evaluation
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        # DeepSpeed views weights as bytes, which needs the contiguous layout.
        networks["student"].to(memory_format=torch.channels_last)
    notes = _compile(config, accelerator, images.channels, networks["student"], teacher)
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
        labels_count=source.val.labels is not None and source.val.num_classes == num_classes,
        notes=notes,
    )


def _check_labels(config: Config, images: DataSet, num_classes: int) -> None:
    if images.labels is None:
        raise ValueError(
            f"data.name {images.name} has no labels, which method.type {config.method.kind} needs"
        )
    if images.num_classes != num_classes:
        raise ValueError(
            f"the teacher knows {num_classes} classes and data.name {images.name} has {images.num_classes}, whose"
            f" labels method.type {config.method.kind} needs: say with teacher.classes which of the teacher's they"
            " are, or take a method without labels"
        )


def _network(
    config: NetworkConfig,
    data: DataConfig,
    images: DataSet,
    num_classes: int,
    given: nn.Module | None,
    with_stages: bool,
    *,
    new_head: bool = False,
) -> Tapped:
    """Build a network by its name, or tap the one that is given."""
    options: dict[str, Any] = {
        "in_channels": images.channels,
        "image_px": data.image_px,
        "mean": config.mean,
        "std": config.std,
        "default_mean": images.mean,
        "default_std": images.std,
        "head": config.head,
        "stages": (config.stages or "auto") if with_stages else (),
    }
    if given is not None:
        return zoo.tap(given, **options)
    return zoo.build(
        config.name, num_classes=num_classes, weights=config.weights, new_head=new_head, **options
    )


def open_teacher(config: Config, images: DataSet, given: Given = NOTHING) -> FrozenTeacher:
    """Build the frozen teacher; ValueError when it would be an untrained one that nobody asked for."""
    teacher, weights = config.teacher, config.teacher.weights
    # Weights that nobody trained are a function of the network's name, whatever was drawn before.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_TEACHER_SEED)
        network = _teacher_network(config, images, given.teacher)
    if weights == "random" and given.teacher is None:
        calibrate_batchnorm(network, images.channels, config.data.image_px)
    if teacher.classes is not None:
        network = pick_classes(network, read_columns(teacher.classes, images.classes))
    if teacher.fold:
        network = fold_batchnorm(network)
    whole: Tapped | Squeezed = network
    if teacher.estimators is not None and config.method.taps_teacher:
        whole = load_estimators(network, teacher.estimators).squeezed
    elif "descriptors" in config.method.needs:
        raise ValueError(
            "teacher.estimators is missing: train them with --method.type ksanc_teacher, then name that run's"
            " estimators.safetensors"
        )
    return FrozenTeacher(
        network=whole.eval().requires_grad_(False),
        name=teacher.name,
        precision=teacher.precision,
        folded=teacher.fold,
    )


def _teacher_network(config: Config, images: DataSet, given: nn.Module | None) -> Tapped:
    teacher, weights, stages = config.teacher, config.teacher.weights, config.method.taps_teacher
    if given is not None:
        return _network(teacher, config.data, images, 0, given, stages)
    if weights is None and "@" not in teacher.name and not zoo.is_registered(teacher.name):
        raise ValueError(
            "teacher.weights is missing: name a file, or the word random for a speed test with an untrained teacher"
        )
    if weights not in (None, "random") and not Path(weights).is_file():
        raise FileNotFoundError(f"teacher.weights: there is no file {weights}: train the teacher first")
    own = zoo.own_classes(teacher.name, None if weights == "random" else weights, images.channels)
    if not (own or images.num_classes):
        raise ValueError(
            f"data.name {images.name} has no labels and teacher.name {teacher.name} does not say how many classes"
            " it knows: name its weights, or take published ones (NAME@WEIGHTS)"
        )
    without = replace(teacher, weights=None) if weights == "random" else teacher
    return _network(without, config.data, images, own or images.num_classes, None, stages)


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


def _compile(
    config: Config, accelerator: Accelerator, channels: int, student: nn.Module, teacher: FrozenTeacher | None
) -> tuple[str, ...]:
    """Compile both networks where run.compile asks for it; return a sentence for each that stays eager."""
    if not config.run.compile:
        return ()
    size = config.data.batch // accelerator.num_processes // config.run.accumulate
    shape = (size, channels, config.data.image_px, config.data.image_px)
    sample = torch.zeros(shape, dtype=torch.uint8, device=accelerator.device)
    said = [compile_in_place(student, sample, config.run.compile_mode)]
    if teacher is not None:
        # Never as graphs: their outputs are overwritten in the next step, and rows wait longer to be kept.
        said.append(compile_in_place(teacher.network, sample))
    return tuple(sentence for sentence in said if sentence)
