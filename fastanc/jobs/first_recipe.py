"""A first recipe for somebody's own images and networks, with the reasons beside the numbers (`fastanc init`)."""

from __future__ import annotations

import os
import shlex
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from fastanc.config import Config
from fastanc.files import write_text
from fastanc.following import SMALL_PX
from fastanc.models import zoo
from fastanc.models.taps import Tapped, unwrapped
from fastanc.models.usual_views import usual_views
from fastanc.parsing import parse
from fastanc.pipelines.catalogue import open_splits
from fastanc.pipelines.dataset import DataSet
from fastanc.plain_yaml import one_line
from fastanc.quoting import counted
from fastanc.training.assemble_networks import open_teacher, sketch

_VIEWS_SEEN, _EPOCHS = 3_000_000, (10, 300)
_VIEWS, _CACHE_BYTES = 30, 100 * 10**9
_LOOKED_AT, _STEPS = 4096, 20


class Named(NamedTuple):
    """What the recipe is of, by name."""

    data: str
    teacher: str
    weights: str | None
    student: str
    plugin: str | None


class Chosen(NamedTuple):
    """What the numbers follow from."""

    image_px: int
    resize_px: int
    sizes_from: str
    padded: bool
    batch: int
    epochs: int
    views: int


def write_recipe(
    out: Path, data: str, teacher: str, weights: str | None, student: str, plugin: str | None = None
) -> str:
    """Look at images and networks, write a recipe that fits them, and return what was found and what to type next.

    Args:
        out: the YAML file; it must not exist.
        data: a data set's name, or the path of one.
        teacher: a network's name.
        weights: file of its weights; None for published ones.
        student: a network's name.
        plugin: Python file that registers what is named.

    Raises:
        FileExistsError: `out` exists.
        ValueError, FileNotFoundError: a name, a file or the images are wrong, as of `fastanc train`.
    """
    if out.suffix not in {".yaml", ".yml"}:
        raise ValueError(f"{out} is no recipe by its name: let it end in .yaml")
    if out.exists():
        raise FileExistsError(f"{out} exists: name another file, or remove it")
    names = [
        f"--teacher.name={teacher}",
        f"--student.name={student}",
        f"--data.name={data}",
        "--teacher.recipe=null",
        *([f"--plugin={plugin}"] if plugin is not None else []),
    ]
    read = parse(
        ["--recipe=own_data", *names, f"--teacher.weights={weights if weights is not None else 'null'}"],
        front=True,
    )
    train, val = open_splits(data, None)
    chosen = _chosen(train, teacher)
    named = Named(data, teacher, weights, student, read.run.plugin)
    config = _read_back(out, _text(out.stem, named, chosen, train))
    row_bytes = sketch(config, classes=_classes(train), channels=train.channels).row_bytes
    view_bytes = row_bytes * train.num_images
    if view_bytes * chosen.views > _CACHE_BYTES:
        chosen = chosen._replace(views=max(1, _CACHE_BYTES // view_bytes))
    network = _opened(config, train)
    write_text(out, _text(out.stem, named, chosen, train, network))
    return _told(out, train, val, chosen, view_bytes * chosen.views)


def _chosen(train: DataSet, teacher: str) -> Chosen:
    some = np.linspace(0, train.num_images - 1, min(train.num_images, _LOOKED_AT)).astype(np.int64)
    side = int(np.median(train.sizes(some).min(1)))
    usual = usual_views(teacher)
    small = side <= SMALL_PX
    if usual is not None:
        px, resized, source = usual.image_px, usual.resize_px, f"the teacher's ({usual.source})"
    elif small:
        px, resized, source = side, side, f"the images' ({side} px)"
    else:
        px, resized, source = 224, 256, "ImageNet's: nobody says the teacher's"
    padded = small and px <= SMALL_PX
    batch = 256 if torch.cuda.is_available() else 64
    while batch > 16 and batch * _STEPS > train.num_images:  # an epoch of some steps
        batch //= 2
    batch = min(batch, train.num_images)
    epochs = int(np.clip(round(_VIEWS_SEEN / train.num_images), *_EPOCHS))
    return Chosen(px, max(px, resized), source, padded, batch, epochs, min(epochs, _VIEWS))


def _text(name: str, named: Named, chosen: Chosen, train: DataSet, network: Tapped | None = None) -> str:
    """The recipe: groups in the usual order, the reason of a number beside it; `network`: the teacher, if opened."""

    plugin = "" if named.plugin is None else f"\n  plugin: {one_line(named.plugin)}"
    labelled = train.labels is not None
    crop = "padded" if chosen.padded else "resized"
    cut = "pad: 4" if chosen.padded else "min_scale: 0.25"
    rate = 0.05 * chosen.batch / 64
    # Pictures without colours are mostly scans, of which few are as likely mirrored.
    flips = "true" if train.channels == 3 and len(set(train.mean)) > 1 else "false"
    about = "whether an image is as likely mirrored: photographs are, letters and scans are not"
    known = _known(train)
    method, others = _method(labelled, _classes(train) if network is None else network.num_classes)
    file = " ".join(shlex.quote(f"{name}.yaml").splitlines())
    return f"""\
# Command:  fastanc train --recipe {file}
# Task:     {train.num_images:,} images of {one_line(named.data)}, {known}
# Hardware: any
# Result:   yours; written by fastanc init, to be changed
run:
  name: {one_line(name)}{plugin}
data:
  name: {one_line(named.data)}
  image_px: {chosen.image_px}    # {chosen.sizes_from}
  resize_px: {chosen.resize_px}
  crop: {crop}
  {cut}
  flip: {flips}    # {about}
  batch: {chosen.batch}    # {_why(chosen.batch, train.num_images)}
  eval_batch: {chosen.batch}
  views: {chosen.views}    # of each image: the teacher sees each once, and its rows are kept
  # looks: rand-m9-n2    # stronger views, which want a longer schedule: docs/views.md
teacher:
  name: {one_line(named.teacher)}{"" if network is None else _statistics(network)}
  weights: {one_line(named.weights)}
  cache: fill
student:
  name: {one_line(named.student)}
# What else is worth a try: {others} (docs/methods.md, which method when).
method: {method}
optimizer: {{name: sgd, lr: {rate:g}, weight_decay: 0.0001, clip: 1.0}}    # 0.05 for a batch of 64, in proportion
schedule: {{name: cosine, epochs: {chosen.epochs}, warmup_epochs: 1}}    # {_VIEWS_SEEN // 10**6} million views or so
"""


def _known(train: DataSet) -> str:
    if train.labels is None:
        return "no labels"
    return f"{train.num_classes} class{'es' if train.num_classes > 1 else ''}"


def _why(batch: int, images: int) -> str:
    if batch == images:
        return "all that there are"
    if batch * _STEPS > images:
        return f"small, for few images: an epoch has {counted(images // batch, 'step')}"
    return f"the largest of 64 (CPU) or 256 (GPU), halved, that leaves an epoch {_STEPS} steps"


def _read_back(out: Path, text: str) -> Config:
    """The recipe as a run reads it, so that what is written is right."""
    handle, name = tempfile.mkstemp(suffix=".yaml")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        return parse([f"--recipe={name}"])
    except ValueError as error:
        raise ValueError(str(error).replace(name, str(out))) from error
    finally:
        os.unlink(name)


def _method(labelled: bool, classes: int) -> tuple[str, str]:
    """The loss, and what else to try; no label is read, since a set's classes need not be the teacher's."""
    if classes == 2:  # of which relations say too little
        more = "`l2`, or `alpha: 0.5`, which reads the labels" if labelled else "`l2`"
        return "{type: kd, alpha: 1.0, temperature: 1.0}", more
    more = (
        "`labels_weight: 1.0`, which reads the labels, or `kd`"
        if labelled
        else "`kd` with alpha 1 and temperature 1"
    )
    return "{type: dist, labels_weight: 0.0}", more


def _classes(train: DataSet) -> int:
    """The set's classes; a thousand of images without labels, whose teacher is not opened yet."""
    return train.num_classes or 1000


def _opened(config: Config, train: DataSet) -> Tapped | None:
    """The teacher with its weights, so that what a run would refuse is refused now.

    None for published weights, since that may mean a download, and for random ones.
    """
    teacher = config.teacher
    if teacher.weights == "random" or (teacher.weights is None and not zoo.is_registered(teacher.name)):
        return None
    return unwrapped(open_teacher(config, train).network)


def _statistics(network: Tapped) -> str:
    """Lines on the teacher's normalisation, which only who trained it knows, and which is often a guess."""
    mean, std = ([round(float(value), 4) for value in values] for values in (network.mean, network.std))
    said = f"from {network.normalised_by}; if it was trained with others, say which"
    return f"\n  # mean: {mean}    # {said}\n  # std: {std}"


def _told(out: Path, train: DataSet, val: DataSet, chosen: Chosen, held: int) -> str:
    cut, name = "padded" if chosen.padded else "resized", shlex.quote(str(out))
    return "\n".join(
        [
            f"{train.num_images:,} images for training and {val.num_images:,} to validate on, {_known(train)}",
            f"views of {chosen.image_px} px from {chosen.sizes_from}, {cut} crops;"
            f" {counted(chosen.epochs, 'epoch')} over {counted(chosen.views, 'view')}, batch {chosen.batch}",
            f"the teacher's rows will take {held / 1e9:.3g} GB",
            f"wrote {out}; next:",
            f"  fastanc views {name} --out views.png         # what the networks will see",
            f"  fastanc plan --recipe {name} --gpus 1 --measure    # what bounds it, and how fast it will be",
            f"  fastanc train --recipe {name}",
        ]
    )
