"""The post-activation ResNets of the CIFAR-100 comparisons: Tian et al. 2020 (RepDistiller) and those who followed.

Unlike `resnet_cifar`'s, a shortcut that changes its shape is a 1x1 convolution with BatchNorm. Module names are those
of RepDistiller, so that its checkpoints load.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fastanc.models.blocks import conv3x3, he_init
from fastanc.models.names import blocks_of


def _projection(in_channels: int, channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))


class ProjectedBlock(nn.Module):
    """conv3x3-BN-ReLU-conv3x3-BN beside a shortcut, ReLU: [B, C, H, W] -> [B, C', H/s, W/s]."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _projection(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output map."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class ProjectedBottleneck(nn.Module):
    """conv1x1-conv3x3-conv1x1, each with BN, four times wider at its end, beside a shortcut, ReLU."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.shortcut = _projection(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output map, [B, 4 * width, H/s, W/s]."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(out)))))
        return F.relu(out + (x if self.shortcut is None else self.shortcut(x)))


def _stages(
    block: type[ProjectedBlock] | type[ProjectedBottleneck],
    channels: int,
    widths: Sequence[int],
    blocks: Sequence[int],
) -> list[nn.Sequential]:
    stages = []
    for number, (width, count) in enumerate(zip(widths, blocks)):
        stage = nn.Sequential()
        for place in range(count):
            stage.append(block(channels, width, 2 if number and not place else 1))
            channels = width * block.expansion
        stages.append(stage)
    return stages


class ProjectedResNet(nn.Module):
    """The ResNet of depth 6n+2: [B, C, H, W] -> logits [B, K]; stages 16, 32 and 64 wide.

    `wide` are the ResNet-8x4 and -32x4: stages 64, 128 and 256 wide behind a stem of 32. Raises ValueError for a
    depth that is not 6n+2.
    """

    def __init__(self, depth: int, num_classes: int, in_channels: int = 3, *, wide: bool = False) -> None:
        super().__init__()
        stem, *widths = (32, 64, 128, 256) if wide else (16, 16, 32, 64)
        self.conv1 = conv3x3(in_channels, stem)
        self.bn1 = nn.BatchNorm2d(stem)
        stages = _stages(ProjectedBlock, stem, widths, [blocks_of(depth, 2)] * 3)
        self.layer1, self.layer2, self.layer3 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[-1], num_classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [B, K] of normalised images."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.avgpool(x).flatten(1))


class ProjectedResNet50(nn.Module):
    """ResNet-50 with a 3x3 stem of stride 1 and no pooling: [B, C, 32, 32] -> logits [B, K]; features 2048 wide."""

    def __init__(self, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, 64)
        self.bn1 = nn.BatchNorm2d(64)
        stages = _stages(ProjectedBottleneck, 64, (64, 128, 256, 512), (3, 4, 6, 3))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(512 * ProjectedBottleneck.expansion, num_classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [B, K] of normalised images."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(self.avgpool(x).flatten(1))
