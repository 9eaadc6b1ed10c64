"""What this machine really does, for `fastanc plan --measure`: a training step, the decoder, the storage.

Each for some seconds, with the recipe's own networks, method, precision and images. What cannot be measured here (no
such images on this machine, a network between machines) stays assumed, and the plan says so.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from fastanc.batch import Batch
from fastanc.config import Config
from fastanc.jobs.plan import Cluster, Load
from fastanc.pipelines.jpeg.bytes import Place
from fastanc.pipelines.jpeg.jpeg_set import JpegSet
from fastanc.pipelines.jpeg.options import JpegOptions, cores_per_process
from fastanc.pipelines.jpeg.probe import probe
from fastanc.training.assemble_input import open_sets
from fastanc.training.assemble_networks import Sketch
from fastanc.training.players import Players
from fastanc.training.processes import make_accelerator
from fastanc.training.step import play

_SECONDS, _FEWEST = 3.0, 2
_ON_CPU = 16
"""Images of a step there: its rate hardly depends on how many, and a whole share would take minutes."""
_READERS, _READS = 8, 8192


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Rates of this machine; None where it could not be measured, and why in `notes`."""

    images_per_s: float | None = None
    """Of one device that trains, teacher's rows at hand."""
    decoded_per_s: float | None = None
    """Images that one core decodes."""
    storage_bytes_per_s: float | None = None
    image_bytes: int | None = None
    """Mean of the stored images; 0 for a set that is in memory."""
    notes: tuple[str, ...] = ()


def measure(config: Config, sketch: Sketch, accelerator: Accelerator, share: int) -> Measured:
    """Measure what a recipe asks of this machine; `share` is a process's part of the batch."""
    notes: list[str] = []
    rate = None
    if "latents" in sketch.method.needs:
        notes.append("compute is assumed: the method trains on latent vectors")
    else:
        rate = step_rate(config, sketch, accelerator, share)
    try:
        train, _ = open_sets(config)
    except (ValueError, OSError) as error:
        notes.append(f"decode and storage are assumed: {error}")
        return Measured(images_per_s=rate, notes=tuple(notes))
    if not isinstance(train, JpegSet):
        return Measured(images_per_s=rate, image_bytes=0, notes=(*notes, f"{train.name} is kept in memory"))
    images = np.random.default_rng(0).permutation(train.num_images)[:_READS]
    places = train.index.places(images.tolist())
    given = JpegOptions(
        threads=config.data.threads or None, prefetch=config.data.prefetch, decode=config.data.decode
    )
    train = train.on(accelerator.device, given)
    found = probe(train.index, train.device, train.options)
    if found.failure is not None:
        notes.append(f"decode is assumed: {found}")
    cores = train.options.threads or cores_per_process()
    return Measured(
        images_per_s=rate,
        decoded_per_s=None if found.images_per_s is None else found.images_per_s / cores,
        storage_bytes_per_s=read_rate(places),
        image_bytes=round(float(np.mean([length for _, _, length in places]))),
        notes=tuple(notes),
    )


def as_measured(config: Config, sketch: Sketch, load: Load, cluster: Cluster) -> tuple[Load, Cluster]:
    """Return load and cluster with this machine's rates in the place of assumed ones, and print what was found."""
    accelerator = make_accelerator(precision=config.run.precision)
    found = measure(config, sketch, accelerator, max(1, sketch.batch // cluster.gpus))
    for note in found.notes:
        print(f"note: {note}")
    rates: dict[str, Any] = {}
    if found.images_per_s is not None:
        rates["flop_per_s"] = found.images_per_s * load.flop
        if accelerator.device.type == "cpu":
            print(
                f"note: there is no GPU here: each of the {cluster.gpus} is taken to be as fast as this CPU"
            )
        print(f"measured: {found.images_per_s:,.1f} images/s a device in the step ({accelerator.device})")
    if found.decoded_per_s is not None:
        rates["decoded_per_s"] = found.decoded_per_s
        print(f"measured: {found.decoded_per_s:,.0f} images/s a core decoded")
    if found.storage_bytes_per_s is not None:
        rates["storage_bytes_per_s"] = found.storage_bytes_per_s
        print(
            f"measured: {found.storage_bytes_per_s / 1e6:,.0f} MB/s read, {found.image_bytes:,} bytes an image"
        )
    if found.image_bytes is not None:
        load = replace(load, image_bytes=found.image_bytes)
    names = {"flop_per_s": "compute", "decoded_per_s": "decode", "storage_bytes_per_s": "storage"}
    measured = frozenset(names[rate] for rate in rates)
    return load, replace(cluster, measured=measured, **rates)


def step_rate(config: Config, sketch: Sketch, accelerator: Accelerator, share: int) -> float:
    """Return images per second of the training step on this device, with teacher outputs that are already there."""
    device, student, method = accelerator.device, sketch.student, sketch.method
    size = min(share, _ON_CPU) if device.type == "cpu" else share
    side = config.data.image_px
    images = torch.randint(0, 256, (size, sketch.channels, side, side), dtype=torch.uint8)
    images = images.to(device, memory_format=torch.channels_last)
    labels = torch.randint(0, student.num_classes, (size,), device=device)
    batch = Batch(images, np.arange(size), np.zeros(size, np.int64), labels)
    if sketch.teacher is not None:
        with torch.no_grad():
            batch.target = sketch.teacher.to(device).eval()(images)
    sketch.players["student"].train().to(memory_format=torch.channels_last)
    players = Players(accelerator, sketch.players, {"student": config.optimizer, **method.optimizers()})
    players.set_lr(0.0)  # networks without weights would leave the finite numbers
    steps, began = -1, time.perf_counter()
    while steps < _FEWEST or time.perf_counter() - began < _SECONDS:
        play(method, players, batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        steps += 1
        if steps == 0:  # the first one warms up
            began = time.perf_counter()
    return steps * size / (time.perf_counter() - began)


def read_rate(places: Sequence[Place]) -> float:
    """Return bytes per second of reading these images in this order, none of them from the page cache."""
    for path in {path for path, _, _ in places}:
        _forget(path)
    began = time.perf_counter()

    def read(place: Place) -> int:
        path, offset, length = place
        if time.perf_counter() - began > _SECONDS:
            return 0
        handle = os.open(path, os.O_RDONLY)
        try:
            return len(os.pread(handle, length, offset))
        finally:
            os.close(handle)

    with ThreadPoolExecutor(_READERS) as readers:
        total = sum(readers.map(read, places))
    return total / max(time.perf_counter() - began, 1e-9)


def _forget(path: str) -> None:
    """Drop a file from the page cache, where the system does that."""
    with suppress(OSError, AttributeError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)
