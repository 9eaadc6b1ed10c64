"""A shard on disk: page-aligned sections in a file, and the commit record without which it is not trusted."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastanc import files
from fastanc.cache.rows import Part

FORMAT = 1
PAGE = 4096
DATA, RECORD = ".bin", ".json"
_INDEX = "index"
_CHUNK = 8 << 20


class Damaged(Exception):
    """A shard that cannot be trusted; the message is the reason, without the shard's name."""


class Untold(Damaged):
    """A shard of which nothing can be told: it was not read whole, or is of another version; it may be sound."""


class Section(NamedTuple):
    """A range of a shard's file; begins and ends on a page."""

    offset: int
    num_bytes: int
    crc32: int


@dataclass(frozen=True)
class Shard:
    """What a commit record says of its shard."""

    path: Path
    """The data file."""
    rows: int
    first: int | None
    """Number of the first image of a contiguous range; None where the file holds a list of image numbers."""
    sections: dict[str, Section]
    num_bytes: int

    def index(self) -> np.ndarray:
        """Return the image numbers [rows] int64, checked; raises Damaged."""
        if self.first is not None:
            return np.arange(self.first, self.first + self.rows)
        return self.section(_INDEX)[: self.rows * 8].view("<i8").astype(np.int64)

    def section(self, name: str) -> np.ndarray:
        """Return the bytes of a section, checked against its CRC; raises Damaged."""
        section = self.sections[name]
        with open(self.path, "rb") as file:
            data = np.frombuffer(os.pread(file.fileno(), section.num_bytes, section.offset), np.uint8)
        if zlib.crc32(data.data) != section.crc32:
            raise Damaged(f"the CRC of its {name} is wrong")
        return data

    def check(self) -> None:
        """Read every byte and compare the CRCs; raises Damaged."""
        with open(self.path, "rb") as file:
            for name, section in self.sections.items():
                file.seek(section.offset)
                crc, left = 0, section.num_bytes
                while left and (data := file.read(min(_CHUNK, left))):
                    crc, left = zlib.crc32(data, crc), left - len(data)
                if left or crc != section.crc32:
                    raise Damaged(f"the CRC of its {name} is wrong")

    def remove(self) -> None:
        """Take the shard out of the cache: first its record, so that it is never half trusted."""
        self.path.with_suffix(RECORD).unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)


def explain(folder: Path, error: OSError) -> ValueError:
    """Return the sentence for an error while writing into a folder of the cache."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ValueError(
            f"no space is left for {folder} ({error.strerror}): free some or choose another"
            " --teacher.cache_dir; every committed shard is safe"
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return ValueError(
            f"{folder} cannot be written ({error.strerror}): set --teacher.cache read, or choose another"
            " --teacher.cache_dir to fill"
        )
    return ValueError(f"writing into {folder} failed ({error.strerror}): every committed shard is safe")


def write_file(path: Path, chunks: Iterable[Any]) -> None:
    """Write a file so that it is there whole and durable, or not at all.

    Raises:
        ValueError: the disk is full or the folder cannot be written.
    """
    try:
        with files.written(path) as file:
            for chunk in chunks:
                file.write(chunk)
    except OSError as error:
        raise explain(path.parent, error) from error


def make_folder(folder: Path) -> None:
    """Create a folder durably; raises ValueError where that is not possible."""
    try:
        files.make_folder(folder)
    except OSError as error:
        raise explain(folder, error) from error


def write_shard(folder: Path, identity: str, index: np.ndarray, arrays: Mapping[str, np.ndarray]) -> int:
    """Write and commit one shard under a name of its own; return its bytes.

    Args:
        folder: of the view.
        identity: the hash of the cache's identity.
        index: image numbers [R] int64; a contiguous ascending range is stored as its first number.
        arrays: part name -> [R, width], little-endian.
    """
    first = int(index[0])
    contiguous = bool((index == np.arange(first, first + len(index))).all())
    blocks = {} if contiguous else {_INDEX: index.astype("<i8")}
    blocks |= {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    sections: dict[str, Section] = {}
    chunks: list[Any] = []
    offset = 0
    for name, block in blocks.items():
        data = block.data.cast("B")
        padding = bytes(-len(data) % PAGE)
        chunks += [data, padding]
        sections[name] = Section(offset, len(data) + len(padding), zlib.crc32(padding, zlib.crc32(data)))
        offset += sections[name].num_bytes
    # The name is unique, so no writer replaces another's file, and sorts by time: the first come is read.
    path = folder / f"shard-{time.time_ns():020d}-{secrets.token_hex(4)}{DATA}"
    record = {
        "format": FORMAT,
        "identity": identity,
        "file": path.name,
        "rows": len(index),
        "first": first if contiguous else None,
        "sections": sections,
        "bytes": offset,
    }
    make_folder(folder)
    write_file(path, chunks)
    try:
        write_file(path.with_suffix(RECORD), [json.dumps(record | {"crc32": _record_crc(record)}).encode()])
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        raise
    return offset


def _record_crc(record: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def load_shard(record_path: Path, identity: str, parts: Sequence[Part]) -> Shard:
    """Return the shard of a commit record; raises Damaged with the reason where it cannot be trusted."""
    try:
        data = record_path.read_bytes()
    except OSError as error:
        raise Untold(f"its commit record cannot be read ({error.strerror})") from error
    try:
        record = json.loads(data)
        crc = record.pop("crc32")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise Damaged("its commit record is not readable") from error
    path = record_path.with_suffix(DATA)
    made = record.get("format")
    if isinstance(made, int) and made > FORMAT:  # its CRC may be made otherwise, too
        raise Untold(f"it is of format {made}, this version reads {FORMAT}")
    if crc != _record_crc(record):
        raise Damaged("the CRC of its commit record is wrong")
    if made != FORMAT:
        raise Untold(f"it is of format {made}, this version reads {FORMAT}")
    if record["identity"] != identity or record["file"] != path.name:
        raise Damaged("its commit record belongs to another shard")
    sections = {name: Section(*values) for name, values in record["sections"].items()}
    for part in parts:
        wanted = record["rows"] * part.row_bytes
        if part.name not in sections or sections[part.name].num_bytes != wanted + -wanted % PAGE:
            raise Damaged(f"its commit record is of another size: {part.name} is not {wanted} bytes")
    try:
        found = path.stat().st_size
    except FileNotFoundError as error:
        raise Damaged("its data file is gone") from error
    except OSError as error:
        raise Untold(f"its data file cannot be read ({error.strerror})") from error
    if found != record["bytes"]:
        raise Damaged(f"its file has {found} bytes where the commit record says {record['bytes']}")
    return Shard(path, record["rows"], record["first"], sections, record["bytes"])


class Listing(NamedTuple):
    """The files of a view's folder."""

    records: list[Path]
    uncommitted: list[Path]
    """Data files without a record."""
    temporary: list[Path]


def list_files(folder: Path) -> Listing:
    """Return the files of a view's folder, oldest shard first."""
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return Listing([], [], [])
    committed = {name.removesuffix(RECORD) for name in names if name.endswith(RECORD)}
    return Listing(
        [folder / name for name in names if name.endswith(RECORD)],
        [folder / n for n in names if n.endswith(DATA) and n.removesuffix(DATA) not in committed],
        [folder / name for name in names if name.endswith(files.TEMPORARY)],
    )
