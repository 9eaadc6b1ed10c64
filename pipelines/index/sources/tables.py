"""Tables as text: CSV with any delimiter, TSV, lines of a path and a class, JSON lines; with or without a header."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fastanc.pipelines.index.columns import LABELS, NAMES, column_of
from fastanc.pipelines.index.sources.listing import IMAGE_SUFFIXES

LOOKED_AT = 100
"""Rows from which the delimiter, the header and the columns follow."""
_DELIMITERS = "\t;,|"


class Table(NamedTuple):
    """Rows of as many cells each."""

    head: list[str] | None
    rows: list[tuple[int, list[str]]]
    """(line, cells)."""


def table_of(path: Path, text: str) -> Table:
    """Return a text as a table; raises ValueError naming the line of `path` that is no row of it."""
    start = text.lstrip()[:1]
    if start in ("{", "["):
        return _json_table(path, text, start == "[")
    delimiter = next((one for one in _DELIMITERS if _is_table(text, one)), None)
    if delimiter is None:
        return Table(None, list(_by_blanks(text)))
    rows = [(line, cells) for line, cells in _csv_rows(path, text, delimiter) if any(map(str.strip, cells))]
    width = len(rows[0][1])
    if odd := next(((line, cells) for line, cells in rows if len(cells) != width), None):
        raise ValueError(
            f"{path}, line {odd[0]} has {len(odd[1])} columns and line {rows[0][0]} has {width}: put a word that"
            f" holds a {delimiter!r} into quotes"
        )
    first = [cell.strip() for cell in rows[0][1]]
    known = column_of(first, NAMES) is not None or column_of(first, LABELS) is not None
    images = any(is_image(cell) for _, cells in rows[1 : LOOKED_AT + 1] for cell in cells)
    has_head = not any(map(is_image, first)) and (known or images)
    return Table(first, rows[1:]) if has_head else Table(None, rows)


def _is_table(text: str, delimiter: str) -> bool:
    """Whether the first lines have as many columns each, more than one, or the first is a header of some."""
    try:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        some = [row for row, _ in zip(rows, range(LOOKED_AT)) if row]
    except csv.Error:
        return False
    if not some or len(some[0]) < 2:
        return False
    has_head = column_of(some[0], NAMES) is not None and column_of(some[0], LABELS) is not None
    return has_head or len({len(row) for row in some}) == 1


def _csv_rows(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {reader.line_num} is no row of a table ({error}): mend its quotes"
        ) from None


def _by_blanks(text: str) -> Iterator[tuple[int, list[str]]]:
    """Lines that are a path, or a path and a class after its last blank."""
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        name, *rest = line.strip().rsplit(None, 1)
        yield number, [line.strip()] if is_image(line) or not rest else [name, *rest]


def _json_table(path: Path, text: str, is_list: bool) -> Table:
    """JSON lines, or one list of objects; the head are the keys that every object has."""
    objects: list[tuple[int, Any]] = []
    if is_list:
        objects = list(enumerate(_json(path, 1, text), 1))
    else:
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                objects.append((number, _json(path, number, line)))
    head: list[str] | None = None
    for number, one in objects:
        if not isinstance(one, dict):
            raise ValueError(
                f"{path}, line {number} is no JSON object: give one an image, with its path and class"
            )
        head = list(one) if head is None else [key for key in head if key in one]
    rows = [(number, [_cell(path, number, one[key]) for key in head or []]) for number, one in objects]
    return Table(head or [], rows)


def _json(path: Path, line: int, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{path}, line {line} is not JSON: mend or remove it") from None


def _cell(path: Path, line: int, value: object) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def is_image(cell: str) -> bool:
    """Tell whether a cell ends like the name of an image."""
    return os.path.splitext(cell.strip())[1].lower() in IMAGE_SUFFIXES
