"""The LeNets: ANC's Fashion-MNIST student, and the LeNet-5 pair of the data-free papers."""

from __future__ import annotations

from torch import Tensor, nn


class LeNet4(nn.Module):
    """Two convolutions and two linear layers: [B, C, H, W] -> logits [B, K]; features are 1024 wide.

    The paper prints only 2.3 M parameters and 7.06 B operations; these widths give both at 28 px grey, with
    features as wide as those of `NiN`, so that one discriminator reads both without an adapter.
    """

    def __init__(self, num_classes: int, in_channels: int = 1, image_px: int = 28) -> None:
        super().__init__()
        self.block1 = nn.Sequential(nn.Conv2d(in_channels, 116, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2))
        self.block2 = nn.Sequential(nn.Conv2d(116, 80, 5), nn.ReLU(), nn.MaxPool2d(2))
        self.fc1 = nn.Sequential(nn.Linear(80 * ((image_px // 2 - 4) // 2) ** 2, 1024), nn.ReLU())
        self.fc2 = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [B, K] of normalised images."""
        return self.fc2(self.fc1(self.block2(self.block1(x)).flatten(1)))


class LeNet5(nn.Module):
    """LeNet-5 of DAFL: [B, C, 32, 32] or [B, C, 28, 28] -> logits [B, K]; 84 features, 42 with `half`.

    At 28 px the first convolution pads by two pixels, so that the maps are those of 32 px.
    Raises ValueError for another size.
    """

    def __init__(
        self, num_classes: int, in_channels: int = 1, image_px: int = 32, *, half: bool = False
    ) -> None:
        super().__init__()
        if image_px not in (28, 32):
            raise ValueError(f"LeNet-5 reads images of 28 or 32 px, not of {image_px}: resize the data set")
        c1, c2, c3, width = (3, 8, 60, 42) if half else (6, 16, 120, 84)
        padding = (32 - image_px) // 2
        self.block1 = nn.Sequential(
            nn.Conv2d(in_channels, c1, 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.block2 = nn.Sequential(nn.Conv2d(c1, c2, 5), nn.ReLU(), nn.MaxPool2d(2))
        self.block3 = nn.Sequential(nn.Conv2d(c2, c3, 5), nn.ReLU())
        self.fc1 = nn.Sequential(nn.Linear(c3, width), nn.ReLU())
        self.fc2 = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [B, K] of normalised images."""
        return self.fc2(self.fc1(self.block3(self.block2(self.block1(x))).flatten(1)))
