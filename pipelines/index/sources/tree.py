"""A folder of class folders, or a flat folder of images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fastanc.pipelines.index.sources.listing import (
    IMAGE_SUFFIXES,
    Candidate,
    Listing,
    by_class_folder,
    order_key,
    stamp_of,
)


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


def list_tree(source: Path) -> Listing:
    """Return what a folder of images, or of class folders, holds."""
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
    candidates = by_class_folder(candidates, rejected)
    labelled = bool(candidates) and candidates[0].label is not None
    return Listing(source, None, candidates, folders if labelled else None, rejected, stamp_of(facts))
