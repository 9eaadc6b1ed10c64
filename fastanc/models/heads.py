"""Heads: a layer that is a linear map, what it reads as features [B, D], and the map that a cache applies."""

from __future__ import annotations

from torch import Tensor, nn


def last_linear(network: nn.Module) -> str | None:
    """Return the name of the last nn.Linear in module order, or None."""
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    return names[-1] if names else None


def may_be_head(module: nn.Module) -> bool:
    """Return whether a module maps every position by itself and linearly: nn.Linear, or an nn.Conv2d of 1 x 1."""
    if isinstance(module, nn.Conv2d):
        plain = module.kernel_size == module.stride == (1, 1) and module.groups == 1
        return plain and module.padding in ((0, 0), "same", "valid")
    return isinstance(module, nn.Linear)


def pooled(module: nn.Module, values: Tensor) -> Tensor:
    """Return [B, D] of what a head reads or gives: [B, D] itself, else the mean over all positions.

    A linear map and a mean commute, so the map of the mean is the mean of the maps. `values` are [B, ..., D] of
    an nn.Linear and [B, D, H, W] of an nn.Conv2d.
    """
    if values.dim() < 3:
        return values
    if isinstance(module, nn.Conv2d):
        values = values.flatten(2).transpose(1, 2)
    positions = values.flatten(1, -2)
    return positions[:, 0] if positions.shape[1] == 1 else positions.mean(1)


def width(module: nn.Module) -> int:
    """Return D, the width of what a head reads."""
    width = module.in_channels if isinstance(module, nn.Conv2d) else module.in_features
    assert isinstance(width, int)
    return width


def as_linear(module: nn.Module) -> nn.Linear:
    """Return a head as the nn.Linear [K, D] that it is; a convolution's shares its memory, without gradient."""
    if isinstance(module, nn.Linear):
        return module
    assert isinstance(module, nn.Conv2d)
    # Not through nn.Linear's constructor, which would draw weights and so move the random numbers of a run.
    linear = nn.Linear.__new__(nn.Linear)
    nn.Module.__init__(linear)
    linear.in_features, linear.out_features = module.in_channels, module.out_channels
    linear.weight = nn.Parameter(module.weight.detach().flatten(1), module.weight.requires_grad)
    bias = module.bias
    linear.bias = None if bias is None else nn.Parameter(bias.detach(), bias.requires_grad)  # type: ignore[assignment]
    return linear.train(module.training)
