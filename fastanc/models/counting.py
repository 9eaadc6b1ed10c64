"""Parameters and multiply-accumulates of a network."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastanc.models.taps import Adapted, Tapped


class Counts(NamedTuple):
    """The size of a network."""

    parameters: int
    macs: int
    """Multiply-accumulates of one image; the ANC paper's "FLOPs" are 2 * 128 of them."""


def num_parameters(network: nn.Module) -> int:
    """Count a network's weights, buffers left out."""
    return sum(weight.numel() for weight in network.parameters())


@torch.no_grad()
def count(
    network: Tapped | Adapted,
    *,
    image_px: int | None = None,
    in_channels: int | None = None,
    with_head: bool = True,
) -> Counts:
    """Count a network at an input size (its own by default), from a dry run; an adapter is left out.

    The paper's ImageNet numbers leave the head out: `with_head=False`.
    """
    tapped = network.student if isinstance(network, Adapted) else network
    twin = copy.deepcopy(tapped).to("meta").eval()
    px, channels = image_px or tapped.image_px, in_channels or tapped.in_channels
    with FlopCounterMode(display=False) as counter:
        twin(torch.empty(1, channels, px, px, device="meta"))
    parameters = num_parameters(tapped)
    macs = counter.get_total_flops() // 2
    if not with_head and tapped.head is not None:
        parameters -= num_parameters(tapped.head)
        macs -= tapped.head.weight.numel()
    return Counts(parameters, macs)
