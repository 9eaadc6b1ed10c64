"""The teacher pass that fills the cache once and for all, what it costs, and the proof that it was right."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from fastanc.batch import Batch
from fastanc.cache.checksum import BYTES
from fastanc.cache.rows import Field, decode, encode, head_logits, unrounded, values_of
from fastanc.cache.store import Store
from fastanc.cache.writer import Writer
from fastanc.quoting import counted
from fastanc.teacher.online import Online

BatchesFor = Callable[[int, np.ndarray], Iterator[Batch]]
"""(view, image numbers) -> batches of exactly these images in this order, the last one may be smaller."""

_RATE_AFTER_S = 10.0


class Built(NamedTuple):
    """What one process did, and what is left for all."""

    images: int
    seconds: float
    num_bytes: int
    missing: int
    """Rows of all views that nobody has written."""

    def __str__(self) -> str:
        rate = f", {self.images / self.seconds:.0f} images/s" if self.images and self.seconds > 0 else ""
        left = f"{self.missing} rows are missing" if self.missing else "complete"
        return f"{self.images} rows in {self.seconds:.1f} s{rate}, {self.num_bytes / 1e6:.1f} MB; {left}"


def break_even(
    num_images: int,
    row_bytes: int,
    views: int,
    epochs: int,
    students: int,
    images_per_s: float | None = None,
    whole_bytes: int | None = None,
) -> str:
    """Return what a cache costs and saves: `views` teacher passes in place of `epochs * students`.

    Args:
        num_images: of a pass.
        row_bytes: of a row of the cache.
        views: V, stored of each image.
        epochs: E, passes over the images in a student's training.
        students: S, trained from one cache.
        images_per_s: the teacher's measured rate, all processes together; adds the hours.
        whole_bytes: of a row that would keep everything, where this one does not.
    """
    passes = epochs * students
    total = _bytes(views * num_images * row_bytes)
    beside = f" ({whole_bytes:,} of all as fp16)" if whole_bytes else ""
    size = f"{counted(views, 'view')} x {counted(num_images, 'image')}"
    size += f" x {counted(row_bytes, 'byte')}{beside} = {total}"

    def hours(passes: int) -> str:
        return f" ({passes * num_images / images_per_s / 3600:,.2f} h)" if images_per_s else ""

    if views > passes:
        verdict = f"that costs {counted(views - passes, 'pass')}{hours(views - passes)} more than it saves"
    elif views == passes:
        verdict = "that saves nothing unless a run is repeated"
    else:
        verdict = f"that saves {counted(passes - views, 'pass')}{hours(passes - views)}"
    rate = f" at {images_per_s:,.0f} images/s" if images_per_s else ""
    return (
        f"{size}; {counted(views, 'teacher pass')}{hours(views)} in place of {epochs} x"
        f" {counted(students, 'student')} = {passes:,}{hours(passes)}: {verdict}{rate}"
    )


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.4g} {unit}"
        count /= 1000
    return f"{count:,.4g} TB"


def build_cache(
    store: Store,
    views: Sequence[int],
    batches_for: BatchesFor,
    online: Online,
    *,
    rank: int = 0,
    world: int = 1,
    wait: Callable[[], None] | None = None,
    arranged: Callable[[int, np.ndarray], np.ndarray] = lambda view, images: images,
    epochs: int = 1,
    students: int = 1,
    say: Callable[[str], None] = print,
) -> Built:
    """Run the teacher on this process's share of what is missing, and write its rows batch by batch.

    Size and break-even are said first, with the hours once the rate is known. Killed, it loses at most the
    batches under way; the next call, with any number of processes, does the rest.

    Args:
        store: opened for writing.
        views: to complete.
        batches_for: makes the input.
        online: the teacher.
        rank: of this process.
        world: number of processes that build together.
        wait: barrier of these processes: the shares are dealt before and counted after everybody has passed.
            Without one, processes that start later deal out less and may repeat rows, which is harmless.
        arranged: (view, image numbers) -> the same in the order in which they are made with the least decoding.
        epochs: of a student, for the break-even.
        students: for the break-even.
        say: takes the sentences of rank 0.

    Raises:
        ValueError: the disk is full, the folder cannot be written, a row is not finite.
    """
    wait = wait or (lambda: None)
    plan = (store.num_images, store.row_bytes, len(views), epochs, students)
    whole = _whole_bytes(store, online)
    if rank == 0:
        say(break_even(*plan, whole_bytes=whole))
    shares = {view: np.array_split(arranged(view, store.missing(view)), world)[rank] for view in views}
    wait()
    began, total = time.perf_counter(), sum(len(share) for share in shares.values())
    done, rate_said = 0, rank != 0
    writer = Writer(store)
    try:
        with tqdm(
            total=total, desc="teacher cache", unit=" images", disable=None if rank == 0 else True
        ) as bar:
            for batch in _batches(shares, batches_for):
                writer.add(
                    batch.view, batch.index, encode(values_of(online(batch), store.fields), store.fields)
                )
                done += len(batch.index)
                bar.update(len(batch.index))
                bar.set_postfix_str(_bytes(writer.bytes_written), refresh=False)
                if not rate_said and time.perf_counter() - began > _RATE_AFTER_S:
                    rate = done * world / (time.perf_counter() - began)
                    say(break_even(*plan, images_per_s=rate, whole_bytes=whole))
                    rate_said = True
    finally:
        writer.close()
    seconds = time.perf_counter() - began
    wait()
    missing = sum(len(store.missing(view)) for view in views)
    return Built(done, seconds, writer.bytes_written, missing)


def _whole_bytes(store: Store, online: Online) -> int | None:
    """Return the bytes of an fp16 row with its checksum, where the store's rows keep classes alone."""
    if not any(field.top for field in store.fields):
        return None
    network = online.network
    width = network.num_classes if network.feature_dim is None else network.feature_dim
    return Field("features", width).row_bytes + BYTES


def _batches(shares: dict[int, np.ndarray], batches_for: BatchesFor) -> Iterator[Batch]:
    for view, share in shares.items():
        if not len(share):
            continue
        at = 0
        for batch in batches_for(view, share):
            expected = share[at : at + len(batch.index)]
            assert np.array_equal(batch.index, expected), "the input gave other images than asked for"
            assert (batch.view == view).all(), "the input gave another view than asked for"
            at += len(batch.index)
            yield batch
        assert at == len(share), f"the input gave {at} of {len(share)} images"


class Deviation(NamedTuple):
    """The largest difference between stored values and the teacher's."""

    field: str
    absolute: float
    relative: float
    """Over the largest magnitude in its row."""
    view: int
    image: int

    def __str__(self) -> str:
        return (
            f"{self.field}: differs from the teacher's by {self.absolute:.3g}, {self.relative:.3g} of the largest"
            f" in its row (view {self.view}, image {self.image})"
        )


def verify_teacher(store: Store, online: Online, batches_for: BatchesFor, rows: int) -> list[Deviation]:
    """Run the teacher again on random stored rows; return every field's largest relative difference.

    Beside the fields, the logits that a student gets of the rows (the head over the stored features) are compared
    with the network's own: features may be stored faithfully and yet not be what its logits are made of.
    Of rows of the most probable classes the log probabilities of the kept ones are compared, and the others' mean.
    fp16 rows may differ by 2^-11 and uint8 rows by 1/510 of the row's range, plus what another batch changes
    in the teacher's arithmetic; a wrong view, image or teacher differs by about 1.

    Raises:
        FileNotFoundError: the cache is empty.
    """
    rng = np.random.default_rng(0)
    views = store.views()
    if not views:
        raise FileNotFoundError(f"{store.path} holds no rows to compare: run `fastanc cache build`")
    present = {view: np.setdiff1d(np.arange(store.num_images), store.missing(view)) for view in views}
    weights = np.array([len(images) for images in present.values()], float)
    classes = online.network.num_classes
    names = dict.fromkeys([*(field.name for field in store.fields), *(["logits"] if classes else [])])
    worst = {name: Deviation(name, 0.0, 0.0, -1, -1) for name in names}
    reader = store.reader()
    try:
        for view, count in zip(views, rng.multinomial(rows, weights / weights.sum()).tolist()):
            chosen = np.sort(rng.choice(present[view], min(count, len(present[view])), replace=False))
            for batch in _batches({view: chosen}, batches_for):
                kept, _ = reader.read(batch.index, batch.view)
                stored = {name: value.numpy() for name, value in decode(kept, store.fields).items()}
                fresh = online.untouched(batch)
                exact = unrounded(values_of(fresh, store.fields), kept, store.fields)
                if classes:
                    if "logits" not in stored:
                        stored["logits"] = _by_head(stored["features"], online)
                    exact.setdefault("logits", fresh.logits)
                for name, value in exact.items():
                    worst[name] = max(
                        worst[name], _deviation(name, stored[name], value, batch), key=_relative
                    )
    finally:
        reader.close()
    return list(worst.values())


def _by_head(features: np.ndarray, online: Online) -> np.ndarray:
    head = online.network.head
    assert head is not None, "a cache without logits needs the teacher's head"
    made: np.ndarray = head_logits(torch.from_numpy(features).to(head.weight.device), head).cpu().numpy()
    return made


def _relative(deviation: Deviation) -> float:
    return deviation.relative


def _deviation(name: str, stored: np.ndarray, value: torch.Tensor, batch: Batch) -> Deviation:
    fresh = value.float().cpu().numpy()
    difference = np.abs(stored - fresh).max(1)
    relative = difference / np.maximum(np.abs(fresh).max(1), np.finfo(np.float32).tiny)
    row = int(relative.argmax())
    return Deviation(
        name, float(difference[row]), float(relative[row]), int(batch.view[row]), int(batch.index[row])
    )
