"""Numba's loops over what moves, covers, smears or mixes pixels, on a CPU; `look_ops` says what each means."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastanc.pipelines.compiling import Loop, loop

_PLACE_BITS = 17
_Array = np.ndarray


@loop
def _flip(work: _Array, rows: _Array, parameters: _Array, fill: _Array) -> None:
    for r in range(rows.size):
        picture = work[rows[r]].reshape(work.shape[1], -1)
        for y in range(len(picture) // 2):
            above, below = picture[y], picture[len(picture) - 1 - y]
            for k in range(above.size):
                above[k], below[k] = below[k], above[k]


@loop
def _blur(work: _Array, rows: _Array, weights: _Array, fill: _Array) -> None:
    """In the place of parameters: `look_ops.blur_weights`."""
    height, width, channels = work.shape[1:]
    radius, length = weights.shape[1] // 2, work.shape[2] * work.shape[3]
    between, wide = np.empty((height, length), np.int32), np.empty(length + 2 * radius * channels, np.int32)
    sums = np.empty(length, np.int32)
    for r in range(rows.size):
        target = work[rows[r]].reshape(height, length)
        for y in range(height):
            for k in range(length):
                sums[k] = 1 << 5
            for tap in range(2 * radius + 1):
                _add(sums, target[_mirrored(y + tap - radius, height)], weights[r, tap])
            made = between[y]
            for k in range(length):
                made[k] = sums[k] >> np.int32(6)
        for y in range(height):
            made, row = target[y], between[y]
            for x in range(-radius, width + radius):
                for c in range(channels):
                    wide[(x + radius) * channels + c] = row[_mirrored(x, width) * channels + c]
            for k in range(length):
                sums[k] = 1 << 17
            for tap in range(2 * radius + 1):
                _add(sums, wide[tap * channels : tap * channels + length], weights[r, tap])
            for k in range(length):
                made[k] = min(max(sums[k] >> np.int32(18), 0), 255)


@loop
def _add(sums: _Array, source: _Array, weight: Any) -> None:
    for k in range(sums.size):
        sums[k] = np.int32(sums[k] + np.int32(np.int32(source[k]) * weight))


@loop
def _mirrored(at: Any, length: Any) -> Any:
    at = abs(at)
    return 2 * (length - 1) - at if at >= length else at


@loop
def _affine(work: _Array, rows: _Array, parameters: _Array, fill: _Array) -> None:
    """Four channels at most are weighed by one product, in 16 bits of 64 each; weights sum to 256."""
    height, width, channels = work.shape[1:]
    room = np.empty((height + 4, width + 4), np.uint64)
    colour = np.uint64(0)
    for c in range(channels):
        colour |= np.uint64(fill[c]) << np.uint64(16 * c)
    for y in range(height + 4):
        for x in range(width + 4):
            room[y, x] = colour
    for r in range(rows.size):
        for y in range(height):
            row, packed = work[rows[r], y], room[y + 2, 2 : width + 2]
            for x in range(width):
                if channels == 3:
                    packed[x] = (
                        np.uint64(row[x, 0])
                        | np.uint64(row[x, 1]) << np.uint64(16)
                        | np.uint64(row[x, 2]) << np.uint64(32)
                    )
                else:
                    packed[x] = row[x, 0]
        _resampled(room.reshape(-1), work[rows[r]], parameters[r])


@loop
def _resampled(room: _Array, picture: _Array, parameters: _Array) -> None:
    height, width, channels = picture.shape
    a, b, c, d, e, f = parameters
    stride, one, whole = np.uint64(width + 4), np.uint64(1), np.uint64(256)
    half = np.uint64(0x0080008000800080)
    for y in range(height):
        up, first, row = np.int64(2 * y + 1 - height), np.int64(1 - width), picture[y]
        across = a * first + b * up + c + (np.int64(width - 1) << (_PLACE_BITS - 1))
        down = d * first + e * up + f + (np.int64(height - 1) << (_PLACE_BITS - 1))
        flat = d == 0 and down >> (_PLACE_BITS - 8) & 255 == 0  # every pixel lies in one row of the room
        for x in range(width):
            right = np.uint64(across >> (_PLACE_BITS - 8) & 255)
            at = (min(max(down >> _PLACE_BITS, -2), height) + 2) * (width + 4)
            here = np.uint64(at + min(max(across >> _PLACE_BITS, -2), width) + 2)
            if flat:
                four = room[here] * (whole - right) + room[here + one] * right + half
            else:
                below = np.uint64(down >> (_PLACE_BITS - 8) & 255)
                both = right * below >> np.uint64(8)
                four = room[here] * (whole - right - below + both) + room[here + one] * (right - both) + half
                under = here + stride
                four += room[under] * (below - both) + room[under + one] * both
            row[x, 0] = np.uint8(four >> np.uint64(8))
            if channels == 3:
                row[x, 1] = np.uint8(four >> np.uint64(24))
                row[x, 2] = np.uint8(four >> np.uint64(40))
            across += 2 * a
            down += 2 * d


@loop
def _translate(work: _Array, rows: _Array, parameters: _Array, fill: _Array) -> None:
    height, width, channels = work.shape[1:]
    length = width * channels
    source, empty = np.empty((height, length), np.uint8), np.empty(length, np.uint8)
    for k in range(length):
        empty[k] = fill[k % channels]
    for r in range(rows.size):
        target, up = work[rows[r]].reshape(height, length), np.int64(parameters[r, 1])
        left = min(max(np.int64(parameters[r, 0]) * channels, -length), length)
        for y in range(height):
            _put(source[y], target[y])
        for y in range(height):
            _put(target[y], empty)
            if 0 <= y - up < height:
                _put(target[y, max(left, 0) : length + min(left, 0)], source[y - up, max(-left, 0) :])


@loop
def _put(target: _Array, source: _Array) -> None:
    for k in range(target.size):
        target[k] = source[k]


@loop
def _erase(work: _Array, rows: _Array, parameters: _Array, fill: _Array) -> None:
    for r in range(rows.size):
        for y in range(parameters[r, 1], min(parameters[r, 3], work.shape[1])):
            for x in range(parameters[r, 0], min(parameters[r, 2], work.shape[2])):
                for c in range(work.shape[3]):
                    work[rows[r], y, x, c] = fill[c]


@loop
def mixed(target: _Array, images: _Array, first: int, partner: _Array, weight: _Array, boxes: _Array) -> None:
    """Write pictures first, first + 1, ... mixed with those at rows `partner` to `target` [R, H, W, C].

    As `mixing.mixed`: weights [R] int16 of 128 parts, boxes [R, 4] int32 that the partner fills.
    """
    channels = target.shape[3]
    for r in range(len(target)):
        own, other = images[first + r].reshape(-1), images[partner[r]].reshape(-1)
        result, part = target[r].reshape(-1), np.int32(weight[r])
        for k in range(result.size):
            rest = np.int32((np.int32(own[k]) - np.int32(other[k])) * part + 64) >> np.int32(7)
            result[k] = np.uint8(rest + np.int32(other[k]))
        start, end = boxes[r, 0] * channels, boxes[r, 2] * channels
        if end > start:
            for y in range(boxes[r, 1], boxes[r, 3]):
                row = images[partner[r], y].reshape(-1)
                _put(target[r, y].reshape(-1)[start:end], row[start:end])


LOOPS: dict[str, Loop] = {each.__name__[1:]: each for each in (_blur, _flip, _affine, _translate, _erase)}
"""Name -> operation."""
