"""Which of a player's weights share a learning rate and a decay: the groups of its optimizer."""

from __future__ import annotations

from typing import Any

from torch import nn

from fastanc.models.depths import Depths, depths_of, kept_whole
from fastanc.models.taps import Tapped, Wrapper, unwrapped
from fastanc.optimizers import OptimizerConfig


def groups_of(player: nn.Module, spec: OptimizerConfig) -> list[nn.Parameter] | list[dict[str, Any]]:
    """Return what a player's optimizer is built of: its weights, in groups where they do not all move alike.

    Without `decay_norms` weights of one dimension (norms, biases) do not decay, nor do those that the network says
    (timm's `no_weight_decay`). With `layer_decay` d a weight of level k of n has the rate times d^(n - 1 - k), as
    BEiT and timm have it; what a method puts around a student learns as its head.
    """
    weights = [weight for weight in player.parameters() if weight.requires_grad]
    if spec.decay_norms and spec.layer_decay == 1:
        return weights
    network = _bare(player)
    names = {id(weight): name for name, weight in network.named_parameters()}
    spared = set(kept_whole(network))
    found = depths_of(network) if spec.layer_decay != 1 else Depths({}, 1, "")
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for weight in weights:
        name = names.get(id(weight), "")
        level = found.of.get(name, found.levels - 1)
        decays = spec.decay_norms or (weight.dim() > 1 and name not in spared)
        groups.setdefault((level, decays), []).append(weight)
    return [
        {
            "params": groups[level, decays],
            "lr": spec.lr * spec.layer_decay ** (found.levels - 1 - level),
            "weight_decay": spec.weight_decay if decays else 0.0,
        }
        for level, decays in sorted(groups)
    ]


def note_of(player: nn.Module, spec: OptimizerConfig) -> tuple[str, ...]:
    """Return a line for the log that says how a student's weights were grouped; nothing where they were not."""
    said = []
    if spec.layer_decay != 1:
        found = depths_of(_bare(player))
        least = spec.layer_decay ** (found.levels - 1)
        said.append(
            f"layer_decay {spec.layer_decay:g} over {found.levels} levels by {found.by}: rates from"
            f" {least:.3g} of optimizer.lr at the stem to all of it at the head"
        )
    if not spec.decay_norms:
        groups = [group for group in groups_of(player, spec) if isinstance(group, dict)]
        spared = sum(w.numel() for group in groups if not group["weight_decay"] for w in group["params"])
        said.append(f"{spared:,} weights of norms and biases do not decay")
    return ("; ".join(said),) if said else ()


def _bare(player: nn.Module) -> nn.Module:
    return unwrapped(player).bare if isinstance(player, Tapped | Wrapper) else player
