"""Shrinking a set's large images once, into one plain tar, since every view decodes its image anew."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import PIL
from PIL import Image
from tqdm import tqdm

from fastanc.files import make_folder, named, put, sweep, write_text
from fastanc.pipelines.index.build import (
    Index,
    build_index,
    index_path,
    open_index,
    rejected_path,
    workers_of,
    write_rejected,
)
from fastanc.pipelines.index.image_check import read_range
from fastanc.pipelines.index.limits import BEST_QUALITY, LARGEST_SIDE, whole_number
from fastanc.pipelines.index.sources import order_key
from fastanc.pipelines.index.workers import in_order, locked
from fastanc.pipelines.tar_file import BLOCK, END_MARK, member_bytes, walk

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
    *,
    short_side: int = 256,
    quality: int = 90,
    workers: int | None = None,
    progress: bool = True,
) -> Packed:
    """Write every image of a folder or tar into the tar `out`, in the index's order, and index it.

    Images whose shorter side is above `short_side` px are resized to it (Lanczos, EXIF not applied) and
    written as JPEG under the same name; the others keep their bytes. Labels become class folders, so that the
    tar says them itself. Killed at any moment, the next call goes on from `out`.part. Raises FileExistsError
    where `out` exists, ValueError where a number is out of its range, a file changed since it was indexed, or no
    image decodes; neither leaves anything behind.
    """
    source, out, workers = Path(source), Path(out), workers_of(workers)
    short_side = whole_number("short_side", short_side, LARGEST_SIDE)
    quality = whole_number("quality", quality, BEST_QUALITY)
    part = out.with_name(f"{out.name}.part")
    note = _identity_path(part)
    if not note.exists():
        _check_free(out)
    index = open_index(source)
    names, rows = _members(index)
    make_folder(out.parent)
    with locked(out.with_name(f"{out.name}.lock")):
        identity = _identity(index, short_side, quality)
        # Killed after the tar had its name: nothing but its index is missing.
        written = out.exists() and not part.exists() and _said(note) == identity
        if not written:
            _check_free(out)
        sweep(out.parent, note.name)
        done = len(names) if written else _resume(part, identity, names)
        shrink = partial(_shrink, short_side=short_side, quality=quality)
        tasks = _tasks(index, names, rows, done, short_side)
        members = in_order(shrink, tasks, workers if len(names) - done > 2 * _CHUNK else 1)
        try:
            with tqdm(total=len(names), initial=done, unit="img", desc="pack", disable=not progress) as bar:
                if not written:
                    _append(part, members, bar)
            if not written:
                put(part, out)
            classes = class_folders(index) if index.labels is not None else None
            packed = build_index(out, classes=classes, workers=workers, progress=progress)
        except ValueError:  # nothing to go on from: it takes another source
            for path in (part, out, note):
                path.unlink(missing_ok=True)
            raise
        note.unlink()
    lost = set(names).difference(packed.name(i) for i in range(len(packed)))
    if lost:
        write_rejected(rejected_path(index_path(out)), [(name, "does not decode") for name in sorted(lost)])
    shrunk = int((index.sizes.min(1) > short_side).sum()) - len(lost)
    return Packed(packed, int(index.lengths.sum()), out.stat().st_size, shrunk, len(lost))


def _append(part: Path, members: Iterator[tuple[bytes, int]], bar: tqdm) -> None:
    """Write the members of a tar that are still missing, and its end; ValueError where it would hold none."""
    with named(part), open(part, "ab") as tar:
        for data, count in members:
            tar.write(data)
            tar.flush()
            bar.update(count)
        if not tar.tell():
            raise ValueError(f"{part.stem} would be empty, no image of the set decodes: get the set again")
        tar.write(END_MARK)


def _check_free(out: Path) -> None:
    if out.exists():
        raise FileExistsError(f"{out} exists: remove it first, or choose another name")


def class_folders(index: Index) -> list[str]:
    """Return the folder of every class: its name; numbers get leading zeros, so that their order stays."""
    if index.classes == [str(k) for k in range(len(index.classes))]:
        return [name.zfill(len(index.classes[-1])) for name in index.classes]
    return index.classes


def _members(index: Index) -> tuple[list[str], list[int]]:
    """Return the names in the new tar, in order, and the image numbers they come from."""
    names = [index.name(i) for i in range(len(index))]
    if index.labels is None:
        names = [name.replace("/", "_") for name in names]
    else:
        folders = class_folders(index)
        tops = [folders[label] for label in index.labels.tolist()]
        names = [
            name if name.startswith(f"{top}/") else f"{top}/{name.replace('/', '_')}"
            for name, top in zip(names, tops)
        ]
    rows = sorted(range(len(names)), key=lambda i: order_key(names[i]))
    return [names[i] for i in rows], rows


def _tasks(
    index: Index, names: list[str], rows: list[int], done: int, short_side: int
) -> Iterator[list[_Task]]:
    big = index.sizes.min(1) > short_side
    for start in range(done, len(names), _CHUNK):
        numbers = rows[start : start + _CHUNK]
        yield [
            _Task(name, place, int(index.crc32[i]), bool(big[i]))
            for name, place, i in zip(names[start:], index.places(numbers), numbers)
        ]


def _identity(index: Index, short_side: int, quality: int) -> dict[str, object]:
    return {
        "source": index.fingerprint,
        "short_side": short_side,
        "quality": quality,
        "pillow": PIL.__version__,
    }


def _identity_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _resume(part: Path, identity: dict[str, object], names: list[str]) -> int:
    """Cut the part file back to its whole members; return how many of `names` are behind us.

    A part file of another source or other settings is begun anew.
    """
    note = _identity_path(part)
    end, done = 0, 0
    if part.exists() and _said(note) == identity:
        position = {name: k for k, name in enumerate(names)}
        previous = 0
        try:
            for member in walk(part):  # the last member may lack its padding, so it is written again
                end, done = previous, position[member.name]
                previous = member.offset + -(-member.length // BLOCK) * BLOCK
        except ValueError:
            pass  # no end mark: the pack was killed
    with open(part, "ab") as tar:
        tar.truncate(end)
    if not end:  # last, so that no other source's members ever stand under this note
        write_text(note, json.dumps(identity))
    return done


def _said(note: Path) -> object:
    try:
        return json.loads(note.read_text())
    except (OSError, ValueError):  # none, or one that a kill cut off
        return None


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
                data = _smaller(data, short_side, quality)
            except Exception:  # damage inside the file, which only decoding finds
                continue
        members.append(member_bytes(task.name, data))
    return b"".join(members), len(tasks)


def _smaller(data: bytes, short_side: int, quality: int) -> bytes:
    image: Image.Image = Image.open(io.BytesIO(data))
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    scale = short_side / min(image.size)
    size = (max(short_side, round(image.width * scale)), max(short_side, round(image.height * scale)))
    file = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(file, "JPEG", quality=quality)
    return file.getvalue()
