"""From a configuration to the parts of a run: each function unpacks its group and hands plain values down."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from fastanc.cache.identity import identity
from fastanc.cache.store import Field, Store
from fastanc.config import Config, DataConfig, NetworkConfig, TeacherConfig
from fastanc.methods.base import Method, TeacherSpec
from fastanc.models import zoo
from fastanc.models.attention import Squeezed
from fastanc.models.calibration import calibrate_batchnorm
from fastanc.models.folding import fold_batchnorm
from fastanc.models.ksanc_teacher import load_estimators
from fastanc.models.taps import Tapped, unwrapped
from fastanc.pipelines.views import ViewRule, boxes_crc
from fastanc.teacher.build import build_cache
from fastanc.teacher.cached import Cached
from fastanc.teacher.filling import Filling
from fastanc.teacher.online import Online
from fastanc.training.inputs import DataSet, Input

Teacher = Online | Cached | Filling
_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


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


def build_teacher_network(config: Config, dataset: DataSet) -> Tapped | Squeezed:
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
    if weights == "random":
        calibrate_batchnorm(network, dataset.channels, config.data.image_px)
    if config.teacher.fold:
        network = fold_batchnorm(network)
    whole: Tapped | Squeezed = network
    if config.teacher.estimators is not None and config.method.reads_stages:
        whole = load_estimators(network, config.teacher.estimators).squeezed
    return whole.eval().requires_grad_(False)


def teacher_spec(network: Tapped | Squeezed, data: DataConfig, channels: int) -> TeacherSpec:
    """Return what a method may know of the teacher before the first batch."""
    return TeacherSpec(
        num_classes=network.num_classes,
        feature_dim=network.feature_dim,
        stage_channels=network.stage_channels(data.image_px, channels) if network.stage_names else (),
        network=network,
    )


def cache_identity(config: Config, source: Input, network: Tapped | Squeezed) -> dict[str, Any]:
    """Return everything that the cached rows depend on."""
    return _identity(config, source, source.train.name, source.train, source.rule, network)


def _identity(
    config: Config, source: Input, name: str, dataset: DataSet, rule: ViewRule, network: Tapped | Squeezed
) -> dict[str, Any]:
    every = np.arange(dataset.num_images)
    return identity(
        dataset={"name": name, **dataset.describe(source.device, source.options)},
        rule=rule.describe(),
        boxes_crc=boxes_crc(rule, dataset.sizes(every), 0),
        teacher={
            "name": config.teacher.name,
            "weights": zoo.weights_digest(unwrapped(network)),
            "precision": config.teacher.precision,
            "head": zoo.head_digest(unwrapped(network)),
            "folded": config.teacher.fold,
            **_estimators_fact(network),
        },
    )


def _estimators_fact(network: Tapped | Squeezed) -> dict[str, str]:
    return {"estimators": zoo.weights_digest(network.estimators)} if isinstance(network, Squeezed) else {}


def cache_fields(config: TeacherConfig, network: Tapped | Squeezed) -> list[Field]:
    """Return the columns: features (logits of a teacher without a linear head), and KSANC's descriptors."""
    if network.head is None:
        fields = [Field("logits", network.num_classes, config.rows)]
    else:
        assert network.feature_dim is not None
        fields = [Field("features", network.feature_dim, config.rows)]
    if isinstance(network, Squeezed):
        fields.append(Field("descriptors", network.estimators.descriptor_dim, config.rows))
    return fields


def open_store(config: Config, source: Input, network: Tapped | Squeezed, *, create: bool) -> Store:
    """Open the cache of this configuration's teacher on this configuration's views."""
    return Store.open(
        Path(config.teacher.cache_dir),
        cache_identity(config, source, network),
        cache_fields(config.teacher, network),
        source.train.num_images,
        create=create,
    )


def open_online(config: Config, source: Input, network: Tapped | Squeezed) -> Online:
    """Return the teacher as a network that is run."""
    spec = teacher_spec(network, config.data, source.train.channels)
    network.to(source.device)
    # Of the network Online asks for its outputs and its head, which a squeezed one has as well.
    return Online(network, spec, _DTYPES[config.teacher.precision])  # type: ignore[arg-type]


def open_teacher(config: Config, source: Input, method: Method, network: Tapped | Squeezed) -> Teacher:
    """Return where the teacher's outputs come from: the network, the cache, or both."""
    online = open_online(config, source, network)
    if "descriptors" in method.needs and not isinstance(network, Squeezed):
        raise ValueError(
            "teacher.estimators is missing: train them with --method.type ksanc_teacher, then name that run's"
            " estimators.safetensors"
        )
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


def open_val_teacher(config: Config, source: Input, network: Tapped | Squeezed) -> Teacher:
    """Return where the teacher's outputs on the validation set come from, which the students' are compared with.

    Where training fills a cache these rows are kept beside it, so that every later student reads them.
    """
    online = open_online(config, source, network)
    if config.teacher.cache == "off" or source.latent_dim is not None:
        return online
    plain = network.network if isinstance(network, Squeezed) else network
    facts = _identity(config, source, f"{source.val.name}-val", source.val, source.eval_rule, plain)
    folder, fields = Path(config.teacher.cache_dir), cache_fields(config.teacher, plain)
    if config.teacher.cache == "fill":
        store = Store.open(folder, facts, fields, source.val.num_images, create=True)
        return Filling(online, store, network.head, device=source.device)
    try:
        store = Store.open(folder, facts, fields, source.val.num_images)
    except FileNotFoundError:
        return online
    if not store.complete(0):
        return online
    return Cached(store, network.head, None, device=source.device, spec=online.spec)


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


def compile_in_place(module: nn.Module, sample: torch.Tensor, mode: str = "default") -> str | None:
    """Compile a network's forward; return one sentence when that fails and eager mode stays."""
    module.compile(mode=mode)
    try:
        with torch.no_grad():
            module(sample)
    except Exception as error:  # any compiler error: eager is always right, only slower
        module._compiled_call_impl = None
        return f"torch.compile failed ({type(error).__name__}: {str(error).splitlines()[0]}): running eager"
    return None
