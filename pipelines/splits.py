"""The splits of a folder or tar: where each lies, its index, and what is held out where there is no val split."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fastanc.pipelines.dataset import DataSet
from fastanc.pipelines.index.build import Index, open_index
from fastanc.pipelines.index.sources import IMAGE_SUFFIXES, SPLIT_NAMES, is_rubbish_folder, other_kind
from fastanc.pipelines.order import held_out

SPLITS = ("train", "val")
_VAL_LABELS = (  # label files of ILSVRC2012_img_val, as labels.py reads them
    "imagenet_2012_validation_synset_labels.txt",
    "LOC_val_solution.csv",
    "val.txt",
    "valprep.sh",
    "ILSVRC2012_validation_ground_truth.txt",
)
_SYNSETS = "synsets.tsv"
_NOTES = frozenset(
    {".txt", ".csv", ".tsv", ".json", ".sh", ".index"}
)  # beside the images, not in their place
_DEEPEST = 8  # folders in each other, of which one may be a link to itself
_SPLIT_WORDS = frozenset(name for names in SPLIT_NAMES.values() for name in names)


def split_source(folder: Path, split: str) -> Path | None:
    """Return a split's folder or tar inside `folder`, in whatever case its name is written; None where it has none.

    Raises ValueError where two names differ in their case alone.
    """
    names = SPLIT_NAMES[split]
    wanted = [*names, *(f"{name}.tar" for name in names), f"ilsvrc2012_img_{split}.tar"]
    there: dict[str, list[str]] = {}
    for name in sorted(os.listdir(folder)) if folder.is_dir() else []:
        if name.lower() in wanted and (folder / name).exists():
            there.setdefault(name.lower(), []).append(name)
    found = next((there[name] for name in wanted if name in there), [])
    if len(found) > 1:
        raise ValueError(f"{folder} holds {' and '.join(found)}: keep one of them, or call them otherwise")
    return folder / found[0] if found else None


def unwrapped(folder: Path) -> Path:
    """Return the folder inside of `folder` that holds the splits or class folders, where it holds nothing else.

    As archives are unpacked: NAME/NAME/CLASS/FILE. `folder` itself where its one folder is a class or a split.
    """
    inner = folder
    for _ in range(_DEEPEST):
        names = _folders(inner)
        if len(names) != 1 or names[0].lower() in _SPLIT_WORDS:
            break
        inner = inner / names[0]
    return inner if _folders(inner) or split_source(inner, "train") else folder


def _folders(folder: Path) -> list[str]:
    """The folders of one that holds no images and no tars beside them; none of any other."""
    if not folder.is_dir():
        return []
    entries = [e for e in os.scandir(folder) if not (e.is_dir() and is_rubbish_folder(e.name))]
    data = (
        os.path.splitext(e.name)[1].lower() in {*IMAGE_SUFFIXES, ".tar"} for e in entries if not e.is_dir()
    )
    return [] if any(data) else [e.name for e in entries if e.is_dir()]


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
        other = _other_source(folder, "train")
        raise FileNotFoundError(f"{folder} has no train/ or train.tar: {other or 'put one there'}")
    return train, False


def _other_source(folder: Path, split: str) -> str:
    """What a file is that is called as a split but cannot be read as one, such as train.zip, in words; or ""."""
    files = (folder / name for name in sorted(os.listdir(folder)))
    named = (
        path for path in files if path.name.lower().split(".")[0] in SPLIT_NAMES[split] and path.is_file()
    )
    kinds = ((path, other_kind(path)) for path in named if path.suffix.lower() not in _NOTES)
    return next((f"{path.name} is {kind[0]}, {kind[1]}" for path, kind in kinds if kind is not None), "")


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


def chosen_of(given: Path, folder: Path, source: Path, both: bool) -> list[str]:
    """What is to be said of where a set's images were found: in `source`, of `folder`, inside of the `given` one."""
    said = [] if folder == given else [f"read from {folder}, the only folder in {given}"]
    if both and source != folder:
        test, other = split_source(folder, "test"), _other_source(folder, "val")
        unused = [f"{test.name} is not used"] if test is not None else []
        said += [f"{what}; validation images are held out of {source}" for what in [*unused, other] if what]
    if source != folder and (beside := _unused(folder)):
        said.append(f"{', '.join(beside)} in {folder} hold images and are not used: no split is called so")
    return said


def _unused(folder: Path) -> list[str]:
    """The folders with images, at most one folder deep, beside the splits of one."""

    def holds_images(path: Path, deep: int) -> bool:
        try:
            entries = sorted(os.scandir(path), key=lambda entry: entry.is_dir())
        except OSError:  # somebody else's
            return False
        return any(
            (deep > 0 and holds_images(Path(entry.path), deep - 1))
            if entry.is_dir()
            else os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES
            for entry in entries
        )

    names = (e.name for e in os.scandir(folder) if e.is_dir() and not is_rubbish_folder(e.name))
    used = {path.name for split in SPLITS if (path := split_source(folder, split)) is not None}
    others = sorted(name for name in names if name not in used and name.lower() not in SPLIT_NAMES["test"])
    return [name for name in others if holds_images(folder / name, 1)]


def open_split(folder: Path, source: Path, split: str, said: Sequence[str] = ()) -> Index:
    """Return the index of a split's source, built at first use; `folder` is where its other files lie.

    `said` is added to what the index says of its set. Raises ValueError where a val split has no labels but its train
    split has.
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
    return replace(index, origin=replace(index.origin, remarks=[*said, *index.remarks])) if said else index


def _val_labels(folder: Path, source: Path) -> Path | None:
    """Return the label file of a val set without class folders, if there is one."""
    if source.is_dir():
        flat = not any(e.is_dir() and not is_rubbish_folder(e.name) for e in os.scandir(source))
    else:
        flat = source.name == "ILSVRC2012_img_val.tar"
    return next((folder / name for name in _VAL_LABELS if (folder / name).exists()), None) if flat else None
