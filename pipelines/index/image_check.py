"""What the index pass learns from one image's bytes: its size, a note, and why it must stay out of a run."""

from __future__ import annotations

import io
import os
import stat
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, cast

from PIL import Image

from fastanc.pipelines.blocks import Place, read_ranges
from fastanc.pipelines.remote_path import RemotePath

MAX_PIXELS = 89_478_485
"""Larger images are left out; Pillow warns of a decompression bomb from here on."""

# Format -> modes in which DALI's pixels equal Pillow's bit for bit. GIF, AVIF and some TIFFs end DALI's
# process or raise, 16-bit files come out differently from every decoder.
_ACCEPTED = {
    "JPEG": {"L", "RGB", "CMYK"},
    "MPO": {"L", "RGB"},
    "PNG": {"1", "L", "LA", "P", "RGB", "RGBA"},
    "BMP": {"1", "L", "P", "RGB"},
    "WEBP": {"RGB", "RGBA"},
}
_ORIENTATION = 0x0112
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


_SUFFIXES = {
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG": ".png",
    b"BM": ".bmp",
    b"GIF8": ".gif",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
}


def suffix_of(data: bytes) -> str | None:
    """Return the usual suffix of an image file with this beginning; None for what is no image."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ".webp"
    return next((suffix for start, suffix in _SUFFIXES.items() if data.startswith(start)), None)


class Look(NamedTuple):
    """The result of looking at one image."""

    width: int
    height: int
    crc32: int
    note: str
    """What is unusual about an accepted image, e.g. "PNG RGBA"; else empty."""
    reason: str
    """Why the image is rejected; empty when it is accepted."""


def jpeg_problem(data: bytes) -> str:
    """Return why these bytes are not a whole 8-bit Huffman JPEG, or "".

    Segments are stepped over by their lengths (a thumbnail inside EXIF is not seen) up to the first scan. The
    end-of-image marker FFD9 cannot occur inside entropy-coded data, so its absence after that is truncation.
    """
    position, frame = 2, False
    while True:
        if position + 4 > len(data):
            return "JPEG cut inside its header"
        if data[position] != 0xFF:
            return "JPEG with a damaged header"
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if marker in _SOF:
            if marker > 0xC2:
                return "arithmetic-coded or lossless JPEG"
            if position + 9 > len(data):
                return "JPEG cut inside its header"
            if data[position + 4] != 8:
                return f"{data[position + 4]}-bit JPEG"
            frame = True
        elif marker == 0xDA:
            break
        elif marker == 0xD9:
            return "JPEG without image data"
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    if not frame:
        return "JPEG with a damaged header"
    if data.find(b"\xff\xd9", position) < 0:
        return "truncated JPEG (no end-of-image marker)"
    return ""


def _format_problem(image: Image.Image, data: bytes) -> str:
    kind, mode = image.format or "", image.mode
    if kind not in _ACCEPTED:
        return f"{kind} is not a format that is read: convert it to JPEG or PNG"
    if (kind == "PNG" and data[24:25] == b"\x10") or mode not in _ACCEPTED[kind]:
        depth = "16-bit " if mode.startswith("I") or data[24:25] == b"\x10" else ""
        return f"{depth}{kind} of mode {mode}: decoders disagree on its pixels, convert it to 8 bits"
    if image.width * image.height > MAX_PIXELS:
        return f"too large ({image.width} x {image.height} pixels)"
    return ""


def look(data: bytes, full: bool = False) -> Look:
    """Return what one image's bytes hold; `full` also decodes a JPEG (every other format always is)."""
    crc = zlib.crc32(data)
    if not data:
        return Look(0, 0, crc, "", "empty file")
    is_jpeg = data.startswith(b"\xff\xd8")
    problem = jpeg_problem(data) if is_jpeg else ""
    if problem:
        return Look(0, 0, crc, "", problem)
    try:
        image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError:
        return Look(0, 0, crc, "", "too large (Pillow takes it for a decompression bomb)")
    except Exception:  # Pillow's readers raise whatever the bytes lead them to
        kind = "JPEG with a damaged header" if is_jpeg else f"not an image (it starts with {data[:8]!r})"
        return Look(0, 0, crc, "", kind)
    width, height = image.size
    problem = _format_problem(image, data)
    if problem:
        return Look(width, height, crc, "", problem)
    note = "" if image.format == "JPEG" and image.mode in ("L", "RGB") else f"{image.format} {image.mode}"
    if full or not is_jpeg:
        try:
            image.load()
        except Exception as error:
            return Look(width, height, crc, "", f"does not decode ({error})")
    return Look(width, height, crc, ", ".join(filter(None, [note, _orientation(image)])), "")


def _orientation(image: Image.Image) -> str:
    try:
        turned = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return "unreadable EXIF"
    return f"EXIF orientation {turned}, read unrotated" if turned not in (0, 1) else ""


def read_range(path: str | Path, offset: int, length: int) -> bytes:
    """Return `length` bytes of a regular file from `offset`; a short read raises OSError."""
    if isinstance(path, RemotePath):
        return path.read_at(length, offset)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a named pipe must not hang the pass
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("not a regular file")
        parts, left = [], length
        while left:
            part = os.pread(descriptor, left, offset + length - left)
            if not part:
                raise OSError("shorter than when it was listed")
            parts.append(part)
            left -= len(part)
        return b"".join(parts)
    finally:
        os.close(descriptor)


def look_at(places: Sequence[tuple[str | RemotePath, int, int]], full: bool) -> list[Look]:
    """Return one `Look` for every (path, offset, length)."""
    looks = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for data in _bytes_of(places):
            if isinstance(data, OSError):
                looks.append(Look(0, 0, 0, "", f"cannot be read ({data.strerror or data})"))
            else:
                looks.append(look(data, full))
    return looks


def _bytes_of(places: Sequence[tuple[str | RemotePath, int, int]]) -> Iterator[bytes | OSError]:
    """What lies at every place, or why it cannot be read; all lie on a disk, or all in a store."""
    if places and isinstance(places[0][0], RemotePath):
        yield from read_ranges(cast(Sequence[Place], places))
        return
    for place in places:
        try:
            yield read_range(*place)
        except OSError as error:
            yield error
