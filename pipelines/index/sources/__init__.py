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

from fastanc.pipelines.index.sources.listing import Candidate, Label, Listing, order_key
from fastanc.pipelines.index.sources.tar import list_tars
from fastanc.pipelines.index.sources.tree import list_tree

__all__ = ["Candidate", "Label", "Listing", "list_source", "order_key"]

_SPLITS = frozenset({"train", "val", "valid", "validation", "test"})


def list_source(source: Path) -> Listing:
    """Return what a folder or tar holds; raises FileNotFoundError or ValueError with what to do."""
    if source.is_dir():
        entries = [entry for entry in os.scandir(source) if not entry.name.startswith(".")]
        tars = sorted(entry.name for entry in entries if entry.name.lower().endswith(".tar"))
        listing = (
            list_tars(source, tars) if tars and not any(e.is_dir() for e in entries) else list_tree(source)
        )
    elif source.exists():
        listing = list_tars(source.parent, [source.name])
    else:
        raise FileNotFoundError(f"{source} does not exist: give a folder of images or a tar")
    if not listing.candidates and not listing.rejected:
        raise ValueError(f"{source} holds no images: give a folder or an uncompressed tar of JPEG files")
    tops = {candidate.name.partition("/")[0] for candidate in listing.candidates}
    if tops <= _SPLITS and any(candidate.name.count("/") > 1 for candidate in listing.candidates):
        raise ValueError(f"{source} holds the splits {', '.join(sorted(tops))}: index each of them by itself")
    return listing
