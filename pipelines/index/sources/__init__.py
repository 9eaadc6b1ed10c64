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

__all__ = ["Candidate", "Fact", "Label", "Listing", "facts_of", "list_source", "order_key", "stamp_of"]

_SPLITS = frozenset({"train", "val", "valid", "validation", "test"})


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
    if tops <= _SPLITS and any(candidate.name.count("/") > 1 for candidate in listing.candidates):
        raise ValueError(f"{source} holds the splits {', '.join(sorted(tops))}: index each of them by itself")
    return listing


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
