"""Where the values of a parquet column lie in its file: page headers (Thrift, compact), levels, plain byte arrays.

What this reads of parquet is little: pyarrow has read the footer, and only pages that are neither compressed nor
dictionary-encoded hold images as they are. Every length is compared with what surrounds it before it is used.
Specification: apache/parquet-format, `parquet.thrift` (PageHeader) and `Encodings.md` (PLAIN, RLE / bit-packed).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from fastanc.pipelines.anywhere import Read

_DATA, _INDEX, _DICTIONARY, _DATA_V2 = range(4)
_PLAIN, _RLE = 0, 3
_HEADER_BYTES = (1 << 12, 1 << 20)  # statistics may hold values; what is still longer is no header
_MOST_VALUES = 1 << 22  # of a page: nobody puts four million images into one
_DEEPEST = 8


class NotInPlace(Exception):
    """Values that do not lie in the file as they are; the message says why."""


class Damage(Exception):
    """Bytes that cannot be a page; the message says what is wrong."""


class Page(NamedTuple):
    """A page of a column."""

    kind: int
    num_values: int
    encoding: int
    start: int
    """Of its body, in bytes of the file."""
    end: int
    unpacked: int
    """Bytes of its body when decompressed, as its header says."""
    levels: tuple[int, int] | None
    """Bytes of the repetition and definition levels before the values; None where they say it (version 1)."""
    level_encoding: int


def pages(read: Read, start: int, end: int, num_values: int) -> Iterator[Page]:
    """Yield the pages of a column chunk in bytes [start, end) of a file; raises Damage."""
    position, seen = start, 0
    while seen < num_values:
        page = _page(read, position, end)
        if page.kind in (_DATA, _DATA_V2):
            if not 0 < page.num_values <= min(num_values - seen, _MOST_VALUES):
                raise Damage(f"a page of {page.num_values} values at byte {position}")
            seen += page.num_values
        yield page
        position = page.end


def byte_arrays(read: Read, page: Page, max_level: int) -> Iterator[tuple[int, int] | None]:
    """Yield (offset, bytes) of every value of a page of plain byte arrays, None for a null.

    `max_level` is the column's largest definition level: values of a lower one are null. Of a column without
    repetition. Raises Damage, and NotInPlace for another encoding.
    """
    if page.encoding != _PLAIN:
        raise NotInPlace("dictionary-encoded" if page.encoding in (2, 8) else f"in encoding {page.encoding}")
    position, end = page.start, page.end
    if page.levels is not None:
        repetition, levels = page.levels
        position += repetition + levels
        data = read(levels, page.start + repetition)
    elif max_level:
        if page.level_encoding != _RLE:
            raise NotInPlace(f"with levels in encoding {page.level_encoding}")
        levels = int.from_bytes(read(4, position), "little")
        position += 4 + levels
        data = read(levels, page.start + 4) if position <= end else b""
    else:
        data = b""
    if position > end:
        raise Damage(f"levels beyond the end of the page at byte {page.start}")
    there = _levels(data, page.num_values, max_level) == max_level
    for is_there in there.tolist():
        if not is_there:
            yield None
            continue
        length = int.from_bytes(read(4, position), "little")
        if position + 4 + length > end:
            raise Damage(f"a value of {length} bytes at byte {position} of a page that ends at {end}")
        yield position + 4, length
        position += 4 + length


def _levels(data: bytes, count: int, largest: int) -> np.ndarray:
    """Definition levels [count] from their hybrid of runs and bit-packed groups of eight."""
    if not largest:
        return np.zeros(count, np.int64)
    width, position, parts, have = largest.bit_length(), 0, list[np.ndarray](), 0
    while have < count:
        if position >= len(data):
            raise Damage("levels that end too early")
        header, position = _varint(data + bytes(10), position)
        if header & 1:
            size = (header >> 1) * width
            bits = np.unpackbits(np.frombuffer(data[position : position + size], np.uint8), bitorder="little")
            part = bits[: len(bits) // width * width].reshape(-1, width) @ (1 << np.arange(width))
            part = part[: count - have]
            if not len(part):
                raise Damage("levels that end too early")
        else:
            size = (width + 7) // 8
            value = int.from_bytes(data[position : position + size], "little")
            part = np.full(min(header >> 1, count - have), value, np.int64)
            if not len(part) or position + size > len(data):
                raise Damage("a run of no levels")
        position += size
        parts.append(part)
        have += len(part)
    return np.concatenate(parts)


def _page(read: Read, position: int, end: int) -> Page:
    for most in _HEADER_BYTES:
        data = read(min(most, max(0, end - position)), position)
        try:
            header, length = _struct(data, 0)
            break
        except IndexError:
            continue
    else:
        raise Damage(f"no page header at byte {position}")
    kind, unpacked, size = (header.get(k) for k in (1, 2, 3))
    start = position + length
    if not (isinstance(kind, int) and isinstance(unpacked, int) and isinstance(size, int)):
        raise Damage(f"no page header at byte {position}")
    if size < 0 or unpacked < 0 or start + size > end:
        raise Damage(f"a page of {size} bytes at byte {position} of a column that ends at {end}")
    which = {_DATA: 5, _DICTIONARY: 7, _DATA_V2: 8}.get(kind)
    own = header.get(which, {}) if which is not None else {}
    encoding_at = 4 if kind == _DATA_V2 else 2
    levels = None
    if kind == _DATA_V2:
        levels = (_number(own, 6, position), _number(own, 5, position))
        if min(levels) < 0 or sum(levels) > size:
            raise Damage(f"levels beyond the end of the page at byte {position}")
    needed = kind in (_DATA, _DATA_V2)
    return Page(
        kind=kind,
        num_values=_number(own, 1, position) if needed else 0,
        encoding=_number(own, encoding_at, position) if needed else _PLAIN,
        start=start,
        end=start + size,
        unpacked=unpacked,
        levels=levels,
        level_encoding=_number(own, 3, position) if kind == _DATA else _RLE,
    )


def _number(fields: Any, key: int, position: int) -> int:
    value = fields.get(key) if isinstance(fields, dict) else None
    if not isinstance(value, int):
        raise Damage(f"a page header without field {key} at byte {position}")
    return value


def _struct(data: bytes, position: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """A struct of Thrift's compact protocol as field -> value, and its end; IndexError where `data` ends before."""
    fields, key = dict[int, Any](), 0
    if depth > _DEEPEST:
        raise Damage("structures within structures")
    while True:
        head = data[position]
        position += 1
        if head == 0:
            return fields, position
        if head >> 4:
            key += head >> 4
        else:
            raw, position = _varint(data, position)
            key = (raw >> 1) ^ -(raw & 1)
        fields[key], position = _value(data, position, head & 15, depth)


def _value(data: bytes, position: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (1, 2):  # true and false are said by the kind alone
        return kind == 1, position
    if kind == 3:
        return data[position], position + 1
    if kind in (4, 5, 6):
        raw, position = _varint(data, position)
        return (raw >> 1) ^ -(raw & 1), position
    if kind == 7:
        return None, position + 8
    if kind == 8:  # statistics: nobody needs them here
        length, position = _varint(data, position)
        if position + length > len(data):
            raise IndexError
        return None, position + length
    if kind == 12:
        return _struct(data, position, depth + 1)
    raise Damage(f"a field of kind {kind}, which no page header has")


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise Damage("a number of more than ten bytes")
