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

from fastanc.files import make_folder, sweep
from fastanc.pipelines.index.origin import Origin
from fastanc.pipelines.index.table import Index, fingerprint_of
from fastanc.pipelines.index.workers import locked
from fastanc.pipelines.remote_path import RemotePath
from fastanc.pipelines.source_path import is_there
from fastanc.quoting import counted

SUFFIX = ".parts"
_TOGETHER = 1 << 20  # names whose bytes are placed at once

Open = Callable[[Path], Index]


def is_joined(source: Path) -> bool:
    """Tell whether a source is a file of this machine that names others."""
    return source.suffix.lower() == SUFFIX and not isinstance(source, RemotePath) and source.is_file()


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


def open_joined(
    source: Path, path: Path, open_part: Open, finished: Callable[[], Index | None], *, renew: bool
) -> Index:
    """Return the joined index of a file of sources; it is written to `path` where there is none.

    One process of a machine looks whether the parts are those that were joined; the others take what is there. Of
    several that find nothing one joins and the others wait.

    Args:
        source: the file.
        path: where its index lies.
        open_part: opens the index of one part, and raises ValueError where that changed.
        finished: loads what lies at `path`; None where nothing does.
        renew: join anew where the parts are no longer those that were joined, which raises ValueError otherwise.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0" and (there := finished()) is not None:
        return there
    places = read_parts(source)
    indices = [open_part(place) for place in places]
    stamp = _stamp(source, places, indices)
    make_folder(path.parent)
    with locked(path.with_name(f"{path.name}.joining")):
        there = finished()
        if there is not None and there.origin.stamp == stamp:
            return there
        if there is not None and not renew:
            again = shlex.join(["fastanc", "index", str(source)])
            raise ValueError(f"{source}: its parts are not those that were joined: run `{again}`")
        sweep(path.parent, path.name)
        index = join(source, places, indices)
        index = replace(index, origin=replace(index.origin, stamp=stamp))
        index.save(path)
        return index


def _stamp(source: Path, places: Sequence[Path], indices: Sequence[Index]) -> str:
    """What the joined table follows from: which images the parts have, and where their bytes lie."""
    digest = hashlib.blake2b(digest_size=16)
    for place, index in zip(places, indices):
        where = [os.path.relpath(path, source.absolute().parent) for path in (place, index.folder)]
        said = [*where, index.fingerprint, index.classes, index.files]
        digest.update(repr(said).encode(errors="surrogateescape"))
        for column in (index.offsets, index.file_numbers):
            digest.update(b"none" if column is None else np.ascontiguousarray(column).data.cast("B"))
    return digest.hexdigest()


def join(source: Path, places: Sequence[Path], indices: Sequence[Index]) -> Index:
    """Return one index of several: the images of part after part.

    An image is called by its part's place in the file and by its name there, so that nothing follows from where the
    parts lie or what they are called. Files are relative to the file's folder; of a tree one entry, which ends in a
    slash, stands for all its files.

    Raises ValueError where some parts have labels and some have none, where some have names and some numbers, or
    where their classes are in orders that no common one follows from.
    """
    above = source.absolute().parent
    labels, classes = _labels(source, places, indices)
    names, ends = zip(*(_named(index, b"%d/" % k) for k, index in enumerate(indices)))
    starts = np.cumsum([0, *(part[-1] for part in ends)])
    notes = sorted({note for index in indices for note in index.notes})
    files: list[tuple[str, int]] = []
    numbers, offsets = [], []
    for index in indices:
        none = np.zeros(len(index), np.int64)
        numbers.append((none if index.file_numbers is None else index.file_numbers) + len(files))
        offsets.append(none if index.offsets is None else index.offsets)
        if index.files is None:
            files.append((f"{os.path.relpath(index.folder, above)}/", 0))
        else:
            files += [(os.path.relpath(path, above), size) for path, size in index.containers()]
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
        offsets=np.concatenate(offsets),
        file_numbers=np.concatenate(numbers).astype(np.int32),
        files=files,
        note_numbers=np.concatenate([_renumbered(index, notes) for index in indices]),
        notes=notes,
        rejected=sum(index.rejected for index in indices),
        fingerprint=fingerprint_of(columns),
        origin=Origin(numbered=indices[0].numbered, remarks=_remarks(places, indices)),
        **columns,  # type: ignore[arg-type]
    )


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


def _named(index: Index, before: bytes) -> tuple[np.ndarray, np.ndarray]:
    """The names of a part's images behind some bytes: all of them, one after the other, and their ends."""
    ends = index.name_ends + len(before) * np.arange(1, len(index) + 1)
    data = np.empty(int(ends[-1]), np.uint8)
    for first in range(0, len(index), _TOGETHER):
        last = min(first + _TOGETHER, len(index))
        begin = int(index.name_ends[first - 1]) if first else 0
        old_ends = index.name_ends[first:last]
        lengths = np.diff(old_ends, prepend=begin)
        old = index.name_bytes[begin : int(old_ends[-1])]
        # A byte moves on by what stands before its own name and all names before it.
        data[np.arange(begin, begin + len(old)) + np.repeat(ends[first:last] - old_ends, lengths)] = old
        for k, byte in enumerate(before):
            data[ends[first:last] - lengths - len(before) + k] = byte
    return data, ends


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
