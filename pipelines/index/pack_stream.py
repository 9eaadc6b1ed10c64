"""A source that cannot be read in place, written once into a plain tar that can; killed at any moment, it goes on."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import PIL
from tqdm import tqdm

from fastanc.files import make_folder, named, put, sweep
from fastanc.pipelines.anywhere import listdir
from fastanc.pipelines.index.build import Index, build_index, index_path, rejected_path
from fastanc.pipelines.index.part_file import PartFile, check_free
from fastanc.pipelines.index.shrink import shrunk_to
from fastanc.pipelines.index.sources import PackFirst, Source, file_facts, find, splits_inside
from fastanc.pipelines.index.sources.kinds import compression_of
from fastanc.pipelines.index.streams import Item, Stream, stream_of
from fastanc.pipelines.index.workers import in_order, locked
from fastanc.pipelines.source_options import PLAIN, SourceOptions
from fastanc.pipelines.tar_file import is_header, member_bytes

_CHUNK, _BLOCK = 32, 1 << 20


class Streamed(NamedTuple):
    """What was made of a source that was streamed."""

    indexes: list[Index]
    """Of the tar, or of each split inside of it."""
    bytes_before: int
    bytes_after: int
    out: Path

    def __str__(self) -> str:
        counts = ", ".join(f"{len(index)} images in {index.source}" for index in self.indexes)
        lost = sum(index.rejected for index in self.indexes)
        named = [str(rejected_path(index_path(index.source))) for index in self.indexes if index.rejected]
        left_out = f", {lost} left out (see {', '.join(named)})" if lost else ""
        return f"{counts}{left_out}: {self.bytes_before / 1e6:.1f} MB before, {self.bytes_after / 1e6:.1f} MB after"


def pack_stream(
    source: Path,
    out: Path,
    options: SourceOptions = PLAIN,
    *,
    short_side: int | None = None,
    quality: int = 90,
    workers: int = 1,
    progress: bool = True,
) -> Streamed:
    """Write a source that cannot be read in place into the tar `out`, and index that.

    A compressed tar becomes the tar that it is, byte for byte; of a zip its images and files of labels keep their
    names; of parquet, MDS and LMDB images get class folders. Raises FileExistsError where `out` exists, ValueError
    where the source is damaged.
    """
    if options.labels is not None or options.images is not None:
        raise ValueError(
            f"{source} is packed with what it says itself: leave --labels and --images out, and give labels to"
            " `fastanc index` for the tar that comes out"
        )
    packed = compression_of(source) if source.is_file() else None
    if packed is not None and short_side is not None:
        raise ValueError(
            f"{source} is a compressed tar, of which no image is made smaller on the way: pack it without"
            " --short_side first, then pack the tar that comes out with it"
        )
    stream = None if packed is not None else stream_of(what_it_is(source, options))
    files = [source.name] if stream is None else files_of(what_it_is(source, options))
    base = source.parent if stream is None else what_it_is(source, options).base
    facts = file_facts(base, files)
    identity: dict[str, object] = {
        "source": [list(fact) for fact in facts],
        "short_side": short_side,
        "quality": quality,
    }
    identity |= {"pillow": PIL.__version__, "columns": options.columns}
    part = PartFile(out, identity)
    if not part.note.exists():
        check_free(out)
    make_folder(out.parent)
    with locked(out.with_name(f"{out.name}.lock")):
        if not part.is_written():
            check_free(out)
            sweep(out.parent, part.note.name)
            try:
                if stream is None:
                    _decompress(source, cast(str, packed), part, progress)
                else:
                    _write(stream, part, short_side, quality, workers, progress)
            except ValueError:  # nothing to go on from: it takes another source
                part.drop()
                raise
            put(part.part, out)
        indexes = _indexed(out, workers, progress)
        part.note.unlink()
    return Streamed(indexes, sum(length for _, length, _ in facts), out.stat().st_size, out)


def what_it_is(source: Path, options: SourceOptions) -> Source:
    """Return a source as what it is; an LMDB database is none that can be read in place."""
    try:
        return find(source, options)
    except PackFirst:
        base = source if source.is_dir() else source.parent
        return Source(
            source, "lmdb", base, [name for name in ("data.mdb",) if source.is_dir()] or [source.name]
        )


def files_of(source: Source) -> list[str]:
    """Return the names of all files that are read of a source."""
    if source.kind != "mds":
        return source.files
    return ["index.json", *(name for name in sorted(listdir(source.base)) if ".mds" in name)]


def _write(
    stream: Stream, part: PartFile, short_side: int | None, quality: int, workers: int, progress: bool
) -> None:
    done = len(part.resume())
    chunks = _chunks(stream.items(done))
    members = in_order(
        partial(_members, short_side=short_side, quality=quality), chunks, workers if short_side else 1
    )
    with tqdm(total=stream.total, initial=done, unit="img", desc="pack", disable=not progress) as bar:
        part.append(members, bar)


def _chunks(items: Iterator[Item]) -> Iterator[list[Item]]:
    chunk: list[Item] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _members(items: list[Item], short_side: int | None, quality: int) -> tuple[bytes, int]:
    """The tar members of some files, and how many; what does not decode keeps its bytes, the index names it."""
    data = (item.data if short_side is None else shrunk_to(item.data, short_side, quality) for item in items)
    return b"".join(member_bytes(item.name, one) for item, one in zip(items, data)), len(items)


def _decompress(source: Path, kind: str, part: PartFile, progress: bool) -> None:
    """Write what a compressed tar is; the part is compared with it, and kept as far as it agrees."""
    total = source.stat().st_size
    if part.said() != part.identity:
        part.begin()
    with (
        named(part.part),
        _opened(source, kind) as (raw, plain),
        open(part.part, "r+b") as tar,
        tqdm(total=total, unit="B", unit_scale=True, desc="pack", disable=not progress) as bar,
    ):
        position = 0
        while data := _read(plain, source, kind):
            if not position and not is_header(data[:512]):
                raise ValueError(
                    f"{source} is compressed ({kind}), but what it holds is no tar: decompress it by itself"
                )
            if tar.read(len(data)) != data:
                tar.seek(position)
                tar.write(data)
                tar.flush()
            position += len(data)
            bar.update(raw.tell() - bar.n)
        tar.truncate(position)
        if not position:
            raise ValueError(f"{source} is compressed ({kind}), and empty: get it again")


@contextmanager
def _opened(source: Path, kind: str) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """The file itself, and what it decompresses to."""
    with open(source, "rb") as raw:
        if kind == "gzip":
            plain = cast(BinaryIO, gzip.GzipFile(fileobj=raw))
        elif kind == "bzip2":
            plain = cast(BinaryIO, bz2.BZ2File(raw))
        elif kind == "xz":
            plain = cast(BinaryIO, lzma.LZMAFile(raw))  # noqa: SIM115  (closed below)
        else:
            try:
                import pyarrow
            except ImportError:
                raise ValueError(
                    f"{source} is compressed ({kind}): pip install 'fastanc[parquet]' to read it, or decompress it"
                ) from None
            plain = cast(BinaryIO, pyarrow.CompressedInputStream(pyarrow.PythonFile(raw), kind))
        with plain:
            yield raw, plain


def _read(plain: BinaryIO, source: Path, kind: str) -> bytes:
    try:
        return plain.read(_BLOCK)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, gzip.BadGzipFile):
            raise
        raise ValueError(f"{source} is damaged or cut off ({kind}: {error}): get it again") from None


def _indexed(out: Path, workers: int, progress: bool) -> list[Index]:
    inside = splits_inside(out)
    sources = [out / name for name in inside] if inside else [out]
    return [build_index(one, workers=workers, progress=progress) for one in sources]
