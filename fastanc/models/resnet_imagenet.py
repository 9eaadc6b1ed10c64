"""The bottleneck ResNets of the ANC paper for ImageNet, and the 32 px variant of the standard ones."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fastanc.models.blocks import PreActBottleneck, conv3x3, he_init
from fastanc.models.names import units_of


class BottleneckResNetV2(nn.Module):
    """The pre-activation bottleneck ResNet of TF-slim: [B, C, H, W] -> logits [B, K]; features are 2048 wide.

    The stride of a stage sits in its last unit. The paper's "ResNet-18" is this network with [2, 2, 2, 2]
    units (26 layers deep, 13.95 M parameters without the head), not the usual basic-block one; so its pooled
    features are as wide as ResNet-152's. Raises ValueError for a depth outside `names.DEPTHS`.
    """

    def __init__(self, depth: int, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 7, 2, padding=3)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        stages = []
        channels = 64
        for width, units, last_stride in zip((64, 128, 256, 512), units_of(depth), (2, 2, 2, 1)):
            stage = nn.Sequential()
            for unit in range(units):
                stride = last_stride if unit == units - 1 else 1
                stage.append(PreActBottleneck(channels, width, stride, project=unit == 0, bias=True))
                channels = width * PreActBottleneck.expansion
            stages.append(stage)
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.bn = nn.BatchNorm2d(channels)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [B, K] of normalised images."""
        x = self.maxpool(self.conv1(x))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(F.relu(self.bn(x))).flatten(1))


def small_input_resnet(depth: int, num_classes: int, in_channels: int = 3) -> nn.Module:
    """Return torchvision's ResNet with a 3x3 stem of stride 1 and no first pooling: 32 px images end at 4 px.

    The teacher (34) and student (18) of the data-free papers (DAFL, DFAD).
    """
    import torchvision  # it takes seconds, and most networks do without

    network = torchvision.models.get_model(f"resnet{depth}", weights=None, num_classes=num_classes)
    network.conv1 = conv3x3(in_channels, 64)
    network.maxpool = nn.Identity()
    he_init(network)
    return network
