"""The ResNets for 32 px images: the paper's pre-activation ones and the published post-activation ones."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fastanc.models.blocks import PreActBlock, PreActBottleneck, conv3x3, he_init
from fastanc.models.names import blocks_of

WIDTHS = (16, 32, 64)


class PreActResNet(nn.Module):
    """The pre-activation ResNet of depth 6n+2: [B, C, H, W] -> logits [B, K]; features are 64 wide.

    ANC's ResNet-20 and ResNet-164: the first block of every stage projects its shortcut, as TensorFlow's
    official model does, which alone gives the paper's operation counts. With `bottleneck` the depth is 9n+2
    and the stages are 64, 128 and 256 wide (KSANC's teacher). Raises ValueError for any other depth.
    """

    def __init__(
        self, depth: int, num_classes: int, in_channels: int = 3, *, bottleneck: bool = False
    ) -> None:
        super().__init__()
        block: type[PreActBlock] | type[PreActBottleneck] = PreActBottleneck if bottleneck else PreActBlock
        expansion = PreActBottleneck.expansion if bottleneck else 1
        blocks = blocks_of(depth, 3 if bottleneck else 2)
        self.conv1 = conv3x3(in_channels, WIDTHS[0])
        channels = WIDTHS[0]
        stages = []
        for width, stride in zip(WIDTHS, (1, 2, 2)):
            stage = nn.Sequential(block(channels, width, stride, project=True))
            channels = width * expansion
            stage.extend(block(channels, width, 1, project=False) for _ in range(blocks - 1))
            stages.append(stage)
        self.layer1, self.layer2, self.layer3 = stages
        self.bn = nn.BatchNorm2d(channels)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [B, K] of normalised images."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.fc(self.avgpool(F.relu(self.bn(x))).flatten(1))


class PostActBlock(nn.Module):
    """conv3x3-BN-ReLU-conv3x3-BN, shortcut without parameters (He et al. 2015, option A), ReLU."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.padding = (channels - in_channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output map."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.padding:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(out + x)


class PostActResNet(nn.Module):
    """The post-activation ResNet of depth 6n+2: [B, C, H, W] -> logits [B, K]; features are 64 wide.

    Module names are those of akamaster/pytorch_resnet_cifar10, so that its published weights load.
    Raises ValueError for a depth that is not 6n+2.
    """

    def __init__(self, depth: int, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        blocks = blocks_of(depth, 2)
        self.conv1 = conv3x3(in_channels, WIDTHS[0])
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        stages = []
        channels = WIDTHS[0]
        for width, stride in zip(WIDTHS, (1, 2, 2)):
            stage = nn.Sequential(PostActBlock(channels, width, stride))
            stage.extend(PostActBlock(width, width, 1) for _ in range(blocks - 1))
            channels = width
            stages.append(stage)
        self.layer1, self.layer2, self.layer3 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels, num_classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [B, K] of normalised images."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.avgpool(x).flatten(1))
