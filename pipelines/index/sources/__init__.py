"""What a source holds before any image is read: names, byte ranges and class labels.

| source | label |
| --- | --- |
| a tree of class folders; a tar of them | the first folder (`torchvision.datasets.ImageFolder`'s order) |
| a tar of tars; a folder of tars named by WordNet ids | the inner tar's name |
| WebDataset shards, one or a folder of them | `KEY.cls`, or "label" / "cls" in `KEY.json` |
| a flat folder or tar, other shards | none, or a file of labels (see `labels.py`) |
"""

from __future__ import annotations

import os
from pathlib import Path

from fastanc.pipelines.index.sources.kinds import no_images, other_kind
from fastanc.pipelines.index.sources.listing import (
    IMAGE_SUFFIXES,
    SPLIT_NAMES,
    Candidate,
    Fact,
    Label,
    Listing,
    is_rubbish_folder,
    order_key,
    stamp_of,
)
from fastanc.pipelines.index.sources.tar import list_tars, tar_facts
from fastanc.pipelines.index.sources.tree import list_tree, tree_facts

__all__ = [
    "IMAGE_SUFFIXES",
    "SPLIT_NAMES",
    "Candidate",
    "Fact",
    "Label",
    "Listing",
    "check_class_folders",
    "facts_of",
    "is_rubbish_folder",
    "list_source",
    "other_kind",
    "order_key",
    "stamp_of",
]

_SPLITS = frozenset(name for names in SPLIT_NAMES.values() for name in names)


def list_source(source: Path) -> Listing:
    """Return what a folder or tar holds; raises FileNotFoundError or ValueError with what to do."""
    tars = _tars_of(source)
    if tars is None:
        listing = list_tree(source)
    else:
        base, shards = tars
        for shard in shards:
            if (kind := other_kind(base / shard)) is not None:
                raise ValueError(f"{base / shard} is {kind[0]}: {kind[1]}")
        listing = list_tars(base, shards)
        listing.passed.update(_beside(source))
    if not listing.candidates and not listing.rejected:
        raise (
            no_images(source)
            if source.is_dir() and tars is None
            else ValueError(f"{source} holds no images: give a folder or an uncompressed tar of JPEG files")
        )
    tops = {candidate.name.partition("/")[0] for candidate in listing.candidates}
    nested = any(candidate.name.count("/") > 1 for candidate in listing.candidates)
    if {top.lower() for top in tops} <= _SPLITS and (nested or len(tops) > 1):
        what = (
            "give or index each of them by itself"
            if listing.files is None
            else "unpack it, and give the folder"
        )
        raise ValueError(f"{source} holds the splits {', '.join(sorted(tops))}: {what}")
    return listing


def check_class_folders(source: Path, listing: Listing) -> None:
    """Raise ValueError where the class folders all lie in one folder, which would be taken for the only class."""
    first = listing.candidates[0] if listing.candidates else None
    if first is None or first.label is None or first.label != first.name.partition("/")[0]:
        return  # the labels are no folders
    folders = {os.path.dirname(candidate.name) for candidate in listing.candidates}
    shared = os.path.commonpath(folders)
    if shared and shared not in folders:
        inner = "unpack it, and give that folder" if listing.files is not None else f"give {source / shared}"
        raise ValueError(f"{source} holds one folder, {shared}, and the class folders lie in it: {inner}")


def facts_of(source: Path) -> tuple[list[Fact], list[str] | None]:
    """Return what shows that a source has changed: its files, and a tree's class folders.

    A tar says it by its size and time, without a walk through its headers.
    """
    tars = _tars_of(source)
    if tars is not None:
        return tar_facts(*tars), None
    return tree_facts(source, set())


def _tars_of(source: Path) -> tuple[Path, list[str]] | None:
    """The folder and the names of the tars that a source is; None where it is a tree."""
    if not source.is_dir():
        if not source.exists():
            link = f" is a link to {os.readlink(source)}, which" if source.is_symlink() else ""
            raise FileNotFoundError(f"{source}{link} does not exist: give a folder of images or a tar")
        return source.parent, [source.name]
    entries = [entry for entry in os.scandir(source) if not entry.name.startswith(".")]
    tars = sorted(entry.name for entry in entries if entry.name.lower().endswith(".tar"))
    if not tars or any(entry.is_dir() and not is_rubbish_folder(entry.name) for entry in entries):
        return None
    return source, tars


def _beside(source: Path) -> set[str]:
    """Images that lie beside the tars of a folder."""
    if not source.is_dir():
        return set()
    suffixes = (os.path.splitext(name)[1].lower() for name in os.listdir(source))
    return {f"*{suffix} beside the tars" for suffix in suffixes if suffix in IMAGE_SUFFIXES}
