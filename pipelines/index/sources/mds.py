"""A folder of MDS shards (mosaicml-streaming): `index.json` says the columns, each sample is a range of its shard.

A shard is the number of samples, the place of each and of the end (all uint32, little-endian), a JSON text, and the
samples: the bytes of each column without a fixed size (uint32), then the columns (`MDSWriter.encode_sample`).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastanc.pipelines.anywhere import Opened, Read, opened
from fastanc.pipelines.index.columns import LABELS, NAMES, asked_columns, column_of
from fastanc.pipelines.index.sources.kinds import pack_first
from fastanc.pipelines.index.sources.listing import Candidate, Label, Listing, Source, file_facts
from fastanc.pipelines.missing_labels import is_missing

INDEX = "index.json"
_IMAGES = frozenset({"jpeg", "png", "bytes", "jpeg_array", "jpegarray"})
"""Encodings whose bytes are an image file's."""
_NUMBERS = {"int": "<i8"} | {
    f"{sign}{bits}": f"<{sign[0]}{bits // 8}" for sign in ("int", "uint") for bits in (8, 16, 32, 64)
}
_MOST_LABEL_BYTES = 1 << 16


class Shard(NamedTuple):
    """What `index.json` says of one shard."""

    name: str
    num_bytes: int
    samples: int
    names: list[str]
    encodings: list[str]
    sizes: list[int | None]
    compression: str | None
    packed_name: str | None
    """Of the compressed file."""


def claims(folder: Path) -> bool:
    """Tell whether a folder's index.json is that of MDS shards."""
    try:
        shards = json.loads((folder / INDEX).read_bytes())["shards"]
        return bool(shards) and shards[0]["format"] == "mds"
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False


def read_shards(folder: Path) -> list[Shard]:
    """Return the shards of a folder; raises ValueError where index.json does not say what is needed of each."""
    path = folder / INDEX
    shards = []
    try:
        for one in json.loads(path.read_bytes())["shards"]:
            raw = one["raw_data"]
            shard = Shard(
                raw["basename"], raw["bytes"], one["samples"], one["column_names"], one["column_encodings"],
                one["column_sizes"], one.get("compression"),
                (one.get("zip_data") or {}).get("basename"),
            )  # fmt: skip
            _check(shard)
            shards.append(shard)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): get it again") from None
    return shards


def _check(shard: Shard) -> None:
    whole = [shard.num_bytes, shard.samples, *(size for size in shard.sizes if size is not None)]
    for name in filter(lambda one: one is not None, (shard.name, shard.packed_name)):
        if not isinstance(name, str) or "/" in name or name in ("", ".", ".."):
            raise ValueError(f"{name!r} is no file of the folder")
    if any(not isinstance(number, int) or number < 0 for number in whole):
        raise ValueError(f"{shard.name} has a size that is no number of bytes")
    if not len(shard.names) == len(shard.encodings) == len(shard.sizes):
        raise ValueError(f"the columns of {shard.name} differ in number")


def packed_path(folder: Path, shard: Shard) -> Path:
    """Return the file that holds a shard: as it is where it is there, else compressed."""
    path = folder / shard.name
    return path if path.exists() or shard.packed_name is None else folder / shard.packed_name


def list_mds(source: Source) -> Listing:
    """Return what MDS shards hold; raises ValueError where they are damaged, compressed, or have no image column."""
    shards = read_shards(source.base)
    compressed = next((s for s in shards if s.compression and not (source.base / s.name).exists()), None)
    if compressed is not None:
        raise pack_first(source.path, f"MDS shards that are compressed ({compressed.compression})")
    facts = file_facts(source.base, source.files)
    listing = Listing(source.base, [(name, length) for name, length, _ in facts], [], facts=facts)
    listing.texts.append(source.base / INDEX)
    for number, shard in enumerate(shards):
        columns = image_and_label(source, shard)
        path, stem = source.base / shard.name, Path(shard.name).stem
        with opened(path) as file:
            for row, (offset, length, label) in enumerate(samples(file, path, shard, columns)):
                name = f"{stem}/{row:07d}"
                if columns[1] is not None and is_missing(label):
                    listing.rejected.append((name, "no label"))
                else:
                    listing.candidates.append(Candidate(name, number, offset, length, label))
    if not listing.candidates and listing.rejected:  # no image has a label: the set has none
        raise ValueError(
            f"{source.path} has no label in its column: name the image's alone by --columns (data.columns)"
        )
    return listing


def image_and_label(source: Source, shard: Shard) -> tuple[int, int | None]:
    """Return the positions of the image's column and the label's; raises ValueError where they cannot be read."""
    where = source.base / INDEX
    if source.options.columns is not None:
        image, label = asked_columns(source.options.columns, shard.names, where)
    else:
        kinds = [k for k, encoding in enumerate(shard.encodings) if encoding in _IMAGES]
        named = column_of(shard.names, NAMES)
        found = named if named is not None or len(kinds) != 1 else kinds[0]
        if found is None:
            raise ValueError(
                f"{where} does not say which column is the image: name it by --columns IMAGE,LABEL (data.columns); it"
                f" has {', '.join(shard.names)}"
            )
        image, label = found, column_of(shard.names, LABELS)
    if shard.encodings[image] not in _IMAGES:
        raise ValueError(
            f"{where}: the column {shard.names[image]} is encoded as {shard.encodings[image]}, which is no image"
            " file: write it as jpeg, png or bytes"
        )
    if label is not None and shard.encodings[label] not in {*_NUMBERS, "str", "str_int"}:
        raise ValueError(
            f"{where}: the column {shard.names[label]} is encoded as {shard.encodings[label]}, and a label"
            " is an int or a str"
        )
    return image, label


def samples(
    file: Opened, path: Path, shard: Shard, columns: tuple[int, int | None]
) -> Iterator[tuple[int, int, Label]]:
    """Yield offset, bytes and label of every image of a shard that is open; `path` is what messages call it."""
    size, index_bytes = file.size, 4 * (shard.samples + 2)
    head = file.read(index_bytes, 0) if index_bytes <= size else b""
    if size != shard.num_bytes or not head or struct.unpack_from("<I", head)[0] != shard.samples:
        raise ValueError(f"{path} is not the shard that {INDEX} says: get it again")
    ends = np.frombuffer(head, "<u4", offset=4).astype(np.int64)
    if ends[0] < len(head) or ends[-1] > size or (np.diff(ends) < 0).any():
        raise ValueError(f"{path} is damaged, its samples do not lie one after the other: get it again")
    for start, end in zip(ends[:-1].tolist(), ends[1:].tolist()):
        places = _places(file.read, shard, start, end)
        if places is None:
            raise ValueError(f"{path} is damaged, the sample at byte {start} is cut off: get it again")
        label = None if columns[1] is None else _label(file.read, shard, columns[1], places[columns[1]])
        yield (*places[columns[0]], label)


def _places(read: Read, shard: Shard, start: int, end: int) -> list[tuple[int, int]] | None:
    """Offset and bytes of every column of a sample; None where they do not fill it."""
    varying = sum(size is None for size in shard.sizes)
    head = read(4 * varying, start)
    if len(head) != 4 * varying:
        return None
    lengths = iter(struct.unpack(f"<{varying}I", head))
    places, offset = [], start + len(head)
    for size in shard.sizes:
        length = next(lengths) if size is None else size
        places.append((offset, length))
        offset += length
    return places if offset == end else None


def _label(read: Read, shard: Shard, column: int, place: tuple[int, int]) -> Label:
    offset, length = place
    data = read(min(length, _MOST_LABEL_BYTES), offset)
    encoding: Any = shard.encodings[column]
    if encoding in _NUMBERS:
        return (
            int(np.frombuffer(data, _NUMBERS[encoding])[0])
            if len(data) == int(_NUMBERS[encoding][2:])
            else None
        )
    text = data.decode("utf-8", "replace")
    return int(text) if encoding == "str_int" and text.lstrip("-").isdecimal() else text
