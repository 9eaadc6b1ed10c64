"""Classifiers of torchvision and timm, with their published weights and normalisation."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from fastanc.models.heads import last_linear
from fastanc.models.names import check_timm, check_torchvision
from fastanc.models.probe import can_read


class Shape(NamedTuple):
    """What a network is built for."""

    num_classes: int
    in_channels: int
    image_px: int


class Bare(NamedTuple):
    """A network without taps, and what its library says of the weights that exist under its name."""

    network: nn.Module
    mean: Sequence[float] | None = None
    """Per channel, 0..1 scale; means nothing to a network without weights."""
    std: Sequence[float] | None = None
    usual_px: int | None = None
    source: str = ""
    """Who says mean and std, and which crop and interpolation they belong to."""


def from_torchvision(rest: str, shape: Shape, *, new_head: bool) -> Bare:
    """Return the classifier NAME or NAME@WEIGHTS; `zoo.build` says what is raised."""
    name, _, tag = rest.partition("@")
    check_torchvision(name, tag)
    import torchvision

    if tag:
        return _published_torchvision(name, tag, shape, new_head=new_head)
    views = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    usual_px, px = views.crop_size[0], shape.image_px

    def make(**size: Any) -> nn.Module:
        network = torchvision.models.get_model(name, weights=None, num_classes=shape.num_classes, **size)
        if shape.in_channels != 3:
            _replace_stem(network, shape.in_channels)
        return network

    # the names of a size in ViT and in MaxViT
    network = _at_size(make, shape, usual_px, ({"image_size": px}, {"input_size": (px, px)}))
    return Bare(network, views.mean, views.std, usual_px, _torchvision_source(views))


def _at_size(
    make: Callable[..., nn.Module], shape: Shape, usual_px: int, options: Sequence[Mapping[str, Any]]
) -> nn.Module:
    """Return a network that reads the images, made with one of the options if it does not without.

    Where none helps it is the plain one, of which the probe then says what is wrong.
    """
    network = make()
    if shape.image_px == usual_px or can_read(network, shape.in_channels, shape.image_px):
        return network
    for option in options:
        try:
            other = make(**option)
        except Exception:  # another family's option, or a size that this one cannot have
            continue
        if can_read(other, shape.in_channels, shape.image_px):
            return other
    return network


def _published_torchvision(name: str, tag: str, shape: Shape, *, new_head: bool) -> Bare:
    import torchvision

    choices = torchvision.models.get_model_weights(name).__members__
    if tag not in choices:
        raise ValueError(f"torchvision:{name} has no weights {tag!r}: take one of {', '.join(choices)}")
    weights = choices[tag]
    classes = len(weights.meta["categories"])
    _check_fit(f"torchvision:{name}@{tag}", shape, classes, new_head=new_head)
    try:
        network = torchvision.models.get_model(name, weights=weights)
    except OSError as error:
        folder = os.path.join(torch.hub.get_dir(), "checkpoints")
        raise FileNotFoundError(
            f"weights {tag} of torchvision:{name} are not in {folder} and could not be fetched ({error}): "
            f"put {weights.url} there, or name a file in `weights`"
        ) from error
    if classes != shape.num_classes:
        _replace_head(network, name, shape.num_classes)
    views = weights.transforms()
    return Bare(network, views.mean, views.std, views.crop_size[0], _torchvision_source(views))


def _torchvision_source(views: Any) -> str:
    cut = f"{views.crop_size[0]} of {views.resize_size[0]} px"
    return f"torchvision's transforms ({views.interpolation.value}, {cut})"


def from_timm(rest: str, shape: Shape, *, new_head: bool) -> Bare:
    """Return the classifier NAME or NAME@pretrained; `zoo.build` says what is raised."""
    name, _, tag = rest.partition("@")
    check_timm(name, tag)
    import timm

    try:
        published = timm.models.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:
        raise ValueError(f"timm:{name} cannot be read: {error}") from error
    assert published is not None
    if tag and not published.has_weights:
        raise ValueError(f"timm:{name} has no pretrained weights: leave @pretrained out, or add its tag")
    if tag:
        _check_fit(f"timm:{rest}", shape, published.num_classes, new_head=new_head)
    make = partial(
        timm.create_model,
        name,
        pretrained=bool(tag),
        num_classes=shape.num_classes,
        in_chans=shape.in_channels,
    )
    usual_px = published.input_size[-1]
    try:
        network = _at_size(make, shape, usual_px, ({"img_size": shape.image_px},))
    except (OSError, RuntimeError) as error:
        if not tag:
            raise
        raise FileNotFoundError(
            f"the weights of timm:{rest} are not in the cache and could not be fetched "
            f"({type(error).__name__}): connect to the network once, or name a file in `weights`"
        ) from error
    cut = f"{published.interpolation}, {published.crop_pct:.3g} of the side at {usual_px} px"
    return Bare(network, published.mean, published.std, usual_px, f"timm's pretrained_cfg ({cut})")


def published_classes(name: str) -> int | None:
    """Return how many classes the published weights in a name (NAME@WEIGHTS) know; None without any."""
    library, _, rest = name.partition(":")
    name, _, tag = rest.partition("@")
    if not tag:
        return None
    if library == "torchvision":
        check_torchvision(name, tag)
        import torchvision

        weights = torchvision.models.get_model_weights(name).__members__
        return len(weights[tag].meta["categories"]) if tag in weights else None
    try:
        import timm
    except ImportError:
        return None
    published = timm.models.get_pretrained_cfg(name) if timm.is_model(name) else None
    return published.num_classes if published is not None else None


def _check_fit(name: str, shape: Shape, classes: int, *, new_head: bool) -> None:
    if shape.in_channels != 3:
        raise ValueError(
            f"the weights of {name} read 3 channels and the data set has {shape.in_channels}: "
            "take the network without its published weights"
        )
    if shape.num_classes != classes and not new_head:
        raise ValueError(
            f"the weights of {name} know {classes} classes and the data set has {shape.num_classes}: "
            "ask for a new head, or take a data set with the same classes"
        )


def _replace_stem(network: nn.Module, in_channels: int) -> None:
    path, stem = next((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    network.set_submodule(
        path,
        nn.Conv2d(
            in_channels,
            stem.out_channels,
            stem.kernel_size,  # type: ignore[arg-type]
            stem.stride,  # type: ignore[arg-type]
            stem.padding,  # type: ignore[arg-type]
            bias=stem.bias is not None,
        ),
    )


def _replace_head(network: nn.Module, name: str, num_classes: int) -> None:
    path = last_linear(network)
    if path is None:
        raise ValueError(f"torchvision:{name} has no linear head to replace: take another network")
    head = network.get_submodule(path)
    assert isinstance(head, nn.Linear)
    network.set_submodule(path, nn.Linear(head.in_features, num_classes, bias=head.bias is not None))
