"""From a configuration, and what a caller gives as objects, to the networks of a run; the other half of assemble."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from fastanc.config import Config, DataConfig, NetworkConfig
from fastanc.methods.base import Method, TeacherSpec, spec_of
from fastanc.models import zoo
from fastanc.models.attention import Squeezed, estimators_for
from fastanc.models.calibration import calibrate_batchnorm
from fastanc.models.classes import pick_classes, read_columns
from fastanc.models.folding import fold_batchnorm
from fastanc.models.ksanc_teacher import load_estimators
from fastanc.models.names import has_published, without_published
from fastanc.models.probe import answers_of
from fastanc.models.taps import Tapped, per_channel, unwrapped
from fastanc.models.weight_files import weights_file
from fastanc.pipelines.arrays import ArraySet
from fastanc.pipelines.dataset import DataSet
from fastanc.teacher.frozen import FrozenTeacher

_TEACHER_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a caller hands over as objects, in the place of names; None leaves a name's."""

    teacher: nn.Module | None = None
    student: nn.Module | None = None
    train: DataSet | None = None
    val: DataSet | None = None


NOTHING = Given()


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
        network = pick_classes(network, read_columns(teacher.classes, images.classes, network.num_classes))
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
        # As its images are: else every convolution would lay its weights out anew in every pass.
        network=whole.eval().requires_grad_(False).to(memory_format=torch.channels_last),
        name=teacher.name,
        precision=teacher.precision,
        folded=teacher.fold,
        answers=answers_of(network) if given.teacher is not None or zoo.is_registered(teacher.name) else None,
    )


def _teacher_network(config: Config, images: DataSet, given: nn.Module | None) -> Tapped:
    teacher, weights, stages = config.teacher, config.teacher.weights, config.method.taps_teacher
    if given is not None:
        return build_network(teacher, config.data, images, 0, given, stages)
    if weights is None and not (has_published(teacher.name) or zoo.is_registered(teacher.name)):
        raise ValueError(
            "teacher.weights is missing: name a file, or the word random for a speed test with an untrained teacher"
        )
    if weights not in (None, "random") and not weights_file(weights).is_file():
        raise FileNotFoundError(f"teacher.weights: there is no file {weights}: train the teacher first")
    if weights == "random":
        teacher = replace(teacher, name=without_published(teacher.name), weights=None)
    own = zoo.own_classes(
        teacher.name, teacher.weights, images.channels, config.data.image_px, teacher.weights_key
    )
    if not (own or images.num_classes):
        advice = "name its weights, or take published ones (NAME@WEIGHTS)"
        if weights not in (None, "random"):
            advice = (
                f"nor do the shapes in {weights}, so take a file that fastanc wrote, or a set with labels"
            )
        raise ValueError(
            f"data.name {images.name} has no labels and teacher.name {teacher.name} does not say how many classes"
            f" it knows: {advice}"
        )
    return build_network(teacher, config.data, images, own or images.num_classes, None, stages)


def build_network(
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
    for what in ("mean", "std"):
        if (values := getattr(config, what)) is not None:
            per_channel(f"{config.group}.{what}", values, images.channels)
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
        config.name,
        num_classes=num_classes,
        weights=config.weights,
        weights_key=config.weights_key,
        new_head=new_head,
        **options,
    )


def said_of(student: Tapped, teacher: FrozenTeacher | None) -> tuple[str, ...]:
    """Return a line for each network: weights, size, normalisation and what is read of it, each with its source."""
    lines = [] if teacher is None else [f"teacher {_described(unwrapped(teacher.network))}"]
    return (*lines, f"student {_described(student)}")


def _described(network: Tapped) -> str:
    count = sum(weight.numel() for weight in network.parameters())
    mean, std = (" ".join(f"{value:.4g}" for value in values) for values in (network.mean, network.std))
    head = (
        f"features of {network.head_name}" if network.head is not None else f"logits only, {network.no_head}"
    )
    classes = f"{network.num_classes} classes" + (" by a new head" if network.new_head else "")
    weights = f", weights {network.weights_from}" if network.weights_from else ""
    return (
        f"{network.title}{weights}: {count:,} parameters, {classes}, {head},"
        f" mean {mean} and std {std} from {network.normalised_by}"
    )


def check_labels(config: Config, images: DataSet, num_classes: int) -> None:
    """Raise ValueError where a method reads labels and the set's are not what the networks learn."""
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
    if num_classes == 1:
        raise ValueError(
            f"data.name {images.name} has one class, {images.classes[0]}, so its labels teach nothing, which"
            f" method.type {config.method.kind} needs: give images of other classes, or take a method without labels"
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
    channels: int
    teacher: Tapped | Squeezed | None


def sketch(config: Config, *, classes: int, channels: int) -> Sketch:
    """Build a configuration's networks for a data set of so many classes and channels, which is not opened."""
    empty, names = np.zeros((1, 1, 1, channels), np.uint8), [str(k) for k in range(classes)]
    images = ArraySet("sketch", empty, None, names, (0.5,) * channels, (0.25,) * channels)
    method = config.method

    def bare(network: NetworkConfig, stages: bool) -> Tapped:
        named = replace(network, name=without_published(network.name), weights=None)
        return build_network(named, config.data, images, classes, None, stages)

    student = bare(config.student, method.taps_student)
    network: Tapped | Squeezed | None = None
    spec, row_bytes = TeacherSpec(classes), 0
    if method.needs_teacher:
        tapped = bare(config.teacher, method.taps_teacher)
        spec = spec_of(tapped)
        network = Squeezed(tapped, estimators_for(tapped)) if "descriptors" in method.needs else tapped
        if config.teacher.cache != "off":
            teacher = FrozenTeacher(network=network, name=config.teacher.name)
            row_bytes = sum(field.row_bytes for field in teacher.fields(config.teacher.rows))
    return Sketch(
        student=student,
        players=method.networks(student, spec),
        method=method,
        row_bytes=row_bytes,
        batch=config.data.batch,
        channels=channels,
        teacher=network,
    )
