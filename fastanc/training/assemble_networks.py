"""From a configuration, and what a caller gives as objects, to the networks of a run; the other half of assemble."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fastanc.config import Config
from fastanc.methods.base import Method, TeacherSpec, spec_of
from fastanc.models import zoo
from fastanc.models.attention import Squeezed, estimators_for
from fastanc.models.classes import pick_classes, read_columns
from fastanc.models.counting import num_parameters
from fastanc.models.ensemble import Ensemble
from fastanc.models.folding import fold_batchnorm
from fastanc.models.ksanc_teacher import load_estimators
from fastanc.models.probe import answers_of
from fastanc.models.published_facts import class_names
from fastanc.models.taps import Tapped, unwrapped
from fastanc.pipelines.arrays import ArraySet
from fastanc.pipelines.dataset import DataSet
from fastanc.teacher.frozen import FrozenTeacher
from fastanc.training.assemble_named import (
    bare_network,
    build_teacher,
    described_members,
    untrained_teacher,
)

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
    teacher = config.teacher
    # Weights that nobody trained are a function of the network's name, whatever was drawn before.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_TEACHER_SEED)
        network = build_teacher(config, images, given.teacher)
    members = described_members(network)
    coded = any(zoo.is_registered(one) for one in (teacher.name, *(member["name"] for member in members)))
    if teacher.classes is not None:
        network = pick_classes(network, read_columns(teacher.classes, images.classes, network.num_classes))
    if teacher.fold and not members:  # whose own were folded
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
        name=teacher.title,
        precision=teacher.precision,
        folded=teacher.fold,
        members=members if given.teacher is None else (),
        average=teacher.average,
        kwargs=None if given.teacher is not None or members else teacher.kwargs,
        answers=answers_of(network) if given.teacher is not None or coded else None,
    )


def said_of(student: Tapped, teacher: FrozenTeacher | None) -> tuple[str, ...]:
    """Return a line for each network: weights, size, normalisation and what is read of it, each with its source."""
    lines = []
    if teacher is not None:
        network = unwrapped(teacher.network)
        members = network.bare.networks if isinstance(network.bare, Ensemble) else []
        lines = [f"teacher {_described(network)}", *(f"its member {_described(one)}" for one in members)]
    return (*lines, f"student {_described(student)}")


def names_of_classes(
    config: Config, images: DataSet, num_classes: int, given: Given = NOTHING
) -> tuple[str, ...]:
    """Return the names of the student's classes: the set's, or those published with its teacher's weights."""
    if images.num_classes == num_classes:
        return tuple(images.classes)
    teacher = config.teacher
    if teacher.weights is not None or teacher.members is not None or given.teacher is not None:
        return ()
    names = class_names(teacher.name)
    return tuple(names) if len(names) == num_classes else ()


def _described(network: Tapped) -> str:
    mean, std = (" ".join(f"{value:.4g}" for value in values) for values in (network.mean, network.std))
    head = (
        f"features of {network.head_name}" if network.head is not None else f"logits only, {network.no_head}"
    )
    if network.given_dim is not None:
        head = f"{network.given_dim} features" + ("" if network.headless else " beside the logits")
    classes = f"{network.num_classes} classes" + (" by a new head" if network.new_head else "")
    weights = f", weights {network.weights_from}" if network.weights_from else ""
    weights += f", licence {network.licence}" if network.licence else ""
    said = f"{network.title}{weights}: {num_parameters(network):,} parameters, {classes}, {head}"
    if isinstance(network.bare, Ensemble):
        return f"{said}, the mean of {len(network.bare.members)} networks' {network.bare.average}"
    return f"{said}, mean {mean} and std {std} from {network.normalised_by}"


def check_classless(config: Config, teacher: FrozenTeacher | None) -> None:
    """Raise ValueError where a method reads classes of a teacher that has none."""
    reads = config.method.needs & {"logits", "labels", "soft_labels", "descriptors", "network"}
    if teacher is not None and not teacher.network.num_classes and reads:
        raise ValueError(
            f"method.type {config.method.kind} reads {' and '.join(sorted(reads))}, and the teacher {teacher.name}"
            " knows no classes: take one that reads features alone, such as queue, relations with method.task false,"
            " or anc with method.data features"
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

    if config.teacher.headless:
        classes = 0
    student = bare_network(config.student, config.data, images, classes, method.taps_student)
    network: Tapped | Squeezed | None = None
    spec, row_bytes = TeacherSpec(classes), 0
    if method.needs_teacher:
        tapped = untrained_teacher(config, images, classes)
        spec = spec_of(tapped)
        network = Squeezed(tapped, estimators_for(tapped)) if "descriptors" in method.needs else tapped
        if config.teacher.cache != "off":
            teacher = FrozenTeacher(network=network, name=config.teacher.title)
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
