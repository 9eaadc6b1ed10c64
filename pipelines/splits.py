"""The splits of a folder or file: where each lies, its index, and what is held out where there is no val split."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from fastanc.pipelines.dataset import DataSet
from fastanc.pipelines.index.build import Index, index_path, open_index
from fastanc.pipelines.index.class_map import read_class_map
from fastanc.pipelines.index.class_numbers import numbered_by
from fastanc.pipelines.index.sources import (
    ARCHIVES,
    IMAGE_SUFFIXES,
    SPLIT_NAMES,
    SPLIT_WORDS,
    applicable,
    is_rubbish_folder,
    kind_of,
    other_kind,
    split_folder,
    split_shards,
    splits_inside,
)
from fastanc.pipelines.order import held_out
from fastanc.pipelines.source_options import PLAIN, SourceOptions
from fastanc.pipelines.source_path import parted

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
_KAGGLE = Path("ILSVRC", "Data", "CLS-LOC")
"""Where the images lie in Kaggle's ImageNet (imagenet-object-localization-challenge), its label files at the top."""
_FILES = (".tar", ".zip", ".parquet", ".csv", ".tsv", ".jsonl", ".parts")


def split_source(folder: Path, split: str) -> Path | None:
    """Return a split's folder, file or shards inside `folder`, which may be an archive; None where it has none.

    In whatever case its name is written. Raises ValueError where two names differ in their case alone.
    """
    if not folder.is_dir():
        return _split_inside(folder, split) if parted(folder) == (folder, "") else None
    names = SPLIT_NAMES[split]
    wanted = [*names, *(f"{name}{end}" for end in _FILES for name in names), f"ilsvrc2012_img_{split}.tar"]
    there: dict[str, list[str]] = {}
    for name in sorted(os.listdir(folder)):
        if name.lower() in wanted and (folder / name).exists():
            there.setdefault(name.lower(), []).append(name)
    found = next((there[name] for name in wanted if name in there), [])
    _check_one(folder, found)
    return folder / found[0] if found else _split_shards(folder, names)


def _check_one(folder: Path, found: Sequence[str]) -> None:
    if len(found) > 1:
        raise ValueError(f"{folder} holds {' and '.join(found)}: keep one of them, or call them otherwise")


def _split_shards(folder: Path, names: Sequence[str]) -> Path | None:
    """The pattern of a split's shards in a folder, such as `train-*.parquet`."""
    patterns = sorted(one for one, split in split_shards(os.listdir(folder)).items() if split in names)
    _check_one(folder, patterns)
    return folder / patterns[0] if patterns else None


def _split_inside(file: Path, split: str) -> Path | None:
    """The folder of a split inside of an archive; one that was indexed, whole or by splits, is not listed."""
    if not file.is_file() or kind_of(file) not in ARCHIVES or index_path(file).exists():
        return None
    for name in SPLIT_NAMES[split]:
        for written in (name, name.capitalize(), name.upper()):
            if index_path(file / written).exists():
                return file / written
    status = file.stat()
    found = split_folder(tops := _folders_inside(file, status.st_size, status.st_mtime_ns), split)
    _check_one(file, [top for top in tops if found is not None and top.lower() == found.lower()])
    return None if found is None else file / found


@lru_cache(maxsize=8)
def _folders_inside(file: Path, size: int, mtime_ns: int) -> list[str]:
    """The folders of splits in an archive; size and time say that it is still the same one."""
    return splits_inside(file)


def unwrapped(folder: Path) -> Path:
    """Return the folder inside of `folder` that holds the splits or class folders, where it holds nothing else.

    As archives are unpacked: NAME/NAME/CLASS/FILE. `folder` itself where its one folder is a class or a split.
    """
    for inner in (folder / _KAGGLE, folder / _KAGGLE.relative_to("ILSVRC"), folder / _KAGGLE.name):
        if folder.name != _KAGGLE.name and inner.is_dir() and split_source(inner, "train") is not None:
            return inner
    inner = folder
    for _ in range(_DEEPEST):
        names = _folders(inner)
        if len(names) != 1 or names[0].lower() in SPLIT_WORDS:
            break
        inner = inner / names[0]
    return inner if _folders(inner) or split_source(inner, "train") else folder


def _folders(folder: Path) -> list[str]:
    """The folders of one that holds no images and no shards beside them; none of any other."""
    if not folder.is_dir():
        return []
    entries = [e for e in os.scandir(folder) if not (e.is_dir() and is_rubbish_folder(e.name))]
    data = (
        os.path.splitext(e.name)[1].lower() in {*IMAGE_SUFFIXES, ".tar", ".parquet"}
        for e in entries
        if not e.is_dir()
    )
    return [] if any(data) else [e.name for e in entries if e.is_dir()]


def source_of(folder: Path, split: str) -> tuple[Path, bool]:
    """Return the folder or file that holds a split, and whether it holds both (`part_of` parts them then).

    A bare folder or file of images holds both, and so does train/ where there is no val/. Raises FileNotFoundError
    where there is only a val/ but train is wanted.
    """
    train, val = (split_source(folder, name) for name in SPLITS)
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
    files = (folder / name for name in (sorted(os.listdir(folder)) if folder.is_dir() else []))
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
    only = "" if folder.name == _KAGGLE.name else f", the only folder in {given}"
    said = [] if folder == given else [f"read from {folder}{only}"]
    if both and source != folder:
        test, other = split_source(folder, "test"), _other_source(folder, "val")
        unused = [f"{test.name} is not used"] if test is not None else []
        said += [f"{what}; validation images are held out of {source}" for what in [*unused, other] if what]
    if source != folder and folder.is_dir() and (beside := _unused(folder)):
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


def open_split(
    folder: Path, source: Path, split: str, said: Sequence[str] = (), options: SourceOptions = PLAIN
) -> Index:
    """Return the index of a split's source, built at first use; `folder` is where its other files lie.

    `said` is added to what the index says of its set; labels that `options` name are a val split's where it has none
    of its own. Raises ValueError where a val split has no labels but its train split has.
    """
    synsets = folder / _SYNSETS if (folder / _SYNSETS).exists() else None
    found = SourceOptions(synsets=synsets)
    if split == "val":
        found = replace(found, labels=options.labels or _val_labels(folder))
        options = applicable(source, replace(options, labels=None))
    index = open_index(source, replace(options, class_map=None), found=found)
    if options.class_map is not None:
        index = numbered_by(index, read_class_map(options.class_map), options.class_map)
    train = split_source(folder, "train") if split == "val" and index.labels is None else None
    if train is not None and open_index(train).labels is not None:
        raise ValueError(
            f"{source} has no labels but {train} has: put one of {', '.join(_VAL_LABELS)} beside it, or run"
            f" `fastanc index --refresh {source} --labels FILE`"
        )
    return replace(index, origin=replace(index.origin, remarks=[*said, *index.remarks])) if said else index


def _val_labels(folder: Path) -> Path | None:
    """Return the label file of a val set that has no labels of its own, if there is one beside it."""
    top = folder.parents[len(_KAGGLE.parts) - 1] if folder.as_posix().endswith(f"/{_KAGGLE}") else folder
    places = (place / name for place in (folder, top) for name in _VAL_LABELS)
    return next((path for path in places if path.is_file()), None)
