"""The pre-activation residual blocks that several families share, and their initialisation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def conv3x3(in_channels: int, channels: int, stride: int = 1) -> nn.Conv2d:
    """Return a 3x3 convolution that keeps the map size at stride 1, without bias."""
    return nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)


def he_init(network: nn.Module) -> None:
    """Draw every convolution from N(0, 2 / fan_out), its bias zero, in place (He et al. 2015)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class PreActBlock(nn.Module):
    """BN-ReLU-conv3x3-BN-ReLU-dropout-conv3x3 beside a shortcut: [B, C, H, W] -> [B, C', H/s, W/s].

    With `project` the shortcut is a 1x1 convolution of the activated input (He et al. 2016, Fig. 4e).
    """

    def __init__(
        self, in_channels: int, channels: int, stride: int, *, project: bool, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv3x3(channels, channels)
        self.shortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False) if project else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output map."""
        active = F.relu(self.bn1(x))
        kept = x if self.shortcut is None else self.shortcut(active)
        return self.conv2(self.dropout(F.relu(self.bn2(self.conv1(active))))) + kept


class PreActBottleneck(nn.Module):
    """BN-ReLU-conv1x1-BN-ReLU-conv3x3-BN-ReLU-conv1x1, four times wider at its end than inside.

    Where the shortcut is not projected, a stride takes every second pixel of it. `bias` gives the last
    convolution and the projection one, as TF-slim's resnet_v2 does.
    """

    expansion = 4

    def __init__(
        self, in_channels: int, width: int, stride: int, *, project: bool, bias: bool = False
    ) -> None:
        super().__init__()
        channels = width * self.expansion
        self.stride = stride
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, channels, 1, bias=bias)
        self.shortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=bias) if project else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output map, [B, 4 * width, H/s, W/s]."""
        active = F.relu(self.bn1(x))
        kept = x[:, :, :: self.stride, :: self.stride] if self.shortcut is None else self.shortcut(active)
        out = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return self.conv3(F.relu(self.bn3(out))) + kept
