"""Parquet files whose images lie in them as they are: uncompressed, plainly encoded, each behind its length.

So `datasets` writes them since version 4.6, and pyarrow where the image column is told apart. pyarrow reads the
footer, the labels and the file names; where the images' bytes lie the page headers say (`parquet_pages`). The image
column is a binary one, or a struct {bytes, path} as Hugging Face's `Image` feature; a `ClassLabel` names the classes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fastanc.pipelines.anywhere import Opened, for_library, threads
from fastanc.pipelines.anywhere import opened as opened_file
from fastanc.pipelines.index.sources.kinds import pack_first
from fastanc.pipelines.index.sources.listing import Candidate, Label, Listing, Source, file_facts
from fastanc.pipelines.index.sources.parquet_columns import Columns, columns_of
from fastanc.pipelines.index.sources.parquet_pages import Damage, NotInPlace, byte_arrays, pages
from fastanc.pipelines.missing_labels import is_missing

_THREADS = 8
_MOST_PAGE_BYTES = 1 << 26  # of labels and names: a page that says more is a bomb


class _Shard(NamedTuple):
    images: list[Candidate]
    rejected: list[tuple[str, str]]
    classes: list[str] | None


def list_parquet(source: Source) -> Listing:
    """Return what parquet files hold; raises ValueError for damage, and images that do not lie there as they are."""
    facts = file_facts(source.base, source.files)
    listing = Listing(source.base, [(name, length) for name, length, _ in facts], [], facts=facts)
    with threads(_THREADS) as pool:
        shards = list(pool.map(lambda number: _list_shard(source, number), range(len(source.files))))
    for name, shard in zip(source.files, shards):
        if shard.classes != shards[0].classes:
            raise ValueError(
                f"{source.base / name} has other classes than {source.files[0]}: index them apart"
            )
        listing.candidates += shard.images
        listing.rejected += shard.rejected
    labelled = [one for one in listing.candidates if one.label is not None]
    if labelled and len(labelled) < len(listing.candidates):
        listing.rejected += [(one.name, "no label") for one in listing.candidates if one.label is None]
        listing.candidates = labelled
    listing.classes = shards[0].classes if labelled else None
    return listing


def _list_shard(source: Source, number: int) -> _Shard:
    path, stem = source.base / source.files[number], Path(source.files[number]).stem
    images, rejected, row = list[Candidate](), list[tuple[str, str]](), 0
    with opened(path) as file:
        columns = columns_of(file, path, source.options.columns)
        leaf = _leaf(file, columns, path)
        with opened_file(path) as raw:
            for group in range(file.metadata.num_row_groups):
                places = _places(file, raw, group, leaf, source)
                told = _told(file, raw, group, columns, path)
                for place, (label, name) in zip(places, told, strict=True):
                    name = row_name(stem, row, name)
                    if place is None:
                        rejected.append((name, "no image (null)"))
                    else:
                        images.append(Candidate(name, number, *place, label))
                    row += 1
    return _Shard(images, rejected, columns.classes)


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Yield a `pyarrow.parquet.ParquetFile`; raises ValueError in one sentence for whatever is wrong with it."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ValueError(f"{path} is a parquet file: pip install 'fastanc[parquet]' to read it") from None
    try:
        with for_library(path) as raw, parquet.ParquetFile(raw) as file:
            yield file
    except (pyarrow.ArrowException, Damage, OSError, UnicodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is damaged ({reason}): get it again") from None


def row_name(stem: str, row: int, name: str | None) -> str:
    """Return what an image is called in the index: its file, its row, and its own name where it has one."""
    own = os.path.basename((name or "").replace("\\", "/")).replace("\0", "")
    return f"{stem}/{row:07d}{'-' + own if own else ''}"


def _leaf(file: Any, columns: Columns, path: Path) -> int:
    """The number of the column, as parquet counts them, that holds the images' bytes."""
    wanted = f"{columns.image}.bytes" if columns.is_struct else columns.image
    schema = file.schema
    for number in range(len(schema)):
        if schema.column(number).path == wanted:
            if schema.column(number).max_repetition_level == 0:
                return number
            break
    raise ValueError(
        f"{path} has no single image in a row of {columns.image}: name another column by --columns"
    )


def _places(
    file: Any, raw: Opened, group: int, leaf: int, source: Source
) -> Iterator[tuple[int, int] | None]:
    """Offset and bytes of every image of a row group; raises ValueError where they are compressed or encoded."""
    start, end, chunk = _chunk(file, raw, group, leaf)
    try:
        if chunk.compression != "UNCOMPRESSED":
            raise NotInPlace(f"compressed ({chunk.compression.lower()})")
        level = file.schema.column(leaf).max_definition_level
        for page in pages(raw.read, start, end, chunk.num_values):
            if page.num_values:
                yield from byte_arrays(raw.read, page, level)
    except NotInPlace as why:
        raise pack_first(source.path, f"parquet whose images are {why}") from None


def _chunk(file: Any, raw: Opened, group: int, leaf: int) -> tuple[int, int, Any]:
    """Where a column's pages lie in a row group, and what the footer says of them."""
    chunk = file.metadata.row_group(group).column(leaf)
    start = chunk.data_page_offset
    if chunk.has_dictionary_page and chunk.dictionary_page_offset:
        start = min(start, chunk.dictionary_page_offset)
    end = start + chunk.total_compressed_size
    if not 4 <= start <= end <= raw.size:
        raise Damage(f"a column in bytes {start} to {end}")
    if chunk.num_values != file.metadata.row_group(group).num_rows:
        raise Damage(f"{chunk.num_values} values of {file.metadata.row_group(group).num_rows} rows")
    return start, end, chunk


def _told(file: Any, raw: Opened, group: int, columns: Columns, path: Path) -> list[tuple[Label, str | None]]:
    """The label and the file's name of every row of a row group."""
    rows = file.metadata.row_group(group).num_rows
    wanted = [f"{columns.image}.path"] * columns.has_path + [columns.label] * (columns.label is not None)
    if not wanted:
        return [(None, None)] * rows
    for number in range(len(file.schema)):
        if file.schema.column(number).path in wanted:
            start, end, chunk = _chunk(file, raw, group, number)
            for page in pages(raw.read, start, end, chunk.num_values):
                if page.unpacked > _MOST_PAGE_BYTES:
                    raise Damage(f"a page of {page.unpacked} bytes of labels or names")
    table = file.read_row_group(group, columns=wanted)
    labels: Sequence[Label] = [None] * rows
    if columns.label is not None:
        labels = [label_of(value, columns, path) for value in table[columns.label].to_pylist()]
    names: Sequence[str | None] = [None] * rows
    if columns.has_path:
        names = [value and value["path"] for value in table[columns.image].to_pylist()]
    return list(zip(labels, names, strict=True))


def label_of(value: Any, columns: Columns, path: Path) -> Label:
    """Return a label as its class's name or number; None where there is none."""
    if is_missing(value):
        return None
    if columns.classes is None or isinstance(value, str):
        return value
    if not 0 <= value < len(columns.classes):
        raise ValueError(
            f"{path} has the label {value}, and {columns.label} has {len(columns.classes)} classes"
        )
    return columns.classes[value]
