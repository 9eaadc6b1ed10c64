"""The demonstration set: scikit-learn's 1,797 handwritten digits as JPEGs in two tars."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from fastanc.files import HOUR_S, sweep, write_bytes
from fastanc.pipelines.places import cache_dir, make_cache_folder
from fastanc.pipelines.tar_file import END_MARK, member_bytes

MEAN = (0.3095, 0.3095, 0.3095)
STD = (0.3488, 0.3488, 0.3488)
_SIDE_PX = 32
_QUALITY = 95


def digits_tar(split: str) -> Path:
    """Return the tar of a split ("train": 1,437 images, "val": every fifth, 360), written at first use.

    Each 8 x 8 image of values 0..16 is enlarged to 32 px (bicubic) and is a JPEG in the folder of its class.
    Raises ModuleNotFoundError where scikit-learn is missing.
    """
    path = cache_dir() / "digits" / f"{split}.tar"
    if path.exists():
        return path
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "the digits come with scikit-learn: pip install scikit-learn, or choose another --data.name"
        ) from None
    images, labels = load_digits(return_X_y=True)
    numbers = np.arange(len(labels))
    numbers = numbers[(numbers % 5 == 0) == (split == "val")]
    names = sorted((f"{labels[i]}/{i:04d}.jpg", i) for i in numbers)
    sweep(make_cache_folder("digits"), path.name, older_than_s=HOUR_S)
    write_bytes(path, b"".join(member_bytes(name, _jpeg(images[i])) for name, i in names) + END_MARK)
    return path


def _jpeg(values: np.ndarray) -> bytes:
    """Return one image, [64] values 0..16, as a 32 px grey JPEG."""
    pixels = np.rint(values.reshape(8, 8) * (255 / 16)).astype(np.uint8)
    file = io.BytesIO()
    image = Image.fromarray(pixels).resize((_SIDE_PX, _SIDE_PX), Image.Resampling.BICUBIC)
    image.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()
