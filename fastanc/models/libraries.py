"""Classifiers of torchvision and timm, with their published weights and normalisation."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import nn

from fastanc.models.builder_arguments import built_with
from fastanc.models.heads import last_linear
from fastanc.models.names import check_timm, check_torchvision, described_elsewhere, has_published
from fastanc.models.probe import can_read
from fastanc.models.published import answers, host_of, hub_url, only_cached


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
    licence: str = ""
    """Of the published weights, with who says it."""


def from_torchvision(
    rest: str, shape: Shape, kwargs: Mapping[str, Any], *, new_head: bool, load: bool = True
) -> Bare:
    """Return the classifier NAME or NAME@WEIGHTS, whose weights are left out without `load`; see `zoo.build`."""
    name, _, tag = rest.partition("@")
    check_torchvision(name, tag)
    import torchvision

    choices = torchvision.models.get_model_weights(name)
    if tag and tag not in choices.__members__:
        raise ValueError(
            f"torchvision:{name} has no weights {tag!r}: take one of {', '.join(choices.__members__)}"
        )
    if tag and load:
        return _published_torchvision(name, choices[tag], shape, kwargs, new_head=new_head)
    views = (choices[tag] if tag else choices.DEFAULT).transforms()
    usual_px, px = views.crop_size[0], shape.image_px

    def make(**size: Any) -> nn.Module:
        make = partial(
            torchvision.models.get_model, name, weights=None, num_classes=shape.num_classes, **size
        )
        network = built_with(f"torchvision:{name}", make, {k: v for k, v in kwargs.items() if k not in size})
        if shape.in_channels != 3:
            _replace_stem(network, shape.in_channels)
        return network

    # the names of a size in ViT and in MaxViT
    options = [one for one in ({"image_size": px}, {"input_size": (px, px)}) if not set(one) & set(kwargs)]
    network = _at_size(make, shape, usual_px, options)
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


def _published_torchvision(
    name: str, weights: Any, shape: Shape, kwargs: Mapping[str, Any], *, new_head: bool
) -> Bare:
    import torchvision

    classes = len(weights.meta["categories"])
    check_fit(f"torchvision:{name}@{weights.name}", shape, classes, new_head=new_head)
    folder = os.path.join(torch.hub.get_dir(), "checkpoints")
    try:
        if not (_in_hub(weights.url) or answers(weights.url)):
            raise OSError(f"{host_of(weights.url)} does not answer")
        make = partial(torchvision.models.get_model, name, weights=weights)
        network = built_with(f"torchvision:{name}", make, kwargs)
    except OSError as error:
        raise FileNotFoundError(
            f"weights {weights.name} of torchvision:{name} are not in {folder} and could not be fetched ({error}): "
            f"put {weights.url} there, or name a file in `weights` (--teacher.weights)"
        ) from error
    if classes != shape.num_classes:
        _replace_head(network, name, shape.num_classes)
    views = weights.transforms()
    return Bare(network, views.mean, views.std, views.crop_size[0], _torchvision_source(views))


def _torchvision_source(views: Any) -> str:
    cut = f"{views.crop_size[0]} of {views.resize_size[0]} px"
    return f"torchvision's transforms ({views.interpolation.value}, {cut})"


def _in_hub(url: str) -> bool:
    return os.path.isfile(os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(url)))


def from_timm(
    rest: str, shape: Shape, kwargs: Mapping[str, Any], *, new_head: bool, load: bool = True
) -> Bare:
    """Return the classifier NAME, NAME.TAG or NAME@pretrained, whose weights are left out without `load`."""
    name, _, tag = rest.partition("@")
    if described_elsewhere(rest):
        name = rest
    else:
        check_timm(name, tag)
    import timm

    published = _timm_config(name)
    load = load and has_published(f"timm:{rest}")
    if load and not published.has_weights:
        raise ValueError(
            f"timm:{rest} has no pretrained weights: write timm:{name.split('.')[0]}, or another tag"
        )
    if load:
        check_fit(f"timm:{rest}", shape, published.num_classes, new_head=new_head)
    create = partial(
        timm.create_model, name, pretrained=load, num_classes=shape.num_classes, in_chans=shape.in_channels
    )

    def make(**size: Any) -> nn.Module:
        return built_with(f"timm:{rest}", partial(create, **size), kwargs)

    usual_px = published.input_size[-1]
    options = () if "img_size" in kwargs else ({"img_size": shape.image_px},)
    network = (
        _fetched_timm(name, make, shape, usual_px, options)
        if load
        else _at_size(make, shape, usual_px, options)
    )
    cut = f"{published.interpolation}, {published.crop_pct:.3g} of the side at {usual_px} px"
    licence = f"{published.license} by timm" if load and published.license else ""
    return Bare(network, published.mean, published.std, usual_px, f"timm's pretrained_cfg ({cut})", licence)


def _timm_config(name: str) -> Any:
    """Return what timm, a repository or a folder says of a network; ValueError, FileNotFoundError in one sentence."""
    import timm

    if not described_elsewhere(name):
        try:
            published = timm.models.get_pretrained_cfg(name, allow_unregistered=False)
        except RuntimeError as error:
            raise ValueError(f"timm:{name} cannot be read: {error}") from error
        assert published is not None
        return published
    from timm.models import _hub

    kind, _, place = name.partition(":")
    try:
        if kind == "hf-hub":
            with only_cached(enabled=not answers(hub_url(place))):
                says, _, _ = _hub.load_model_config_from_hf(place)
        else:
            says, _, _ = _hub.load_model_config_from_path(place)
    except OSError as error:
        raise FileNotFoundError(
            f"timm:{name} is not in the cache and could not be fetched ({type(error).__name__}): connect to the"
            f" network once, or fetch {hub_url(place)} elsewhere and name its folder as timm:local-dir:FOLDER"
        ) from error
    except (KeyError, ValueError, AttributeError) as error:
        raise ValueError(f"timm:{name}: its config.json is none that timm writes: name another") from error
    known = {one.name for one in fields(timm.models.PretrainedCfg)}
    return timm.models.PretrainedCfg(**{key: value for key, value in says.items() if key in known})


def _fetched_timm(
    name: str,
    make: Callable[..., nn.Module],
    shape: Shape,
    usual_px: int,
    options: Sequence[Mapping[str, Any]],
) -> nn.Module:

    published = _timm_config(name)
    hub = published.hf_hub_id
    url = hub_url(str(hub)) if hub else str(published.url)
    reached = (not hub and (_in_hub(url) or bool(published.file))) or answers(url)
    try:
        if not (hub or reached):
            raise OSError(f"{host_of(url)} does not answer")
        with only_cached(enabled=not reached):
            return _at_size(make, shape, usual_px, options)
    except (OSError, RuntimeError) as error:
        why = type(error).__name__ if reached else f"{host_of(url)} does not answer"
        raise FileNotFoundError(
            f"the weights of timm:{name} are not in the cache and could not be fetched ({why}): connect to the"
            f" network once, or fetch them elsewhere from {url} and name the file in `weights` (--teacher.weights)"
        ) from error


def published_classes(name: str) -> int | None:
    """Return how many classes the published weights in a name know; None without any."""
    if not has_published(name):
        return None
    library, _, rest = name.partition(":")
    name, _, tag = rest.partition("@")
    if library == "torchvision":
        check_torchvision(name, tag)
        import torchvision

        weights = torchvision.models.get_model_weights(name).__members__
        return len(weights[tag].meta["categories"]) if tag in weights else None
    if find_spec("timm") is None:
        return None
    try:
        return int(_timm_config(rest if described_elsewhere(rest) else name).num_classes)
    except (ValueError, FileNotFoundError):  # no such tag, as `from_timm` says
        return None


def check_fit(name: str, shape: Shape, classes: int, *, new_head: bool) -> None:
    """Raise ValueError where published weights are for other channels, or for other classes and no new head."""
    if shape.in_channels != 3:
        raise ValueError(
            f"the weights of {name} read 3 channels and the data set has {shape.in_channels}: "
            "take the network without its published weights"
        )
    if shape.num_classes not in (0, classes) and not new_head:
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
