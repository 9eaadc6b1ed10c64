"""Every network by name, with its weights and its normalisation."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastanc.models.builder_arguments import refuse_ours
from fastanc.models.headless import PROBED_CLASSES, beheaded, without_head
from fastanc.models.heads import last_linear
from fastanc.models.hub import classes_of, from_hub
from fastanc.models.libraries import Shape, from_timm, from_torchvision, published_classes
from fastanc.models.names import (
    FAMILIES,
    HF,
    HF_UNTRAINED,
    TIMM,
    TIMM_UNTRAINED,
    has_published,
    without_published,
)
from fastanc.models.own_networks import IMAGENET_MEAN, IMAGENET_STD, is_registered, own_network
from fastanc.models.probe import checked
from fastanc.models.registered import (
    make_registered,
    num_classes_of,
    object_name,
    register_network,
    registered_names,
    statistics_of,
)
from fastanc.models.taps import Tapped, per_channel, untap
from fastanc.models.weight_files import Weights
from fastanc.models.weights import (
    FIELDS,
    check_fit,
    fit_weights,
    head_digest,
    read_fields,
    read_metadata,
    read_weights,
    save_weights,
    weights_digest,
)

__all__ = [
    "build",
    "describe_names",
    "head_digest",
    "load_weights",
    "own_classes",
    "register_network",
    "save_weights",
    "tap",
    "weights_digest",
]

_OTHER = 7919  # no network has so many classes


def describe_names() -> list[tuple[str, str]]:
    """Return (example of a name, what it builds) of every family."""
    own = [(family.example, family.says) for family in FAMILIES]
    return [
        *own,
        (
            "torchvision:NAME[@WEIGHTS]",
            "any torchvision classifier, e.g. torchvision:resnet152@IMAGENET1K_V1",
        ),
        *((name, f"registered by {make}") for name, make in registered_names().items()),
        ("timm:NAME[.TAG]", "any timm classifier, e.g. timm:resnet50.a1_in1k: a tag names weights"),
        (
            "timm:hf-hub:ORG/NAME",
            "one of a repository of the hub, or timm:local-dir:FOLDER of a folder like it",
        ),
        (
            "hf:NAME",
            "any image classifier of transformers: a repository, e.g. hf:microsoft/resnet-18, or a folder",
        ),
    ]


def build(
    name: str,
    *,
    num_classes: int,
    in_channels: int = 3,
    image_px: int = 32,
    weights: str | os.PathLike[str] | None = None,
    weights_key: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    head: str | None = None,
    stages: Sequence[str] | str = (),
    default_mean: Sequence[float] | None = None,
    default_std: Sequence[float] | None = None,
    new_head: bool = False,
    kwargs: Mapping[str, Any] | None = None,
) -> Tapped:
    """Return the network `name` (see `describe_names`) with its normalisation and taps, which were checked.

    For no classes it is without its last layer: features alone.

    `weights` is a file, taken in the place of published ones, and `weights_key` a place in it (see `read_weights`).
    `kwargs` are handed on to what builds the network.
    With `new_head` a head that was trained for other classes is replaced by a fresh one. Mean and std come from the
    arguments, the file's metadata, what the library publishes for the name if there are weights of whatever source,
    or the data set (`default_mean`, `default_std`), in this order; without any they are 0.5 and 0.25.
    Raises ValueError for an unknown name, weights that do not fit, and what `probe.checked` refuses,
    FileNotFoundError for weights that are neither here nor to be fetched.
    """
    library, _, rest = name.partition(":")
    headless, kwargs = num_classes == 0, dict(kwargs or {})
    own_classes = PROBED_CLASSES if headless and library not in (TIMM, TIMM_UNTRAINED) else num_classes
    if headless and library not in (TIMM, TIMM_UNTRAINED):
        own_classes = known_classes(name) or own_classes
    shape = Shape(own_classes, in_channels, image_px)
    refuse_ours(name, kwargs)
    if library == "torchvision":
        bare = from_torchvision(rest, shape, kwargs, new_head=new_head, load=weights is None)
    elif library in (TIMM, TIMM_UNTRAINED):
        load = weights is None and library == TIMM
        bare = from_timm(rest, shape, kwargs, new_head=new_head, load=load)
    elif library in (HF, HF_UNTRAINED):
        load = weights is None and library == HF
        bare = from_hub(name, rest, shape, kwargs, new_head=new_head, load=load)
    else:
        bare = own_network(name, shape, kwargs)
    left_out = (
        _behead(bare.network, name, shape, head)
        if headless and library not in (TIMM, TIMM_UNTRAINED)
        else None
    )
    found = Weights({}, {}, "", ())
    if weights is not None:
        replaced = head or last_linear(bare.network) if new_head else None
        found = read_weights(weights, weights_key, _without(bare.network.state_dict(), replaced))
    state, metadata = found.state, found.metadata
    published: dict[str, Sequence[float] | None] = {"mean": None, "std": None}
    source = ""
    trained = weights is not None or has_published(name) or is_registered(name)
    if in_channels == 3 and trained and bare.mean:
        published, source = {"mean": bare.mean, "std": bare.std}, bare.source or "the network's own"
    if weights is not None and (told := [key for key in ("mean", "std") if key in metadata]):
        published.update(read_fields(weights, metadata, told))
        source = "its weights file"
    source = source or ("the data set" if default_mean else "no source: 0.5 and 0.25")
    if mean or std:
        source = "the configuration" if mean and std else f"the configuration and {source}"
    tapped = Tapped(
        bare.network,
        head=None if headless else head,
        stages=stages,
        headless=headless,
        mean=per_channel(f"mean of {name}", mean or published["mean"] or default_mean or (0.5,), in_channels),
        std=per_channel(f"std of {name}", std or published["std"] or default_std or (0.25,), in_channels),
        num_classes=num_classes,
        name=name,
        in_channels=in_channels,
        image_px=image_px,
    )
    tapped.normalised_by, tapped.published_by = source, bare.source
    tapped.licence = bare.licence if weights is None else ""
    tapped.weights_from, tapped.kwargs = _told(weights, found), kwargs
    tapped.published = tuple(bare.mean or ()), tuple(bare.std or ())
    checked(tapped, usual_px=bare.usual_px)
    if weights is not None and headless:
        fit_weights(tapped.bare, without_head(state, tapped.bare, left_out), weights)
    elif weights is not None:
        other = tapped.head_name if new_head else None
        tapped.new_head = not _same_shapes(tapped.bare, state, other)
        fit_weights(tapped.bare, state, weights, other if tapped.new_head else None)
    elif not headless:
        tapped.new_head = known_classes(name) not in (None, num_classes)
    return tapped


def _behead(network: nn.Module, name: str, shape: Shape, head: str | None) -> str | None:
    """Take the head away and return its name; None of a registered network that takes no number of classes."""
    counts = None
    if is_registered(name):
        counts = num_classes_of(network, shape.in_channels, shape.image_px)
    if counts not in (None, shape.num_classes):
        return None
    probed = Tapped(
        network,
        head=head,
        mean=(0.5,) * shape.in_channels,
        std=(0.25,) * shape.in_channels,
        name=name,
        **shape._asdict(),
    )
    checked(probed)
    untap(network)
    beheaded(network, probed.head_name, name)
    return probed.head_name


def known_classes(name: str) -> int | None:
    """Return how many classes the published weights in a name know; None without any."""
    return classes_of(name) if has_published(name) and name.startswith(f"{HF}:") else published_classes(name)


def _told(path: str | os.PathLike[str] | None, found: Weights) -> str:
    """Say which weights were taken out of a file."""
    if path is None:
        return ""
    others = f", not {' or '.join(found.others)} (weights_key chooses)" if found.others else ""
    return os.fspath(path) + (f": {found.key}{others}" if found.key else "")


def _without(state: Mapping[str, Tensor], part: str | None) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if part is None or not key.startswith(f"{part}.")}


def _same_shapes(network: nn.Module, state: Mapping[str, Tensor], part: str | None) -> bool:
    """Tell whether a file's head, the module `part`, has as many classes as the network's."""
    own = {k: v for k, v in network.state_dict().items() if part is not None and k.startswith(f"{part}.")}
    return all(key in state and state[key].shape == value.shape for key, value in own.items())


def load_weights(path: str | os.PathLike[str], *, stages: Sequence[str] | str = ()) -> Tapped:
    """Return the network that `save_weights` wrote to `path`, built from the file alone.

    Raises ValueError when the file does not say which network it belongs to.
    """
    metadata = read_metadata(path)
    if "name" not in metadata:
        raise ValueError(f"weights file {os.fspath(path)} does not name its network: give the name beside it")
    said = read_fields(path, metadata, FIELDS)
    return build(
        said["name"],
        num_classes=said["num_classes"],
        in_channels=said["in_channels"],
        image_px=said["image_px"],
        weights=path,
        stages=stages,
        kwargs=read_fields(path, metadata, ["kwargs"])["kwargs"] if "kwargs" in metadata else None,
    )


def tap(
    network: nn.Module,
    *,
    image_px: int,
    in_channels: int = 3,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    head: str | None = None,
    stages: Sequence[str] | str = (),
    default_mean: Sequence[float] | None = None,
    default_std: Sequence[float] | None = None,
    headless: bool = False,
) -> Tapped:
    """Return a network that was given as an object with its normalisation and taps; a Tapped is returned as it is.

    Mean and std come from the arguments, the network's own `pretrained_cfg` (timm), the data set or ImageNet, in this
    order.
    Raises ValueError where it cannot be run at this size.
    """
    if isinstance(network, Tapped):
        return network
    own_mean, own_std = statistics_of(network)
    if (mean or std) and own_std is not None and set(own_std) == {1.0}:
        raise ValueError(
            f"teacher.mean and std do nothing beside {object_name(network)}, whose members normalise by themselves:"
            " give each as fastanc.tap(network, image_px=..., mean=..., std=...)"
        )
    usual = (IMAGENET_MEAN, IMAGENET_STD) if in_channels == 3 else ((0.5,), (0.25,))
    name = object_name(network)
    if (
        own_mean is not None and len(own_mean) != in_channels
    ):  # timm says those of colours of a grey network too
        own_mean = own_std = None
    tapped = Tapped(
        network,
        head=head,
        stages=stages,
        mean=per_channel(f"mean of {name}", mean or own_mean or default_mean or usual[0], in_channels),
        std=per_channel(f"std of {name}", std or own_std or default_std or usual[1], in_channels),
        num_classes=0 if headless else num_classes_of(network, in_channels, image_px),
        headless=headless,
        name=name,
        in_channels=in_channels,
        image_px=image_px,
    )
    of_images = "the data set" if default_mean else "ImageNet's, for want of another source"
    tapped.normalised_by = "the caller" if mean else "the network's pretrained_cfg" if own_mean else of_images
    return checked(tapped)


def own_classes(
    name: str,
    weights: str | os.PathLike[str] | None,
    in_channels: int = 3,
    image_px: int = 32,
    weights_key: str | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> int | None:
    """Return how many classes a network knows by itself; None where nothing says it.

    Published weights say it, and so do a network of a user's that takes no number, and a file that fastanc wrote. Of
    another file the shapes do: those of the parameters that would be others in a network for more classes.
    Raises ValueError for weights that do not fit the network, whatever its classes.
    """
    if weights is None and (published := known_classes(name)) is not None:
        return published
    if is_registered(name):
        made = make_registered(name, Shape(_OTHER, in_channels, image_px), kwargs)
        assert made is not None
        if (fixed := num_classes_of(made.network, in_channels, image_px)) != _OTHER:
            return fixed
    if weights is None:
        return None
    metadata = read_metadata(weights)
    if "num_classes" in metadata:
        return int(read_fields(weights, metadata, ["num_classes"])["num_classes"])
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        untrained = build(
            without_published(name),
            num_classes=_OTHER,
            in_channels=in_channels,
            image_px=image_px,
            kwargs=kwargs,
        )
    built = untrained.bare.state_dict()
    state = read_weights(weights, weights_key, built).state
    check_fit(
        state, built, weights, [key for key, own in built.items() if all(d % _OTHER for d in own.shape)]
    )
    found = {
        there
        for key, own in built.items()
        if key in state and own.dim() == state[key].dim()
        for there, here in zip(state[key].shape, own.shape)
        if here == _OTHER
    }
    return found.pop() if len(found) == 1 else None
