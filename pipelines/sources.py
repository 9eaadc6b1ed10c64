"""What a source holds before any image is read: names, byte ranges and class labels.

| source | label |
| --- | --- |
| a tree of class folders; a tar of them | the first folder (`torchvision.datasets.ImageFolder`'s order) |
| a tar of tars; a folder of tars named by WordNet ids | the inner tar's name |
| WebDataset shards, one or a folder of them | `KEY.cls`, or "label" / "cls" in `KEY.json` |
| a flat folder or tar, other shards | none, or a file of labels (see `labels.py`) |
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from .inspect_image import read_range
from .tars import Member, walk_nested

_KINDS = "jpg jpeg jpe png bmp webp gif tif tiff ppm jp2 avif heic"
IMAGE_SUFFIXES = frozenset(f".{kind}" for kind in _KINDS.split())
"""Files of other names are no images and are passed over."""

_LABEL_SUFFIXES = (".cls", ".json")
_SPLITS = frozenset({"train", "val", "valid", "validation", "test"})
_WORDNET_ID = re.compile(r"n\d{8}")

Label = str | int | None


class Candidate(NamedTuple):
    """A file that may be an image."""

    name: str
    file: int
    """Position in `Listing.files`; -1 in a tree, where it is a file of its own."""
    offset: int
    length: int
    label: Label


@dataclass
class Listing:
    """A source's candidates in the index's order."""

    base: Path
    """The folder that paths are relative to."""
    files: list[tuple[str, int]] | None
    """(path, bytes) of every tar; None for a tree."""
    candidates: list[Candidate]
    classes: list[str] | None
    """Class folders in order, empty ones too; None where the labels are not folders."""
    rejected: list[tuple[str, str]] = field(default_factory=list)
    stamp: str = ""
    """Changes with any name, length or modification time."""

    def path(self, candidate: Candidate) -> str:
        """Return the absolute path of the file that holds it."""
        return os.path.join(
            self.base, candidate.name if self.files is None else self.files[candidate.file][0]
        )


def order_key(name: str) -> tuple[str, str, str]:
    """Return the sorting key of a name: by class folder, then folder, then file (ImageFolder's order)."""
    folder, _, file = name.rpartition("/")
    return folder.partition("/")[0], folder, file


def list_source(source: Path) -> Listing:
    """Return what a folder or tar holds; raises FileNotFoundError or ValueError with what to do."""
    if source.is_dir():
        entries = [entry for entry in os.scandir(source) if not entry.name.startswith(".")]
        tars = sorted(entry.name for entry in entries if entry.name.lower().endswith(".tar"))
        listing = (
            _list_tars(source, tars) if tars and not any(e.is_dir() for e in entries) else _list_tree(source)
        )
    elif source.exists():
        listing = _list_tars(source.parent, [source.name])
    else:
        raise FileNotFoundError(f"{source} does not exist: give a folder of images or a tar")
    if not listing.candidates and not listing.rejected:
        raise ValueError(f"{source} holds no images: give a folder or an uncompressed tar of JPEG files")
    tops = {candidate.name.partition("/")[0] for candidate in listing.candidates}
    if tops <= _SPLITS and any(candidate.name.count("/") > 1 for candidate in listing.candidates):
        raise ValueError(f"{source} holds the splits {', '.join(sorted(tops))}: index each of them by itself")
    return listing


def _by_class_folder(candidates: list[Candidate], rejected: list[tuple[str, str]]) -> list[Candidate]:
    """Label every candidate by its first folder; without any folder there are no labels."""
    if not any("/" in candidate.name for candidate in candidates):
        return candidates
    rejected += [(c.name, "outside of the class folders") for c in candidates if "/" not in c.name]
    return [c._replace(label=c.name.partition("/")[0]) for c in candidates if "/" in c.name]


def _stamp(facts: Iterable[tuple]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for fact in facts:
        digest.update(repr(fact).encode())
    return digest.hexdigest()


# ---- trees


def _files(folder: str, prefix: str) -> Iterator[tuple[str, int, int]]:
    """Yield (name, bytes, modification time in ns) of the image files; unreadable ones have -1 bytes."""
    with os.scandir(folder) as entries:
        for entry in entries:
            name = prefix + entry.name
            if entry.is_dir():
                if not entry.name.startswith("."):
                    yield from _files(entry.path, name + "/")
            elif os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                try:
                    status = entry.stat()
                    yield name, status.st_size, status.st_mtime_ns
                except OSError:
                    yield name, -1, 0


def _list_tree(source: Path) -> Listing:
    with os.scandir(source) as entries:
        folders = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    with os.scandir(source) as entries:
        plain = [e.name for e in entries if not e.is_dir() and Path(e.name).suffix.lower() in IMAGE_SUFFIXES]
    facts = []
    for name in plain:
        path = source / name
        facts.append((name, path.stat().st_size, path.stat().st_mtime_ns) if path.exists() else (name, -1, 0))
    with ThreadPoolExecutor(8) as pool:  # a folder's round trips on a network file system overlap
        for found in pool.map(lambda f: list(_files(os.path.join(source, f), f + "/")), folders):
            facts += found
    facts.sort(key=lambda fact: order_key(fact[0]))
    rejected = [(name, "cannot be read (a broken link)") for name, length, _ in facts if length < 0]
    candidates = [Candidate(name, -1, 0, length, None) for name, length, _ in facts if length >= 0]
    candidates = _by_class_folder(candidates, rejected)
    labelled = bool(candidates) and candidates[0].label is not None
    return Listing(source, None, candidates, folders if labelled else None, rejected, _stamp(facts))


# ---- tars


def _list_tars(base: Path, shards: list[str]) -> Listing:
    status = [(base / shard).stat() for shard in shards]
    files = [(shard, s.st_size) for shard, s in zip(shards, status)]
    images: list[Candidate] = []
    labels: dict[tuple[int, str], Label] = {}
    rejected: list[tuple[str, str]] = []
    with ThreadPoolExecutor(8) as pool:
        for number, members in enumerate(pool.map(lambda shard: walk_nested(base / shard), shards)):
            for member in members:
                _sort_member(member, number, base / shards[number], images, labels, rejected)
    stamp = _stamp([*((f, s.st_mtime_ns) for f, s in zip(files, status)), *images])
    if any((image.file, _key(image.name)) in labels for image in images):
        images = _by_key(images, labels, shards, rejected)
        return Listing(base, files, _unique(images, rejected), None, rejected, stamp)
    images = _without_shared_folder(images)
    if len(shards) > 1 and not any("/" in image.name for image in images):
        images = [image._replace(name=f"{Path(shards[image.file]).stem}/{image.name}") for image in images]
        if not all(_WORDNET_ID.fullmatch(Path(shard).stem) for shard in shards):
            return Listing(base, files, _unique(images, rejected), None, rejected, stamp)
    images = _by_class_folder(_unique(images, rejected), rejected)
    folders = sorted({image.label for image in images if isinstance(image.label, str)})
    return Listing(base, files, images, folders or None, rejected, stamp)


def _sort_member(
    member: Member,
    file: int,
    path: Path,
    images: list[Candidate],
    labels: dict[tuple[int, str], Label],
    rejected: list[tuple[str, str]],
) -> None:
    """Put a tar's member among the images, the labels, the rejected, or nowhere."""
    name = member.name.removeprefix("./")
    suffix = os.path.splitext(name)[1].lower()
    if suffix in _LABEL_SUFFIXES and not member.problem:
        label = _read_label(read_range(str(path), member.offset, member.length), suffix, f"{path}, {name}")
        if label is not None:
            labels[file, _key(name)] = label
    elif suffix in IMAGE_SUFFIXES:
        if name.startswith("/") or ".." in PurePosixPath(name).parts:
            rejected.append((name, "a name that leaves its folder"))
        elif member.problem:
            rejected.append((name, member.problem))
        else:
            images.append(Candidate(name, file, member.offset, member.length, None))


def _key(name: str) -> str:
    """Return a WebDataset key: the name up to the first dot after the last slash."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _read_label(data: bytes, suffix: str, where: str) -> Label:
    if suffix == ".cls":
        text = data.decode("utf-8", "replace").strip()
        return int(text) if text.lstrip("-").isdigit() else text
    try:
        record = json.loads(data)
    except ValueError:
        raise ValueError(f"{where} is not JSON: repair or remove it") from None
    label = (
        next((record[k] for k in ("label", "cls") if k in record), None) if isinstance(record, dict) else None
    )
    if label is not None and not isinstance(label, (int, str)):
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
            rejected.append((name, "no label: its key has neither .cls nor a .json with a label"))
        elif seen.setdefault(key, image.name) != image.name:
            rejected.append((name, f"a second image of the key of {seen[key]}"))
        else:
            kept.append(image._replace(name=name, label=labels[key]))
    return kept


def _without_shared_folder(images: list[Candidate]) -> list[Candidate]:
    """Drop leading folders that all names share, as in a tar of `train/CLASS/FILE`, but never the class."""
    while images:
        top = images[0].name.partition("/")[0] + "/"
        if not all(image.name.startswith(top) and image.name.count("/") > 1 for image in images):
            break
        images = [image._replace(name=image.name[len(top) :]) for image in images]
    return images


def _unique(images: list[Candidate], rejected: list[tuple[str, str]]) -> list[Candidate]:
    """Sort by name and keep the last of equal names, as unpacking would."""
    last = {image.name: image for image in images}
    if len(last) < len(images):
        rejected += [(i.name, "a later member has the same name") for i in images if last[i.name] is not i]
    return sorted(last.values(), key=lambda image: order_key(image.name))
