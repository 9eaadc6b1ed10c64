"""How far each operation of the looks is from torchvision's: `python -m benchmarks.looks_parity`.

The same parameters on the same pictures: 40 photographs of FASTANC_DATA/imagenet-samples at 224 px, or, without them,
one that is computed. `largest` and `mean` are of the differences in levels of 0..255. torchvision rounds towards zero
where ours round to the nearest; ours multiply by 1/128ths, weigh grey by 38, 75, 15 of 128 (torchvision's sum to
0.9999) and interpolate with 8 bits; at an edge torchvision mixes the fill with a mask that it has interpolated too.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from benchmarks.harness import record, table
from fastanc.pipelines import look_ops
from fastanc.pipelines.look_policies import FACTOR, OFFSET, ONE

FILL = (124, 17, 255)
_TURN, _SLOPE = math.radians(20), 0.3
_BILINEAR: dict[str, Any] = {"interpolation": InterpolationMode.BILINEAR, "fill": list(FILL)}

PARITY: dict[str, tuple[str, Callable[[int], list[int]], Callable[[Tensor], Tensor], int]] = {
    "brightness": ("brightness", lambda px: _factor(1.37), lambda x: tv.adjust_brightness(x, 1.37), 2),
    "contrast": ("contrast", lambda px: _factor(1.6), lambda x: tv.adjust_contrast(x, 1.6), 3),
    "saturation": ("saturation", lambda px: _factor(0.3), lambda x: tv.adjust_saturation(x, 0.3), 3),
    "sharpness": ("sharpness", lambda px: _factor(1.9), lambda x: tv.adjust_sharpness(x, 1.9), 2),
    "posterize": ("posterize", lambda px: [3], lambda x: tv.posterize(x, 3), 0),
    "solarize": ("solarize", lambda px: [110], lambda x: tv.solarize(x, 110), 0),
    "autocontrast": ("autocontrast", lambda px: [0], tv.autocontrast, 1),
    "equalize": ("equalize", lambda px: [0], tv.equalize, 0),
    "grey": ("grey", lambda px: [0], lambda x: tv.rgb_to_grayscale(x, 3), 2),
    "hue": ("hue", lambda px: [round(0.13 * 65536)], lambda x: tv.adjust_hue(x, 0.13), 2),
    "upside down": ("flip", lambda px: [0], tv.vertical_flip, 0),
    "blur, sigma 1.2": ("blur", lambda px: [37], lambda x: tv.gaussian_blur(x, [13, 13], [38 / 32, 38 / 32]), 1),
    "move": ("translate", lambda px: [5, -3], lambda x: tv.affine(x, 0.0, [5, -3], 1.0, [0.0, 0.0], **_BILINEAR), 0),
    "turn by 20 degrees": ("affine", lambda px: _turn(), lambda x: tv.rotate(x, 20.0, **_BILINEAR), 255),
    "shear by 0.3": ("affine", lambda px: _shear(px), lambda x: _sheared(x), 255),
}  # fmt: skip
"""Name -> our operation, its parameters for pictures of px, torchvision's, and the largest difference that rounding
explains (255 where an edge is interpolated otherwise)."""


def _factor(value: float) -> list[int]:
    return [round(value * ONE)]


def _turn() -> list[int]:
    s, c = round(math.sin(_TURN) * FACTOR), round(math.cos(_TURN) * FACTOR)
    return [c, -s, 0, s, c, 0]


def _shear(px: int) -> list[int]:
    return [FACTOR, round(_SLOPE * FACTOR), round(_SLOPE * px / 2 * OFFSET), 0, FACTOR, 0]


def _sheared(images: Tensor) -> Tensor:
    degrees = math.degrees(math.atan(_SLOPE))
    return tv.affine(images, 0.0, [0, 0], 1.0, [degrees, 0.0], center=[0.0, 0.0], **_BILINEAR)


def by_ours(op: str, images: Tensor, parameters: np.ndarray, fill: tuple[int, ...] = FILL) -> Tensor:
    """Run one operation on pictures [B, C, H, W] uint8, with parameters [B, 6] int32."""
    if op in look_ops.FILLING:
        return look_ops.FILLING[op](images, parameters, fill)
    return look_ops.PLAIN[op](images, parameters)


def difference(name: str, images: Tensor) -> Tensor:
    """Return the differences in levels, int32, of pictures [B, 3, S, S] uint8."""
    op, parameters, theirs, _ = PARITY[name]
    row = parameters(images.shape[2])
    rows = np.tile(np.array(row + [0] * (6 - len(row)), np.int32), (len(images), 1))
    return (by_ours(op, images, rows).int() - theirs(images).int()).abs()


def computed(px: int = 64) -> Tensor:
    """Return a picture with edges, ramps and some noise, [1, 3, px, px] uint8."""
    x, y = np.meshgrid(np.linspace(0, 1, px), np.linspace(0, 1, px))
    waves = np.stack([np.sin(9 * x + 4 * y), np.cos(7 * y), np.sin(5 * x * y)], 2)
    values = 128 + 90 * waves + 40 * ((x > 0.4) & (y < 0.7))[..., None]
    noisy = (values + np.random.default_rng(0).normal(0, 4, values.shape)).clip(0, 255).astype(np.uint8)
    return torch.from_numpy(noisy).permute(2, 0, 1)[None].contiguous()


def main() -> None:
    """Measure, print a table, and append it to the results."""
    paths = sorted(Path(os.environ.get("FASTANC_DATA", ".")).glob("imagenet-samples/*/*.JPEG"))[:40]
    photos = [np.asarray(Image.open(path).convert("RGB").resize((224, 224))) for path in paths]
    images = torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2).contiguous() if photos else computed(224)
    rows = []
    for name in PARITY:
        off = difference(name, images)
        far = (off > 2).float().mean().item()
        rows.append(
            {
                "operation": name,
                "largest": int(off.max()),
                "mean": off.float().mean().item(),
                "share_above_2": far,
            }
        )
    print(table(rows))
    print(f"appended to {record('looks_parity', rows)}")


if __name__ == "__main__":
    main()
