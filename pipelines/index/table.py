"""The index of a data set: one row per image, in one file that is mapped, not read.

The file is `MAGIC`, the length of a JSON header and its CRC-32, the header, and the columns as raw arrays at
multiples of 64 bytes, whose CRC-32 stands in the header. Both are compared whenever the file is opened: a flipped
bit in a label or an offset would train on something else without a word. Not .npz: NumPy cannot map arrays inside
a zip; here all processes of a machine share one copy in the page cache, and 1.28 million rows open in a tenth of a
second. Not Arrow: a dependency for ten columns. Nothing in the file is code (no pickle).
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fastanc.files import written
from fastanc.pipelines.index.origin import Origin, OtherFormat, origin_of
from fastanc.pipelines.source_path import folder_of, is_there

MAGIC = b"FANCIDX2"
_HEAD = struct.Struct("<8sQQ")
_ALIGN = 64
_AGAIN = "build it again with 'fastanc index'"
_COLUMNS = (
    "sizes",
    "labels",
    "crc32",
    "lengths",
    "offsets",
    "file_numbers",
    "note_numbers",
    "name_bytes",
    "name_ends",
    "mtimes",
)
_OPTIONAL = ("labels", "offsets", "file_numbers", "mtimes")
_NOT_A_ROW_EACH = ("name_bytes", "mtimes")


class _Damage(Exception):
    """An index file that cannot be read; the message says why."""


@dataclass(frozen=True, eq=False)
class Index:
    """The table of a data set of N images, ordered by class folder, folder and file name."""

    source: Path
    """The folder or file it was made from, or a folder inside of an archive."""
    sizes: np.ndarray
    """[N, 2] int32 (width, height) in pixels, unrotated."""
    labels: np.ndarray | None
    """[N] int64 positions in `classes`; None where the set has no labels."""
    classes: list[str]
    crc32: np.ndarray
    """[N] uint32 of the image's bytes."""
    lengths: np.ndarray
    """[N] int64 bytes."""
    offsets: np.ndarray | None
    """[N] int64 bytes into the file that holds it; None where every image is a file."""
    file_numbers: np.ndarray | None
    """[N] int32 positions in `files`; None where every image is a file."""
    files: list[tuple[str, int]] | None
    """(path relative to the source's folder, bytes) of every file of images; None where every image is a file.

    Of a part of a joined index that is a tree one (path/, 0), below which its images lie by their names.
    """
    note_numbers: np.ndarray
    """[N] uint16 positions in `notes`."""
    notes: list[str]
    name_bytes: np.ndarray
    """All names, one after the other, as UTF-8 bytes."""
    name_ends: np.ndarray
    """[N] int64 positions in `name_bytes`."""
    rejected: int
    """How many files were left out."""
    fingerprint: str
    """Digest of names, lengths, crc32s and labels: the same for a tree, its tar and its tar of tars."""
    mtimes: np.ndarray | None = None
    """Modification times in ns, int64: [N] of a tree's images, [F] of the tars; None in a subset."""
    origin: Origin = Origin()

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def numbered(self) -> bool:
        """Whether the labels came as whole numbers, not as names."""
        return self.origin.numbered

    @property
    def remarks(self) -> list[str]:
        """Sentences on what was passed over."""
        return self.origin.remarks

    def name(self, i: int) -> str:
        """Return image i's name, such as `n01440764/n01440764_10026.JPEG`."""
        return self._names(np.array([i]))[0]

    def names(self) -> list[str]:
        """Return the names of all images."""
        return self._names(np.arange(len(self)))

    def _names(self, rows: np.ndarray) -> list[str]:
        data = self.name_bytes.data
        starts = np.where(rows > 0, self.name_ends[rows - 1], 0).tolist()
        return [os.fsdecode(data[a:b].tobytes()) for a, b in zip(starts, self.name_ends[rows].tolist())]

    def note(self, i: int) -> str:
        """Return what is unusual about image i ("PNG RGBA", "EXIF orientation 6, read unrotated"), or ""."""
        return self.notes[self.note_numbers[i]]

    @property
    def folder(self) -> str:
        """The absolute path that files are relative to."""
        return self.origin.base or os.path.abspath(folder_of(self.source))

    @cached_property
    def _base(self) -> str:
        return f"{self.folder}/"

    @cached_property
    def _paths(self) -> list[str]:
        return [self._base + path for path, _ in self.files or []]

    def places(self, indices: Iterable[int]) -> list[tuple[str, int, int]]:
        """Return (absolute path of the holding file, offset, length), in bytes, of these images."""
        rows = np.asarray(list(indices), np.int64)
        lengths = self.lengths[rows].tolist()
        if self.offsets is None or self.file_numbers is None:
            names = self._names(rows)
            return [(n if n[0] == "/" else self._base + n, 0, length) for n, length in zip(names, lengths)]
        paths = [self._paths[number] for number in self.file_numbers[rows].tolist()]
        inside = [k for k, path in enumerate(paths) if path[-1] == "/"]
        for k, name in zip(inside, self._names(rows[inside]) if inside else ()):
            own = name.partition("/")[2]  # behind the number of its part
            paths[k] = own if own[0] == "/" else paths[k] + own
        return list(zip(paths, self.offsets[rows].tolist(), lengths))

    def containers(self) -> list[tuple[str, int]]:
        """Return (absolute path, expected bytes) of every file that holds images: a tree has N of them.

        Of a joined index only those that hold several.
        """
        if self.files is None:
            return [(path, length) for path, _, length in self.places(range(len(self)))]
        there = [(path, size) for path, (_, size) in zip(self._paths, self.files)]
        return [(path, size) for path, size in there if path[-1] != "/"]

    def subset(self, numbers: np.ndarray) -> Index:
        """Return the index of some images, renumbered: `numbers` are their numbers [M], or a mask [N] bool."""
        rows = np.arange(len(self))[numbers]
        return make_index(
            source=self.source,
            names=self._names(rows),
            sizes=self.sizes[rows],
            labels=None if self.labels is None else self.labels[rows],
            classes=self.classes,
            crc32=self.crc32[rows],
            lengths=self.lengths[rows],
            offsets=None if self.offsets is None else self.offsets[rows],
            file_numbers=None if self.file_numbers is None else self.file_numbers[rows],
            files=self.files,
            notes=[self.note(i) for i in rows],
            origin=Origin(numbered=self.origin.numbered, remarks=self.origin.remarks, base=self.origin.base),
        )

    def save(self, path: Path) -> None:
        """Write the index to one file, whole or not at all."""
        path, columns, position = Path(path), dict[str, list[Any]](), 0
        for name in _COLUMNS:
            column = getattr(self, name)
            if column is not None:
                columns[name] = [column.dtype.str, list(column.shape), position]
                position += -(-column.nbytes // _ALIGN) * _ALIGN
        header: dict[str, Any] = {
            "source": [os.path.abspath(self.source), os.path.relpath(self.source, path.absolute().parent)],
            "classes": self.classes,
            "files": self.files,
            "notes": self.notes,
            "rejected": self.rejected,
            "fingerprint": self.fingerprint,
            "origin": asdict(self.origin),
            "columns": columns,
            "bytes": position,
            "crc32": 0,
        }
        parts: list[bytes | memoryview] = []
        for name in columns:
            data = np.ascontiguousarray(getattr(self, name))
            parts += [data.data.cast("B") if data.nbytes else b"", b"\0" * (-data.nbytes % _ALIGN)]
        for part in parts:
            header["crc32"] = zlib.crc32(part, header["crc32"])
        text = json.dumps(header).encode()
        text += b" " * (-(len(text) + _HEAD.size) % _ALIGN)
        with written(path) as file:
            file.write(_HEAD.pack(MAGIC, len(text), zlib.crc32(text)) + text)
            file.writelines(parts)

    @classmethod
    def load(cls, path: Path) -> Index:
        """Map an index file; a set moved together with it is found; raises ValueError where it is damaged."""
        path = Path(path)
        try:
            return cls._load(path)
        except _Damage as reason:
            raise ValueError(f"{path} {reason}: {_AGAIN}") from None
        except OtherFormat:
            raise OtherFormat(f"{path} is not an index of this version: {_AGAIN}") from None
        except (OSError, MemoryError):
            raise
        except Exception as error:  # of a header that is not ours there may come any
            raise ValueError(f"{path} is damaged: {_AGAIN}") from error

    @classmethod
    def _load(cls, path: Path) -> Index:
        with open(path, "rb") as file:
            head, size = file.read(_HEAD.size), os.fstat(file.fileno()).st_size
            if head[:7] == MAGIC[:7] and head[7:8].isdigit() and head[:8] != MAGIC:
                raise OtherFormat
            if head[:8] != MAGIC:
                raise _Damage("is not an index of this version")
            if len(head) < _HEAD.size:
                raise _Damage("is cut off")
            _, length, crc32 = _HEAD.unpack(head)
            start = _HEAD.size + length
            if start > size:
                raise _Damage("is cut off")
            text = file.read(length)
            if zlib.crc32(text) != crc32:
                raise _Damage("is damaged")
            header = json.loads(text)
            if size != start + header["bytes"]:
                raise _Damage("is cut off")
            data = np.asarray(np.memmap(file, np.uint8, "r", offset=0))[start:]
        if zlib.crc32(data.data) != header["crc32"]:
            raise _Damage("is damaged")
        columns: dict[str, np.ndarray | None] = dict.fromkeys(_COLUMNS)
        for name, (dtype, shape, position) in header["columns"].items():
            count = int(np.prod(shape))
            part = data[position : position + count * np.dtype(dtype).itemsize]
            columns[name] = part.view(dtype).reshape(shape)
        _check(columns)
        absolute, relative = header["source"]
        beside = Path(os.path.normpath(path.absolute().parent / relative))
        return cls(
            source=beside if is_there(beside) else Path(absolute),
            classes=header["classes"],
            files=None if header["files"] is None else [(name, size) for name, size in header["files"]],
            notes=header["notes"],
            rejected=header["rejected"],
            fingerprint=header["fingerprint"],
            origin=origin_of(header["origin"]),
            **columns,  # type: ignore[arg-type]
        )


def _check(columns: Mapping[str, np.ndarray | None]) -> None:
    """Raise _Damage where a column is missing or of another length than the others."""
    present = {name: len(column) for name, column in columns.items() if column is not None}
    lengths = {length for name, length in present.items() if name not in _NOT_A_ROW_EACH}
    if not {*_COLUMNS} - {*_OPTIONAL} <= {*present} or len(lengths) != 1:
        raise _Damage("is damaged")


def make_index(
    *,
    source: Path,
    names: Sequence[str],
    sizes: np.ndarray,
    labels: np.ndarray | None,
    classes: Sequence[str],
    crc32: np.ndarray,
    lengths: np.ndarray,
    offsets: np.ndarray | None,
    file_numbers: np.ndarray | None,
    files: list[tuple[str, int]] | None,
    notes: Sequence[str],
    rejected: int = 0,
    mtimes: np.ndarray | None = None,
    origin: Origin | None = None,
) -> Index:
    """Return the index of N images from its columns (see `Index`); packs the names, takes the fingerprint."""
    encoded = [os.fsencode(name) for name in names]
    kinds = sorted({"", *notes})
    number = {note: k for k, note in enumerate(kinds)}
    columns = {
        "sizes": np.asarray(sizes, np.int32).reshape(-1, 2),
        "labels": None if labels is None else np.asarray(labels, np.int64),
        "crc32": np.asarray(crc32, np.uint32),
        "lengths": np.asarray(lengths, np.int64),
        "name_bytes": np.frombuffer(b"".join(encoded), np.uint8),
        "name_ends": np.cumsum([len(name) for name in encoded], dtype=np.int64),
        "mtimes": None if mtimes is None else np.asarray(mtimes, np.int64),
    }
    return Index(
        source=Path(source),
        classes=list(classes),
        offsets=None if offsets is None else np.asarray(offsets, np.int64),
        file_numbers=None if file_numbers is None else np.asarray(file_numbers, np.int32),
        files=files,
        note_numbers=np.array([number[note] for note in notes], np.uint16),
        notes=kinds,
        rejected=rejected,
        fingerprint=fingerprint_of(columns),
        origin=origin or Origin(),
        **columns,  # type: ignore[arg-type]
    )


def fingerprint_of(columns: Mapping[str, np.ndarray | None]) -> str:
    """Return the digest of a table's names, lengths, crc32s and labels."""
    digest = hashlib.blake2b(digest_size=16)
    for key in ("name_bytes", "name_ends", "lengths", "crc32", "labels"):
        column = columns[key]
        digest.update(b"none" if column is None else np.ascontiguousarray(column).data.cast("B"))
    return digest.hexdigest()
