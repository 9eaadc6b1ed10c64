"""Small made-up images: as pictures, as bytes, in a folder."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def picture(
    seed: int | Sequence[int] = 0, size: tuple[int, int] = (48, 36), mode: str = "RGB"
) -> Image.Image:
    """Return a smooth random picture of (width, height) pixels."""
    noise = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).convert(mode)


def odd_picture(i: int) -> Image.Image:
    """Return a smooth random picture of a random size: some are grey, the fifth is a strip one pixel high."""
    rng = np.random.default_rng(i)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8))
    size = (200, 1) if i == 5 else (int(rng.integers(40, 160)), int(rng.integers(40, 160)))
    return coarse.resize(size, Image.Resampling.BICUBIC).convert("L" if i % 7 == 3 else "RGB")


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    """Return a picture as a file's bytes, with PIL's options of the format."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def jpeg(seed: int | Sequence[int] = 0, size: tuple[int, int] = (48, 36), **options: object) -> bytes:
    """Return `picture` as a JPEG's bytes."""
    return encoded(picture(seed, size), **options)


def put(root: Path, files: Mapping[str, bytes]) -> Path:
    """Write files by their names under a folder and return the folder."""
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def class_folders(root: Path, **counts: int) -> Path:
    """Write so many different JPEGs into each class folder and return the root."""
    return put(
        root,
        {
            f"{name}/{k}.jpg": jpeg([number, k], (40 + k, 30))
            for number, (name, count) in enumerate(counts.items())
            for k in range(count)
        },
    )


def flat_folder(root: Path, count: int, size: tuple[int, int] = (40, 30)) -> Path:
    """Write so many different JPEGs, each a pixel wider than the last, into one folder and return it."""
    width, height = size
    return put(root, {f"{k:03d}.jpg": jpeg(k, (width + k, height)) for k in range(count)})
