"""A set as one plain tar that says its classes itself, its large images made smaller once where that is asked for.

Every view would decode them anew. What cannot be read in place is streamed into such a tar (`pack_stream`).
"""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
from tqdm import tqdm

from fastanc.files import make_folder, put, remove, sweep
from fastanc.pipelines.index.build import (
    Index,
    build_index,
    index_path,
    open_index,
    rejected_path,
    workers_of,
    write_rejected,
)
from fastanc.pipelines.index.class_folders import CLASSES, class_folders, classes_member, say_themselves
from fastanc.pipelines.index.image_check import read_range
from fastanc.pipelines.index.limits import BEST_QUALITY, LARGEST_SIDE, whole_number
from fastanc.pipelines.index.pack_stream import Streamed, pack_stream
from fastanc.pipelines.index.part_file import PartFile, check_free, note_of
from fastanc.pipelines.index.shrink import smaller
from fastanc.pipelines.index.sources import IMAGE_SUFFIXES, PackFirst, order_key
from fastanc.pipelines.index.staging import folder_of_copy, staged
from fastanc.pipelines.index.workers import in_order, locked
from fastanc.pipelines.remote_path import RemotePath, path_of
from fastanc.pipelines.source_options import PLAIN, SourceOptions
from fastanc.pipelines.tar_file import member_bytes

_CHUNK = 32


@dataclass(frozen=True)
class Packed:
    """What `pack` made."""

    index: Index
    bytes_before: int
    bytes_after: int
    shrunk: int
    """How many images were made smaller; all others keep their bytes."""
    lost: int
    """How many images could not be decoded; they are listed beside the index."""

    def __str__(self) -> str:
        lost = (
            f", {self.lost} left out (see {rejected_path(index_path(self.index.source))})"
            if self.lost
            else ""
        )
        return (
            f"{len(self.index)} images, {self.shrunk} of them shrunk{lost}: {self.bytes_before / 1e6:.1f} MB "
            f"before, {self.bytes_after / 1e6:.1f} MB after, in {self.index.source}"
        )


class _Task(NamedTuple):
    """One image on its way into the tar."""

    name: str
    place: tuple[str, int, int]
    crc32: int
    shrink: bool


def pack(
    source: Path,
    out: Path,
    options: SourceOptions = PLAIN,
    *,
    short_side: int | None = None,
    quality: int = 90,
    workers: int | None = None,
    progress: bool = True,
) -> Packed | Streamed:
    """Write every image of a source into the tar `out`, in the index's order, and index it.

    Images keep their bytes; with `short_side` those whose shorter side is larger are resized to it, px (Lanczos, EXIF
    not applied), and written as JPEG under the same name. Labels become class folders, so that the tar says them
    itself. A source that cannot be read in place is streamed (`pack_stream`); one in a store is copied first, into
    `out`.source, and the copy removed at the end (`staging`). Killed at any moment, the next call
    goes on from `out`.part. Raises FileExistsError where `out` exists, ValueError where a number is out of its range,
    a file changed since it was indexed, or no image decodes; neither leaves anything behind.
    """
    source, out, workers = path_of(source), Path(out), workers_of(workers)
    if short_side is not None:
        short_side = whole_number("short_side", short_side, LARGEST_SIDE)
    quality = whole_number("quality", quality, BEST_QUALITY)
    if not note_of(out).exists():
        if out.exists():
            remove(folder_of_copy(out))  # killed when the tar was made of it
        check_free(out)
    if isinstance(source, RemotePath):
        return _pack_remote(source, out, options, short_side, quality, workers, progress)
    try:
        index = open_index(source, options)
    except PackFirst:
        return pack_stream(
            source, out, options, short_side=short_side, quality=quality, workers=workers, progress=progress
        )
    return _pack_index(index, out, short_side, quality, workers, progress)


def _pack_remote(
    source: RemotePath,
    out: Path,
    options: SourceOptions,
    short_side: int | None,
    quality: int,
    workers: int,
    progress: bool,
) -> Packed | Streamed:
    """Pack a copy: that takes the space twice, and gives for every kind of source the very bytes of a local one."""
    folder = folder_of_copy(out)
    make_folder(out.parent)
    with locked(folder.with_name(f"{folder.name}.lock")):
        copy = staged(source, folder, options, progress)
        packed = pack(
            copy, out, options, short_side=short_side, quality=quality, workers=workers, progress=progress
        )
        remove(folder)
    return packed


def _pack_index(
    index: Index, out: Path, short_side: int | None, quality: int, workers: int, progress: bool
) -> Packed:
    names, rows = _members(index)
    said = _classes_said(index)
    make_folder(out.parent)
    with locked(out.with_name(f"{out.name}.lock")):
        identity = _identity(index, short_side, quality)
        part = PartFile(out, identity)
        written = part.is_written()  # killed after the tar had its name: nothing but its index is missing
        if not written:
            check_free(out)
        sweep(out.parent, part.note.name)
        try:
            if not written:
                _write(index, part, names, rows, said, short_side, quality, workers, progress)
                put(part.part, out)
            packed = build_index(out, workers=workers, progress=progress)
        except ValueError:  # nothing to go on from: it takes another source
            part.drop()
            raise
        part.note.unlink()
    lost = set(names).difference(packed.name(i) for i in range(len(packed)))
    if lost:
        write_rejected(rejected_path(index_path(out)), [(name, "does not decode") for name in sorted(lost)])
    large = 0 if short_side is None else int((index.sizes.min(1) > short_side).sum())
    shrunk = large - len(lost)
    return Packed(packed, int(index.lengths.sum()), out.stat().st_size, shrunk, len(lost))


def _write(
    index: Index,
    part: PartFile,
    names: list[str],
    rows: list[int],
    said: bytes | None,
    short_side: int | None,
    quality: int,
    workers: int,
    progress: bool,
) -> None:
    """Write the members that the part lacks; what it says of the classes comes first."""
    position = {name: k + 1 for k, name in enumerate(names)}
    there = part.resume()
    done = position.get(there[-1], 0) if there else 0
    tasks = _tasks(index, names, rows, done, short_side)
    shrink = partial(_shrink, short_side=short_side or 0, quality=quality)
    members = in_order(shrink, tasks, workers if len(names) - done > 2 * _CHUNK else 1)
    head = [] if said is None or there else [(member_bytes(CLASSES, said), 0)]
    with tqdm(total=len(names), initial=done, unit="img", desc="pack", disable=not progress) as bar:
        part.append(chain(head, members), bar)


def _classes_said(index: Index) -> bytes | None:
    """What a tar must say of the classes, where its folders alone would give other ones."""
    if index.labels is None:
        return None
    folders = class_folders(index.classes)
    if say_themselves(index.classes, folders, len(np.unique(index.labels))):
        return None
    return classes_member(index.classes, folders)


def _members(index: Index) -> tuple[list[str], list[int]]:
    """Return the names in the new tar, in order, and the image numbers they come from."""
    names = [_with_suffix(index, i, name) for i, name in enumerate(index.names())]
    if index.labels is None:
        names = [name.replace("/", "_") for name in names]
    else:
        folders = class_folders(index.classes)
        tops = [folders[label] for label in index.labels.tolist()]
        names = [
            name if name.startswith(f"{top}/") else f"{top}/{name.replace('/', '_')}"
            for name, top in zip(names, tops)
        ]
    taken = Counter(names)
    if len(taken) < len(names):  # of paths that differ in a slash alone
        names = [
            name if taken[name] == 1 else f"-{i}".join(os.path.splitext(name)) for i, name in enumerate(names)
        ]
    rows = sorted(range(len(names)), key=lambda i: order_key(names[i]))
    return [names[i] for i in rows], rows


def _with_suffix(index: Index, i: int, name: str) -> str:
    """A name that ends as an image's; rows of tables have names without."""
    if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
        return name
    kind = index.note(i).partition(" ")[0].lower()
    return f"{name}.{kind if kind in ('png', 'bmp', 'webp') else 'jpg'}"


def _tasks(
    index: Index, names: list[str], rows: list[int], done: int, short_side: int | None
) -> Iterator[list[_Task]]:
    big = index.sizes.min(1) > (LARGEST_SIDE if short_side is None else short_side)
    for start in range(done, len(names), _CHUNK):
        numbers = rows[start : start + _CHUNK]
        yield [
            _Task(name, place, int(index.crc32[i]), short_side is not None and bool(big[i]))
            for name, place, i in zip(names[start:], index.places(numbers), numbers)
        ]


def _identity(index: Index, short_side: int | None, quality: int) -> dict[str, object]:
    return {
        "source": index.fingerprint,
        "classes": index.classes,
        "short_side": short_side,
        "quality": quality,
        "pillow": PIL.__version__,
    }


def _shrink(tasks: list[_Task], short_side: int, quality: int) -> tuple[bytes, int]:
    """Return the tar members of some images, and how many those were; undecodable ones are left out."""
    members = []
    for task in tasks:
        try:
            data = read_range(*task.place)
        except OSError:
            data = b""
        if zlib.crc32(data) != task.crc32:
            raise ValueError(f"{task.place[0]} changed since it was indexed ({task.name}): index it again")
        if task.shrink:
            try:
                data = smaller(data, short_side, quality)
            except Exception:  # damage inside the file, which only decoding finds
                continue
        members.append(member_bytes(task.name, data))
    return b"".join(members), len(tasks)
