"""A user's items -> uint8 pixels and labels, and the first pass over all of them.

What cannot be used is one sentence that names the item.
"""

from __future__ import annotations

import hashlib
import operator
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from fastanc.pipelines.missing_labels import is_missing

MOST_BYTES = 2 << 30
"""Images of one square size are kept in memory up to so many bytes together."""
_CHUNK = 64
_AGAIN = 8
_GREY = frozenset({"1", "L", "LA"})
_COLOUR = frozenset({"RGB", "RGBA", "P", "CMYK"})
_FLOATS = "give uint8 0..255, without ToTensor and Normalize: every network normalises by itself"


class Items:
    """Reads a map-style data set of (image, label), or of images alone.

    An image is a PIL image of 8 bits, a uint8 tensor [C, H, W] or [H, W], or a uint8 array [H, W, C] or [H, W]. The
    first item says whether the set is grey (C 1) or RGB (C 3), and whether it has labels: None, NaN and -1 are none.
    Every method raises ValueError that names the item.
    """

    def __init__(self, name: str, dataset: Any) -> None:
        self.name, self._dataset = name, dataset
        image, label = self._item(0)
        self.channels = self._pixels(0, image).shape[2]
        self.labelled = label is not None

    def __len__(self) -> int:
        return len(self._dataset)

    def read(self, i: int) -> tuple[np.ndarray, int]:
        """Return an item's pixels [H, W, C] uint8, and its label, 0 where there are none."""
        image, label = self._item(i)
        pixels = self._pixels(i, image)
        if (label is not None) != self.labelled:
            has, first = ("a label", "none") if label is not None else ("no label", "one")
            raise self.wrong(i, f"has {has} but the first has {first}: give all items labels or none")
        if pixels.shape[2] == 1 < self.channels:
            pixels = np.repeat(pixels, 3, 2)
        if pixels.shape[2] != self.channels:
            raise self.wrong(
                i,
                f"has {pixels.shape[2]} channels but the first has {self.channels}: convert them all to RGB",
            )
        return pixels, 0 if label is None else label

    def check(self, i: int, pixels: np.ndarray, size: np.ndarray, crc32: int) -> None:
        """Compare an item with what it was at the first pass: its size (w, h) and the CRC-32 of its pixels."""
        if pixels.shape[1::-1] != tuple(size) or zlib.crc32(pixels.data) != crc32:
            raise self.wrong(
                i,
                "is not what it was at first: a data set must give the same pixels every time, without random"
                " transforms (fastanc draws the views itself)",
            )

    def wrong(self, i: int, what: str) -> ValueError:
        """Return the error that says what is wrong with an item."""
        return ValueError(f"item {i} of {self.name} {what}")

    def _item(self, i: int) -> tuple[Any, int | None]:
        """The image as it is given, and the label as a number, or None."""
        try:
            item = self._dataset[i]
        except Exception as error:  # whatever a user's code raises
            said = " ".join(str(error).split())
            raise self.wrong(
                i, f"cannot be read ({type(error).__name__}: {said}): repair it or leave it out"
            ) from error
        if not isinstance(item, (tuple, list)):
            return item, None
        if len(item) != 2:
            raise self.wrong(
                i, f"is a {type(item).__name__} of {len(item)}: give (image, label), or an image alone"
            )
        image, label = item
        if is_missing(label):
            return image, None
        try:
            return image, operator.index(label)
        except TypeError:
            raise self.wrong(
                i, f"has the label {label!r}: give a whole number, the class's position"
            ) from None

    def _pixels(self, i: int, image: Any) -> np.ndarray:
        """An image as [H, W, C] uint8 with C 1 or 3."""
        if isinstance(image, Image.Image):
            return self._of_pil(i, image)
        if isinstance(image, torch.Tensor):
            kind, layout = "a tensor", "[C, H, W]"
            array = image.detach().cpu().numpy() if image.dtype == torch.uint8 else None
            array = array.transpose(1, 2, 0) if array is not None and array.ndim == 3 else array
        elif isinstance(image, np.ndarray):
            kind, layout = "an array", "[H, W, C]"
            array = image if image.dtype == np.uint8 else None
        else:
            raise self.wrong(
                i,
                f"is a {type(image).__name__}: give a PIL image, a uint8 tensor [C, H, W] or array [H, W, C]",
            )
        if array is None:
            raise self.wrong(i, f"is {kind} of {image.dtype}: {_FLOATS}")
        array = array[..., None] if array.ndim == 2 else array
        if array.ndim != 3 or array.shape[2] not in (1, 3) or 0 in array.shape:
            raise self.wrong(
                i, f"is {kind} {list(image.shape)}: give uint8 {layout} with C 1 or 3, or [H, W]"
            )
        return np.require(array, requirements=["C", "W"])  # torch warns of memory that it could not write to

    def _of_pil(self, i: int, image: Image.Image) -> np.ndarray:
        if image.mode not in _GREY | _COLOUR:
            raise self.wrong(
                i, f"is a PIL image of mode {image.mode}: convert it to L or RGB, 8 bits a channel"
            )
        mode = "L" if image.mode in _GREY else "RGB"
        try:
            pixels = np.array(image if image.mode == mode else image.convert(mode))
        except Exception as error:  # PIL decodes here, and raises whatever the bytes lead it to
            raise self.wrong(i, f"does not decode ({error}): repair it or leave it out") from error
        return pixels if pixels.ndim == 3 else pixels[..., None]


@dataclass(frozen=True, eq=False)
class Looks:
    """What the first pass found of N images."""

    rows: np.ndarray
    """[N] int64 item numbers."""
    sizes: np.ndarray
    """[N, 2] int32 (w, h) in pixels."""
    labels: np.ndarray | None
    """[N] int64."""
    crc32: np.ndarray
    """[N] uint32 of the pixels."""

    @cached_property
    def fingerprint(self) -> str:
        """Digest of pixels, sizes and labels, in order."""
        digest = hashlib.blake2b(digest_size=16)
        for column in (self.crc32, self.sizes, self.labels):
            digest.update(b"none" if column is None else np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()

    def subset(self, numbers: np.ndarray) -> Looks:
        """Return the same of some images, renumbered: `numbers` is [M] int64."""
        labels = None if self.labels is None else self.labels[numbers]
        return Looks(self.rows[numbers], self.sizes[numbers], labels, self.crc32[numbers])


def look_at(items: Items, threads: int, in_memory: bool, progress: bool) -> tuple[Looks, np.ndarray | None]:
    """Read every item once, and a few twice, on some threads; return what was found.

    Beside it all pixels [N, S, S, C] uint8 where `in_memory` and they are of one square size and at most 2 GiB
    together, else None.
    """
    n, first = len(items), items.read(0)[0]
    sizes, labels, crc32 = np.empty((n, 2), np.int32), np.empty(n, np.int64), np.empty(n, np.uint32)
    fits = in_memory and first.shape[0] == first.shape[1] and n * first.nbytes <= MOST_BYTES
    kept = [np.empty((n, *first.shape), np.uint8)] if fits else []

    def look(part: range) -> int:
        for i in part:
            pixels, labels[i] = items.read(i)
            sizes[i], crc32[i] = pixels.shape[1::-1], zlib.crc32(pixels.data)
            for room in tuple(kept):
                if pixels.shape == first.shape:
                    room[i] = pixels
                else:
                    kept.clear()
        return len(part)

    parts = [range(a, min(a + _CHUNK, n)) for a in range(0, n, _CHUNK)]
    hidden = not progress or os.environ.get("LOCAL_RANK", "0") != "0"  # one bar a machine
    with (
        tqdm(total=n, unit="img", desc=items.name, disable=hidden) as bar,
        ThreadPoolExecutor(threads, "items") as pool,
    ):
        for done in pool.map(look, parts):
            bar.update(done)
    for i in np.unique(np.linspace(0, n - 1, _AGAIN).astype(np.int64)).tolist():
        items.check(i, items.read(i)[0], sizes[i], int(crc32[i]))
    return Looks(np.arange(n), sizes, labels if items.labelled else None, crc32), kept[0] if kept else None
