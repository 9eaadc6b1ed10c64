"""The input of a run: its data sets, their views, their order and how they are decoded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from fastanc.batch import Batch
from fastanc.pipelines.arrays import ArraySet
from fastanc.pipelines.dataset import DataSet
from fastanc.pipelines.index.class_numbers import thin_classes
from fastanc.pipelines.jpeg.options import JpegOptions, cores_per_process
from fastanc.pipelines.latents import LatentSet
from fastanc.pipelines.numbering import numbered_as
from fastanc.pipelines.order import KEYED, Order, Picking, Picks, evaluation_picks
from fastanc.pipelines.viewing import Views
from fastanc.pipelines.views import CentreCrop, PadCrop, ViewRule
from fastanc.quoting import counted
from fastanc.teacher.kept_plan import KeptPlan


@dataclass
class Input:
    """The data sets of a run, bound to this process's device, their views and their order."""

    train: DataSet
    val: DataSet
    views: Views
    eval_rule: CentreCrop
    order: Order
    eval_batch: int
    device: torch.device
    rank: int
    world: int
    plan_source: str = ""
    """Where the decode plan comes from, in words; "" where nothing was to be decided."""

    @property
    def rule(self) -> ViewRule:
        """How training views are cut."""
        return self.views.rule

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Return the training batches of steps start to stop - 1."""
        return self._viewed(self.order, start=start, stop=stop)

    def _viewed(self, picks: Picking, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        options = self.train.options
        threads = None if options is None else options.threads
        return self.views.batches(self.train, picks, self.device, start=start, stop=stop, threads=threads)

    def picked(self, size: int, view: int, images: np.ndarray) -> Iterator[Batch]:
        """Return the training input's batches of up to `size` given images [N] of one view."""
        if self.views.mixing is not None:
            size += size % 2  # whole pairs, where the images are given by pairs
        parts = [images[k : k + size] for k in range(0, len(images), size)]
        picks = [Picks(part, np.full_like(part, view)) for part in parts]
        return self._viewed(picks)

    def val_batches(self) -> Iterator[Batch]:
        """Return this process's share of the validation set, every image once over all processes."""
        picks = evaluation_picks(self.val.num_images, self.eval_batch, self.rank, self.world)
        return self.val.batches(picks, self.eval_rule)

    def val_sample(self, count: int) -> Iterator[Batch]:
        """Return this process's share of `count` validation images, evenly spaced and so of all classes."""
        mine = (np.arange(count) * self.val.num_images // count)[self.rank :: self.world]
        size = max(1, self.eval_batch // self.world)
        parts = [mine[k : k + size] for k in range(0, len(mine), size)]
        picks = [Picks(part, np.zeros_like(part)) for part in parts]
        return self.val.batches(picks, self.eval_rule) if picks else iter(())


def open_input(
    *,
    train: DataSet,
    val: DataSet,
    views: Views,
    eval_rule: CentreCrop,
    batch: int,
    eval_batch: int,
    seed: int,
    accelerator: Accelerator,
    num_views: int | None = None,
    views_per_image: int = 1,
    options: JpegOptions | None = None,
    kept: KeptPlan | None = None,
    permutation: str = KEYED,
) -> Input:
    """Return the input of one process; all processes decode by one plan.

    The validation set's labels become positions in the training set's classes. Raises ValueError where the batch
    cannot be divided or is larger than the set, or where the validation set has a class that the other does not know.

    Args:
        train: what is trained on.
        val: what the student is judged on.
        views: what training views are made by.
        eval_rule: of the validation set's only view.
        batch: images of a step over all processes.
        eval_batch: the same of the validation set.
        seed: of the order.
        accelerator: says which process this is, and its device.
        num_views: views repeat after so many; None draws new ones for ever.
        views_per_image: neighbours in a batch that are views of one image, decoded once.
        options: how images are decoded; where its plan is auto the main process decides for all.
        permutation: how the order of an epoch is had; that with which a run began.
        kept: on the main process, what the teacher's cache was decoded with: that is the plan where it is auto.
    """
    _check_pixels(train, val, views.rule, eval_rule)
    val = numbered_as(train, val)
    rank, world = accelerator.process_index, accelerator.num_processes
    pairing = None if views.mixing is None else views.mixing.pairing
    order = Order(
        train.num_images, batch, rank, world, seed, num_views, views_per_image, pairing, permutation
    )
    options, source = _with_kept(options or JpegOptions(), kept)
    train, options, decided = _bound(train, options, accelerator)
    val, _, decided_for_val = _bound(val, options, accelerator)
    source = source or decided or decided_for_val
    return Input(train, val, views, eval_rule, order, eval_batch, accelerator.device, rank, world, source)


def _check_pixels(train: DataSet, val: DataSet, rule: ViewRule, eval_rule: CentreCrop) -> None:
    if train.channels != val.channels:
        raise ValueError(
            f"{train.name} has images of {train.channels} channels and the validation set {val.name} of"
            f" {val.channels}: give both the same"
        )
    for dataset, px in ((train, rule.out_px), (val, eval_rule.resize_px)):
        if isinstance(dataset, ArraySet) and px != (side := dataset.images.shape[1]):
            raise ValueError(
                f"{dataset.name} holds images of {side} px, which are not resized: set data.image_px and"
                f" data.resize_px to {side}"
            )


def _with_kept(options: JpegOptions, kept: KeptPlan | None) -> tuple[JpegOptions, str]:
    """Return the options with the plan of the teacher's cache, and where the plan comes from where that is known."""
    given = "" if options.decode == "auto" else "given"
    if kept is None:
        return options, given
    if not given:
        return replace(options, decode=kept.plan), f"that of the cache {kept.path}"
    if kept.plan != options.decode:
        given += (
            f", though the cache {kept.path} was made with {kept.plan}: its rows are not those of this run"
        )
    return options, given


def _bound(
    dataset: DataSet, options: JpegOptions, accelerator: Accelerator
) -> tuple[DataSet, JpegOptions, str]:
    """Return a set on this process's device, the options with the decode plan of all, and where that comes from.

    Pixels depend on the plan, so one process decides for all.
    """
    if dataset.options is None:
        return dataset.on(accelerator.device), options, ""
    bound = dataset.on(accelerator.device, options) if accelerator.is_main_process else dataset
    source: str = getattr(bound, "plan_source", "")
    options = broadcast_object_list([bound.options])[0]
    return dataset.on(accelerator.device, options), options, source


_FEW_CLASSES = 12


def data_notes(source: Input) -> list[str]:
    """Return sentences on the data of a run: images, classes with counts, what is held out, what was passed over."""
    train, val = source.train, source.val
    if isinstance(train, LatentSet):
        return [f"validation set: {_about(val)}", *_remarks(val, 0)]
    share = 100 * val.num_images / (train.num_images + val.num_images)
    views = "padded" if isinstance(source.rule, PadCrop) else "resized"
    return [
        f"training set: {_about(train)}, {views} crops of {source.rule.out_px} px{source.views}",
        f"validation set: {_about(val)}, {share:.3g} % of all images",
        *dict.fromkeys([*_remarks(train, 1), *_remarks(val, 0, "validation set ")]),
    ]


def _about(data: DataSet) -> str:
    """Name, images and classes of a set; how many images each class has, where those are few, else the range."""
    if data.labels is None:
        return f"{data.name}, {counted(data.num_images, 'image')} without labels"
    counts = np.bincount(data.labels, minlength=data.num_classes)
    each = (
        f"{counts.min()} to {counts.max()} images each"
        if counts.min() < counts.max()
        else f"{counted(int(counts.min()), 'image')} each"
    )
    if data.num_classes <= _FEW_CLASSES and counts.min() < counts.max():
        each = ", ".join(f"{name} {count}" for name, count in zip(data.classes, counts.tolist()))
    elif data.num_classes <= _FEW_CLASSES:
        each += f": {', '.join(data.classes)}"
    return (
        f"{data.name}, {counted(data.num_images, 'image')} of {counted(data.num_classes, 'class')} ({each})"
    )


def _remarks(data: DataSet, fewest: int, which: str = "") -> list[str]:
    """What a set's index says of it, and its classes of at most `fewest` images."""
    return [
        *(f"{data.name}: {remark}" for remark in getattr(data, "remarks", [])),
        *(f"{which}{data.name}: {said}" for said in thin_classes(data.labels, data.classes, fewest)),
    ]


def input_note(source: Input) -> str | None:
    """Return one sentence about the cores that decode, of which the bottleneck line speaks later; None for arrays."""
    options = source.train.options
    if options is None:
        return None
    cores = cores_per_process()
    threads = options.threads or cores
    why = f" ({source.plan_source})" if source.plan_source else ""
    decoder = "the data set's own decoder"
    if options.decode != "auto":
        decoder = f"decode plan {options.decode}{why}"
    elif source.val.options is not None and why:
        decoder += f" and, for the validation set, decode plan {source.val.options.decode}{why}"
    where = f"{decoder}, {counted(threads, 'thread')}"
    beside = f" for each of the {source.world} processes" if source.world > 1 else ""
    too_many = ": more threads than cores, lower data.threads" if threads > cores else ""
    return f"input: {where} on {counted(cores, 'core')}{beside}{too_many}"
