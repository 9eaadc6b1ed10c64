"""An image made smaller once, as views would make it anew from every decode."""

from __future__ import annotations

import io

from PIL import Image


def smaller(data: bytes, short_side: int, quality: int) -> bytes:
    """Return an image resized (Lanczos, EXIF not applied) to a shorter side of so many px, as JPEG."""
    image: Image.Image = Image.open(io.BytesIO(data))
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    scale = short_side / min(image.size)
    size = (max(short_side, round(image.width * scale)), max(short_side, round(image.height * scale)))
    file = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(file, "JPEG", quality=quality)
    return file.getvalue()


def shrunk_to(data: bytes, short_side: int, quality: int) -> bytes:
    """Return `smaller` of an image that is larger; any other, and what does not decode, as it is."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            is_larger = min(image.size) > short_side
        return smaller(data, short_side, quality) if is_larger else data
    except Exception:  # damage, no image, a bomb: whoever indexes the result says what
        return data
