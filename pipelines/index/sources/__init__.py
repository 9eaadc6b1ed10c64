"""What a source holds before any image is read: names, byte ranges and class labels.

| source | label | read by |
| --- | --- | --- |
| a tree of class folders; a flat folder | the first folder (torchvision's ImageFolder's order); none | tree |
| a tar of a tree; of tars; a folder of tars named by WordNet ids | the first folder; the inner tar's name | tar |
| WebDataset shards, one or a folder of them | `KEY.cls`, or "label" / "cls" in `KEY.json` | tar |
| a zip of stored members | the first folder, or `NAME_map.txt` | zip |
| parquet files | a column, with the names of its ClassLabel | parquet |
| a list of paths as CSV, TSV, JSON lines; a folder with metadata.csv or .jsonl | a column | lists |
| a folder of MDS shards | a column | mds |
| whatever has no labels of its own | none, or a file of labels (`index/labels.py`) | |

A kind is a file with one function, Source -> Listing: `find` says of a path which kind it is and which files belong
to it, from names and first bytes alone. Nothing is read but names and labels, nothing is written.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fastanc.pipelines.anywhere import exists, listdir, scan
from fastanc.pipelines.index.sources.kinds import PackFirst, kind_of, no_images, other_kind
from fastanc.pipelines.index.sources.listing import (
    IMAGE_SUFFIXES,
    SPLIT_NAMES,
    SPLIT_WORDS,
    Candidate,
    Fact,
    Label,
    Listing,
    Source,
    are_splits,
    file_facts,
    is_rubbish_folder,
    order_key,
    split_folder,
    split_shards,
    stamp_of,
)
from fastanc.pipelines.index.sources.lists import list_list, metadata_of
from fastanc.pipelines.index.sources.mds import claims, list_mds, read_shards
from fastanc.pipelines.index.sources.parquet import list_parquet
from fastanc.pipelines.index.sources.tar import list_tars
from fastanc.pipelines.index.sources.tree import list_tree, tree_facts
from fastanc.pipelines.index.sources.zip import list_zip
from fastanc.pipelines.source_options import PLAIN, SourceOptions
from fastanc.pipelines.source_path import parted, shards

__all__ = [
    "ARCHIVES",
    "PackFirst",
    "applicable",
    "IMAGE_SUFFIXES",
    "SPLIT_NAMES",
    "SPLIT_WORDS",
    "Candidate",
    "Fact",
    "Label",
    "Listing",
    "check_class_folders",
    "facts_of",
    "find",
    "is_rubbish_folder",
    "kind_of",
    "list_source",
    "order_key",
    "other_kind",
    "split_folder",
    "split_shards",
    "splits_inside",
    "stamp_of",
]

_LISTS: dict[str, Callable[[Source], Listing]] = {
    "tree": list_tree,
    "tar": list_tars,
    "zip": list_zip,
    "parquet": list_parquet,
    "list": list_list,
    "mds": list_mds,
}
ARCHIVES = ("tar", "zip")
"""Kinds that may hold folders of splits."""
_OPTIONS = {"columns": ("list", "parquet", "mds"), "images": ("list",)}
_ONE_FILE = ("zip", "list")
"""Kinds of which a folder is no set of shards."""
_SHARD_SUFFIXES = (".tar", ".parquet")


def list_source(path: Path, options: SourceOptions = PLAIN) -> Listing:
    """Return what a source holds; raises FileNotFoundError or ValueError with what to do."""
    source = find(path, options)
    if source.kind == "parts":
        raise ValueError(
            f"{path} names several sources: it is read on this machine, with its parts beside it"
        )
    _check_options(source)
    listing = _LISTS[source.kind](source)
    if source.kind != "tree" and path.is_dir():
        listing.passed.update(_beside(path))
    if listing.splits:
        inner = " and ".join(str(path / name) for name in listing.splits)
        raise ValueError(
            f"{path} holds the splits {', '.join(listing.splits)}: index each of them by itself, {inner}"
        )
    if not listing.candidates and not listing.rejected:
        raise (
            no_images(path)
            if source.kind == "tree"
            else ValueError(f"{path} holds no images: give a folder or file of images")
        )
    names = [candidate.name for candidate in listing.candidates]
    if source.kind in ("tree", *ARCHIVES, "parquet") and are_splits(names):
        tops = sorted({name.partition("/")[0] for name in names})
        raise ValueError(f"{path} holds the splits {', '.join(tops)}: give or index each of them by itself")
    return listing


def splits_inside(path: Path) -> list[str]:
    """Return the folders of splits that an archive holds; none of any other source."""
    source = find(path)
    return _LISTS[source.kind](source).splits if source.kind in ARCHIVES and not source.inside else []


def _check_options(source: Source) -> None:
    """Raise ValueError for an option that does nothing with this kind of source."""
    for name, kinds in _OPTIONS.items():
        value = getattr(source.options, name)
        if value is not None and source.kind not in kinds:
            raise ValueError(f"{name} {value} does nothing with {source.path}, a {source.kind}: leave it out")


def applicable(path: Path, options: SourceOptions) -> SourceOptions:
    """Return the options without those that do nothing with a source: what is said of train need not fit val."""
    kind = find(path, options).kind
    idle = {name: None for name, kinds in _OPTIONS.items() if kind not in kinds}
    return replace(options, **idle)


def check_class_folders(path: Path, listing: Listing) -> None:
    """Raise ValueError where the class folders all lie in one folder, which would be taken for the only class."""
    if not listing.by_folder or not listing.candidates:
        return
    folders = {os.path.dirname(candidate.name) for candidate in listing.candidates}
    shared = os.path.commonpath(folders)
    if shared and shared not in folders:
        inner = "unpack it, and give that folder" if listing.files is not None else f"give {path / shared}"
        raise ValueError(f"{path} holds one folder, {shared}, and the class folders lie in it: {inner}")


def facts_of(path: Path, options: SourceOptions = PLAIN) -> tuple[list[Fact], list[str] | None]:
    """Return what shows that a source has changed: its files, and a tree's class folders.

    A tar says it by its size and time, without a walk through its headers.
    """
    source = find(path, options)
    if source.kind == "tree":
        return tree_facts(path, set())
    if source.kind == "list":
        return list_list(source).facts, None
    return file_facts(source.base, source.files), None


def find(path: Path, options: SourceOptions = PLAIN) -> Source:
    """Return what kind of source a path is; raises FileNotFoundError where nothing lies, ValueError for no source."""
    file, inside = parted(path)
    names = shards(path)
    if file.suffix.lower() == ".parts" and file.is_file():
        return Source(path, "parts", file.parent, [file.name], inside, options)
    if names is None and not exists(file):
        link = f" is a link to {os.readlink(file)}, which" if file.is_symlink() else ""
        raise FileNotFoundError(f"{file}{link} does not exist: give a folder or file of images")
    if names is not None:
        if not names:
            raise FileNotFoundError(f"{path} names no file: correct the pattern")
        return _of_files(path, path.parent, names, options)
    if not file.is_dir():
        return _of_files(path, file.parent, [file.name], options, inside)
    if (file / "data.mdb").is_file():
        what, advice = other_kind(file / "data.mdb") or ("", "")
        raise PackFirst(f"{file} is {what}: {advice}")
    if claims(file):
        return Source(path, "mds", file, [shard.name for shard in read_shards(file)], "", options)
    if (metadata := metadata_of(file)) is not None:
        return Source(path, "list", file, [metadata], "", options)
    names = _shards_in(file)
    if len(splits := sorted(split_shards(names))) > 1:
        raise ValueError(
            f"{path} holds the shards of the splits {', '.join(splits)}: give or index each of them by itself, as"
            f" {shlex.quote(str(path / splits[0]))}"
        )
    return _of_files(path, file, names, options) if names else Source(path, "tree", file, [], "", options)


def _of_files(path: Path, base: Path, names: list[str], options: SourceOptions, inside: str = "") -> Source:
    kinds = dict[str, str]()
    for name in names:
        kind = kind_of(base / name)
        if kind is None:
            what, advice = other_kind(base / name) or ("", "")
            kind_of_error = PackFirst if "`fastanc pack " in advice else ValueError
            raise kind_of_error(f"{base / name} is {what}: {advice}")
        kinds.setdefault(kind, name)
    if len(kinds) > 1:
        raise ValueError(
            f"{path} are files of several kinds, {' and '.join(kinds.values())}: name those of one"
        )
    kind = next(iter(kinds))
    if kind in _ONE_FILE and len(names) > 1:
        raise ValueError(f"{path} are {len(names)} files, each a {kind}: name one of them")
    if inside and kind not in ARCHIVES:
        raise ValueError(f"{base / names[0]} is a {kind}, which has no folder {inside} in it: give the file")
    return Source(path, kind, base, names, inside, options)


def _shards_in(folder: Path) -> list[str]:
    """The names of the files of a folder that hold the images; none where it is a tree."""
    with scan(folder) as found:
        entries = [entry for entry in found if not entry.name.startswith(".")]
    if any(entry.is_dir() and not is_rubbish_folder(entry.name) for entry in entries):
        return []
    for suffix in _SHARD_SUFFIXES:
        if names := sorted(entry.name for entry in entries if entry.name.lower().endswith(suffix)):
            return names
    return []


def _beside(folder: Path) -> set[str]:
    """Images that lie beside the shards of a folder."""
    suffixes = (os.path.splitext(name)[1].lower() for name in listdir(folder))
    return {f"*{suffix} beside the tars" for suffix in suffixes if suffix in IMAGE_SUFFIXES}
