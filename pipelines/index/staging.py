"""A copy of a source that lies in a store, made file by file on a disk: what `pack` reads of it.

Every byte comes once: a file grows as NAME.part, and goes on from its length after a kill.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from fastanc.files import make_folder, named, write_text
from fastanc.pipelines.blocks import BLOCK, asked_ahead
from fastanc.pipelines.index.pack_stream import files_of, what_it_is
from fastanc.pipelines.index.sources import Source, list_source, stamp_of
from fastanc.pipelines.index.sources.archive import map_beside
from fastanc.pipelines.remote_path import RemotePath, forget
from fastanc.pipelines.source_options import SourceOptions
from fastanc.pipelines.source_path import parted

_NOTE = ".begun.json"


class _File(NamedTuple):
    """A file on its way."""

    source: RemotePath
    place: Path
    length: int
    time: int


class _Piece(NamedTuple):
    file: _File
    start: int
    end: int


def folder_of_copy(out: Path) -> Path:
    """Return the folder that the copy lies in while the tar `out` is made of it."""
    return out.with_name(f"{out.name}.source")


def staged(source: RemotePath, folder: Path, options: SourceOptions, progress: bool) -> Path:
    """Copy a source into a folder, or the rest of it, and return the path of the copy.

    Raises ValueError where it changed since the copy was begun, names files outside of its folder, or the disk is too
    small; what `remote_trouble` says of a store.
    """
    forget()
    found = what_it_is(source, options)
    files = list(_files(source, found, folder, options))
    _begin(source, folder, files)
    missing = sum(file.length - _there(file) for file in files)
    if missing > (free := shutil.disk_usage(folder).free):
        raise ValueError(
            f"{folder} has {free / 1e9:.1f} GB left, and {missing / 1e9:.1f} GB of {source} are still to come (the"
            " tar takes about as much again): free some space, or choose another place for the tar"
        )
    _fetch(files, missing, progress)
    file, inside = parted(source)
    return folder / file.name / inside


def _files(source: RemotePath, found: Source, folder: Path, options: SourceOptions) -> Iterator[_File]:
    """The files that a source consists of, and where each is copied to."""
    base = found.base
    if not isinstance(base, RemotePath):
        raise ValueError(f"{source} lists files of this machine: download it, and give the file")
    top = folder / source.name if base == source else folder
    if found.kind in ("tree", "list"):
        listing = list_source(source, options)
        facts = [fact for fact in listing.facts if fact[1] >= 0]
        names = found.files
    else:
        facts, names = [], files_of(found)
        if (text := map_beside(found)) is not None and text.is_file():
            names = [*names, text.name]
    facts += [(name, (status := (base / name).stat()).st_size, status.st_mtime_ns) for name in names]
    root = os.path.abspath(folder)
    for name, length, time in facts:
        place = os.path.abspath(top / name)
        if not place.startswith(f"{root}/"):
            raise ValueError(
                f"{source} names {name}, which lies outside of its folder: copy both with the store's own tool, and"
                " give the copy"
            )
        yield _File(base / name, Path(place), length, time)


def _begin(source: RemotePath, folder: Path, files: list[_File]) -> None:
    """Note what the copy is of; raises ValueError where another one was begun."""
    facts = [(str(file.source), file.length, file.time) for file in files]
    said = {"source": str(source), "stamp": stamp_of(facts, None)}
    note = folder / _NOTE
    try:
        before = json.loads(note.read_text())
    except (OSError, ValueError):
        before = None
    if before is not None and before != said:
        raise ValueError(
            f"{source} is not, or no longer, what the copy {folder} was begun of: remove that folder, and run the"
            " same command again"
        )
    make_folder(folder)
    if before is None:
        write_text(note, json.dumps(said))


def _part(file: _File) -> Path:
    return file.place.with_name(f"{file.place.name}.part")


def _there(file: _File) -> int:
    """How many bytes of a file are there already."""
    for place in (file.place, _part(file)):
        try:
            return min(place.stat().st_size, file.length)
        except OSError:
            continue
    return 0


def _fetch(files: list[_File], missing: int, progress: bool) -> None:
    total = sum(file.length for file in files)
    with tqdm(
        total=total, initial=total - missing, unit="B", unit_scale=True, desc="copy", disable=not progress
    ) as bar:
        for piece, data in asked_ahead(_read, _pieces(files)):
            _put(piece, data)
            bar.update(piece.end - piece.start)


def _pieces(files: list[_File]) -> Iterator[_Piece]:
    """The ranges that are still missing, in order; of an empty file an empty one."""
    for file in files:
        if file.place.exists():
            continue
        start = _there(file)
        while True:
            end = min(start + BLOCK, file.length)
            yield _Piece(file, start, end)
            start = end
            if end >= file.length:
                break


def _read(piece: _Piece) -> bytes:
    file, start, end = piece
    if not start and end == file.length:
        return file.source.read_whole(end) if end else b""
    return file.source.read_at(end - start, start)


def _put(piece: _Piece, data: bytes) -> None:
    """Add bytes to a file, and give it its name when it is whole."""
    part = _part(piece.file)
    part.parent.mkdir(parents=True, exist_ok=True)
    with named(part), open(part, "ab") as target:
        target.truncate(piece.start)
        target.write(data)
    if piece.end == piece.file.length:
        if piece.start:  # it came in several requests, which must be of one file
            piece.file.source.check_unchanged()
        os.replace(part, piece.file.place)
