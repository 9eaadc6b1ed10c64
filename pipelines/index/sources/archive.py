"""What the members of archives say: images by class folder, by WebDataset key, by a map file, or without labels.

How a tar or a zip is walked is the matter of its own file; here lies what follows from the names.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from fastanc.pipelines.index.image_check import read_range
from fastanc.pipelines.index.labels import read_labels
from fastanc.pipelines.index.sources.listing import (
    ARCHIVE_SUFFIXES,
    IMAGE_SUFFIXES,
    SPLIT_NAMES,
    Candidate,
    Label,
    Listing,
    Source,
    are_splits,
    by_class_folder,
    file_facts,
    order_key,
    rubbish_in,
)
from fastanc.pipelines.missing_labels import is_missing
from fastanc.pipelines.tar_file import Member

LABEL_SUFFIXES = (".cls", ".json")
_WORDNET_ID = re.compile(r"n\d{8}")
_NUMBER = re.compile(r"-?[0-9]{1,18}")
_MOST_LABEL_BYTES = 1 << 20  # of one image: a file that calls itself a label may be anything
CLASSES = "classes.json"
"""A member that says the classes and their folders, where `fastanc pack` found that the folders alone do not."""
_MAP, _KAGGLE = "_map.txt", "LOC_val_solution.csv"


def says_labels(name: str) -> bool:
    """Tell whether a member's name is that of a file which labels others: `train_map.txt`, Kaggle's solution."""
    return name.endswith(_MAP) or name.rpartition("/")[2] == _KAGGLE


def is_label(name: str, length: int) -> bool:
    """Tell whether a member of so many bytes labels one image, and is to be read."""
    is_one = os.path.splitext(name)[1].lower() in LABEL_SUFFIXES and length <= _MOST_LABEL_BYTES
    return is_one and not rubbish_in(name)


@dataclass
class Members:
    """What archives hold, as it is come by."""

    images: list[Candidate] = field(default_factory=list)
    labels: dict[tuple[int, str], Label] = field(default_factory=dict)
    rejected: list[tuple[str, str]] = field(default_factory=list)
    passed: set[str] = field(default_factory=set)
    folders: set[str] = field(default_factory=set)
    texts: dict[str, Callable[[], bytes]] = field(default_factory=dict)
    """Members that label others, by name."""

    def add(self, member: Member, file: int, path: Path) -> None:
        """Put a member among the images, the labels, the rejected, the passed over, or nowhere."""
        name = member.name.removeprefix("./")
        suffix = os.path.splitext(name)[1].lower()
        if (says_labels(name) or name == CLASSES) and not member.problem:
            self.texts[name] = partial(read_range, path, member.offset, member.length)
        elif suffix in LABEL_SUFFIXES and not member.problem and not rubbish_in(name):
            if member.length <= _MOST_LABEL_BYTES:
                data = member.data
                if data is None:
                    data = read_range(path, member.offset, member.length)
                label = _read_label(data, suffix, f"{path}, {name}")
                if label is not None:
                    self.labels[file, _key(name)] = label
        elif suffix in ARCHIVE_SUFFIXES:
            self.passed.add(name)
        elif suffix in IMAGE_SUFFIXES:
            if name.startswith("/") or ".." in PurePosixPath(name).parts:
                self.rejected.append((name, "a name that leaves its folder"))
            elif rubbish := rubbish_in(name):
                self.passed.add(rubbish)
            elif member.problem:
                self.rejected.append((name, member.problem))
            else:
                self.images.append(Candidate(name, file, member.offset, member.length, None))


def listed(source: Source, members: Members) -> Listing:
    """Return the listing of archives from their members."""
    facts, shards, rejected = file_facts(source.base, source.files), source.files, members.rejected
    listing = Listing(source.base, [(name, length) for name, length, _ in facts], [], facts=facts)
    listing.rejected, listing.passed = rejected, members.passed
    images = members.images
    if not source.inside and any((image.file, _key(image.name)) in members.labels for image in images):
        listing.candidates = _unique(_by_key(images, members.labels, shards, rejected), rejected)
        return listing
    images, shared = _without_shared_folder(images)
    if source.inside:
        images, shared = _inside(images, shared, source)
        rejected[:] = [(name, why) for name, why in rejected if name.startswith(shared)]
    elif len(shards) == 1 and are_splits(image.name for image in images):
        listing.splits = sorted({image.name.partition("/")[0] for image in images})
        return listing
    one_each = len(shards) > 1 and not any("/" in image.name for image in images)
    if one_each:
        images = [image._replace(name=f"{Path(shards[image.file]).stem}/{image.name}") for image in images]
    images = _unique(images, rejected)
    if (said := _by_text(source, members, images, listing)) is not None:
        listing.candidates = said
        return listing
    if one_each and not all(_WORDNET_ID.fullmatch(Path(shard).stem) for shard in shards):
        listing.candidates = images
        return listing
    listing.candidates = by_class_folder(images, rejected)
    tops = {image.label for image in listing.candidates if isinstance(image.label, str)}
    if tops:  # a folder without images is a class too, as it is in a tree
        inside = (name[len(shared) :] for name in members.folders if name.startswith(shared))
        tops |= {name.partition("/")[0] for name in inside if name and not rubbish_in(f"{name}/x")}
        listing.classes, listing.by_folder = sorted(tops), True
        if CLASSES in members.texts:
            _by_classes(source.base / source.files[0], members.texts[CLASSES](), listing)
    return listing


def _by_classes(path: Path, data: bytes, listing: Listing) -> None:
    """Name and order the classes as the member CLASSES says; somebody else's file of that name says nothing."""
    folders_of = [str(one.label) for one in listing.candidates]
    try:
        said = json.loads(data)
        if said.get("numbered") is True and all(name.removeprefix("-").isdecimal() for name in folders_of):
            listing.classes = None
            listing.candidates = [
                c._replace(label=int(name)) for c, name in zip(listing.candidates, folders_of)
            ]
            return
        if said.get("escaped") is True:
            listing.classes = sorted({unquote(name) for name in folders_of})
            listing.candidates = [
                c._replace(label=unquote(n)) for c, n in zip(listing.candidates, folders_of)
            ]
            return
        classes, folders = said["classes"], said["folders"]
        name_of = dict(zip(folders, classes, strict=True))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return
    if not all(isinstance(one, str) for one in [*classes, *folders]) or len(set(classes)) < len(name_of):
        return
    if unknown := sorted({*folders_of} - {*name_of}):
        raise ValueError(
            f"{path} has the class folder {unknown[0]!r}, which its {CLASSES} lacks: add it there"
        )
    listing.candidates = [one._replace(label=name_of[str(one.label)]) for one in listing.candidates]
    listing.classes = classes


def _by_text(
    source: Source, members: Members, images: list[Candidate], listing: Listing
) -> list[Candidate] | None:
    """Images labelled by a map file in the archive or beside it, or by Kaggle's solution; None without one."""
    if source.options.labels is not None or len(source.files) > 1 or not images:
        return None
    flat = not any("/" in image.name for image in images)
    split, beside = _split_of(source), map_beside(source)
    maps = [name for name in members.texts if name.endswith(_MAP)]
    mine = [name for name in maps if name.rpartition("/")[2] == f"{split}{_MAP}"] or (
        maps if len(maps) == 1 and not source.inside else []
    )
    if flat and split.lower() in SPLIT_NAMES["val"]:
        mine += [name for name in members.texts if name.rpartition("/")[2] == _KAGGLE]
    if mine:
        where, data = source.base / source.files[0] / mine[0], members.texts[mine[0]]()
    elif beside is not None and beside.is_file():
        where, data = beside, beside.read_bytes()
        listing.texts.append(beside)
    else:
        return None
    labels, remarks = read_labels(where, [image.name for image in images], data=data)
    listing.remarks += remarks
    named, listing.classes = _named_by_folder(labels, images)
    return [image._replace(label=label) for image, label in zip(images, named)]


def _split_of(source: Source) -> str:
    return source.inside.rpartition("/")[2] or Path(source.files[0]).stem


def map_beside(source: Source) -> Path | None:
    """Return where a file would lie that labels an archive's images; None where none counts."""
    is_one = source.kind in ("tar", "zip") and len(source.files) == 1
    return source.base / f"{_split_of(source)}{_MAP}" if is_one else None


def _named_by_folder(
    labels: Sequence[str | int], images: Sequence[Candidate]
) -> tuple[Sequence[str | int], list[str] | None]:
    """Numbers as the class folders that they number, and these in order, where each has one; else as they are."""
    folders = [image.name.partition("/")[0] if "/" in image.name else "" for image in images]
    numbered = dict(zip(labels, folders))
    one_to_one = len(numbered) == len(set(folders)) and "" not in folders
    if not one_to_one or any(numbered[label] != folder for label, folder in zip(labels, folders)):
        return labels, None
    if {*numbered} != {*range(len(numbered))}:
        return labels, None
    return folders, [numbered[k] for k in range(len(numbered))]


def _inside(images: list[Candidate], shared: str, source: Source) -> tuple[list[Candidate], str]:
    """The images of the folder that is asked for, and all that was dropped of their names.

    It may be written with or without the folders that all images share.
    """
    wanted = f"{source.inside}/".removeprefix(shared)
    found = [i._replace(name=i.name[len(wanted) :]) for i in images if i.name.startswith(wanted)]
    if not found:
        there = ", ".join(sorted({image.name.partition("/")[0] for image in images})[:8])
        raise ValueError(
            f"{source.base / source.files[0]} has no images in {source.inside}/: it holds {there}"
        )
    found, more = _without_shared_folder(found)
    return found, shared + wanted + more


def _key(name: str) -> str:
    """Return a WebDataset key: the name up to the first dot after the last slash."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _read_label(data: bytes, suffix: str, where: str) -> Label:
    if suffix == ".cls":
        text = data.decode("utf-8-sig", "replace").strip()
        return None if is_missing(text) else int(text) if _NUMBER.fullmatch(text) else text
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError(f"{where} is not JSON: repair or remove it") from None
    label = (
        next((record[k] for k in ("label", "cls") if k in record), None) if isinstance(record, dict) else None
    )
    if is_missing(label):
        return None
    if isinstance(label, bool) or not isinstance(label, (int, str)):
        raise ValueError(f"{where}: the label {label!r} is neither a number nor a name")
    return label


def _by_key(
    images: list[Candidate],
    labels: dict[tuple[int, str], Label],
    shards: list[str],
    rejected: list[tuple[str, str]],
) -> list[Candidate]:
    """Label WebDataset images by key; one image a key, and one without a label is rejected."""
    kept, seen = [], dict[tuple[int, str], str]()
    for image in images:
        key = (image.file, _key(image.name))
        name = f"{Path(shards[image.file]).stem}/{image.name}" if len(shards) > 1 else image.name
        if key not in labels:
            rejected.append((name, "no label in a .cls or .json of its key"))
        elif seen.setdefault(key, image.name) != image.name:
            rejected.append((name, f"a second image of the key of {seen[key]}"))
        else:
            kept.append(image._replace(name=name, label=labels[key]))
    return kept


def _without_shared_folder(images: list[Candidate]) -> tuple[list[Candidate], str]:
    """Drop leading folders that all names share, as in a tar of `train/CLASS/FILE`, but never the class.

    Returns the images and what was dropped of their names.
    """
    shared = ""
    while images:
        top = images[0].name.partition("/")[0] + "/"
        if not all(image.name.startswith(top) and image.name.count("/") > 1 for image in images):
            break
        images = [image._replace(name=image.name[len(top) :]) for image in images]
        shared += top
    return images, shared


def _unique(images: list[Candidate], rejected: list[tuple[str, str]]) -> list[Candidate]:
    """Sort by name and keep the last of equal names, as unpacking would."""
    last = {image.name: image for image in images}
    if len(last) < len(images):
        rejected += [(i.name, "a later member has the same name") for i in images if last[i.name] is not i]
    return sorted(last.values(), key=lambda image: order_key(image.name))
