"""The parts of `benchmarks.gpu_check` that decode: the rate of each plan, and whether its pixels can be relied on."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu_rows import FEW, Row, begin, device_of, row


def decode_rates(rehearse: bool) -> Iterator[Row]:
    """Images per second of each decode plan, of the samples as they are and packed, at some thread counts."""
    from benchmarks.end_to_end import real_images
    from fastanc.pipelines.index.build import build_index
    from fastanc.pipelines.index.pack import pack
    from fastanc.pipelines.jpeg.options import PLANS, JpegOptions
    from fastanc.pipelines.jpeg.probe import probe

    device = device_of(rehearse)
    begin("the images' index and tar")
    with tempfile.TemporaryDirectory() as place:
        folder = real_images(Path(place), copies=1 if rehearse else 4, every=FEW if rehearse else 1)
        indexes = {"originals": build_index(folder, progress=False)}
        indexes["packed"] = pack(folder, Path(place) / "packed.tar", short_side=256, progress=False).index
        for threads in (2,) if rehearse else (16, 8, 4):
            for plan in PLANS[::-1]:
                for name, index in indexes.items():
                    case = f"{plan}, {name}, {threads} threads"
                    if rehearse and plan != "cpu":
                        yield row(case, "needs CUDA")
                        continue
                    begin(case)
                    found = probe(index, device, JpegOptions(decode=plan, threads=threads))
                    yield row(case, found.failure or "", images_per_s=found.images_per_s)


def decode_stability(rehearse: bool) -> Iterator[Row]:
    """Whether a view's pixels depend on the batch that it is decoded in."""
    from benchmarks.end_to_end import real_images
    from fastanc.pipelines.index.build import build_index
    from fastanc.pipelines.jpeg.jpeg_set import JpegSet
    from fastanc.pipelines.jpeg.options import JpegOptions
    from fastanc.pipelines.order import Picks
    from fastanc.pipelines.views import RandomResizedCrop

    device = device_of(rehearse)
    cases = [("cpu", 0.65), ("mixed", 0.0), ("mixed", 0.65), ("mixed_roi", 0.0), ("mixed_roi", 0.65)]
    begin("the images' index")
    with tempfile.TemporaryDirectory() as place:
        images = real_images(Path(place), copies=1, every=FEW if rehearse else 1)
        index = build_index(images, progress=False)
        data, rule = JpegSet("samples", index, (), ()), RandomResizedCrop(64 if rehearse else 224, seed=0)
        for plan, load in cases:
            case = plan if plan == "cpu" else f"{plan}, hw_decoder_load {load}"
            if rehearse and plan != "cpu":
                yield row(case, "needs CUDA")
                continue
            begin(case)
            options = JpegOptions(decode=plan, hw_decoder_load=load, threads=2 if rehearse else 8)
            bound = data.on(device, options)

            def decoded(images: np.ndarray, size: int, data: JpegSet = bound) -> Tensor:
                parts = [images[k : k + size] for k in range(0, len(images), size)]
                picks = [Picks(part, np.zeros_like(part)) for part in parts]
                batches = data.batches(picks, rule)
                found = torch.cat([batch.images.cpu() for batch in batches])
                return found[np.argsort(images)].int()

            every = np.arange(len(index))
            far = (decoded(every, 64) - decoded(np.random.default_rng(0).permutation(every), 9)).abs()
            differing = int(far.flatten(1).any(1).sum())
            says = f"{differing} of {len(index)} images differ, by up to {int(far.max())}"
            yield row(case, says if differing else f"all {len(index)} images have the same bits")
