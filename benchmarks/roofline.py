"""What a training step must at least do, counted from the network, and what the device can do, measured.

Every layer is taken as the best compiler would run it: a convolution or linear layer reads its operands once and
writes its result once; BatchNorm reads its input twice and writes once, with ReLU and the addition of a shortcut for
nothing; a frozen BatchNorm is folded away. The least time of a step is the sum over these passes of the larger
of bytes / copy rate and FLOPs / matmul rate (Williams et al., "Roofline", CACM 2009).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

_FP32_BYTES = 4


class Pass(NamedTuple):
    """One walk over memory and arithmetic units."""

    name: str
    flops: float
    """Of one image; a multiply-accumulate counts two."""
    entries: float
    """Activations read and written for one image."""
    weights: float
    """Weights read and written, whatever the batch."""


class Ceilings(NamedTuple):
    """What the device reaches on a long copy and on a large matrix product."""

    bytes_per_s: float
    flops_per_s: float


def passes(network: nn.Module, in_channels: int, image_px: int, *, trained: bool) -> list[Pass]:
    """Count a network's passes over one image [1, C, S, S] by hooks, in a dry run without memory.

    `trained` adds the backward passes and one fused SGD step with momentum; otherwise the network is frozen.
    """
    twin = copy.deepcopy(network).to("meta").train(trained).requires_grad_(trained)
    counted: list[Pass] = []

    def hook(name: str) -> Callable[..., None]:
        return lambda module, args, output: counted.extend(_of_layer(name, module, args[0], output, trained))

    for name, module in twin.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)):
            module.register_forward_hook(hook(name))
    twin(torch.empty(2, in_channels, image_px, image_px, device="meta"))
    if trained:  # reads weight, gradient and momentum, writes weight and momentum; all in fp32
        parameters = sum(p.numel() for p in twin.parameters())
        counted.append(Pass("optimizer", 0, 0, 5 * parameters))
    return counted


def _of_layer(name: str, layer: nn.Module, taken: Tensor, given: Tensor, trained: bool) -> list[Pass]:
    """The passes of one call, from the shapes of a batch of two."""
    read, written = taken.numel() / 2, given.numel() / 2
    if isinstance(layer, nn.BatchNorm2d):
        if not trained:
            return []
        # backward: dy and x for the two sums, dy and x again for dx
        return [Pass(f"{name} forward", 0, 3 * read, 0), Pass(f"{name} backward", 0, 5 * read, 0)]
    assert isinstance(layer, (nn.Conv2d, nn.Linear))
    weights = layer.weight.numel()
    depth = weights / layer.weight.shape[0]
    flops = 2 * written * depth
    found = [Pass(f"{name} forward", flops, read + written, weights)]
    if trained:
        found.append(Pass(f"{name} weight gradient", flops, read + written, weights))
        if taken.requires_grad:
            found.append(Pass(f"{name} input gradient", flops, read + written, weights))
    return found


def total_flops(found: Sequence[Pass]) -> float:
    """Return the FLOPs of one image."""
    return sum(each.flops for each in found)


def total_bytes(found: Sequence[Pass], batch: int, itemsize: int) -> float:
    """Return the bytes that a batch moves when activations and weights are `itemsize` bytes wide."""
    return sum(_bytes(each, batch, itemsize) for each in found)


def _bytes(each: Pass, batch: int, itemsize: int) -> float:
    width = _FP32_BYTES if each.name == "optimizer" else itemsize
    return each.entries * batch * itemsize + each.weights * width


def least_s(found: Sequence[Pass], batch: int, itemsize: int, ceilings: Ceilings) -> float:
    """Return the least seconds that a batch takes under the ceilings, pass after pass."""
    return sum(
        max(_bytes(each, batch, itemsize) / ceilings.bytes_per_s, each.flops * batch / ceilings.flops_per_s)
        for each in found
    )


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Measure the device: the best of some copies (read and write both count) and of some square matmuls."""
    cuda = device.type == "cuda"
    source = torch.zeros((512 if cuda else 64) << 20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_s = _best_s(lambda: target.copy_(source), device)
    side = 8192 if cuda else 1024
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    matmul_s = _best_s(lambda: a @ b, device)
    return Ceilings(2 * source.numel() / copy_s, 2 * side**3 / matmul_s)


def _best_s(call: Callable[[], object], device: torch.device, runs: int = 8) -> float:
    best = math.inf
    call()
    for _ in range(runs):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return best
