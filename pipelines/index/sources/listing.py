"""What every kind of source is listed as, and how labels and order follow from names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

_KINDS = "jpg jpeg jpe png bmp webp gif tif tiff ppm jp2 avif heic"
IMAGE_SUFFIXES = frozenset(f".{kind}" for kind in _KINDS.split())
"""Files of other names are no images and are passed over."""
_ARCHIVES = "tar tgz gz bz2 xz zst zip 7z rar parquet arrow"
ARCHIVE_SUFFIXES = frozenset(f".{kind}" for kind in _ARCHIVES.split())
"""Files that may hold images which nobody would miss silently: they are passed over, and said."""
SPLIT_NAMES = {
    "train": ("train", "training", "train_images", "images_train"),
    "val": ("val", "valid", "validation", "val_images", "images_val", "valid_images", "validation_images"),
    "test": ("test", "testing", "test_images", "images_test"),
}
"""What the folder of a split may be called, in lower case; the first is the usual name."""
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
    facts: list[Fact] = field(default_factory=list)
    """Of every image file of a tree, or of every tar: what shows that a source has changed."""
    passed: set[str] = field(default_factory=set)
    """What was passed over: other programs' folders, archives inside of a tree."""

    @property
    def stamp(self) -> str:
        """Changes with any name, length or modification time."""
        return stamp_of(self.facts, self.folders)

    @property
    def folders(self) -> list[str] | None:
        """Class folders of a tree, empty ones too; what a tar holds, its own time says."""
        return self.classes if self.files is None else None

    def path(self, candidate: Candidate) -> str:
        """Return the absolute path of the file that holds it."""
        return os.path.join(
            self.base, candidate.name if self.files is None else self.files[candidate.file][0]
        )


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
