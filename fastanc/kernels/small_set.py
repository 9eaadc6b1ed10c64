"""Small sets kept on the device: zero-padded crop, flip and, if wanted, normalisation, in one pass.

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


def crop_flip_reference(images: Tensor, index: Tensor, boxes: Tensor, flips: Tensor, out_px: int) -> Tensor:
    """`crop_flip` in plain PyTorch."""
    (_, height, width, _), along = images.shape, torch.arange(out_px, device=images.device)
    y = boxes[:, 1, None] + along
    x = boxes[:, 0, None] + torch.where(flips[:, None] > 0, out_px - 1 - along, along)
    inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    return images[index[:, None, None], y[:, :, None], x[:, None, :]] * inside[..., None]


def crop_flip_normalise_reference(
    images: Tensor,
    index: Tensor,
    boxes: Tensor,
    flips: Tensor,
    out_px: int,
    mean: Tensor,
    std: Tensor,
    dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """`crop_flip_normalise` in plain PyTorch."""
    pixels = crop_flip_reference(images, index, boxes, flips, out_px).to(mean.dtype)
    return ((pixels / 255 - mean) / std).to(dtype).permute(0, 3, 1, 2)


@jit
def _crop_kernel(
    images,  # [N, H, W, C] uint8
    index,  # [B] int64
    index_b,
    boxes,  # [B, 4] of (x, y, w, h)
    boxes_b,
    boxes_f,
    flips,  # [B] uint8
    flips_b,
    mean,  # [C] fp32, or None: copy the bytes
    std,  # [C] fp32, or None
    out,  # [B, P, P, C], written
    H,
    W,
    C: tl.constexpr,
    P: tl.constexpr,
    BLOCK: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    c = place % C
    column = (place // C) % P
    flip = tl.load(flips + b * flips_b)
    x = tl.load(boxes + b * boxes_b) + tl.where(flip != 0, P - 1 - column, column)
    y = tl.load(boxes + b * boxes_b + boxes_f) + place // (C * P)
    inside = (x >= 0) & (x < W) & (y >= 0) & (y < H) & (place < P * P * C)
    image = images + tl.load(index + b * index_b).to(tl.int64) * (H * W * C)
    pixel = tl.load(image + (y * W + x) * C + c, mask=inside, other=0)
    target = out + b * (P * P * C) + place
    if mean is None:
        tl.store(target, pixel, mask=place < P * P * C)
    else:
        value = (pixel.to(tl.float32) / 255.0 - tl.load(mean + c)) / tl.load(std + c)
        tl.store(target, value, mask=place < P * P * C)


def _launch(
    images: Tensor,
    index: Tensor,
    boxes: Tensor,
    flips: Tensor,
    out_px: int,
    mean: Tensor | None,
    std: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    assert images.is_contiguous()
    _, height, width, channels = images.shape
    out = images.new_empty((len(index), out_px, out_px, channels), dtype=dtype)
    grid = (len(index), blocks(out_px * out_px * channels, _BLOCK))
    _crop_kernel[grid](
        images,
        index,
        index.stride(0),
        boxes,
        *boxes.stride(),
        flips,
        flips.stride(0),
        mean,
        std,
        out,
        height,
        width,
        C=channels,
        P=out_px,
        BLOCK=_BLOCK,
    )
    return out


def crop_flip(images: Tensor, index: Tensor, boxes: Tensor, flips: Tensor, out_px: int) -> Tensor:
    """Cut a batch out of a resident set: the box's corner, zeros beyond the edge, mirrored where flipped.

    Reads and writes out_px^2 C bytes per image each, 3072 and 3072 for CIFAR.

    Args:
        images: [N, H, W, C] uint8, the whole set, contiguous.
        index: [B] int64 image numbers, on the images' device.
        boxes: [B, 4] int32 of (x, y, w, h), pixels of the stored image; x and y may be negative;
            w and h are out_px.
        flips: [B] uint8, 1 mirrors left and right.
        out_px: side of the crop.

    Returns:
        [B, out_px, out_px, C] uint8; `.permute(0, 3, 1, 2)` of it is channels_last.
    """
    if runs_kernels(images):
        return _launch(images, index, boxes, flips, out_px, None, None, torch.uint8)
    return crop_flip_reference(images, index, boxes, flips, out_px)


def crop_flip_normalise(
    images: Tensor,
    index: Tensor,
    boxes: Tensor,
    flips: Tensor,
    out_px: int,
    mean: Tensor,
    std: Tensor,
    dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """`crop_flip`, then (pixel / 255 - mean) / std in fp32; the padding is black before it is normalised.

    Reads out_px^2 C bytes per image and writes as many entries of `dtype`: for CIFAR in bf16, 3072 and 6144
    bytes.

    Args:
        images, index, boxes, flips, out_px: as `crop_flip` takes them.
        mean: [C] fp32, 0..1 scale, on the images' device.
        std: [C] fp32, likewise.
        dtype: of the result.

    Returns:
        [B, C, out_px, out_px] in channels_last.
    """
    if runs_kernels(images):
        return _launch(images, index, boxes, flips, out_px, mean, std, dtype).permute(0, 3, 1, 2)
    return crop_flip_normalise_reference(images, index, boxes, flips, out_px, mean, std, dtype)
