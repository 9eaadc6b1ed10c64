"""The VGGs of the CIFAR-100 comparisons (Tian et al. 2020): BatchNorm and one linear layer.

Module names are those of RepDistiller, so that its checkpoints load.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from fastanc.models.blocks import he_init
from fastanc.models.names import layers_of_vgg

_WIDTHS = (64, 128, 256, 512, 512)


class CifarVgg(nn.Module):
    """VGG-8 to -19 for 32 px: [B, C, H, W] -> logits [B, K]; features are 512 wide.

    The maps are pooled by two after each of the first three blocks, and after the fourth where images are of 64 px.
    A block ends before its last ReLU, as RepDistiller's do; stage maps are those after it, of the last four blocks.
    """

    own_stages: ClassVar[tuple[str, ...]] = ("act1", "act2", "act3", "act4")

    def __init__(self, depth: int, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        for number, (width, layers) in enumerate(zip(_WIDTHS, layers_of_vgg(depth))):
            block = nn.Sequential()
            for _ in range(layers):
                block.extend([nn.Conv2d(in_channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()])
                in_channels = width
            self.add_module(f"block{number}", block[:-1])
            self.add_module(f"act{number}", nn.ReLU())
        self.pool = nn.MaxPool2d(2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(_WIDTHS[-1], num_classes)
        he_init(self)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [B, K] of normalised images."""
        pools = 4 if x.shape[2] == 64 else 3
        for number in range(len(_WIDTHS)):
            x = self.get_submodule(f"act{number}")(self.get_submodule(f"block{number}")(x))
            if number < pools:
                x = self.pool(x)
        return self.classifier(self.avgpool(x).flatten(1))
