"""What can be done to a picture: the operations that every augmentation policy is made of, in whole numbers.

A picture that a teacher saw once and a student sees a year later on another device must be the same to the last bit.
Floating point does not give that (a GPU fuses multiply and add, a CPU's vectors sum in another order), so pixels are
worked on in integers: factors are multiples of 2^-12, places of 2^-17 of a pixel, weights of 2^-8. Each operation is
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
from fastanc.pipelines.look_policies import ONE
from fastanc.pipelines.transfer import moved

PLACE_BITS = 17
"""Of an affine map's offsets; its factors have one bit less, since they multiply half pixels."""
SIGMAS = 64
"""Blurs to choose from: sigma is (k + 1) / 32 px."""
_HUE_BITS = 16
_TAPS = 6
_EVEN, _ODD = 0x00FF00FF, 0xFF00FF00 - (1 << 32)
_HALVES = 0x00800080
_RED, _GREEN, _BLUE = 19595, 38470, 7471  # ITU-R 601, as PIL's convert("L"); they sum to 2^16


def _of(parameters: np.ndarray, k: int, device: torch.device) -> Tensor:
    """One parameter of each picture, [B, 1, 1, 1] on its device."""
    return moved(torch.from_numpy(np.ascontiguousarray(parameters[:, k])), device)[:, None, None, None]


def _byte(values: Tensor) -> Tensor:
    return values.clamp_(0, 255).to(torch.uint8)


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """other + factor (images - other); `other` is int32."""
    difference = images.int().sub_(other).mul_(factor).add_(ONE // 2).bitwise_right_shift_(12)
    return _byte(difference.add_(other))


def luma(images: Tensor) -> Tensor:
    """Return the grey of pictures [B, C, H, W], [B, 1, H, W] int32 in 0..255."""
    if images.shape[1] == 1:
        return images.int()
    red, green, blue = images.int().split(1, 1)
    return (
        red.mul_(_RED).add_(green.mul_(_GREEN)).add_(blue.mul_(_BLUE)).add_(1 << 15).bitwise_right_shift_(16)
    )


def brightness(images: Tensor, parameters: np.ndarray) -> Tensor:
    """Times a factor of parameter 0 / ONE."""
    return _byte(images.int().mul_(_of(parameters, 0, images.device)).add_(ONE // 2).bitwise_right_shift_(12))


def contrast(images: Tensor, parameters: np.ndarray) -> Tensor:
    """Away from the picture's mean grey by a factor of parameter 0 / ONE."""
    grey = luma(images)
    pixels = grey.shape[2] * grey.shape[3]
    mean = (2 * grey.sum((1, 2, 3)) + pixels) // (2 * pixels)
    return _blend(images, mean.int()[:, None, None, None], _of(parameters, 0, images.device))


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
    smooth = total.mul_(20165).add_(1 << 17).bitwise_right_shift_(18)  # total / 13, rounded: exact up to 3315
    result = images.clone()
    result[:, :, 1:-1, 1:-1] = _blend(images[:, :, 1:-1, 1:-1], smooth, _of(parameters, 0, images.device))
    return result


def posterize(images: Tensor, parameters: np.ndarray) -> Tensor:
    """Keep the parameter 0 highest of 8 bits."""
    kept = _of(256 - (1 << 8 - parameters), 0, images.device)
    return images & kept.to(torch.uint8)


def solarize(images: Tensor, parameters: np.ndarray) -> Tensor:
    """Invert what is not below parameter 0."""
    return images ^ (images >= _of(parameters, 0, images.device)).to(torch.uint8).mul_(255)


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

    def along(length: int) -> Tensor:  # twice the distance from the centre
        return torch.arange(1 - length, length, 2, dtype=torch.int32, device=images.device)

    x, y = along(width)[None, None, :], along(height)[None, :, None]
    a, b, c, d, e, f = (_of(parameters, k, images.device)[:, 0] for k in range(6))
    column = a * x + (b * y + (c + ((width - 1) << PLACE_BITS - 1)))
    row = d * x + (e * y + (f + ((height - 1) << PLACE_BITS - 1)))
    right, below = (place >> PLACE_BITS - 8 & 255 for place in (column, row))
    first = (row >> PLACE_BITS).clamp_(-2, height).add_(2).mul_(width + 4)
    first.add_((column >> PLACE_BITS).clamp_(-2, width)).add_(2)
    if count > 1:
        first += torch.arange(count, dtype=torch.int32, device=images.device)[:, None, None] * (
            (height + 4) * (width + 4)
        )
    first = first.flatten()
    both = right * below >> 8
    weights = (256 - right - below + both, right - both, below - both, both)
    even: Tensor | int = _HALVES
    odd: Tensor | int = _HALVES
    for offset, weight in zip((0, 1, width + 4, width + 5), weights):
        four = pixels[offset:].index_select(0, first).view(column.shape)
        even = (four & _EVEN).mul_(weight).add_(even)
        odd = (four >> 8).bitwise_and_(_EVEN).mul_(weight).add_(odd)
    assert isinstance(even, Tensor)
    assert isinstance(odd, Tensor)
    result = even.bitwise_right_shift_(8).bitwise_and_(_EVEN).bitwise_or_(odd.bitwise_and_(_ODD))
    return torch.stack([(result >> 8 * k).bitwise_and_(255).to(torch.uint8) for k in range(channels)], 1)


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
    weights = np.rint(density / total[:, None] * ONE).astype(np.int32)
    weights[:, radius] += ONE - weights.sum(1, dtype=np.int32)
    return weights


def blur(images: Tensor, parameters: np.ndarray) -> Tensor:
    """Gaussian blur, sigma (parameter 0 + 1) / 32 px, up to 6 px far, mirrored at the edge."""
    radius = min(_TAPS, images.shape[2] - 1, images.shape[3] - 1)
    weights = moved(torch.from_numpy(_gauss(radius)[parameters[:, 0]]), images.device)
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
