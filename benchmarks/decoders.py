"""How far the pixels of decode plan torchvision lie from those of DALI's: `python -m benchmarks.decoders`.

Views of the JPEGs of FASTANC_DATA/imagenet-samples, as training and as evaluation cut them, and one made-up picture
in every kind of file that the index accepts, all by both plans on the CPU: the share of equal values, the mean
difference in levels of 255 and the largest one.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.harness import record, table
from fastanc.pipelines.index.build import build_index
from fastanc.pipelines.jpeg.jpeg_set import JpegSet
from fastanc.pipelines.jpeg.options import TORCHVISION, JpegOptions
from fastanc.pipelines.order import evaluation_picks
from fastanc.pipelines.views import CentreCrop, RandomResizedCrop, ViewRule

BATCH = 50
RULES: dict[str, ViewRule] = {
    "training views of 224 px": RandomResizedCrop(224, 0),
    "evaluation at 224 of 256 px": CentreCrop(224, 256),
}


def compared(what: str, folder: Path, rule: ViewRule) -> dict[str, Any]:
    """The row of one folder: the same views by both plans."""
    index = build_index(folder, workers=1, progress=False)
    data, picks = JpegSet(what, index, (), ()), evaluation_picks(len(index), BATCH)

    def views(plan: str) -> Iterator[Tensor]:
        bound = data.on("cpu", JpegOptions(decode=plan))
        return (batch.images for batch in bound.batches(picks, rule))

    values, equal, total, most = 0, 0, 0.0, 0
    for dali, other in zip(views("cpu"), views(TORCHVISION), strict=True):
        difference = (dali.int() - other.int()).abs()
        values += difference.numel()
        equal += int((difference == 0).sum())
        total += float(difference.sum())
        most = max(most, int(difference.max()))
    return {
        "what": what,
        "images": len(index),
        "equal_pct": 100 * equal / values,
        "mean_levels": total / values,
        "most_levels": most,
    }


def kinds() -> dict[str, bytes]:
    """One picture in every kind of file that the index accepts."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8))
    picture = coarse.resize((333, 251), Image.Resampling.BICUBIC)
    turned = Image.Exif()
    turned[274] = 6
    see_through = picture.convert("RGBA")
    see_through.putalpha(picture.convert("L"))
    forms: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "JPEG 4:4:4": (picture, "JPEG", {"subsampling": 0}),
        "JPEG 4:2:2": (picture, "JPEG", {"subsampling": 1}),
        "JPEG 4:2:0": (picture, "JPEG", {"subsampling": 2}),
        "JPEG progressive": (picture, "JPEG", {"progressive": True}),
        "JPEG grey": (picture.convert("L"), "JPEG", {}),
        "JPEG CMYK": (picture.convert("CMYK"), "JPEG", {}),
        "JPEG with EXIF rotation": (picture, "JPEG", {"exif": turned}),
        "MPO": (picture, "MPO", {"save_all": True, "append_images": [picture]}),
        "PNG of 1 bit": (picture.convert("1"), "PNG", {}),
        "PNG grey and alpha": (see_through.convert("LA"), "PNG", {}),
        "PNG with a palette": (picture.convert("P"), "PNG", {"transparency": 3}),
        "PNG": (picture, "PNG", {}),
        "PNG and alpha": (see_through, "PNG", {}),
        "BMP": (picture, "BMP", {}),
        "BMP with a palette": (picture.convert("P"), "BMP", {}),
        "WebP": (picture, "WEBP", {"quality": 80}),
        "WebP and alpha": (see_through, "WEBP", {"quality": 80}),
        "WebP lossless": (picture, "WEBP", {"lossless": True}),
    }
    made = {}
    for name, (image, kind, options) in forms.items():
        file = io.BytesIO()
        image.save(file, kind, **options)
        made[name] = file.getvalue()
    return made


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=300, help="JPEGs used (300)")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    jpegs = sorted(Path(os.environ.get("FASTANC_DATA", ".")).glob("imagenet-samples/*/*.JPEG"))[
        : chosen.files
    ]
    if not jpegs:
        parser.error("there are no JPEGs in imagenet-samples: set FASTANC_DATA to the folder that holds it")
    with tempfile.TemporaryDirectory() as name:
        real = Path(name) / "real"
        real.mkdir()
        for path in jpegs:
            shutil.copy(path, real)
        rows = [compared(f"ImageNet JPEGs, {what}", real, rule) for what, rule in RULES.items()]
        for number, (what, data) in enumerate(kinds().items()):
            folder = Path(name) / f"kind{number}"
            folder.mkdir()
            (folder / "picture.bin.jpg").write_bytes(data)
            rows.append(compared(what, folder, CentreCrop(224, 256)))
    print(table(rows))
    print(f"appended to {record('decoders', rows)}")


if __name__ == "__main__":
    main()
