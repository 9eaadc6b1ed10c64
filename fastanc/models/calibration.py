"""Batch statistics for a network that nobody trained, so that its outputs have the size of a trained one's."""

from __future__ import annotations

import torch
from torch import nn

_IMAGES = 4


@torch.no_grad()
def calibrate_batchnorm(network: nn.Module, in_channels: int, image_px: int) -> None:
    """Give every BatchNorm2d of a random network the scale of its input on uniform noise, in place.

    Without it a deep residual network doubles its signal in every block: a random ResNet-152 leaves float16.
    The mean square of a layer's whole input, rounded to a power of two, becomes its running variance, and its
    running mean is 0, so that machines and thread counts agree on the weights, and on a cache's identity.

    Args:
        network: takes uint8 images [B, C, H, W]; left in evaluation mode, gradients off or on as they were.
        in_channels: C.
        image_px: H and W.
    """

    def set_scale(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(layer, nn.BatchNorm2d)
        assert layer.running_mean is not None
        assert layer.running_var is not None
        square = inputs[0].double().square().mean()
        layer.running_mean.zero_()
        layer.running_var.fill_(2.0 ** square.log2().round().item())

    hooks = [
        module.register_forward_pre_hook(set_scale)
        for module in network.modules()
        if isinstance(module, nn.BatchNorm2d) and module.track_running_stats
    ]
    noise = torch.Generator().manual_seed(0)
    images = torch.randint(
        256, (_IMAGES, in_channels, image_px, image_px), dtype=torch.uint8, generator=noise
    )
    try:
        network.eval()(images)
    finally:
        for hook in hooks:
            hook.remove()
