"""From the names in a configuration to networks: one, or the members of an ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from fastanc.config import Config, DataConfig
from fastanc.models import zoo
from fastanc.models.calibration import calibrate_batchnorm
from fastanc.models.ensemble import Ensemble, joined, rejoined
from fastanc.models.folding import fold_batchnorm
from fastanc.models.names import has_published, without_published
from fastanc.models.taps import Tapped, per_channel
from fastanc.models.weight_files import weights_file
from fastanc.models.weights import weights_digest
from fastanc.network_fields import MemberConfig, NamedConfig, NetworkConfig, TeacherConfig
from fastanc.pipelines.dataset import DataSet

UNTRAINED = "random"


def build_network(
    config: NamedConfig,
    data: DataConfig,
    images: DataSet,
    num_classes: int,
    given: nn.Module | None,
    with_stages: bool,
    *,
    new_head: bool = False,
    headless: bool = False,
) -> Tapped:
    """Build a network by its name, or tap the one that is given."""
    for what in ("mean", "std"):
        if (values := getattr(config, what)) is not None:
            per_channel(f"{config.group}.{what}", values, images.channels)
    own_stages = config.stages if isinstance(config, NetworkConfig) else ()
    options: dict[str, Any] = {
        "in_channels": images.channels,
        "image_px": data.image_px,
        "mean": config.mean,
        "std": config.std,
        "default_mean": images.mean,
        "default_std": images.std,
        "head": config.head,
        "stages": (own_stages or "auto") if with_stages else (),
    }
    if given is not None:
        return zoo.tap(given, headless=headless, **options)
    return zoo.build(
        config.name,
        num_classes=num_classes,
        weights=config.weights,
        weights_key=config.weights_key,
        new_head=new_head,
        kwargs=config.kwargs,
        **options,
    )


def build_teacher(config: Config, images: DataSet, given: nn.Module | None) -> Tapped:
    """Build the teacher with its weights: one network, or an ensemble of members, folded if that is asked for."""
    teacher, stages = config.teacher, config.method.taps_teacher
    if teacher.members is not None and given is None:
        members = [_with_weights(member, config, images, False) for member in teacher.members]
        if teacher.fold:
            members = [fold_batchnorm(member) for member in members]
        return _as_one(config, images, members)
    if given is not None:
        given = _featured(config, images, given)
        return build_network(teacher, config.data, images, 0, given, stages, headless=teacher.headless)
    return _with_weights(teacher, config, images, stages)


def untrained_teacher(config: Config, images: DataSet, num_classes: int) -> Tapped:
    """Build the teacher without any weights, for so many classes."""
    teacher, stages = config.teacher, config.method.taps_teacher
    if teacher.members is None:
        return bare_network(teacher, config.data, images, num_classes, stages)
    return _as_one(
        config, images, [bare_network(m, config.data, images, num_classes, False) for m in teacher.members]
    )


def bare_network(
    config: NamedConfig, data: DataConfig, images: DataSet, num_classes: int, stages: bool
) -> Tapped:
    """Build a network by its name without weights."""
    named = replace(config, name=without_published(config.name), weights=None)
    return build_network(named, data, images, num_classes, None, stages)


def described_members(network: Tapped) -> list[dict[str, Any]]:
    """Return name, digest and builder's arguments of each member of an ensemble; none of another network."""
    if not isinstance(network.bare, Ensemble):
        return []
    return [
        {"name": one.name, "weights": weights_digest(one), **({"kwargs": one.kwargs} if one.kwargs else {})}
        for one in network.bare.networks
    ]


def _as_one(config: Config, images: DataSet, members: Sequence[Tapped]) -> Tapped:
    average, features = config.teacher.average, _member_features(config)
    if features == "none" and not members[0].num_classes:
        features = "concatenated"  # there is nothing else
    network = joined(members, average=average, features=features)
    named = NetworkConfig(stages=config.teacher.stages)
    headless = not members[0].num_classes
    taps = config.method.taps_teacher
    tapped = build_network(named, config.data, images, 0, network, taps, headless=headless)
    tapped.name = config.teacher.title
    return tapped


def _member_features(config: Config) -> str:
    """Return which features an ensemble has; those that a method reads unless the configuration says it."""
    if config.teacher.member_features != "auto":
        return config.teacher.member_features
    return "concatenated" if "features" in config.method.needs else "none"


def _featured(config: Config, images: DataSet, given: nn.Module) -> nn.Module:
    """Return an ensemble that was given as a list of objects with the mean and the features that are asked for."""
    teacher = config.teacher
    if not isinstance(given, Ensemble):
        for name in ("average", "member_features"):
            if f"teacher.{name}" in config.said:
                raise ValueError(f"teacher.{name} does nothing for a single teacher: leave it out")
        return given
    return rejoined(
        given,
        average=teacher.average,
        features=_member_features(config),
        in_channels=images.channels,
        image_px=config.data.image_px,
    )


def _with_weights(
    teacher: TeacherConfig | MemberConfig, config: Config, images: DataSet, stages: bool
) -> Tapped:
    """Build a teacher by its name, with its weights or, where that is asked for, with random ones."""
    data = config.data
    group, weights = teacher.group, teacher.weights
    if weights is None and not (has_published(teacher.name) or zoo.is_registered(teacher.name)):
        raise ValueError(
            f"{group}.weights is missing: name a file, or the word random for a speed test with an untrained teacher"
        )
    if weights not in (None, UNTRAINED) and not weights_file(weights).is_file():
        raise FileNotFoundError(f"{group}.weights: there is no file {weights}: train the teacher first")
    named = teacher
    if weights == UNTRAINED:
        named = replace(teacher, name=without_published(teacher.name), weights=None)
    own: int | None = 0
    if not config.teacher.headless:
        own = zoo.own_classes(
            named.name, named.weights, images.channels, data.image_px, named.weights_key, named.kwargs
        )
    if own is None and not images.num_classes:
        advice = "name its weights, or take published ones (NAME@WEIGHTS)"
        if weights not in (None, UNTRAINED):
            advice = (
                f"nor do the shapes in {weights}, so take a file that fastanc wrote, or a set with labels"
            )
        raise ValueError(
            f"data.name {images.name} has no labels and teacher.name {teacher.name} does not say how many classes"
            f" it knows: {advice}"
        )
    network = build_network(named, data, images, images.num_classes if own is None else own, None, stages)
    if weights == UNTRAINED:
        calibrate_batchnorm(network, images.channels, data.image_px)
    return network
