"""Small sets kept on the device: zero-padded crop and flip in one pass.

A set such as CIFAR lies on the device as uint8 [N, H, W, C]. A batch is gathered from it by image number; a
box may reach over the image's edge, where it reads zeros, so no padded copy of the set exists.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs
# (a kernel's arguments are what Triton makes of them: pointers, scalars, tiles)

from __future__ import annotations

import torch
from torch import Tensor

from fastanc.kernels.backend import blocks, jit, runs_kernels, tl

_BLOCK = 1024


def crop_flip_reference(
    images: Tensor, index: Tensor, corners: Tensor, flips: Tensor, out_px: int, pad: int = 0
) -> Tensor:
    """`crop_flip` in plain PyTorch."""
    (_, height, width, _), along = images.shape, torch.arange(out_px, device=images.device)
    y = corners[:, 1, None] - pad + along
    x = corners[:, 0, None] - pad + torch.where(flips[:, None] > 0, out_px - 1 - along, along)
    inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    return images[index[:, None, None], y[:, :, None], x[:, None, :]] * inside[..., None]


@jit
def _crop_kernel(
    images,  # [N, H, W, C] uint8
    index,  # [B] int64
    index_b,
    corners,  # [B, 2] of (x, y)
    corners_b,
    corners_f,
    flips,  # [B]
    flips_b,
    out,  # [B, P, P, C], written
    H,
    W,
    pad,
    C: tl.constexpr,
    P: tl.constexpr,
    BLOCK: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    c = place % C
    column = (place // C) % P
    flip = tl.load(flips + b * flips_b)
    x = tl.load(corners + b * corners_b).to(tl.int32) - pad + tl.where(flip != 0, P - 1 - column, column)
    y = tl.load(corners + b * corners_b + corners_f).to(tl.int32) - pad + place // (C * P)
    inside = (x >= 0) & (x < W) & (y >= 0) & (y < H) & (place < P * P * C)
    image = images + tl.load(index + b * index_b).to(tl.int64) * (H * W * C)
    pixel = tl.load(image + (y * W + x) * C + c, mask=inside, other=0)
    tl.store(out + b * (P * P * C) + place, pixel, mask=place < P * P * C)


def crop_flip(
    images: Tensor, index: Tensor, corners: Tensor, flips: Tensor, out_px: int, pad: int = 0
) -> Tensor:
    """Cut a batch out of a resident set: zeros beyond the edge, mirrored where flipped.

    Reads and writes out_px^2 C bytes per image each, 3072 and 3072 for CIFAR.

    Args:
        images: [N, H, W, C] uint8, the whole set, contiguous.
        index: [B] int64 image numbers, on the images' device.
        corners: [B, 2] int of (x, y), the crop's upper left corner; may be negative.
        flips: [B] int, 1 mirrors left and right.
        out_px: side of the crop.
        pad: the corners are those of images with a border of so many zeros.

    Returns:
        [B, out_px, out_px, C] uint8; `.permute(0, 3, 1, 2)` of it is channels_last.
    """
    if not runs_kernels(images):
        return crop_flip_reference(images, index, corners, flips, out_px, pad)
    assert images.is_contiguous()
    _, height, width, channels = images.shape
    out = images.new_empty((len(index), out_px, out_px, channels))
    _crop_kernel[len(index), blocks(out_px * out_px * channels, _BLOCK)](
        images, index, index.stride(0), corners, *corners.stride(), flips, flips.stride(0), out,
        height, width, pad, C=channels, P=out_px, BLOCK=_BLOCK,
    )  # fmt: skip
    return out
