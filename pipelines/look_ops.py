"""What can be done to a picture: the operations that every augmentation policy is made of, in whole numbers.

A picture that a teacher saw once and a student sees a year later on another device must be the same to the last bit.
Floating point does not give that (a GPU fuses multiply and add, a CPU's vectors sum in another order), so pixels are
worked on in integers: factors are multiples of 2^-7, places of 2^-17 of a pixel, weights of 2^-8. Each operation is
`op(images [B, C, H, W] uint8, parameters [B, 6] int32) -> [B, C, H, W] uint8`, its parameters on the host, one row a
picture; it never writes into its input and never waits for a device. (A channel is one piece of memory here: a CPU
takes four times as long for every third byte.) Meaning and range are torchvision's, which rounds towards zero where
these round to the nearest: they differ by one level.

Three tricks. An affine map gathers a whole pixel as one 32-bit number and interpolates two channels at a time, in the
16-bit halves of a product: weights sum to 256, so no half flows over. A hue is a place on a hexagon of length 6 c, c
the pixel's chroma: turning it is a sum. A division by 13 (of sharpness) is a product and a shift.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor

from fastanc.pipelines.draws import exp
from fastanc.pipelines.look_policies import FACTOR, OFFSET, ONE, ONE_BITS
from fastanc.pipelines.transfer import moved

PLACE_BITS = 17
"""Of an affine map's offsets; its factors have one bit less, since they multiply half pixels."""
SIGMAS = 64
"""Blurs to choose from: sigma is (k + 1) / 32 px."""
_HUE_BITS = 16
_TAPS, _BLUR_ONE = 6, 1 << 12
_EVEN, _ODD = 0x00FF00FF, 0xFF00FF00 - (1 << 32)
_HALVES = 0x00800080
_RED, _GREEN, _BLUE = 38, 75, 15  # ITU-R 601's 0.299, 0.587, 0.114 of 128


def _of(parameters: np.ndarray, k: int, device: torch.device) -> Tensor:
    """One parameter of each picture, [B, 1, 1, 1] on its device."""
    return moved(torch.from_numpy(np.ascontiguousarray(parameters[:, k])), device)[:, None, None, None]


def _byte(values: Tensor) -> Tensor:
    return values.clamp_(0, 255).to(torch.uint8)


def _blend(images: Tensor, other: Tensor | int, factor: Tensor) -> Tensor:
    """other + factor (images - other), as images + (factor - 1) (images - other): that has 16 bits."""
    wide = images.short()
    return _byte(
        (wide - other).mul_(factor.short() - ONE).add_(ONE // 2).bitwise_right_shift_(ONE_BITS).add_(wide)
    )


def luma(images: Tensor) -> Tensor:
    """Return the grey of pictures [B, C, H, W], [B, 1, H, W] int16 in 0..255."""
    if images.shape[1] == 1:
        return images.short()
    red, green, blue = images.short().split(1, 1)
    return (red * _RED).add_(green, alpha=_GREEN).add_(blue, alpha=_BLUE).add_(64).bitwise_right_shift_(7)


def brightness(images: Tensor, parameters: np.ndarray) -> Tensor:
    """Times a factor of parameter 0 / ONE."""
    return _blend(images, 0, _of(parameters, 0, images.device))


def contrast(images: Tensor, parameters: np.ndarray) -> Tensor:
    """Away from the picture's mean grey by a factor of parameter 0 / ONE."""
    grey = luma(images)
    pixels = grey.shape[2] * grey.shape[3]
    mean = (2 * grey.sum((1, 2, 3)) + pixels) // (2 * pixels)
    return _blend(images, mean.short()[:, None, None, None], _of(parameters, 0, images.device))


def saturation(images: Tensor, parameters: np.ndarray) -> Tensor:
    """Away from grey by a factor of parameter 0 / ONE; what has one channel stays."""
    if images.shape[1] == 1:
        return images
    return _blend(images, luma(images), _of(parameters, 0, images.device))


def grey(images: Tensor, parameters: np.ndarray) -> Tensor:
    """Grey in all channels."""
    return luma(images).to(torch.uint8).expand(images.shape).contiguous()


def sharpness(images: Tensor, parameters: np.ndarray) -> Tensor:
    """Away from the smoothed picture (1 1 1, 1 5 1, 1 1 1)/13 by a factor of parameter 0 / ONE; the border stays."""
    if min(images.shape[2:]) <= 2:
        return images
    x = images.short()
    rows = x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]
    inner = x[:, :, 1:-1, 1:-1]
    total = (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]).add_(inner, alpha=4).int()
    smooth = (
        total.mul_(20165).add_(1 << 17).bitwise_right_shift_(18).short()
    )  # total / 13, rounded: exact up to 3315
    result = images.clone()
    result[:, :, 1:-1, 1:-1] = _blend(images[:, :, 1:-1, 1:-1], smooth, _of(parameters, 0, images.device))
    return result


def posterize(images: Tensor, parameters: np.ndarray) -> Tensor:
    """Keep the parameter 0 highest of 8 bits."""
    kept = _of(256 - (1 << 8 - parameters), 0, images.device)
    return images & kept.to(torch.uint8)


def solarize(images: Tensor, parameters: np.ndarray) -> Tensor:
    """Invert what is not below parameter 0."""
    threshold = _of(parameters, 0, images.device)
    inverts = (threshold <= 255).to(
        torch.uint8
    ) * 255  # 256 is beyond all values, and beyond what a byte compares with
    return images ^ (images >= threshold.clamp(max=255).to(torch.uint8)).to(torch.uint8).mul_(inverts)


def autocontrast(images: Tensor, parameters: np.ndarray) -> Tensor:
    """Stretch each channel to 0..255; one of a single value stays."""
    flat = images.flatten(2)
    low, high = flat.amin(2).int(), flat.amax(2).int()
    span = high - low
    scale = torch.where(span > 0, ((255 << 14) + span // 2) // span.clamp(min=1), 1 << 14)
    low = torch.where(span > 0, low, 0)
    stretched = images.int().sub_(low[:, :, None, None]).mul_(scale[:, :, None, None])
    return _byte(stretched.add_(1 << 13).bitwise_right_shift_(14))


def equalize(images: Tensor, parameters: np.ndarray) -> Tensor:
    """Give each channel a histogram that is as even as PIL's rule makes it."""
    count, channels, height, width = images.shape
    channel = torch.arange(count * channels, dtype=torch.int64, device=images.device) * 256
    value = images.long().add_(channel.view(count, channels, 1, 1)).flatten()
    bins = torch.zeros(count * channels * 256, dtype=torch.int64, device=images.device)
    histogram = bins.scatter_add_(0, value, torch.ones_like(value)).view(-1, 256)
    last = torch.where(histogram > 0, torch.arange(256, device=images.device), 0).amax(1, keepdim=True)
    step = (height * width - histogram.gather(1, last)) // 255
    before = histogram.cumsum(1).sub_(histogram)
    table = ((before + step // 2) // step.clamp(min=1)).clamp_(0, 255)
    table = torch.where(step > 0, table, torch.arange(256, device=images.device)).to(torch.uint8)
    return table.flatten().index_select(0, value).view(images.shape)


def hue(images: Tensor, parameters: np.ndarray) -> Tensor:
    """Turn the colours by parameter 0 / 2^16 of a full turn; what has one channel stays."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.int().split(1, 1)
    high, low = red.maximum(green).maximum(blue), red.minimum(green).minimum(blue)
    chroma = high - low
    whole = 6 * chroma
    most = high == red  # the first of equals counts
    second = (high == green) & ~most
    place = most * (green - blue) + second * (2 * chroma + blue - red)
    place += ~(most | second) * (4 * chroma + red - green)
    place += _of(parameters, 0, images.device) * whole + (1 << _HUE_BITS - 1) >> _HUE_BITS
    place = _within(_within(place + whole, whole), whole)  # was in -c .. 11 c
    colours = []
    for corner in (5, 3, 1):
        k = _within(place + corner * chroma, whole)
        colours.append(high - torch.minimum(k, 4 * chroma - k).clamp_(min=0).minimum(chroma))
    return torch.cat(colours, 1).to(torch.uint8)


def _within(values: Tensor, bound: Tensor) -> Tensor:
    """Values of 0 .. 2 bound - 1, less the bound where they reach it."""
    less = values - bound
    return less + ((less >> 31) & bound)


def flip(images: Tensor, parameters: np.ndarray) -> Tensor:
    """Upside down."""
    return images.flip(2)


def affine(images: Tensor, parameters: np.ndarray, fill: tuple[int, ...]) -> Tensor:
    """Resample: the pixel at (x, y) from the centre is that at (a x + b y + c, d x + e y + f), between four pixels.

    Parameters are a, b, c, d, e, f: factors times 2^16, offsets in pixels times 2^17. Beyond the edge lies `fill`.
    """
    count, channels, height, width = images.shape
    packed = images.int()
    for k in range(1, channels):
        packed[:, 0] |= packed[:, k] << 8 * k
    colour = sum(value << 8 * k for k, value in enumerate(fill))
    room = packed.new_full((count, height + 4, width + 4), colour)
    room[:, 2:-2, 2:-2] = packed[:, 0]
    pixels = room.flatten()

    column = _places(parameters[:, :3], width, height, images.device)
    row = _places(parameters[:, [4, 3, 5]], height, width, images.device).transpose(1, 2)
    right, below = (place >> PLACE_BITS - 8 & 255 for place in (column, row))
    first = (row >> PLACE_BITS).clamp_(-2, height).add_(2).mul_(width + 4)
    first = first + (column >> PLACE_BITS).clamp_(-2, width).add_(2)
    if count > 1:
        start = torch.arange(count, dtype=torch.int32, device=images.device) * ((height + 4) * (width + 4))
        first += start[:, None, None]
    shape, first = first.shape, first.flatten()
    even = odd = torch.full(shape, _HALVES, dtype=torch.int32, device=images.device)
    for offset, weight in _taps(parameters, right, below, width + 4):
        four = pixels[offset:].index_select(0, first).view(shape)
        even = (four & _EVEN).mul_(weight).add_(even)
        odd = (four >> 8).bitwise_and_(_EVEN).mul_(weight).add_(odd)
    result = even.bitwise_right_shift_(8).bitwise_and_(_EVEN).bitwise_or_(odd.bitwise_and_(_ODD))
    return torch.stack([(result >> 8 * k).bitwise_and_(255).to(torch.uint8) for k in range(channels)], 1)


def _places(parameters: np.ndarray, length: int, other_length: int, device: torch.device) -> Tensor:
    """Where along an axis of some length pixels come from, from (own factor, other factor, offset) [B, 3].

    [B, other, own] int32 in 2^-17 px; the other axis is 1 long where it does not matter.
    """

    def centred(length: int) -> Tensor:  # twice the way from the centre
        return torch.arange(1 - length, length, 2, dtype=torch.int32, device=device)

    own, other, offset = (_of(parameters, k, device)[:, 0] for k in range(3))
    place = own * centred(length) + (offset + ((length - 1) << PLACE_BITS - 1))
    return place + other * centred(other_length)[:, None] if parameters[:, 1].any() else place


def _taps(parameters: np.ndarray, right: Tensor, below: Tensor, stride: int) -> list[tuple[int, Tensor]]:
    """The neighbours that count, by their distance in memory, with weights that sum to 256."""
    straight = [  # whether a pixel comes from a whole column, or row, so that two neighbours have no weight
        (own == FACTOR).all() and not other.any() and not (offset % OFFSET).any()
        for own, other, offset in (parameters[:, :3].T, parameters[:, [4, 3, 5]].T)
    ]
    if straight[1]:
        return [(0, 256 - right), (1, right)]
    if straight[0]:
        return [(0, 256 - below), (stride, below)]
    both = right * below >> 8
    return [(0, 256 - right - below + both), (1, right - both), (stride, below - both), (stride + 1, both)]


def translate(images: Tensor, parameters: np.ndarray, fill: tuple[int, ...]) -> Tensor:
    """Move by parameters (0, 1) = (x, y) pixels; what is left behind is `fill`."""
    _, _, height, width = images.shape
    result = torch.empty_like(images).copy_(_colour(fill, images))
    for k, (x, y) in enumerate(parameters[:, :2].tolist()):
        if abs(x) < width and abs(y) < height:
            there = result[k, :, max(0, y) : height + min(0, y), max(0, x) : width + min(0, x)]
            there.copy_(images[k, :, max(0, -y) : height - max(0, y), max(0, -x) : width - max(0, x)])
    return result


def erase(images: Tensor, parameters: np.ndarray, fill: tuple[int, ...]) -> Tensor:
    """Fill the rectangle from parameters (0, 1) to before (2, 3), as (x, y)."""
    result, colour = images.clone(), _colour(fill, images)
    for k, (left, top, right, bottom) in enumerate(parameters[:, :4].tolist()):
        result[k, :, top:bottom, left:right] = colour
    return result


def _colour(fill: tuple[int, ...], images: Tensor) -> Tensor:
    return moved(torch.tensor(fill, dtype=torch.uint8), images.device)[:, None, None]


@cache
def _gauss(radius: int) -> np.ndarray:
    """Weights [SIGMAS, 2 radius + 1] int32 that sum to 2^12."""
    sigma = (np.arange(SIGMAS) + 1)[:, None] / 32
    z = -np.square(np.arange(-radius, radius + 1)[None, :] / sigma) / 2 / 1024
    density = exp(np.maximum(z, -1.9))
    for _ in range(10):  # to the power 1024
        density = density * density
    total = np.zeros(SIGMAS)
    for k in range(2 * radius + 1):  # in a fixed order
        total = total + density[:, k]
    weights = np.rint(density / total[:, None] * _BLUR_ONE).astype(np.int32)
    weights[:, radius] += _BLUR_ONE - weights.sum(1, dtype=np.int32)
    return weights


def blur_weights(parameters: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the weights of a blur's taps [B, 2 radius + 1] int32, which sum to 2^12."""
    radius = min(_TAPS, height - 1, width - 1)
    chosen = _gauss(radius)[parameters[:, 0]]
    beyond = int((chosen == 0).all(0)[:radius].sum())  # taps of no weight, on either side
    return np.ascontiguousarray(chosen[:, beyond : 2 * radius + 1 - beyond])


def blur(images: Tensor, parameters: np.ndarray) -> Tensor:
    """Gaussian blur, sigma (parameter 0 + 1) / 32 px, up to 6 px far, mirrored at the edge."""
    chosen = blur_weights(parameters, *images.shape[2:])
    radius, weights = chosen.shape[1] // 2, moved(torch.from_numpy(chosen), images.device)
    x = images.int()
    for dim, shift in ((2, 6), (3, 18)):  # 6 bits are kept between the passes
        length = x.shape[dim]
        at = torch.arange(-radius, length + radius, device=images.device).abs_()
        x = x.index_select(dim, torch.where(at >= length, 2 * (length - 1) - at, at))
        total = torch.full_like(x.narrow(dim, 0, length), 1 << shift - 1)
        for k in range(2 * radius + 1):
            total.addcmul_(x.narrow(dim, k, length), weights[:, k, None, None, None])
        x = total.bitwise_right_shift_(shift)
    return _byte(x)


Op = Callable[[Tensor, np.ndarray], Tensor]
PLAIN: dict[str, Op] = {
    op.__name__: op
    for op in (
        brightness,
        contrast,
        saturation,
        grey,
        sharpness,
        posterize,
        solarize,
        autocontrast,
        equalize,
        hue,
    )
} | {"blur": blur, "flip": flip}
"""Operations that need no colour to fill with."""
FILLING: dict[str, Callable[[Tensor, np.ndarray, tuple[int, ...]], Tensor]] = {
    op.__name__: op for op in (affine, translate, erase)
}
"""Operations that leave places with nothing to see."""
