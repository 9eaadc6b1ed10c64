"""What the looks' operations mean, one picture [H, W, C] at a time, by the definitions, in 64-bit integers."""

from __future__ import annotations

import math

import numpy as np

ONE, BLUR_ONE = 128, 4096


def _div(a: np.ndarray, b: int) -> np.ndarray:
    """a / b rounded to the nearest, halves up."""
    return np.floor_divide(2 * a + b, 2 * b)


def grey_of(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.int64)
    if x.shape[2] == 1:
        return x[..., 0]
    return _div(38 * x[..., 0] + 75 * x[..., 1] + 15 * x[..., 2], 128)


def _mix(x: np.ndarray, other: np.ndarray, q: int) -> np.ndarray:
    return (other + _div((x.astype(np.int64) - other) * q, ONE)).clip(0, 255)


def brightness(x: np.ndarray, p: list[int]) -> np.ndarray:
    return _div(x.astype(np.int64) * p[0], ONE).clip(0, 255)


def contrast(x: np.ndarray, p: list[int]) -> np.ndarray:
    grey = grey_of(x)
    return _mix(x, _div(grey.sum(), grey.size), p[0])


def saturation(x: np.ndarray, p: list[int]) -> np.ndarray:
    return x if x.shape[2] == 1 else _mix(x, grey_of(x)[..., None], p[0])


def grey(x: np.ndarray, p: list[int]) -> np.ndarray:
    return np.repeat(grey_of(x)[..., None], x.shape[2], 2)


def sharpness(x: np.ndarray, p: list[int]) -> np.ndarray:
    if min(x.shape[:2]) <= 2:
        return x
    wide, result = x.astype(np.int64), x.astype(np.int64)
    total = 4 * wide[1:-1, 1:-1]
    for i in range(3):
        for j in range(3):
            total = total + wide[i : len(wide) - 2 + i, j : wide.shape[1] - 2 + j]
    result[1:-1, 1:-1] = _mix(wide[1:-1, 1:-1], _div(total, 13), p[0])
    return result


def posterize(x: np.ndarray, p: list[int]) -> np.ndarray:
    return x.astype(np.int64) // (1 << 8 - p[0]) * (1 << 8 - p[0])


def solarize(x: np.ndarray, p: list[int]) -> np.ndarray:
    return np.where(x >= p[0], 255 - x, x)


def autocontrast(x: np.ndarray, p: list[int]) -> np.ndarray:
    result = x.astype(np.int64)
    for c in range(x.shape[2]):
        low, high = int(x[..., c].min()), int(x[..., c].max())
        if high > low:
            scale = (255 * 16384 + (high - low) // 2) // (high - low)
            result[..., c] = _div((result[..., c] - low) * scale, 16384)
    return result


def equalize(x: np.ndarray, p: list[int]) -> np.ndarray:
    """PIL's ImageOps.equalize, channel by channel."""
    result = x.copy()
    for c in range(x.shape[2]):
        histogram = np.bincount(x[..., c].ravel(), minlength=256)
        filled = histogram[histogram > 0]
        step = (filled.sum() - filled[-1]) // 255
        if step:
            n, table = step // 2, []
            for count in histogram:
                table.append(min(n // step, 255))
                n += count
            result[..., c] = np.array(table)[x[..., c]]
    return result


def hue(x: np.ndarray, p: list[int]) -> np.ndarray:
    if x.shape[2] == 1:
        return x
    result = x.astype(np.int64)
    for place in np.ndindex(x.shape[:2]):
        r, g, b = map(int, x[place])
        high, low = max(r, g, b), min(r, g, b)
        c = high - low
        if not c:
            continue
        at = g - b if high == r else 2 * c + b - r if high == g else 4 * c + r - g
        at = (at + math.floor(p[0] * 6 * c / 65536 + 0.5)) % (6 * c)
        sector, rest = divmod(at, c)
        up, down = low + rest, high - rest
        result[place] = (
            (high, up, low), (down, high, low), (low, high, up), (low, down, high), (up, low, high), (high, low, down)
        )[sector]  # fmt: skip
    return result


def flip(x: np.ndarray, p: list[int]) -> np.ndarray:
    return x[::-1]


def affine(x: np.ndarray, p: list[int], fill: tuple[int, ...]) -> np.ndarray:
    height, width, channels = x.shape
    room = np.empty((height + 4, width + 4, channels), np.int64)
    room[:] = fill
    room[2:-2, 2:-2] = x
    result = np.empty(x.shape, np.int64)
    for i, j in np.ndindex(height, width):
        u, v = 2 * j - width + 1, 2 * i - height + 1
        across = p[0] * u + p[1] * v + p[2] + (width - 1) * 65536
        down = p[3] * u + p[4] * v + p[5] + (height - 1) * 65536
        right, below = (across >> 9) & 255, (down >> 9) & 255
        left, top = min(max(across >> 17, -2), width) + 2, min(max(down >> 17, -2), height) + 2
        both = right * below // 256
        total = (256 - right - below + both) * room[top, left] + (right - both) * room[top, left + 1]
        total = total + (below - both) * room[top + 1, left] + both * room[top + 1, left + 1]
        result[i, j] = _div(total, 256)
    return result


def translate(x: np.ndarray, p: list[int], fill: tuple[int, ...]) -> np.ndarray:
    height, width, _ = x.shape
    result = np.empty_like(x)
    result[:] = fill
    for i, j in np.ndindex(height, width):
        if 0 <= i - p[1] < height and 0 <= j - p[0] < width:
            result[i, j] = x[i - p[1], j - p[0]]
    return result


def erase(x: np.ndarray, p: list[int], fill: tuple[int, ...]) -> np.ndarray:
    result = x.copy()
    for i, j in np.ndindex(x.shape[:2]):
        if p[1] <= i < p[3] and p[0] <= j < p[2]:
            result[i, j] = fill
    return result


def blur(x: np.ndarray, p: list[int]) -> np.ndarray:
    radius = min(6, x.shape[0] - 1, x.shape[1] - 1)
    sigma = (p[0] + 1) / 32
    density = [math.exp(-(k * k) / (2 * sigma * sigma)) for k in range(-radius, radius + 1)]
    weights = [round(d / sum(density) * BLUR_ONE) for d in density]
    weights[radius] += BLUR_ONE - sum(weights)
    values = x.astype(np.int64)
    for axis, bits in ((0, 6), (1, 18)):
        values = np.moveaxis(values, axis, 0)
        length, total = len(values), 0
        for k, weight in zip(range(-radius, radius + 1), weights):
            at = np.abs(np.arange(length) + k)
            total = total + weight * values[np.where(at >= length, 2 * (length - 1) - at, at)]
        values = np.moveaxis(np.asarray(_div(np.asarray(total), 1 << bits)), 0, axis)
    return values.clip(0, 255)
