"""BatchNorm folded into the convolutions before it, for evaluation and export."""

from __future__ import annotations

import copy
from typing import cast

import torch.fx
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fastanc.models.taps import Tapped


def _pairs(network: nn.Module) -> list[tuple[str, str]]:
    """Return (convolution, BatchNorm) names where the one feeds nothing but the other, each called once.

    Both have the same parent, so that no tapped container ends between them.
    """
    try:
        graph = torch.fx.Tracer().trace(network)
    except Exception as error:
        raise ValueError(
            f"BatchNorm of {type(network).__name__} cannot be folded, because torch.fx cannot trace it "
            f"({type(error).__name__}): use it unfolded"
        ) from error
    modules = dict(network.named_modules())
    calls = [node for node in graph.nodes if node.op == "call_module"]
    targets = [node.target for node in calls]
    pairs = []
    for node in calls:
        if not isinstance(modules[node.target], nn.BatchNorm2d):
            continue
        before = node.args[0]
        if (
            before.op == "call_module"
            and isinstance(modules[before.target], nn.Conv2d)
            and len(before.users) == 1
            and before.target.rpartition(".")[0] == node.target.rpartition(".")[0]
            and targets.count(before.target) == targets.count(node.target) == 1
        ):
            pairs.append((before.target, node.target))
    return pairs


def fold_batchnorm(network: Tapped) -> Tapped:
    """Return a copy in eval mode whose convolutions carry the BatchNorm that followed them.

    The structure stays, so every tap still works; a pair that is itself tapped is left alone.
    Raises ValueError when torch.fx cannot trace the network.
    """
    folded = copy.deepcopy(network).eval()
    bare = folded.bare
    for conv_name, bn_name in _pairs(bare):
        if {conv_name, bn_name} & set(network.stage_names):
            continue
        conv = cast(nn.Conv2d, bare.get_submodule(conv_name))
        bn = cast(nn.BatchNorm2d, bare.get_submodule(bn_name))
        bare.set_submodule(conv_name, fuse_conv_bn_eval(conv, bn))
        bare.set_submodule(bn_name, nn.Identity())
    return folded
