"""How deep in a network a weight lies, for learning rates that fall towards its stem."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class Depths(NamedTuple):
    """The levels of a network, 0 at its stem."""

    of: dict[str, int]
    """A weight's name -> its level."""
    levels: int
    by: str
    """Who says so, for a sentence."""


def depths_of(network: nn.Module) -> Depths:
    """Return the level of every weight of a bare network: of its blocks in order, after the stem and before the head.

    timm's networks say it themselves (`group_matcher`, which timm's own `layer_decay` reads). Of all others a block
    is an element of a container that has parts of its own; single layers before the first block are the stem, those
    between two blocks belong to the second, those after the last are the head. Without any block every layer is a
    level.
    """
    matcher = getattr(network, "group_matcher", None)
    if callable(matcher):
        return _told(network, matcher(coarse=False))
    # A weight that no module calls does not count: its owner is the network itself, as of a class token.
    owners = {name: _owner(network, name) for name, _ in network.named_parameters()}
    blocks = [owner for owner, is_block in dict.fromkeys(owners.values()) if is_block]
    if not blocks:
        layers = [owner for owner, _ in dict.fromkeys(owners.values()) if _is_layer(network, owner)]
        return _counted(owners, layers, f"its {len(layers)} layers", own_head=False)
    return _counted(owners, blocks, f"its {len(blocks)} blocks between stem and head", own_head=True)


def _told(network: nn.Module, matcher: Any) -> Depths:
    from timm.models import group_parameters

    # Names of another ordinal may share a level: timm numbers them in order.
    found = group_parameters(network, matcher, reverse=True)
    of = {name: int(found[name]) for name, _ in network.named_parameters()}
    return Depths(of, max(of.values(), default=0) + 1, "timm's group_matcher")


def _counted(owners: dict[str, tuple[str, bool]], marks: list[str], by: str, *, own_head: bool) -> Depths:
    """Count the levels up at every mark; what lies between two marks counts for the second."""
    first = 1 if own_head else 0
    levels = {mark: number for number, mark in enumerate(marks, first)}
    of: dict[str, int] = {}
    reached = -1 if own_head else 0
    for name, (owner, _) in owners.items():
        if owner in levels:
            reached = levels[owner]
            of[name] = reached
        elif not own_head:
            of[name] = reached  # a norm after its convolution
        elif reached < 0:
            of[name] = 0
        else:
            of[name] = reached + 1  # a head, or what leads to the next block
    # Some have nothing before the first block, or after the last.
    used = {level: number for number, level in enumerate(sorted(set(of.values())))}
    return Depths({name: used[level] for name, level in of.items()}, max(len(used), 1), by)


def _owner(network: nn.Module, name: str) -> tuple[str, bool]:
    """Return the name of the outermost block that a weight lies in, or of its layer, and which of the two it is."""
    path, module, inside = [], network, _contains(network)
    for part in name.split(".")[:-1]:
        module = module.get_submodule(part)
        path.append(part)
        if inside and not _contains(module) and any(True for _ in module.children()):
            return ".".join(path), True
        inside = _contains(module)
    return ".".join(path), False


def _contains(module: nn.Module) -> bool:
    return type(module) in _CONTAINERS


def _is_layer(network: nn.Module, owner: str) -> bool:
    """Return whether a module has a matrix or filters: a norm alone is no layer."""
    return any(weight.dim() > 1 for weight in network.get_submodule(owner).parameters(recurse=False))


def kept_whole(network: nn.Module) -> Iterator[str]:
    """Yield the names of weights that the network itself says do not decay (timm's `no_weight_decay`)."""
    said = getattr(network, "no_weight_decay", None)
    if callable(said):
        yield from said()
