"""From a configuration to the images of a run: which sets, how they are stored, which views are drawn of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from fastanc.cache.rows import PAGE
from fastanc.config import Config, DataConfig
from fastanc.pipelines.arrays import ArraySet
from fastanc.pipelines.catalogue import open_dataset, open_splits, open_whole
from fastanc.pipelines.dataset import DataSet
from fastanc.pipelines.jpeg.options import TORCHVISION, JpegOptions
from fastanc.pipelines.latents import LatentSet
from fastanc.pipelines.look_policies import fills
from fastanc.pipelines.looks import Looks
from fastanc.pipelines.mixing import Mixing
from fastanc.pipelines.order import KEYED, share_of
from fastanc.pipelines.pairing import Pairing
from fastanc.pipelines.source_options import SourceOptions
from fastanc.pipelines.stored import stored_for
from fastanc.pipelines.viewing import Views
from fastanc.pipelines.views import CentreCrop, PadCrop, RandomResizedCrop, ViewRule
from fastanc.teacher.answers import CacheChoice
from fastanc.teacher.frozen import FrozenTeacher
from fastanc.teacher.kept_plan import KeptPlan, kept_plan
from fastanc.training import inputs
from fastanc.training.assemble_networks import NOTHING, Given
from fastanc.training.inputs import Input


def open_input(
    config: Config,
    accelerator: Accelerator,
    given: Given = NOTHING,
    teacher: Callable[[DataSet], FrozenTeacher] | None = None,
    permutation: str = KEYED,
) -> Input:
    """Open the data sets of a configuration for one process.

    Of a method that trains on latent vectors only the validation set is opened. `teacher` opens the one whose rows
    on the training set are cached; None where none are. `permutation` is how the order of an epoch is had.
    """
    data, seed = config.data, config.run.seed
    num_views, views_per_image = data.views or None, data.views_per_image
    train, val = open_sets(config, given)
    _check_idle(config, train)
    if "latents" in config.method.needs:
        size, rank = data.steps_per_epoch * data.batch, accelerator.process_index
        latent_dim: int = getattr(config.method, "latent_dim")  # noqa: B009  (only these methods have the field)
        train, num_views, views_per_image = (
            LatentSet(latent_dim, size, like=val, seed=seed, rank=rank),
            None,
            1,
        )
    views = _training_views(config, train)
    options = JpegOptions(threads=data.threads or None, prefetch=data.prefetch, decode=data.decode)
    if teacher is not None:
        # Rows and pixels must not depend on the batch that an image came in, which the JPEG unit's share decides.
        options = replace(options, hw_decoder_load=0.0)
    return inputs.open_input(
        train=train,
        val=val,
        views=views,
        eval_rule=CentreCrop(data.image_px, data.resize_px),
        batch=data.batch,
        eval_batch=data.eval_batch,
        seed=seed,
        num_views=num_views,
        views_per_image=views_per_image,
        accelerator=accelerator,
        options=options,
        permutation=permutation,
        kept=_kept_plan(config, accelerator, train, views, options, teacher),
    )


def cache_choice(config: Config) -> CacheChoice:
    """Return where the teacher's rows are kept, and how."""
    teacher = config.teacher
    return CacheChoice(
        mode=teacher.cache,
        folder=Path(teacher.cache_dir),
        rows=teacher.rows,
        align=PAGE if teacher.pad_rows else 1,
        memory_bytes=int(teacher.memory_gib * 2**30),
    )


def _kept_plan(
    config: Config,
    accelerator: Accelerator,
    train: DataSet,
    views: Views,
    options: JpegOptions,
    teacher: Callable[[DataSet], FrozenTeacher] | None,
) -> KeptPlan | None:
    """Return the plan that the teacher's cache was decoded with, where one is there; the main process looks."""
    if teacher is None or train.options is None or not accelerator.is_main_process:
        return None
    bound = train.on(accelerator.device, replace(options, decode=TORCHVISION))
    kinds: list[DataSet] = getattr(bound, "kinds_of_plan", list)()  # a user's own items have no plan
    if len(kinds) < 2:  # nothing is to be decided
        return None
    return kept_plan(kinds, views, cache_choice(config), partial(teacher, train))


def open_sets(config: Config, given: Given = NOTHING) -> tuple[DataSet, DataSet]:
    """Return train and val, stored as the crops want them; of a method that trains on latent vectors val twice."""
    data = config.data
    whole: Any = data.name if given.train is None else given.train
    options = _source_options(data)
    if "latents" in config.method.needs:
        val = given.val or _only_val(data, whole, options)
        return val, val
    if given.val is None:
        train, val = open_splits(whole, data.root, data.share, data.val_share, options, data.val)
    elif given.train is not None:  # nothing has to be held out
        train = given.train.subset(share_of(given.train.labels, given.train.num_images, data.share))
        val = given.val
    else:
        train = open_dataset(whole, "train", data.root, data.share, data.val_share, options)
        val = given.val
    train = stored_for(train, data.crop, data.image_px)
    return train, stored_for(val, "resized", data.image_px) if data.crop == "resized" else val


def _source_options(data: DataConfig) -> SourceOptions:
    """What the configuration says of how a path is read."""
    return SourceOptions(
        labels=None if data.labels is None else Path(data.labels),
        columns=data.columns,
        images=None if data.images is None else Path(data.images),
        class_map=None if data.class_map is None else Path(data.class_map),
    )


def _only_val(data: DataConfig, whole: Any, options: SourceOptions) -> DataSet:
    if data.val is not None:
        return open_whole(data.val, "val", data.root, options)
    return open_dataset(whole, "val", data.root, val_share=data.val_share, options=options)


_OF_IMAGES = (
    *("crop", "min_scale", "max_ratio", "flip", "vflip", "pad", "looks", "grey", "erase", "erase_fill"),
    *("mix", "mix_alpha", "mix_share", "smoothing", "share", "views_per_image", "decode"),
)
"""Fields of DataConfig that say how training images are seen."""


def _check_idle(config: Config, train: DataSet) -> None:
    """Raise ValueError for a field of the user's own words that does nothing in this run."""
    if "latents" in config.method.needs:
        _refuse(
            {f"data.{one}": ("a method that trains on latent vectors", True) for one in _OF_IMAGES}, config
        )
        return
    data, method, padded = config.data, config.method, isinstance(train, ArraySet)
    idle = {
        "data.min_scale": ("padded crops (data.crop resized draws others)", padded),
        "data.max_ratio": ("padded crops (data.crop resized draws others)", padded),
        "data.pad": ("resized crops (data.crop padded draws others)", not padded),
        "data.decode": (f"{train.name}, whose images are not decoded here", train.options is None),
        "data.steps_per_epoch": ("a method that trains on images", True),
        "data.mix_alpha": ("data.mix none", data.mix == "none"),
        "data.mix_share": ("data.mix none", data.mix == "none"),
        "data.erase_fill": ("looks that leave no place empty", not (data.erase or fills(data.looks))),
        "data.val_share": ("data.val, a set to validate on", data.val is not None),
        "data.smoothing": (f"method.type {method.kind}, which reads no labels", not method.reads_labels),
    }
    _refuse(idle, config)


def _refuse(idle: Mapping[str, tuple[str, bool]], config: Config) -> None:
    for name, (what, does_nothing) in idle.items():
        if does_nothing and name in config.said:
            raise ValueError(f"{name} does nothing with {what}: leave it out")


def _training_views(config: Config, dataset: DataSet) -> Views:
    """What training views are made by; ValueError for what does not go with the method."""
    data = config.data
    if "latents" in config.method.needs:
        return Views(_training_rule(data, dataset))
    if (data.mix != "none" or data.smoothing) and "labels" in config.method.needs:
        field = f"data.mix {data.mix}" if data.mix != "none" else f"data.smoothing {data.smoothing:g}"
        raise ValueError(
            f"method.type {config.method.kind} needs one true class of every picture, which {field} takes away: leave"
            " it out, or take a method that reads shares of classes, such as kd"
        )
    fill = (
        tuple(round(255 * mean) for mean in dataset.mean)
        if data.erase_fill == "mean"
        else (0,) * dataset.channels
    )
    looks = None
    if data.dressed:
        looks = Looks(
            policy=data.looks,
            erase=data.erase,
            fill=fill,
            grey=data.grey,
            vflip=data.vflip,
            seed=data.view_seed,
        )
        looks.check()
    mixing = None
    if data.mix != "none":
        pairing = Pairing(dataset.num_images, data.view_seed, data.views_per_image)
        mixing = Mixing(data.mix, pairing, data.mix_alpha, data.mix_share, out_px=data.image_px)
    return Views(_training_rule(data, dataset), looks, mixing, data.smoothing)


def _training_rule(data: DataConfig, dataset: DataSet) -> ViewRule:
    """The rule of the training views, which follows from how the set is stored (`stored_for`)."""
    if isinstance(dataset, ArraySet):
        return PadCrop(data.image_px, data.view_seed, data.pad, data.flip)
    scale, ratio = (data.min_scale, 1.0), (1 / data.max_ratio, data.max_ratio)
    return RandomResizedCrop(data.image_px, data.view_seed, scale, ratio, data.flip)
