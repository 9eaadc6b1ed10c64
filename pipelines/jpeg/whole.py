"""The decode plan `torchvision`: images decoded whole by torchvision and Pillow, on any machine, the same bits."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Generator, Sequence
from functools import cache

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor

from fastanc.batch import Batch
from fastanc.pipelines.jpeg.bytes import ADVICE, ChangedImage, Indexed, Reader, undecodable
from fastanc.pipelines.jpeg.options import JpegOptions, cores_per_process
from fastanc.pipelines.order import Picks
from fastanc.pipelines.pictures import Pictures
from fastanc.pipelines.views import ViewRule

try:
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:  # torchvision 0.29 announces that a later version will be without them
    decode_jpeg = None

_Encoded = tuple[int, np.ndarray]
"""An image's number and its bytes."""


def batches(
    index: Indexed,
    picks: Callable[[int], Picks],
    rule: ViewRule,
    steps: range,
    *,
    views: int,
    device: torch.device,
    options: JpegOptions,
) -> Generator[Batch, None, None]:
    """Yield the batches of these steps of one process, `views` of each image; closing the iterator ends the threads.

    Raises RuntimeError naming step and file when one does not decode or is not what it was.
    """
    reader = Reader(index)

    def fetch(step: int, images: np.ndarray) -> Sequence[_Encoded]:
        try:
            return list(zip(images.tolist(), reader.read(images)))
        except ChangedImage as error:
            raise ChangedImage(f"step {step}: {error}") from error

    def decode(step: int, encoded: _Encoded) -> Tensor:
        image, data = encoded
        try:
            pixels = decoded(data)
        except Exception as error:  # Pillow's readers raise whatever the bytes lead them to
            raise RuntimeError(undecodable(step, index.name(image))) from error
        if pixels.shape[:0:-1] != tuple(index.sizes[image].tolist()):
            raise ChangedImage(f"step {step}: {index.name(image)} changed since it was indexed: {ADVICE}")
        return pixels

    pictures = Pictures(
        fetch=fetch, decode=decode, sizes=index.sizes.__getitem__, labels=index.labels, channels=3
    )
    try:
        yield from pictures.batches(
            picks,
            steps,
            rule,
            views,
            device=device,
            threads=options.threads or cores_per_process(),
            prefetch=options.prefetch,
        )
    finally:
        reader.close()


def decoded(data: np.ndarray) -> Tensor:
    """Return the pixels [3, H, W] uint8 of an image's bytes [length] uint8, unrotated: those of DALI's CPU decoder.

    JPEGs by torchvision, which is faster than Pillow, with the same bits; the other formats by Pillow, since
    torchvision reads only some of those that the index accepts. Both let other threads run.
    """
    if decode_jpeg is not None and data[:2].tobytes() == b"\xff\xd8":
        return decode_jpeg(torch.from_numpy(data), mode=ImageReadMode.RGB)
    with Image.open(io.BytesIO(data.tobytes())) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


@cache
def identity() -> dict[str, object]:
    """Return what fixes the decoded pixels, ready for JSON: the version, and a CRC-32 of what one JPEG becomes.

    Whoever built torchvision may have taken another libjpeg than its wheels have, which rounds otherwise.
    """
    rows, columns = np.arange(33)[:, None], np.arange(31)
    pattern = np.stack([7 * rows + columns, 3 * rows + 5 * columns, rows * columns], 2) % 256
    file = io.BytesIO()
    Image.fromarray(pattern.astype(np.uint8)).save(file, "JPEG", quality=80)
    pixels = decoded(np.frombuffer(bytearray(file.getvalue()), np.uint8))
    return {
        "torchvision": torchvision.__version__.partition("+")[0],
        "decoded": zlib.crc32(pixels.contiguous().numpy().data),
    }
