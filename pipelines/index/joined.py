"""Several sources as one: a file of their paths, `all.parts`, whose index is joined from theirs, no image read again.

A set of hundreds of millions of images is indexed in parts, by several machines or as it arrives, and its parts may
be of different kinds. The joined table is one file like any other, mapped and shared by all processes; a part is
checked for changes by its own index.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fastanc.pipelines.index.origin import Origin
from fastanc.pipelines.index.table import Index, fingerprint_of
from fastanc.pipelines.source_path import is_there
from fastanc.quoting import counted

SUFFIX = ".parts"
_TOGETHER = 1 << 20  # names whose bytes are placed at once

Open = Callable[[Path], Index]


def is_joined(source: Path) -> bool:
    """Tell whether a source is a file that names others."""
    return source.suffix.lower() == SUFFIX and source.is_file()


def read_parts(file: Path) -> list[Path]:
    """Return the sources that a file names, one a line, relative to its folder; lines that begin with # are notes.

    Raises ValueError that names the line where one is wrong, FileNotFoundError where nothing lies there.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{file} is no text in UTF-8: save it as one") from None
    parts: list[Path] = []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        part = Path(os.path.normpath(file.absolute().parent / text))
        where = f"{file}, line {number}: {text}"
        if "://" in text:
            raise ValueError(f"{where} is no path of this machine: copy it here, and name the copy")
        if part.suffix.lower() == SUFFIX:
            raise ValueError(f"{where} is a list of parts itself: name its parts")
        if part in parts:
            raise ValueError(f"{where} is named twice: its images would count twice")
        if not is_there(part):
            raise FileNotFoundError(f"{where} does not exist: correct it, or take it out")
        parts.append(part)
    if not parts:
        raise ValueError(f"{file} names no source: write the path of one on each line")
    return parts


def open_joined(source: Path, path: Path, open_part: Open, finished: Index | None, *, renew: bool) -> Index:
    """Return the joined index of a file of sources; it is written to `path` where there is none.

    Args:
        source: the file.
        path: where its index lies.
        open_part: opens the index of one part, and raises ValueError where that changed.
        finished: what lies there; None where nothing does.
        renew: join anew where the parts are no longer those that were joined, which raises ValueError otherwise.
    """
    places = read_parts(source)
    indices = [open_part(place) for place in places]
    stamp = _stamp(source, places, indices)
    if finished is not None and finished.origin.stamp == stamp:
        return finished
    if finished is not None and not renew:
        raise ValueError(
            f"{source}: its parts are not those that were joined: run"
            f" `{shlex.join(['fastanc', 'index', str(source)])}`"
        )
    index = join(source, places, indices)
    index = replace(index, origin=replace(index.origin, stamp=stamp))
    index.save(path)
    return index


def _stamp(source: Path, places: Sequence[Path], indices: Sequence[Index]) -> str:
    said = [
        [os.path.relpath(place, source.parent), index.fingerprint] for place, index in zip(places, indices)
    ]
    return hashlib.blake2b(repr(said).encode(errors="surrogateescape"), digest_size=16).hexdigest()


def join(source: Path, places: Sequence[Path], indices: Sequence[Index]) -> Index:
    """Return one index of several: the images of part after part, their names behind those of their parts.

    Classes are merged by name. Raises ValueError where some parts have labels and some have none, where some have
    names and some numbers, or where their classes are in orders that no common one follows from.
    """
    above = os.path.abspath(source.parent)
    folders = [index.folder for index in indices]
    base = above if all(_lies_in(one, above) for one in folders) else os.path.commonpath(folders)
    labels, classes = _labels(source, places, indices)
    in_files = any(index.files is not None for index in indices)
    names, ends = zip(*(_named(index, place, base) for index, place in zip(indices, places)))
    starts = np.cumsum([0, *(part[-1] for part in ends)])
    notes = sorted({note for index in indices for note in index.notes})
    files: list[tuple[str, int]] = []
    numbers, offsets = [], []
    for index in indices if in_files else ():
        within, of = _files(index, base)
        numbers.append(of + len(files))
        offsets.append(np.zeros(len(index), np.int64) if index.offsets is None else index.offsets)
        files += within
    columns = {
        "sizes": np.concatenate([index.sizes for index in indices]),
        "labels": labels,
        "crc32": np.concatenate([index.crc32 for index in indices]),
        "lengths": np.concatenate([index.lengths for index in indices]),
        "name_bytes": np.concatenate(names),
        "name_ends": np.concatenate([part + start for part, start in zip(ends, starts)]),
    }
    return Index(
        source=source,
        classes=classes,
        offsets=np.concatenate(offsets) if in_files else None,
        file_numbers=np.concatenate(numbers).astype(np.int32) if in_files else None,
        files=files if in_files else None,
        note_numbers=np.concatenate([_renumbered(index, notes) for index in indices]),
        notes=notes,
        rejected=sum(index.rejected for index in indices),
        fingerprint=fingerprint_of(columns),
        origin=Origin(
            base=None if base == above else base,
            numbered=indices[0].numbered,
            remarks=_remarks(places, indices),
        ),
        **columns,  # type: ignore[arg-type]
    )


def _lies_in(path: str, folder: str) -> bool:
    return os.path.commonpath([path, folder]) == folder


def _labels(
    source: Path, places: Sequence[Path], indices: Sequence[Index]
) -> tuple[np.ndarray | None, list[str]]:
    """The labels of all parts as positions in one list of classes."""
    for other, index in zip(places, indices):
        for what, differs in (
            ("labels", (index.labels is None) != (indices[0].labels is None)),
            ("names of classes", index.labels is not None and index.numbered != indices[0].numbered),
        ):
            if differs:
                raise ValueError(
                    f"{source}: of {places[0]} and {other} one has {what} and the other none: give both"
                )
    if indices[0].labels is None:
        return None, []
    lists = [list(index.classes) for index in indices]
    if all(one == lists[0] for one in lists):
        classes = lists[0]
    else:
        key: Callable[[str], object] = int if indices[0].numbered else os.fsencode
        for place, one in zip(places, lists):
            if one != sorted(one, key=key):  # type: ignore[arg-type]
                raise ValueError(
                    f"{source}: {place} has its classes in an order of its own, and other parts have other classes:"
                    " index every part with the same --class_map"
                )
        classes = sorted({name for one in lists for name in one}, key=key)  # type: ignore[arg-type]
    place_of = {name: k for k, name in enumerate(classes)}
    moved = [np.array([place_of[name] for name in one], np.int64) for one in lists]
    return np.concatenate([new[index.labels] for new, index in zip(moved, indices)]), classes


def _named(index: Index, place: Path, base: str) -> tuple[np.ndarray, np.ndarray]:
    """The names of a part's images behind its own path, as bytes and their ends.

    Of a tree that is where the files lie, of which the reader takes their paths.
    """
    before = index.folder if index.files is None else str(place)
    prefix = np.frombuffer(os.fsencode(os.path.relpath(before, base) + "/"), np.uint8)
    if index.files is None and os.path.relpath(before, base) == ".":
        prefix = prefix[:0]
    ends = index.name_ends + len(prefix) * np.arange(1, len(index) + 1)
    data = np.empty(int(ends[-1]), np.uint8)
    for first in range(0, len(index), _TOGETHER):
        last = min(first + _TOGETHER, len(index))
        begin = int(index.name_ends[first - 1]) if first else 0
        lengths = np.diff(index.name_ends[first:last], prepend=begin)
        at = ends[first:last] - lengths
        old = index.name_bytes[begin : int(index.name_ends[last - 1])]
        data[
            np.repeat(at - (index.name_ends[first:last] - lengths - begin), lengths) + np.arange(len(old))
        ] = old
        for k, byte in enumerate(prefix):
            data[at - len(prefix) + k] = byte
    return data, ends


def _files(index: Index, base: str) -> tuple[list[tuple[str, int]], np.ndarray]:
    """The files that hold a part's images, relative to `base`, and which of them each image lies in."""
    there = [(os.path.relpath(path, base), size) for path, size in index.containers()]
    return there, np.arange(len(index)) if index.file_numbers is None else index.file_numbers.astype(np.int64)


def _renumbered(index: Index, notes: Sequence[str]) -> np.ndarray:
    return np.array([notes.index(note) for note in index.notes], np.uint16)[index.note_numbers]


def _remarks(places: Sequence[Path], indices: Sequence[Index]) -> list[str]:
    said = [f"{place.name}: {remark}" for place, index in zip(places, indices) for remark in index.remarks]
    keys = [
        index.crc32.astype(np.uint64) << np.uint64(32) ^ index.lengths.astype(np.uint64) for index in indices
    ]
    own = sum(len(np.unique(key)) for key in keys)
    if twice := own - len(np.unique(np.concatenate(keys))):
        said.append(
            f"{counted(twice, 'image')} of one part {'is' if twice == 1 else 'are'} in another one, too"
        )
    return said
