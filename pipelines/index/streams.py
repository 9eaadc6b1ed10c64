"""What cannot be read in place, as a stream of files in a fixed order: compressed zips, parquet and MDS, and LMDB.

A stream is gone through again from any member on, so that a pack which was killed goes on. What is damaged or too
large becomes an empty file: the index names it, and the members after it keep their numbers.
"""

from __future__ import annotations

import gzip
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tqdm import tqdm

from fastanc.pipelines.anywhere import Opened, opened_as
from fastanc.pipelines.index.class_folders import (
    CLASSES,
    ESCAPED,
    NUMBERED,
    class_folders,
    classes_member,
    escaped,
)
from fastanc.pipelines.index.image_check import suffix_of
from fastanc.pipelines.index.sources import IMAGE_SUFFIXES, Label, Source
from fastanc.pipelines.index.sources import mds as mds_shards
from fastanc.pipelines.index.sources import parquet as parquet_files
from fastanc.pipelines.index.sources import zip as zips
from fastanc.pipelines.index.sources.archive import LABEL_SUFFIXES
from fastanc.pipelines.index.sources.parquet_columns import Columns, columns_of
from fastanc.pipelines.missing_labels import is_missing

MOST_BYTES = 1 << 28
"""Of one image: what unpacks to more is no image."""
_ROWS = 32
_MOST_SHARD_BYTES = 1 << 32


class Item(NamedTuple):
    """A file on its way into a tar."""

    name: str
    data: bytes


class Stream(Protocol):
    """The files of a source, in an order that is the same every time."""

    total: int

    def items(self, start: int) -> Iterator[Item]:
        """Yield the files from number `start` on."""


def stream_of(source: Source) -> Stream:
    """Return the stream of a source of a kind that may have to be packed; raises ValueError for damage."""
    kinds: dict[str, Any] = {"zip": _Zip, "parquet": _Parquet, "mds": _Mds, "lmdb": _Lmdb}
    stream: Stream = kinds[source.kind](source)
    return stream


class _Zip:
    """Images and files of labels of a zip, under their own names."""

    def __init__(self, source: Source) -> None:
        self._path = source.base / source.files[0]
        with zips.opened(self._path) as archive:
            infos = archive.infolist()
        if any(info.flag_bits & 1 for info in infos if zips.is_image(info)):
            raise ValueError(
                f"{self._path} is an encrypted zip: unpack it with its password, and give the folder"
            )
        self._infos = [info for info in infos if not info.is_dir() and self._is_wanted(info)]
        self.total = len(self._infos)

    @staticmethod
    def _is_wanted(info: zipfile.ZipInfo) -> bool:
        name = zips.name_of(info)
        text = name.lower().endswith((*LABEL_SUFFIXES, ".csv", ".txt", ".tsv", ".jsonl"))
        safe = not name.startswith("/") and ".." not in name.split("/")
        return safe and not zips.problem_of(info) and (text or zips.is_image(info))

    def items(self, start: int) -> Iterator[Item]:
        with zips.opened(self._path) as archive:
            for info in self._infos[start:]:
                yield Item(zips.name_of(info), _member(archive, info))


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """A member's bytes; none where it is damaged, or unpacks to more than an image can have."""
    if info.file_size > MOST_BYTES:
        return b""
    try:
        with archive.open(info) as file:
            return file.read(info.file_size)
    except Exception:  # of a damaged member there may come any
        return b""


class _Parquet:
    """The images of parquet files by class folder, rows in order."""

    def __init__(self, source: Source) -> None:
        self._source, self._files = source, list[tuple[Path, list[int], Columns]]()
        for name in source.files:
            path = source.base / name
            with parquet_files.opened(path) as file:
                rows = [file.metadata.row_group(k).num_rows for k in range(file.metadata.num_row_groups)]
                self._files.append((path, rows, columns_of(file, path, source.options.columns)))
        self._classes = self._files[0][2].classes or []
        if odd := next(
            (path for path, _, columns in self._files if (columns.classes or []) != self._classes), None
        ):
            raise ValueError(f"{odd} has other classes than {source.files[0]}: pack them apart")
        self._head = int(self._files[0][2].label is not None)
        self.total = self._head + sum(sum(rows) for _, rows, _ in self._files)

    def items(self, start: int) -> Iterator[Item]:
        if start < self._head:
            yield Item(CLASSES, self._said())
        skip = max(0, start - self._head)
        for path, rows, columns in self._files:
            if skip >= sum(rows):
                skip -= sum(rows)
                continue
            first, groups = 0, list(range(len(rows)))
            while skip >= rows[groups[0]]:
                skip -= rows[groups[0]]
                first += rows[groups.pop(0)]
            yield from self._rows(path, groups, columns, first, skip)
            skip = 0

    def _said(self) -> bytes:
        if self._classes:
            return classes_member(self._classes, class_folders(self._classes))
        path, _, columns = self._files[0]
        with parquet_files.opened(path) as file:
            kind = str(file.schema_arrow.field(columns.label).type)
        return NUMBERED if "int" in kind and "string" not in kind else ESCAPED

    def _rows(self, path: Path, groups: list[int], columns: Columns, first: int, skip: int) -> Iterator[Item]:
        wanted = [columns.image, *([columns.label] if columns.label is not None else [])]
        with parquet_files.opened(path) as file:
            row = first
            for batch in file.iter_batches(batch_size=_ROWS, row_groups=groups, columns=wanted):
                labels = batch.column(columns.label).to_pylist() if columns.label is not None else None
                for k, image in enumerate(batch.column(columns.image)):
                    if row >= first + skip:
                        label = None if labels is None else parquet_files.label_of(labels[k], columns, path)
                        yield self._item(path, row, image, columns, label)
                    row += 1

    def _item(self, path: Path, row: int, image: Any, columns: Columns, label: Label) -> Item:
        value = image.as_py()
        data = (
            value["bytes"] if columns.is_struct and value else None if columns.is_struct else value
        ) or b""
        own = value.get("path") if columns.has_path and value else None
        name = parquet_files.row_name(path.stem, row, own)
        return Item(_named(name, data, label, self._classes, columns.label is not None), data)


class _Mds:
    """The images of compressed MDS shards by class folder."""

    def __init__(self, source: Source) -> None:
        self._source, self._shards = source, mds_shards.read_shards(source.base)
        _, label = mds_shards.image_and_label(source, self._shards[0])
        is_text = label is not None and self._shards[0].encodings[label] == "str"
        self._said = None if label is None else ESCAPED if is_text else NUMBERED
        self.total = sum(shard.samples for shard in self._shards) + (self._said is not None)

    def items(self, start: int) -> Iterator[Item]:
        if self._said is not None:
            if not start:
                yield Item(CLASSES, self._said)
            start = max(0, start - 1)
        for shard in self._shards:
            if start >= shard.samples:
                start -= shard.samples
                continue
            columns = mds_shards.image_and_label(self._source, shard)
            path = mds_shards.packed_path(self._source.base, shard)
            with _in_memory(path, shard) as file:
                for row, (offset, length, label) in enumerate(mds_shards.samples(file, path, shard, columns)):
                    if row >= start:
                        data = file.read(length, offset)
                        name = f"{Path(shard.name).stem}/{row:07d}"
                        yield Item(_named(name, data, label, [], columns[1] is not None), data)
            start = 0


@contextmanager
def _in_memory(path: Path, shard: mds_shards.Shard) -> Iterator[Opened]:
    """A shard, decompressed, as an open file that lies on no disk."""
    with open(os.memfd_create("shard"), "w+b") as file:
        file.write(_decompressed(path, shard))
        file.flush()
        yield opened_as(file.fileno())


def _decompressed(path: Path, shard: mds_shards.Shard) -> bytes:
    kind = (shard.compression or "").partition(":")[0]
    try:
        if kind == "gz":
            with gzip.open(path) as file:
                data = file.read(min(shard.num_bytes, _MOST_SHARD_BYTES) + 1)
        elif shard.compression is None:
            data = path.read_bytes()
        else:
            data = _by_pyarrow(path, {"br": "brotli", "bz2": "bz2", "zstd": "zstd"}[kind], shard.num_bytes)
    except KeyError:
        raise ValueError(
            f"{path} is compressed by {shard.compression}, which is not read: write it anew"
        ) from None
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} is damaged ({error}): get it again") from None
    if len(data) != shard.num_bytes:
        raise ValueError(f"{path} is not the shard that {mds_shards.INDEX} says: get it again")
    return data


def _by_pyarrow(path: Path, kind: str, most: int) -> bytes:
    try:
        import pyarrow
    except ImportError:
        raise ValueError(
            f"{path} is compressed by {kind}: pip install 'fastanc[parquet]' to read it"
        ) from None
    with pyarrow.input_stream(str(path), compression=kind) as file:
        data: bytes = file.read(min(most, _MOST_SHARD_BYTES) + 1)
        return data


class _Lmdb:
    """The values of an LMDB database that are image files, by their keys."""

    def __init__(self, source: Source) -> None:
        try:
            import lmdb
        except ImportError:
            raise ValueError(f"{source.path} is an LMDB database: pip install lmdb to read it") from None
        self._path = source.path
        try:
            self._file = lmdb.open(str(self._path), readonly=True, lock=False, subdir=self._path.is_dir())
        except lmdb.Error as error:
            raise ValueError(f"{self._path} is no readable LMDB database ({error}): get it again") from None
        with self._file.begin() as read:
            self._keys = [bytes(key) for key, value in read.cursor() if suffix_of(value[:16]) is not None]
            total = read.stat()["entries"]
        if not self._keys:
            raise ValueError(
                f"{self._path} is an LMDB database whose {total} values are no image files: read it by a torch data"
                " set of your own (docs/input.md, Your own data)"
            )
        if total > len(self._keys):
            tqdm.write(f"{total - len(self._keys)} of {total} values of {self._path} are no image files")
        self.total = len(self._keys)

    def items(self, start: int) -> Iterator[Item]:
        with self._file.begin() as read:
            for key in self._keys[start:]:
                data = bytes(read.get(key) or b"")
                yield Item(_ending(_path_of(key), data), data)


def _path_of(key: bytes) -> str:
    """A key as a path that stays inside of its folder."""
    text = key.decode("utf-8", "backslashreplace").replace("\0", "")
    return "/".join(part for part in text.split("/") if part.strip(".")) or key.hex()


def _ending(name: str, data: bytes) -> str:
    """A name that ends as an image's."""
    return name if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES else name + (suffix_of(data) or ".jpg")


def _named(name: str, data: bytes, label: Label, classes: list[str], has_labels: bool) -> str:
    """The member's name: its class folder, if the source has labels, and a suffix that says what it is."""
    name = _ending(name.replace("/", "-"), data)
    if not has_labels:
        return name
    if is_missing(label):
        return f"unlabelled-{name}"  # beside the class folders: the index names it
    if classes:
        return f"{class_folders(classes)[classes.index(str(label))]}/{name}"
    return f"{label:07d}/{name}" if isinstance(label, int) else f"{escaped(str(label))}/{name}"
