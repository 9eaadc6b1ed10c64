"""A tar of images, a folder of tars, a tar of tars, WebDataset shards: listed by their headers alone."""

from __future__ import annotations

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from fastanc.pipelines.index.image_check import read_range
from fastanc.pipelines.index.sources.listing import (
    ARCHIVE_SUFFIXES,
    IMAGE_SUFFIXES,
    Candidate,
    Fact,
    Label,
    Listing,
    by_class_folder,
    order_key,
    rubbish_in,
)
from fastanc.pipelines.missing_labels import is_missing
from fastanc.pipelines.tar_file import Member, walk_nested

_LABEL_SUFFIXES = (".cls", ".json")
_WORDNET_ID = re.compile(r"n\d{8}")


_NUMBER = re.compile(r"-?[0-9]{1,18}")


def tar_facts(base: Path, shards: list[str]) -> list[Fact]:
    """Return name, bytes and modification time of the tars `shards` of a folder."""
    status = [(base / shard).stat() for shard in shards]
    return [(shard, s.st_size, s.st_mtime_ns) for shard, s in zip(shards, status)]


@dataclass
class _Found:
    """What the tars hold, as it is come by."""

    images: list[Candidate] = field(default_factory=list)
    labels: dict[tuple[int, str], Label] = field(default_factory=dict)
    rejected: list[tuple[str, str]] = field(default_factory=list)
    passed: set[str] = field(default_factory=set)
    folders: set[str] = field(default_factory=set)


def list_tars(base: Path, shards: list[str]) -> Listing:
    """Return what the tars `shards` of a folder hold."""
    facts, found = tar_facts(base, shards), _Found()
    with ThreadPoolExecutor(8) as pool:
        walks = pool.map(lambda shard: walk_nested(base / shard, found.folders), shards)
        for number, members in enumerate(walks):
            for member in members:
                _sort_member(member, number, base / shards[number], found)
    images, rejected = found.images, found.rejected

    def listing(images: list[Candidate], classes: list[str] | None = None) -> Listing:
        files = [(name, length) for name, length, _ in facts]
        return Listing(base, files, images, classes, rejected, facts, found.passed)

    if any((image.file, _key(image.name)) in found.labels for image in images):
        return listing(_unique(_by_key(images, found.labels, shards, rejected), rejected))
    images, shared = _without_shared_folder(images)
    if len(shards) > 1 and not any("/" in image.name for image in images):
        images = [image._replace(name=f"{Path(shards[image.file]).stem}/{image.name}") for image in images]
        if not all(_WORDNET_ID.fullmatch(Path(shard).stem) for shard in shards):
            return listing(_unique(images, rejected))
    images = by_class_folder(_unique(images, rejected), rejected)
    tops = {image.label for image in images if isinstance(image.label, str)}
    if tops:  # a folder without images is a class too, as it is in a tree
        inside = (name[len(shared) :] for name in found.folders if name.startswith(shared))
        tops |= {name.partition("/")[0] for name in inside if name and not rubbish_in(f"{name}/x")}
    return listing(images, sorted(tops) or None)


def _sort_member(member: Member, file: int, path: Path, found: _Found) -> None:
    """Put a tar's member among the images, the labels, the rejected, the passed over, or nowhere."""
    name = member.name.removeprefix("./")
    suffix = os.path.splitext(name)[1].lower()
    if suffix in _LABEL_SUFFIXES and not member.problem and not rubbish_in(name):
        label = _read_label(read_range(str(path), member.offset, member.length), suffix, f"{path}, {name}")
        if label is not None:
            found.labels[file, _key(name)] = label
    elif suffix in ARCHIVE_SUFFIXES:
        found.passed.add(name)
    elif suffix in IMAGE_SUFFIXES:
        if name.startswith("/") or ".." in PurePosixPath(name).parts:
            found.rejected.append((name, "a name that leaves its folder"))
        elif rubbish := rubbish_in(name):
            found.passed.add(rubbish)
        elif member.problem:
            found.rejected.append((name, member.problem))
        else:
            found.images.append(Candidate(name, file, member.offset, member.length, None))


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
