"""Numba's loops over what changes a pixel's colour, for pictures on a CPU; `look_ops` says what each means.

Numba takes the product of two 32-bit numbers for a 64-bit one, of which a CPU's vectors hold half as many: where it
matters the result is cut back to 32 bits, and the compiler sees that it needs no more.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastanc.pipelines.compiling import Loop, loop
from fastanc.pipelines.look_policies import ONE, ONE_BITS

_HALF = ONE // 2
_Array = np.ndarray


@loop
def _clipped(value: Any) -> Any:
    return np.uint8(min(max(value, np.int32(0)), np.int32(255)))


@loop
def _blend(pixel: Any, other: Any, factor: Any) -> Any:
    """other + factor (pixel - other), as pixel + (factor - 1) (pixel - other)."""
    more = np.int32((np.int32(pixel) - other) * (factor - np.int32(ONE)) + np.int32(_HALF))
    return _clipped(np.int32((more >> np.int32(ONE_BITS)) + np.int32(pixel)))


@loop
def _luma(red: Any, green: Any, blue: Any) -> Any:
    return np.int32(np.int32(red) * 38 + np.int32(green) * 75 + np.int32(blue) * 15 + 64) >> np.int32(7)


@loop
def _brightness(work: _Array, rows: _Array, parameters: _Array, fill: _Array) -> None:
    for r in range(rows.size):
        flat, factor = work[rows[r]].reshape(-1), np.int32(parameters[r, 0])
        for k in range(flat.size):
            flat[k] = _blend(flat[k], np.int32(0), factor)


@loop
def _contrast(work: _Array, rows: _Array, parameters: _Array, fill: _Array) -> None:
    for r in range(rows.size):
        flat, factor = work[rows[r]].reshape(-1), np.int32(parameters[r, 0])
        pixels, total = flat.size // work.shape[3], np.int64(0)
        if work.shape[3] == 1:
            for k in range(pixels):
                total += flat[k]
        else:
            colours = flat.reshape(pixels, 3)
            for k in range(pixels):
                total += _luma(colours[k, 0], colours[k, 1], colours[k, 2])
        mean = np.int32((2 * total + pixels) // (2 * pixels))
        for k in range(flat.size):
            flat[k] = _blend(flat[k], mean, factor)


@loop
def _saturation(work: _Array, rows: _Array, parameters: _Array, fill: _Array) -> None:
    if work.shape[3] == 1:
        return
    greys = np.empty(work.shape[1] * work.shape[2] * 3, np.uint8)
    for r in range(rows.size):
        flat, factor = work[rows[r]].reshape(-1), np.int32(parameters[r, 0])
        colours, spread = flat.reshape(-1, 3), greys.reshape(-1, 3)
        for k in range(len(colours)):
            luma = np.uint8(_luma(colours[k, 0], colours[k, 1], colours[k, 2]))
            spread[k, 0], spread[k, 1], spread[k, 2] = luma, luma, luma
        for k in range(flat.size):
            flat[k] = _blend(flat[k], np.int32(greys[k]), factor)


@loop
def _grey(work: _Array, rows: _Array, parameters: _Array, fill: _Array) -> None:
    if work.shape[3] == 1:
        return
    for r in range(rows.size):
        colours = work[rows[r]].reshape(-1, 3)
        for k in range(len(colours)):
            luma = np.uint8(_luma(colours[k, 0], colours[k, 1], colours[k, 2]))
            colours[k, 0], colours[k, 1], colours[k, 2] = luma, luma, luma


@loop
def _sharpness(work: _Array, rows: _Array, parameters: _Array, fill: _Array) -> None:
    height, width, channels = work.shape[1:]
    if min(height, width) <= 2:
        return
    length = width * channels
    inner = length - 2 * channels
    sums = np.empty(length, np.int32)
    left, middle, right = sums[:inner], sums[channels : channels + inner], sums[2 * channels :]
    for r in range(rows.size):
        target, factor = work[rows[r]].reshape(height, length), np.int32(parameters[r, 0])
        source = target.copy()
        for y in range(1, height - 1):
            above, here, below = source[y - 1], source[y], source[y + 1]
            for k in range(length):
                sums[k] = np.int32(above[k]) + np.int32(here[k]) + np.int32(below[k])
            old, made = here[channels : channels + inner], target[y, channels : channels + inner]
            for k in range(inner):
                total = np.int32(left[k] + middle[k] + right[k] + 4 * np.int32(old[k]))
                # total / 13, rounded
                smooth = np.int32(np.int32(total * 20165 + (1 << 17)) >> np.int32(18))
                made[k] = _blend(old[k], smooth, factor)


@loop
def _posterize(work: _Array, rows: _Array, parameters: _Array, fill: _Array) -> None:
    for r in range(rows.size):
        flat, kept = work[rows[r]].reshape(-1), np.uint8(256 - (1 << (8 - parameters[r, 0])))
        for k in range(flat.size):
            flat[k] &= kept


@loop
def _solarize(work: _Array, rows: _Array, parameters: _Array, fill: _Array) -> None:
    for r in range(rows.size):
        flat, threshold = work[rows[r]].reshape(-1), np.int32(parameters[r, 0])
        for k in range(flat.size):
            flat[k] = flat[k] ^ np.uint8(255) if np.int32(flat[k]) >= threshold else flat[k]


@loop
def _autocontrast(work: _Array, rows: _Array, parameters: _Array, fill: _Array) -> None:
    height, width, channels = work.shape[1:]
    length = width * channels
    low, high, table = np.empty(length, np.uint8), np.empty(length, np.uint8), np.empty(256, np.uint8)
    for r in range(rows.size):
        picture = work[rows[r]].reshape(height, length)
        for k in range(length):
            low[k], high[k] = 255, 0
        for y in range(height):
            row = picture[y]
            for k in range(length):
                low[k], high[k] = min(low[k], row[k]), max(high[k], row[k])
        for c in range(channels):
            first, last = np.int64(255), np.int64(0)
            for x in range(width):
                first, last = min(first, low[x * channels + c]), max(last, high[x * channels + c])
            span = last - first
            if span > 0:
                scale = ((255 << 14) + span // 2) // span
                for value in range(256):
                    level: Any = ((value - first) * scale + (1 << 13)) >> 14
                    table[value] = min(max(level, 0), 255)
                _looked_up(work[rows[r]], c, table)


@loop
def _equalize(work: _Array, rows: _Array, parameters: _Array, fill: _Array) -> None:
    counts, table, channels = np.empty(256, np.int64), np.empty(256, np.uint8), work.shape[3]
    for r in range(rows.size):
        flat = work[rows[r]].reshape(-1)
        pixels = flat.size // channels
        for c in range(channels):
            for value in range(256):
                counts[value] = 0
            for k in range(c, flat.size, channels):
                counts[flat[k]] += 1
            last = 255
            while counts[last] == 0:
                last -= 1
            step, before = (pixels - counts[last]) // 255, 0
            if step > 0:
                for value in range(256):
                    table[value] = min((before + step // 2) // step, 255)
                    before += counts[value]
                _looked_up(work[rows[r]], c, table)


@loop
def _looked_up(picture: _Array, channel: Any, table: _Array) -> None:
    pixels = picture.reshape(-1, picture.shape[2])
    for k in range(len(pixels)):
        pixels[k, channel] = table[pixels[k, channel]]


@loop
def _hue(work: _Array, rows: _Array, parameters: _Array, fill: _Array) -> None:
    if work.shape[3] == 1:
        return
    for r in range(rows.size):
        colours, turn = work[rows[r]].reshape(-1, 3), np.int32(parameters[r, 0])
        for k in range(len(colours)):
            red, green, blue = np.int32(colours[k, 0]), np.int32(colours[k, 1]), np.int32(colours[k, 2])
            high, low = max(red, green, blue), min(red, green, blue)
            chroma = np.int32(high - low)
            whole = np.int32(6 * chroma)
            if high == red:  # the first of equals counts
                place = green - blue
            elif high == green:
                place = 2 * chroma + blue - red
            else:
                place = 4 * chroma + red - green
            place += (turn * whole + (1 << 15)) >> 16
            place = _within(_within(np.int32(place + whole), whole), whole)  # was in -c .. 11 c
            colours[k, 0] = _corner(place, np.int32(5), chroma, whole, high)
            colours[k, 1] = _corner(place, np.int32(3), chroma, whole, high)
            colours[k, 2] = _corner(place, np.int32(1), chroma, whole, high)


@loop
def _corner(place: Any, corner: Any, chroma: Any, whole: Any, high: Any) -> Any:
    k = _within(np.int32(place + corner * chroma), whole)
    return np.uint8(high - min(max(min(k, np.int32(4 * chroma - k)), np.int32(0)), chroma))


@loop
def _within(value: Any, bound: Any) -> Any:
    return np.int32(value - bound) if value >= bound else value


LOOPS: dict[str, Loop] = {
    each.__name__[1:]: each
    for each in (
        _brightness,
        _contrast,
        _saturation,
        _grey,
        _sharpness,
        _posterize,
        _solarize,
        _autocontrast,
        _equalize,
        _hue,
    )
}
"""Name -> operation."""
