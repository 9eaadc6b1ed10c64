"""The discriminators of the papers; all return logits, never probabilities."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fastanc.quoting import shown

TABLE1 = (
    "128-256-128",
    "64-128-256",
    "256-256",
    "256-128-64",
    "64-128-128-64",
    "500-500",
    "256-256-64",
    "64-64",
    "128conv-256conv",
    "128-128-128",
)
"""The ten layouts of ANC's Table 1, best first."""
_MOST_WEIGHTS, _MOST_LAYERS = 2**28, 64  # a GiB; beyond it memory ends, and the batch would be blamed


def discriminator(layout: str, in_dim: int, out_dim: int = 1) -> nn.Sequential:
    """Return the fully connected discriminator `layout`, e.g. "128-256-128": [B, in_dim] -> [B, out_dim].

    ReLU between the layers, none after the last (ANC, section 3.3). A width ending in `conv` is a convolution
    of size 3 and stride 2 along the vector read as a signal of one channel: the paper does not say what its
    "128conv-256conv" convolves. Raises ValueError for a layout that cannot be read.
    """
    try:
        widths = [(int(part.removesuffix("conv")), part.endswith("conv")) for part in layout.split("-")]
    except ValueError:
        raise ValueError(
            f'discriminator layout {shown(layout)} cannot be read: write widths joined by "-", e.g. 128-256-128'
        ) from None
    kinds = [convolves for _, convolves in widths]
    if any(width < 1 for width, _ in widths) or kinds != sorted(kinds, reverse=True):
        raise ValueError(
            f"discriminator layout {shown(layout)} cannot be built: take positive widths, convolutions first"
        )
    if _weights(widths, in_dim) > _MOST_WEIGHTS or len(widths) > _MOST_LAYERS:
        raise ValueError(
            f"discriminator layout {shown(layout)} is too large for {in_dim} inputs: take up to {_MOST_LAYERS} layers"
            f" with {_MOST_WEIGHTS / 1e6:.0f} million weights in all"
        )
    layers = nn.Sequential()
    channels, length = 1, in_dim
    if kinds[0]:
        layers.append(nn.Unflatten(1, (1, in_dim)))
    for width, convolves in widths:
        if convolves:
            layers.append(nn.Conv1d(channels, width, 3, stride=2, padding=1))
            channels, length = width, (length + 1) // 2
        else:
            if channels > 1:
                layers.append(nn.Flatten())
            layers.append(nn.Linear(channels * length, width))
            channels, length = 1, width
        layers.append(nn.ReLU())
    if channels > 1:
        layers.append(nn.Flatten())
    layers.append(nn.Linear(channels * length, out_dim))
    return layers


def _weights(widths: list[tuple[int, bool]], in_dim: int) -> int:
    channels, length, total = 1, in_dim, 0
    for width, convolves in widths:
        total += 3 * channels * width if convolves else channels * length * width
        channels, length = (width, (length + 1) // 2) if convolves else (1, width)
    return total


class _ResidualLayer(nn.Module):
    """x + linear(dropout(ReLU(BN(x)))), [B, W] -> [B, W]."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(width)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(self.dropout(F.relu(self.bn(x))))


def can_discriminator(
    num_classes: int, *, width: int | None = None, depth: int = 3, dropout: float = 0.3
) -> nn.Sequential:
    """Return CAN's residual network on logits: [B, K] -> [B, K + 2], class logits, then real and fake.

    BatchNorm on the input, `depth` residual layers as wide as the logits unless `width` says otherwise, one
    output layer (CAN, section 3.2 and Fig. 2).
    """
    layers = nn.Sequential(nn.BatchNorm1d(num_classes))
    if width is None:
        width = num_classes
    elif width != num_classes:
        layers.append(nn.Linear(num_classes, width))
    layers.extend(_ResidualLayer(width, dropout) for _ in range(depth))
    layers.append(nn.Linear(width, num_classes + 2))
    return layers


def ksanc_discriminator(in_dim: int, out_dim: int) -> nn.Sequential:
    """Return KSANC's BN-FC-BN-ReLU-FC-BN-ReLU-FC (Fig. 2; widths ours): [B, in_dim] -> [B, out_dim]."""
    first, second = 128, 256
    return nn.Sequential(
        nn.BatchNorm1d(in_dim),
        nn.Linear(in_dim, first),
        nn.BatchNorm1d(first),
        nn.ReLU(),
        nn.Linear(first, second),
        nn.BatchNorm1d(second),
        nn.ReLU(),
        nn.Linear(second, out_dim),
    )
