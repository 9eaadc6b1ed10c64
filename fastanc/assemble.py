"""From a configuration to the parts of a run: each function unpacks its group and hands plain values down."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from fastanc.batch import Batch
from fastanc.config import Config, DataConfig, NetworkConfig, TeacherConfig
from fastanc.methods.base import Method, TeacherSpec
from fastanc.models import zoo
from fastanc.models.folding import fold_batchnorm
from fastanc.models.taps import Tapped
from fastanc.pipelines.arrays import ArraySet
from fastanc.pipelines.datasets import open_dataset
from fastanc.pipelines.decode_plan import JpegOptions
from fastanc.pipelines.order import Order, Picks, evaluation_picks
from fastanc.pipelines.views import CentreCrop, PadCrop, RandomResizedCrop, ViewRule, boxes_crc
from fastanc.teacher.build import build_cache
from fastanc.teacher.cached import Cached
from fastanc.teacher.filling import Filling
from fastanc.teacher.identity import identity
from fastanc.teacher.online import Online
from fastanc.teacher.store import Field, Store

if TYPE_CHECKING:
    from fastanc.pipelines.jpeg import JpegSet

    DataSet = ArraySet | JpegSet

_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Input:
    """The data sets of a run, their views and their order."""

    train: DataSet
    val: DataSet
    rule: ViewRule
    eval_rule: ViewRule
    order: Order
    options: JpegOptions
    eval_batch: int
    device: torch.device
    rank: int
    world: int

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Return the training batches of steps start to stop - 1."""
        return self.train.batches(
            self.order, self.rule, start=start, stop=stop, device=self.device, options=self.options
        )

    def picked(self, size: int, view: int, images: np.ndarray) -> Iterator[Batch]:
        """Return the training input's batches of up to `size` given images [N] of one view."""
        parts = [images[k : k + size] for k in range(0, len(images), size)]
        picks = [Picks(part, np.full_like(part, view)) for part in parts]
        options = replace(self.options, views_per_decode=1)
        return self.train.batches(picks, self.rule, device=self.device, options=options)

    def val_batches(self) -> Iterator[Batch]:
        """Return this process's share of the validation set, every image once over all processes."""
        picks = evaluation_picks(self.val.num_images, self.eval_batch, self.rank, self.world)
        options = replace(self.options, views_per_decode=1)
        return self.val.batches(picks, self.eval_rule, device=self.device, options=options)


def open_input(config: DataConfig, seed: int, accelerator: Accelerator) -> Input:
    """Open the data sets of a configuration for one process; all processes decode by one plan."""
    train = open_dataset(config.name, "train", config.root)
    val = open_dataset(config.name, "val", config.root)
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    order = Order(
        train.num_images, config.batch, rank, world, seed, config.views or None, config.views_per_image
    )
    options = JpegOptions(
        threads=config.threads or None,
        prefetch=config.prefetch,
        decode=config.decode,
        views_per_decode=config.views_per_image,
    )
    if not isinstance(train, ArraySet):
        # Pixels depend on the plan, so one process probes for all.
        agreed = [train.decided(device, options) if accelerator.is_main_process else None]
        options = broadcast_object_list(agreed)[0]
    return Input(
        train=train,
        val=val,
        rule=training_rule(config, train),
        eval_rule=CentreCrop(config.image_px, config.resize_px),
        order=order,
        options=options,
        eval_batch=config.eval_batch,
        device=device,
        rank=rank,
        world=world,
    )


def training_rule(config: DataConfig, dataset: DataSet) -> ViewRule:
    """Return the rule of the training views: random resized crops of JPEGs, padded crops of small images."""
    if isinstance(dataset, ArraySet):
        return PadCrop(config.image_px, config.view_seed, config.pad, config.flip)
    return RandomResizedCrop(
        config.image_px, config.view_seed, scale=(config.min_scale, 1.0), flip=config.flip
    )


def build_network(
    config: NetworkConfig, data: DataConfig, dataset: DataSet, weights: str | None, with_stages: bool
) -> Tapped:
    """Build a network for a data set, with its weights, its normalisation and, if wanted, its stage taps."""
    return zoo.build(
        config.name,
        num_classes=dataset.num_classes,
        in_channels=dataset.channels,
        image_px=data.image_px,
        weights=weights,
        mean=config.mean,
        std=config.std,
        default_mean=dataset.mean,
        default_std=dataset.std,
        head=config.head,
        stages=(config.stages or "auto") if with_stages else (),
    )


def build_teacher_network(config: Config, dataset: DataSet) -> Tapped:
    """Build the frozen teacher; ValueError when it would be an untrained one that nobody asked for."""
    weights = config.teacher.weights
    published = "@" in config.teacher.name
    if weights is None and not published:
        raise ValueError(
            "teacher.weights is missing: name a file, or the word random for a speed test with an untrained teacher"
        )
    if weights not in (None, "random") and not Path(weights).is_file():
        raise FileNotFoundError(f"teacher.weights: there is no file {weights}: train the teacher first")
    file = None if weights == "random" else weights
    network = build_network(config.teacher, config.data, dataset, file, config.method.reads_stages)
    if config.teacher.fold:
        network = fold_batchnorm(network)
    return network.eval().requires_grad_(False)


def teacher_spec(network: Tapped, data: DataConfig, channels: int) -> TeacherSpec:
    """Return what a method may know of the teacher before the first batch."""
    return TeacherSpec(
        num_classes=network.num_classes,
        feature_dim=network.feature_dim,
        stage_channels=network.stage_channels(data.image_px, channels) if network.stage_names else (),
        network=network,
    )


def cache_identity(config: Config, source: Input, network: Tapped) -> dict[str, Any]:
    """Return everything that the cached rows depend on."""
    every = np.arange(source.train.num_images)
    return identity(
        dataset={"name": source.train.name, **source.train.describe(source.device, source.options)},
        rule=source.rule.describe(),
        boxes_crc=boxes_crc(source.rule, source.train.sizes(every), 0),
        teacher={
            "name": config.teacher.name,
            "weights": zoo.weights_digest(network),
            "precision": config.teacher.precision,
            "head": zoo.head_digest(network),
            "folded": config.teacher.fold,
        },
    )


def cache_fields(config: TeacherConfig, network: Tapped) -> list[Field]:
    """Return the columns of the cache: features, or logits of a teacher without a linear head."""
    if network.head is None:
        return [Field("logits", network.num_classes, config.rows)]
    assert network.feature_dim is not None
    return [Field("features", network.feature_dim, config.rows)]


def open_store(config: Config, source: Input, network: Tapped, *, create: bool) -> Store:
    """Open the cache of this configuration's teacher on this configuration's views."""
    return Store.open(
        Path(config.teacher.cache_dir),
        cache_identity(config, source, network),
        cache_fields(config.teacher, network),
        source.train.num_images,
        create=create,
    )


def open_online(config: Config, source: Input, network: Tapped) -> Online:
    """Return the teacher as a network that is run."""
    spec = teacher_spec(network, config.data, source.train.channels)
    return Online(network.to(source.device), spec, _DTYPES[config.teacher.precision])


def open_teacher(config: Config, source: Input, method: Method, network: Tapped) -> Online | Cached | Filling:
    """Return where the teacher's outputs come from: the network, the cache, or both."""
    online = open_online(config, source, network)
    if config.teacher.cache == "off":
        return online
    beyond = method.needs - {"logits", "features", "descriptors", "labels"}
    if beyond:
        raise ValueError(
            f"the method reads the teacher's {', '.join(sorted(beyond))}, which no cache holds: --teacher.cache off"
        )
    store = open_store(config, source, network, create=config.teacher.cache == "fill")
    if config.teacher.cache == "read":
        budget = int(config.teacher.memory_gib * 2**30)
        return Cached(
            store,
            network.head,
            source.order,
            device=source.device,
            spec=online.spec,
            host_budget_bytes=budget,
            device_budget_bytes=budget if source.device.type == "cuda" else 0,
        )
    return Filling(online, store, network.head, source.order, device=source.device)


def complete_cache(config: Config, source: Input, teacher: Filling, accelerator: Accelerator) -> None:
    """Add the rows that an epoch's dropped remainder left out, once every view was walked through."""
    walked = source.order.views
    if walked is None or config.schedule.epochs * source.order.views_per_image < walked:
        return
    teacher.flush()
    accelerator.wait_for_everyone()
    build_cache(
        teacher.store,
        range(walked),
        partial(source.picked, config.data.batch // source.world),
        teacher.online,
        rank=source.rank,
        world=source.world,
        wait=accelerator.wait_for_everyone,
        say=lambda sentence: None,
    )


def load_student(run_dir: Path) -> Tapped:
    """Build the student that a run left behind; FileNotFoundError when it is not finished."""
    if not (run_dir / "student.safetensors").is_file():
        raise FileNotFoundError(f"{run_dir} has no student.safetensors: name the folder of a finished run")
    return zoo.load_weights(run_dir / "student.safetensors")


def compile_in_place(module: nn.Module, sample: torch.Tensor) -> str | None:
    """Compile a network's forward; return one sentence when that fails and eager mode stays."""
    module.compile()
    try:
        with torch.no_grad():
            module(sample)
    except Exception as error:  # any compiler error: eager is always right, only slower
        module._compiled_call_impl = None
        return f"torch.compile failed ({type(error).__name__}: {str(error).splitlines()[0]}): running eager"
    return None
