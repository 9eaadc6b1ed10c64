"""Networks that are not fastanc's: registered under a name by a user's file, or given as objects."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from fastanc.models.builder_arguments import not_taken
from fastanc.models.libraries import Bare, Shape
from fastanc.models.taps import Tapped, logits_of
from fastanc.registry import is_same, remember

Maker = TypeVar("Maker", bound=Callable[..., nn.Module])
OBJECT = "object:"
"""Begins the name of a network that was given as an object; its class follows."""

_MAKERS: dict[str, Callable[..., nn.Module]] = {}


def register_network(name: str) -> Callable[[Maker], Maker]:
    """Return a decorator that makes a class, or a function that returns a network, known under `name`.

    It is called with those of num_classes, in_channels and image_px (keywords) that it takes, and returns an
    nn.Module from normalised images [B, C, H, W] to logits [B, K], or a Tapped. ValueError for a name that is taken.
    """

    if not name or set(name) & set(":@/ "):
        raise ValueError(f"register_network: {name!r} is no name: take letters, digits, - and _")

    def register(make: Maker) -> Maker:
        known = _MAKERS.get(name)
        if known is not None and not is_same(known, make):
            raise ValueError(f"register_network: {name!r} is taken by {_title(known)}: choose another name")
        _MAKERS[name] = make
        remember(make)
        return make

    return register


def registered_names() -> dict[str, str]:
    """Return every registered name with what makes it."""
    return {name: _title(make) for name, make in _MAKERS.items()}


def make_registered(name: str, shape: Shape, kwargs: Mapping[str, Any] | None = None) -> Bare | None:
    """Build a registered network, or that of an object's class; None for a name that nobody registered."""
    make = _MAKERS.get(name)
    if make is None and name.startswith(OBJECT):
        wanted = name.rpartition(".")[2]
        make = next((m for m in _MAKERS.values() if getattr(m, "__qualname__", "") == wanted), None)
        if make is None:
            raise ValueError(
                f"{name} was given as an object, which a name cannot build: give the same object again, or name the"
                " Python file that registers its class (@fastanc.register_network) with --plugin"
            )
    if make is None:
        return None
    taken = inspect.signature(make).parameters
    everything = any(p.kind is p.VAR_KEYWORD for p in taken.values())
    given = {key: value for key, value in shape._asdict().items() if everything or key in taken}
    for key in kwargs or {}:
        if key not in taken and not everything:
            raise ValueError(not_taken(name, key, make))
    given |= kwargs or {}
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    asked = [k for k, p in taken.items() if p.kind not in several and p.default is p.empty and k not in given]
    if asked:
        raise ValueError(
            f"network {name!r}: {_title(make)} asks for {asked[0]}, but only num_classes, in_channels and image_px"
            " are given: give it a default, or register a function that returns the network"
        )
    try:
        network = make(**given)
    except Exception as error:
        if not kwargs:
            raise
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"kwargs of {name}: {_title(make)} refuses {dict(kwargs)} ({said}): give others"
        ) from error
    if not isinstance(network, nn.Module):
        raise ValueError(
            f"network {name!r} is a {type(network).__name__}: its function must return an nn.Module"
        )
    if isinstance(network, Tapped):
        return Bare(network.bare, network.mean, network.std)
    return Bare(network, *statistics_of(network))


def object_name(network: nn.Module) -> str:
    """Return what to call a network that was given as an object: its class."""
    kind = type(network)
    return f"{OBJECT}{kind.__module__}.{kind.__qualname__}"


def statistics_of(network: nn.Module) -> tuple[Sequence[float] | None, Sequence[float] | None]:
    """Return the mean and std that a network says it wants (timm's `pretrained_cfg`), or None twice."""
    says = getattr(network, "pretrained_cfg", None) or {}
    return says.get("mean"), says.get("std")


@torch.no_grad()
def num_classes_of(network: nn.Module, in_channels: int, image_px: int) -> int:
    """Return the number of logits that a network gives, found by running it on one empty image.

    Raises ValueError where it cannot be run at this size, or gives no [B, K].
    """
    modes = {module: module.training for module in network.modules()}
    weight = next(network.parameters(), torch.zeros(0))
    image = torch.zeros(1, in_channels, image_px, image_px, dtype=weight.dtype, device=weight.device)
    try:
        out = network.eval()(image)
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"{object_name(network)} does not take {in_channels} x {image_px} x {image_px} images ({reason[0]}):"
            " set data.image_px, or give another network"
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    try:
        logits = logits_of(out)
    except (TypeError, KeyError, IndexError):
        logits = None
    if not isinstance(logits, torch.Tensor) or logits.dim() != 2:
        raise ValueError(
            f"{object_name(network)} does not return logits [B, K]: wrap it in a module that does"
        )
    return logits.shape[1]


def _title(make: Callable[..., nn.Module]) -> str:
    return f"{getattr(make, '__module__', '?')}.{getattr(make, '__qualname__', make)}"
