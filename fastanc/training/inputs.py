"""The input of a run: its data sets, their views, their order and how they are decoded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from fastanc.batch import Batch
from fastanc.config import DataConfig
from fastanc.pipelines.arrays import ArraySet
from fastanc.pipelines.catalogue import open_dataset
from fastanc.pipelines.dataset import DataSet
from fastanc.pipelines.jpeg.options import JpegOptions, cores_per_process
from fastanc.pipelines.latents import LatentSet
from fastanc.pipelines.order import Order, Picks, evaluation_picks
from fastanc.pipelines.views import CentreCrop, PadCrop, RandomResizedCrop, ViewRule


@dataclass
class Input:
    """The data sets of a run, their views and their order."""

    train: DataSet
    val: DataSet
    rule: ViewRule
    eval_rule: ViewRule
    order: Order
    eval_batch: int
    device: torch.device
    rank: int
    world: int

    @property
    def latent_dim(self) -> int | None:
        """Width of the latent vectors of a method without images; None where there are images."""
        return self.train.latent_dim if isinstance(self.train, LatentSet) else None

    @property
    def images(self) -> DataSet:
        """The set whose images the networks are made for."""
        return self.train if self.latent_dim is None else self.val

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Return the training batches of steps start to stop - 1."""
        return self.train.batches(self.order, self.rule, start=start, stop=stop)

    def picked(self, size: int, view: int, images: np.ndarray) -> Iterator[Batch]:
        """Return the training input's batches of up to `size` given images [N] of one view."""
        parts = [images[k : k + size] for k in range(0, len(images), size)]
        picks = [Picks(part, np.full_like(part, view)) for part in parts]
        return self.train.batches(picks, self.rule)

    def val_batches(self) -> Iterator[Batch]:
        """Return this process's share of the validation set, every image once over all processes."""
        picks = evaluation_picks(self.val.num_images, self.eval_batch, self.rank, self.world)
        return self.val.batches(picks, self.eval_rule)


def open_input(
    config: DataConfig, seed: int, accelerator: Accelerator, latent_dim: int | None = None
) -> Input:
    """Open the data sets of a configuration for one process; all processes decode by one plan.

    With a `latent_dim` the training set is not opened: its batches hold latent vectors of that width.
    """
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    val = open_dataset(config.name, "val", config.root)
    train: DataSet
    if latent_dim is not None:
        size = config.steps_per_epoch * config.batch
        train = LatentSet(latent_dim, size, like=val, seed=seed, rank=rank)
        order = Order(size, config.batch, rank, world, seed)
    else:
        train = open_dataset(config.name, "train", config.root, config.share)
        order = Order(
            train.num_images, config.batch, rank, world, seed, config.views or None, config.views_per_image
        )
    options = JpegOptions(threads=config.threads or None, prefetch=config.prefetch, decode=config.decode)
    train, options = _bound(train, options, accelerator)
    val, _ = _bound(val, options, accelerator)
    return Input(
        train=train,
        val=val,
        rule=training_rule(config, train),
        eval_rule=CentreCrop(config.image_px, config.resize_px),
        order=order,
        eval_batch=config.eval_batch,
        device=device,
        rank=rank,
        world=world,
    )


def _bound(dataset: DataSet, options: JpegOptions, accelerator: Accelerator) -> tuple[DataSet, JpegOptions]:
    """Return a set on this process's device, and the options with the decode plan of all processes.

    Pixels depend on the plan, so one process probes for all.
    """
    if dataset.options is None:
        return dataset.on(accelerator.device), options
    bound = dataset.on(accelerator.device, options) if accelerator.is_main_process else dataset
    options = broadcast_object_list([bound.options])[0]
    return dataset.on(accelerator.device, options), options


def input_note(source: Input) -> str | None:
    """Return one sentence about the cores that decode, of which the bottleneck line speaks later; None for arrays."""
    options = source.train.options
    if options is None:
        return None
    cores = cores_per_process()
    threads = options.threads or cores
    where = f"decode plan {options.decode}, {threads} threads"
    beside = f" for each of the {source.world} processes" if source.world > 1 else ""
    too_many = ": more threads than cores, lower data.threads" if threads > cores else ""
    return f"input: {where} on {cores} cores{beside}{too_many}"


def training_rule(config: DataConfig, dataset: DataSet) -> ViewRule:
    """Return the rule of the training views: random resized crops of JPEGs, padded crops of small images."""
    if isinstance(dataset, ArraySet):
        return PadCrop(config.image_px, config.view_seed, config.pad, config.flip)
    return RandomResizedCrop(
        config.image_px, config.view_seed, scale=(config.min_scale, 1.0), flip=config.flip
    )
