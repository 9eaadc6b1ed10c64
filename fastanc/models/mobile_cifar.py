"""The light networks of the CIFAR-100 comparisons (Tian et al. 2020), in their forms for 32 px.

Module names are those of RepDistiller, so that its checkpoints load; so are the initial weights.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastanc.models.blocks import he_init

_MOBILE = (  # expansion, channels, blocks, stride of the first
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def _conv_norm(
    in_channels: int, channels: int, kernel: int, stride: int = 1, *, groups: int = 1, active: bool = True
) -> list[nn.Module]:
    convolution = nn.Conv2d(
        in_channels, channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False
    )
    norm = nn.BatchNorm2d(channels)
    return [convolution, norm, nn.ReLU()] if active else [convolution, norm]


class _InvertedResidual(nn.Module):
    """1x1, depthwise 3x3 and linear 1x1 convolutions, wider inside; a shortcut where the shape stays."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = in_channels * expansion
        self.keeps = stride == 1 and in_channels == channels
        self.conv = nn.Sequential(
            *_conv_norm(in_channels, wide, 1),
            *_conv_norm(wide, wide, 3, stride, groups=wide),
            *_conv_norm(wide, channels, 1, active=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output map."""
        return x + self.conv(x) if self.keeps else self.conv(x)


class HalfMobileNetV2(nn.Module):
    """MobileNetV2 half as wide, expansion 6: [B, C, 32, 32] -> logits [B, K]; features are 1280 wide.

    The published comparisons' MobileNetV2 (from RCO, Jin et al. 2019): the stem has stride 2, the second group 1.
    """

    own_stages: ClassVar[tuple[str, ...]] = ("blocks.1", "blocks.2", "blocks.4", "blocks.6")

    def __init__(self, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        channels = 32 // 2
        self.conv1 = nn.Sequential(*_conv_norm(in_channels, channels, 3, 2))
        self.blocks = nn.ModuleList()
        for expansion, width, count, stride in _MOBILE:
            group = nn.Sequential()
            for place in range(count):
                group.append(_InvertedResidual(channels, width // 2, 1 if place else stride, expansion))
                channels = width // 2
            self.blocks.append(group)
        self.conv2 = nn.Sequential(*_conv_norm(channels, 1280, 1))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        head = nn.Linear(1280, num_classes)
        self.classifier = nn.Sequential(head)
        he_init(self)
        nn.init.normal_(head.weight, std=0.01)
        nn.init.zeros_(head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [B, K] of normalised images."""
        x = self.conv1(x)
        for group in self.blocks:
            x = group(x)
        return self.classifier(self.avgpool(self.conv2(x)).flatten(1))


class _ShuffleUnit1(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3 and grouped 1x1 convolutions; added to the input, or beside its mean."""

    def __init__(self, in_channels: int, channels: int, stride: int, groups: int, first_groups: int) -> None:
        super().__init__()
        middle = channels // 4
        self.groups, self.stride = first_groups, stride
        self.conv1 = nn.Conv2d(in_channels, middle, 1, groups=first_groups, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, padding=1, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, channels, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the unit's output map."""
        out = F.channel_shuffle(F.relu(self.bn1(self.conv1(x))), self.groups)
        out = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(out)))))
        if self.stride == 1:
            return F.relu(out + x)
        return F.relu(torch.cat([out, F.avg_pool2d(x, 3, 2, 1)], 1))


class ShuffleNetV1(nn.Module):
    """ShuffleNet with 3 groups behind a 1x1 stem: [B, C, 32, 32] -> logits [B, K]; features are 960 wide."""

    def __init__(self, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        channels, groups = 24, 3
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        stages = []
        for width, count in ((240, 4), (480, 8), (960, 4)):
            stage = nn.Sequential()
            for place in range(count):
                made, stride = (width, 1) if place else (width - channels, 2)
                stage.append(_ShuffleUnit1(channels, made, stride, groups, 1 if channels == 24 else groups))
                channels = width
            stages.append(stage)
        self.layer1, self.layer2, self.layer3 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [B, K] of normalised images."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.avgpool(x).flatten(1))


class _ShuffleUnit2(nn.Module):
    """Half of the channels as they are, the other half through 1x1, depthwise 3x3 and 1x1; shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """Return the unit's output map."""
        kept, out = x.chunk(2, 1)
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(out)))))
        return F.channel_shuffle(torch.cat([kept, F.relu(self.bn3(self.conv3(out)))], 1), 2)


class _ShuffleDown2(nn.Module):
    """Two branches of stride 2 over all channels, beside each other; shuffled."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, 2, padding=1, groups=in_channels, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = nn.Conv2d(in_channels, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(in_channels, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = nn.Conv2d(half, half, 3, 2, padding=1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """Return the unit's output map, [B, C', H/2, W/2]."""
        left = F.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        right = self.bn4(self.conv4(F.relu(self.bn3(self.conv3(x)))))
        return F.channel_shuffle(torch.cat([left, F.relu(self.bn5(self.conv5(right)))], 1), 2)


class ShuffleNetV2(nn.Module):
    """ShuffleNetV2 1x behind a 1x1 stem: [B, C, 32, 32] -> logits [B, K]; features are 1024 wide."""

    def __init__(self, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        channels = 24
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        stages = []
        for width, count in ((116, 3), (232, 7), (464, 3)):
            stages.append(
                nn.Sequential(_ShuffleDown2(channels, width), *(_ShuffleUnit2(width) for _ in range(count)))
            )
            channels = width
        self.layer1, self.layer2, self.layer3 = stages
        self.conv2 = nn.Conv2d(channels, 1024, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(1024)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [B, K] of normalised images."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.avgpool(F.relu(self.bn2(self.conv2(x)))).flatten(1))
