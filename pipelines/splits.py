"""The splits of a folder or tar: where each lies, its index, and what is held out where there is no val split."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from fastanc.pipelines.dataset import DataSet
from fastanc.pipelines.index.build import Index, open_index
from fastanc.pipelines.order import held_out

SPLITS = ("train", "val")
_NAMES = {"train": ["train"], "val": ["val", "valid", "validation"]}
_VAL_LABELS = (  # label files of ILSVRC2012_img_val, as labels.py reads them
    "imagenet_2012_validation_synset_labels.txt",
    "LOC_val_solution.csv",
    "val.txt",
    "valprep.sh",
    "ILSVRC2012_validation_ground_truth.txt",
)
_SYNSETS = "synsets.tsv"


def split_source(folder: Path, split: str) -> Path | None:
    """Return a split's folder or tar inside `folder`; None where it has none."""
    names = _NAMES[split] + [f"{name}.tar" for name in _NAMES[split]] + [f"ILSVRC2012_img_{split}.tar"]
    return next((folder / name for name in names if (folder / name).exists()), None)


def source_of(folder: Path, split: str) -> tuple[Path, bool]:
    """Return the folder or tar that holds a split, and whether it holds both (`part_of` parts them then).

    A bare folder or tar of images holds both, and so does train/ where there is no val/. Raises FileNotFoundError
    where there is only a val/ but train is wanted.
    """
    train, val = (split_source(folder, name) if folder.is_dir() else None for name in SPLITS)
    if val is None:
        return train or folder, True
    if split == "val":
        return val, False
    if train is None:
        raise FileNotFoundError(f"{folder} has no train/ or train.tar: put one there")
    return train, False


def part_of(data: DataSet, split: str, val_share: float) -> DataSet:
    """Return a split of a set that has none: "val" is a fixed share of every class, "train" the others.

    The same images in every run. Raises ValueError for a set of one image.
    """
    n = data.num_images
    try:
        held = held_out(data.labels, n, val_share)
    except ValueError as error:
        raise ValueError(f"{data.name} has no val split: {error}") from None
    return data.subset(held if split == "val" else np.setdiff1d(np.arange(n), held))


def open_split(folder: Path, source: Path, split: str) -> Index:
    """Return the index of a split's source, built at first use; `folder` is where its other files lie.

    Raises ValueError where a val split has no labels but its train split has.
    """
    labels = _val_labels(folder, source) if split == "val" else None
    synsets = folder / _SYNSETS if (folder / _SYNSETS).exists() else None
    index = open_index(source, labels=labels, synsets=synsets)
    train = split_source(folder, "train") if split == "val" and index.labels is None else None
    if train is not None and open_index(train).labels is not None:
        raise ValueError(
            f"{source} has no labels but {train} has: put one of {', '.join(_VAL_LABELS)} beside it, or run"
            f" `fastanc index --refresh {source} --labels FILE`"
        )
    return index


def _val_labels(folder: Path, source: Path) -> Path | None:
    """Return the label file of a val set without class folders, if there is one."""
    if source.is_dir():
        flat = not any(entry.is_dir() for entry in os.scandir(source))
    else:
        flat = source.name == "ILSVRC2012_img_val.tar"
    return next((folder / name for name in _VAL_LABELS if (folder / name).exists()), None) if flat else None
