"""A folder of class folders, or a flat folder of images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from fastanc.pipelines.anywhere import joined, scan, threads
from fastanc.pipelines.index.sources.listing import (
    ARCHIVE_SUFFIXES,
    IMAGE_SUFFIXES,
    Candidate,
    Fact,
    Listing,
    Source,
    by_class_folder,
    is_rubbish_folder,
    order_key,
    rubbish_in,
)
from fastanc.pipelines.remote_path import RemotePath


def _files(folder: str | RemotePath, prefix: str, passed: set[str]) -> Iterator[Fact]:
    """Yield the facts of the image files below a folder."""
    with scan(folder) as entries:
        for entry in entries:
            name = prefix + entry.name
            if entry.is_dir():
                if is_rubbish_folder(entry.name) or _leads_up(entry):
                    passed.add(entry.name)
                else:
                    yield from _files(entry.path, name + "/", passed)
            elif (fact := _fact(entry, name, passed)) is not None:
                yield fact


def _fact(entry: os.DirEntry[str], name: str, passed: set[str]) -> Fact | None:
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix not in IMAGE_SUFFIXES:
        if suffix in ARCHIVE_SUFFIXES:
            passed.add(name)
        return None
    if rubbish := rubbish_in(entry.name):
        passed.add(rubbish)
        return None
    try:
        status = entry.stat()
    except OSError:
        return name, -1, 0
    return name, status.st_size, status.st_mtime_ns


def _leads_up(entry: os.DirEntry[str]) -> bool:
    """Whether a folder is a link to one that it lies in: walking it would never end."""
    if not entry.is_symlink():
        return False
    target, here = os.path.realpath(entry.path), os.path.realpath(os.path.dirname(entry.path))
    return os.path.commonpath([target, here]) == target


def tree_facts(source: Path, passed: set[str]) -> tuple[list[Fact], list[str] | None]:
    """Return the facts of a folder's images in order, and its class folders; None where all images lie flat.

    What is passed over is added to `passed`.
    """
    folders, facts = [], list[Fact]()
    with scan(source) as entries:
        for entry in entries:
            if not entry.is_dir():
                facts += filter(None, [_fact(entry, entry.name, passed)])
            elif is_rubbish_folder(entry.name) or _leads_up(entry):
                passed.add(entry.name)
            else:
                folders.append(entry.name)
    folders.sort()
    with threads(8) as pool:  # a folder's round trips on a network file system overlap
        for found in pool.map(lambda f: list(_files(joined(source, f), f + "/", passed)), folders):
            facts += found
    facts.sort(key=lambda fact: order_key(fact[0]))
    return facts, folders if any("/" in name for name, length, _ in facts if length >= 0) else None


def list_tree(source: Source) -> Listing:
    """Return what a folder of images, or of class folders, holds."""
    passed: set[str] = set()
    facts, folders = tree_facts(source.base, passed)
    rejected = [(name, "cannot be read (a broken link)") for name, length, _ in facts if length < 0]
    candidates = [Candidate(name, -1, 0, length, None) for name, length, _ in facts if length >= 0]
    candidates = by_class_folder(candidates, rejected)
    return Listing(
        source.base, None, candidates, folders, rejected, facts, passed, by_folder=folders is not None
    )
