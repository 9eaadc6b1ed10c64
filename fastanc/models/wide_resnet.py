"""Wide residual networks: the teachers and students of CAN."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fastanc.models.blocks import PreActBlock, conv3x3, he_init
from fastanc.models.names import blocks_of_wide


class WideResNet(nn.Module):
    """WRN-d-m: depth 6n+4, stages 16m, 32m and 64m wide: [B, C, H, W] -> logits [B, K]; features 64m wide.

    CAN's teacher is WRN-40-10 (55.9 M parameters) and its student WRN-10-4 (1.22 M), both with dropout 0.3
    between the convolutions of a block (Zagoruyko and Komodakis 2016). Raises ValueError for another depth.
    """

    def __init__(
        self, depth: int, width: int, num_classes: int, in_channels: int = 3, *, dropout: float = 0.0
    ) -> None:
        super().__init__()
        blocks = blocks_of_wide(depth)
        self.conv1 = conv3x3(in_channels, 16)
        stages = []
        channels = 16
        for base, stride in zip((16, 32, 64), (1, 2, 2)):
            stage = nn.Sequential()
            for block in range(blocks):
                project = channels != base * width
                stage.append(
                    PreActBlock(
                        channels, base * width, 1 if block else stride, project=project, dropout=dropout
                    )
                )
                channels = base * width
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
