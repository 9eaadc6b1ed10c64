"""The generator of the data-free papers: latent vectors to images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from fastanc.files import written

_COLUMNS = 16  # of the sheet


class Generator(nn.Module):
    """Latent vectors [B, Z] -> images [B, C, out_px, out_px], float, 0..1 scale.

    The published network ends in tanh and a BatchNorm without weights: its images have mean 0 and variance 1
    per channel, and go to the teacher as they are. `mean` and `std`, the teacher's own, take them to the 0..1
    scale that every network here normalises again, so the teacher sees the published values. They are not
    clipped (that would stop the gradient): clamp before showing them.
    Raises ValueError when `out_px` is not a multiple of 4.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        latent_dim: int,
        channels: int,
        out_px: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        bn_eps: float,
        width: int = 64,
    ) -> None:
        super().__init__()
        if out_px % 4:
            raise ValueError(f"the generator doubles its map twice: out_px {out_px} must be a multiple of 4")
        self.latent_dim = latent_dim
        self.start_px = out_px // 4
        self.project = nn.Linear(latent_dim, 2 * width * self.start_px**2)
        self.bn0 = nn.BatchNorm2d(2 * width)
        self.conv1 = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(2 * width, eps=bn_eps)
        self.conv2 = nn.Conv2d(2 * width, width, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(width, eps=bn_eps)
        self.conv3 = nn.Conv2d(width, channels, 3, padding=1)
        self.bn3 = nn.BatchNorm2d(channels, affine=False)
        self.register_buffer(
            "shift", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False
        )
        self.register_buffer("scale", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def forward(self, latent: Tensor) -> Tensor:
        """Return one image per latent vector."""
        x = self.project(latent).view(latent.shape[0], -1, self.start_px, self.start_px)
        x = F.interpolate(self.bn0(x), scale_factor=2)
        x = F.leaky_relu(self.bn1(self.conv1(x)), 0.2)
        x = F.interpolate(x, scale_factor=2)
        x = F.leaky_relu(self.bn2(self.conv2(x)), 0.2)
        return torch.addcmul(self.shift, self.bn3(torch.tanh(self.conv3(x))), self.scale)


dafl_generator = partial(Generator, bn_eps=0.8)
"""DAFL's; its inner BatchNorm eps of 0.8 is the published one (Chen et al. 2019)."""
dfad_generator = partial(Generator, bn_eps=1e-5)
"""DFAD's: DAFL's with PyTorch's default eps (Fang et al. 2019)."""


@torch.no_grad()
def save_sheet(generator: nn.Module, latents: Tensor, path: Path) -> None:
    """Write the images of latent vectors [N, Z] as one PNG, row by row, clamped to 0..1.

    The generator is in eval mode meanwhile, so that a picture does not depend on its neighbours.
    """
    mode = generator.training
    device = next(generator.parameters()).device
    images = generator.eval()(latents.to(device)).float().clamp(0, 1).mul(255).round().byte().cpu()
    generator.train(mode)
    n, channels, side = images.shape[:3]
    rows = -(-n // _COLUMNS)
    gap = 1  # white pixel between two images
    sheet = torch.full(
        (channels, rows * (side + gap) - gap, _COLUMNS * (side + gap) - gap), 255, dtype=torch.uint8
    )
    for number, image in enumerate(images):
        y, x = (number // _COLUMNS) * (side + gap), (number % _COLUMNS) * (side + gap)
        sheet[:, y : y + side, x : x + side] = image
    pixels = sheet.permute(1, 2, 0).squeeze(2).numpy()
    with written(path) as file:
        Image.fromarray(pixels).save(file, "PNG")
