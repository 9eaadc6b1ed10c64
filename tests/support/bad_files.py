"""Files that look like images and are none, or none that can be used; made of `picture`."""

from __future__ import annotations

import zlib

import numpy as np
from PIL import Image

from support.images import encoded, jpeg, picture


def bad_files() -> dict[str, tuple[bytes, str]]:
    """Return name -> (bytes, a part of the reason that the index gives)."""
    image, good = picture(), jpeg(quality=95)
    sof = good.index(b"\xff\xc0")
    scan = good.index(b"\xff\xda")
    progressive = encoded(image, progressive=True)
    deep = np.asarray(image.convert("L")).astype(np.uint16) * 257
    png16rgb = bytearray(encoded(image, "PNG"))
    png16rgb[24] = 16
    png16rgb[29:33] = zlib.crc32(png16rgb[12:29]).to_bytes(4, "big")
    huge = good[: sof + 5] + (60000).to_bytes(2, "big") + (2000).to_bytes(2, "big") + good[sof + 9 :]
    bomb = good[: sof + 5] + (65000).to_bytes(2, "big") * 2 + good[sof + 9 :]
    return {
        "empty.jpg": (b"", "empty file"),
        "text.jpg": (b"<html>404 not found</html>", "not an image"),
        "zeros.jpg": (bytes(5000), "not an image"),
        "newline_first.jpg": (b"\n" + good, "not an image"),
        "appledouble.jpg": (b"\x00\x05\x16\x07" + bytes(100), "not an image"),
        "two_bytes.jpg": (good[:2], "cut inside its header"),
        "cut_before_frame.jpg": (good[: sof + 6], "cut inside its header"),
        "cut_before_scan.jpg": (good[: scan - 3], "header"),
        "cut_in_half.jpg": (good[: len(good) // 2], "truncated JPEG"),
        "cut_last_byte.jpg": (good[:-1], "truncated JPEG"),
        "cut_progressive.jpg": (progressive[: int(len(progressive) * 0.9)], "truncated JPEG"),
        "cut_after_thumbnail.jpg": (with_thumbnail(good)[:-40], "truncated JPEG"),
        "no_scan.jpg": (good[:scan] + b"\xff\xd9" + bytes(9), "without image data"),
        "no_frame.jpg": (good[:2] + good[scan:], "damaged header"),
        "overwritten_header.jpg": (good[:20] + b"garbage" * 30 + good[230:], "header"),
        "arithmetic.jpg": (good[:sof] + b"\xff\xc9" + good[sof + 2 :], "arithmetic-coded or lossless"),
        "lossless.jpg": (good[:sof] + b"\xff\xc3" + good[sof + 2 :], "arithmetic-coded or lossless"),
        "twelve_bit.jpg": (good[: sof + 4] + b"\x0c" + good[sof + 5 :], "12-bit JPEG"),
        "too_large.jpg": (huge, "too large (2000 x 60000 pixels)"),
        "bomb.jpg": (bomb, "too large"),
        "gif.jpg": (encoded(image, "GIF"), "GIF is not a format"),
        "tiff.jpg": (encoded(image, "TIFF"), "TIFF is not a format"),
        "ppm.jpg": (encoded(image, "PPM"), "PPM is not a format"),
        "jp2.jpg": (encoded(image, "JPEG2000"), "JPEG2000 is not a format"),
        "png16.png": (encoded(Image.fromarray(deep), "PNG"), "16-bit PNG of mode I;16"),
        "png16rgb.png": (bytes(png16rgb), "16-bit PNG of mode RGB"),
        "png_cut.png": (encoded(image, "PNG")[:-200], "does not decode"),
        "webp_cut.webp": (encoded(image, "WEBP")[:-200], "not an image"),
        "bmp_cut.bmp": (encoded(image, "BMP")[:-900], "does not decode"),
    }


def with_thumbnail(photo: bytes) -> bytes:
    """Put a whole JPEG, end-of-image marker and all, into an EXIF segment in front."""
    inside = b"Exif\0\0" + jpeg(1, (16, 16))
    return photo[:2] + b"\xff\xe1" + (len(inside) + 2).to_bytes(2, "big") + inside + photo[2:]
