"""What every kind of source is listed as, and how labels and order follow from names."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from fastanc.pipelines.anywhere import joined
from fastanc.pipelines.remote_path import RemotePath
from fastanc.pipelines.source_options import SourceOptions

_KINDS = "jpg jpeg jpe png bmp webp gif tif tiff ppm jp2 avif heic"
IMAGE_SUFFIXES = frozenset(f".{kind}" for kind in _KINDS.split())
"""Files of other names are no images and are passed over."""
_ARCHIVES = "tar tgz gz bz2 xz zst lz4 zip 7z rar parquet arrow mds"
ARCHIVE_SUFFIXES = frozenset(f".{kind}" for kind in _ARCHIVES.split())
"""Files that may hold images which nobody would miss silently: they are passed over, and said."""
SPLIT_NAMES = {
    "train": ("train", "training", "train_images", "images_train"),
    "val": ("val", "valid", "validation", "val_images", "images_val", "valid_images", "validation_images"),
    "test": ("test", "testing", "test_images", "images_test"),
}
"""What the folder of a split may be called, in lower case; the first is the usual name."""
SPLIT_WORDS = frozenset(name for names in SPLIT_NAMES.values() for name in names)
_RUBBISH = frozenset(
    {
        "__macosx",
        "_macosx",
        "__macosx__",
        "lost+found",
        "$recycle.bin",
        "system volume information",
        "@eadir",
        "#recycle",
        "#snapshot",
        "@recycle",
        "@tmp",
        "@recently-snapshot",
        "__pycache__",
    }
)
_APPLE_DOUBLE = "._"

Label = str | int | None


Fact = tuple[str, int, int]
"""(name, bytes, modification time in ns) of a file; -1 bytes where it cannot be read."""


class Candidate(NamedTuple):
    """A file that may be an image."""

    name: str
    file: int
    """Position in `Listing.files`; -1 in a tree, where it is a file of its own."""
    offset: int
    length: int
    label: Label


class Source(NamedTuple):
    """What a path turned out to be, from names and first bytes alone."""

    path: Path
    """As it was given."""
    kind: str
    """The module of this folder that reads it."""
    base: Path
    """The folder that its files lie in."""
    files: list[str]
    """The files that hold its images, or the one that lists them; none of a tree."""
    inside: str = ""
    """The folder inside of an archive that is meant."""
    options: SourceOptions = SourceOptions()


@dataclass
class Listing:
    """A source's candidates in the index's order."""

    base: Path
    """The folder that paths are relative to."""
    files: list[tuple[str, int]] | None
    """(path, bytes) of every file that holds images; None where each image is a file of its own."""
    candidates: list[Candidate]
    classes: list[str] | None = None
    """The classes in order, those without images too; None where they are the sorted labels."""
    rejected: list[tuple[str, str]] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    """Of every image that is a file, or of every file of images: what shows that a source has changed."""
    passed: set[str] = field(default_factory=set)
    """What was passed over: other programs' folders, archives inside of a tree."""
    texts: list[Path] = field(default_factory=list)
    """Files beside the images that say names or labels: another content of theirs is another set."""
    remarks: list[str] = field(default_factory=list)
    """Sentences on what was made of it."""
    by_folder: bool = False
    """Whether the labels are the first folders of the names."""
    splits: list[str] = field(default_factory=list)
    """Folders of splits, where an archive holds some and none was asked for; then there are no candidates."""

    @property
    def stamp(self) -> str:
        """Changes with any name, length or modification time."""
        return stamp_of(self.facts, self.folders)

    @property
    def folders(self) -> list[str] | None:
        """Class folders of a tree, empty ones too; what a file holds, its own time says."""
        return self.classes if self.files is None and self.by_folder else None

    def path(self, candidate: Candidate) -> str | RemotePath:
        """Return the absolute path of the file that holds it."""
        name = candidate.name if self.files is None else self.files[candidate.file][0]
        return joined(self.base, name)


def order_key(name: str) -> tuple[str, str, str]:
    """Return the sorting key of a name: by class folder, then folder, then file (ImageFolder's order)."""
    folder, _, file = name.rpartition("/")
    return folder.partition("/")[0], folder, file


def is_rubbish_folder(name: str) -> bool:
    """Tell whether a folder is one that systems and programs leave behind, never a class."""
    return name.startswith(".") or name.lower() in _RUBBISH


def rubbish_in(name: str) -> str | None:
    """Return what of a file's name says that another program left it: a folder, or `._*` of macOS; or None."""
    *folders, file = name.split("/")
    if file.startswith(_APPLE_DOUBLE):
        return f"{_APPLE_DOUBLE}*"
    return next((folder for folder in folders if is_rubbish_folder(folder)), None)


OUTSIDE = "outside of the class folders"


def by_class_folder(candidates: list[Candidate], rejected: list[tuple[str, str]]) -> list[Candidate]:
    """Label every candidate by its first folder; without any folder there are no labels."""
    if not any("/" in candidate.name for candidate in candidates):
        return candidates
    rejected += [(c.name, OUTSIDE) for c in candidates if "/" not in c.name]
    return [c._replace(label=c.name.partition("/")[0]) for c in candidates if "/" in c.name]


def stamp_of(facts: Iterable[Fact], folders: Iterable[str] | None) -> str:
    """Return what changes with any of the facts, or of the class folders."""
    lines = [f"{name}\0{length}\0{time}" for name, length, time in facts]
    text = "\n".join([*lines, "", *(folders or ())])
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def split_folder(tops: Iterable[str], split: str) -> str | None:
    """Return which of some folders is a split's, in whatever case it is written; None where none is."""
    there = sorted(tops)
    for name in SPLIT_NAMES[split]:
        if found := [top for top in there if top.lower() == name]:
            return found[0]
    return None


_WORDS = "|".join(sorted(SPLIT_WORDS, key=len, reverse=True))
_SHARD = re.compile(
    rf"(?P<head>(?:.*[-_.])?)(?P<word>{_WORDS})(?P<dash>[-_.])\d[-_.\w]*(?P<end>\.(?:tar|parquet))",
    re.IGNORECASE,
)
"""The name of a shard of a split, such as `train-00000-of-00294.parquet` or `imagenet1k-train-0000.tar`."""


def split_shards(names: Iterable[str]) -> dict[str, str]:
    """Return the patterns of the shards of splits among some names, and which split's each is, in lower case."""
    matches = filter(None, map(_SHARD.fullmatch, names))
    return {f"{m['head']}{m['word']}{m['dash']}*{m['end']}": m["word"].lower() for m in matches}


def are_splits(names: Iterable[str]) -> bool:
    """Tell whether the first folders of names are those of splits, rather than of classes."""
    names = list(names)
    tops = {name.partition("/")[0].lower() for name in names}
    nested = any(name.count("/") > 1 for name in names)
    return bool(tops) and tops <= SPLIT_WORDS and (nested or len(tops) > 1)


def file_facts(base: Path, names: Iterable[str]) -> list[Fact]:
    """Return name, bytes and modification time of some files of a folder; raises OSError."""
    status = [(name, (base / name).stat()) for name in names]
    return [(name, one.st_size, one.st_mtime_ns) for name, one in status]
