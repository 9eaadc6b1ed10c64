"""Network in Network with a fully connected layer before the logits: ANC's Fashion-MNIST teacher."""

from __future__ import annotations

from torch import Tensor, nn

from fastanc.models.blocks import he_init


def _mlpconv(in_channels: int, kernel: int, channels: tuple[int, int, int]) -> nn.Sequential:
    layers = nn.Sequential()
    for i, width in enumerate(channels):
        size = 1 if i else kernel
        layers.append(nn.Conv2d(in_channels, width, size, padding=size // 2, bias=False))
        layers.append(nn.BatchNorm2d(width))
        layers.append(nn.ReLU())
        in_channels = width
    return layers


class NiN(nn.Module):
    """Network in Network: [B, C, H, W] -> logits [B, K]; features are 1024 wide, the layer the paper taps.

    The paper prints only 10.6 M parameters and 60.23 B operations; Lin et al.'s three blocks with their own
    widths give both at 28 px grey when the third block comes before the second pooling. BatchNorm, which Lin
    et al. did not have, makes it train without a tuned initialisation.
    """

    def __init__(self, num_classes: int, in_channels: int = 1, image_px: int = 28) -> None:
        super().__init__()
        self.block1 = _mlpconv(in_channels, 5, (192, 160, 96))
        self.pool1 = nn.Sequential(nn.MaxPool2d(2), nn.Dropout(0.5))
        self.block2 = _mlpconv(96, 5, (192, 192, 192))
        self.block3 = _mlpconv(192, 3, (192, 192, 192))
        self.pool2 = nn.Sequential(nn.AvgPool2d(2), nn.Dropout(0.5))
        self.fc1 = nn.Sequential(nn.Linear(192 * (image_px // 4) ** 2, 1024), nn.ReLU())
        self.fc2 = nn.Linear(1024, num_classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [B, K] of normalised images."""
        x = self.block3(self.block2(self.pool1(self.block1(x))))
        return self.fc2(self.fc1(self.pool2(x).flatten(1)))
