"""From decoded pixels to a finished view on the CPU, and which pixels of an image a view is made from."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastanc.pipelines.views import CentreCrop, ViewRule


def placed(rule: ViewRule, boxes: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what is resized of each image, and to what, both [B, 4] int32 of (x, y, w, h).

    From a rule's boxes and the images' sizes [B, 2]. The first, in pixels of the stored image, is resized to the
    w x h px of the second, of which the square of out_px from (x, y) on is the view.
    """
    if isinstance(rule, CentreCrop):
        return rule.exactly(sizes)
    kept = np.full_like(boxes, rule.out_px)
    kept[:, :2] = 0
    return boxes, kept


def finished(pixels: Tensor, crop: np.ndarray, kept: np.ndarray, flip: int, side: int) -> Tensor:
    """Return one view [C, side, side] of pixels [C, H, W] uint8; `crop` and `kept` as of `placed`.

    torch's uint8 resize is integer arithmetic, the same bits on every CPU, and much faster than DALI's.
    """
    x, y, w, h = crop.tolist()
    left, top, to_w, to_h = kept.tolist()
    part = pixels[None, :, y : y + h, x : x + w]
    view = torch.nn.functional.interpolate(part, (to_h, to_w), mode="bilinear", antialias=True)
    view = view[0, :, top : top + side, left : left + side]
    return view.flip(2) if flip else view
