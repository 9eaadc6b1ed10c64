"""A list of paths with their classes, as CSV, TSV or JSON lines; the images are files that it names.

The columns are those that the user names, or follow from their headers, or from which cells end like an image.
Paths are relative to the list, or to a folder that the user names; one may lack its suffix, as Kaggle's ids do. A
folder with `metadata.csv` or `metadata.jsonl` (Hugging Face's imagefolder) is such a list.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fastanc.pipelines.anywhere import joined, lexists, listdir, stat_of, threads
from fastanc.pipelines.index.columns import BOXES, LABELS, NAMES, asked_columns, bare, column_of
from fastanc.pipelines.index.labels import as_numbers, check_filled, text_of
from fastanc.pipelines.index.sources.listing import (
    Candidate,
    Fact,
    Label,
    Listing,
    Source,
    order_key,
)
from fastanc.pipelines.index.sources.tables import LOOKED_AT, Table, is_image, table_of
from fastanc.pipelines.missing_labels import is_missing
from fastanc.pipelines.remote_path import RemotePath
from fastanc.pipelines.remote_trouble import StoreError

METADATA = ("metadata.csv", "metadata.jsonl")
_CHUNK, _THREADS = 2048, 8


class Row(NamedTuple):
    """A line of the list."""

    line: int
    path: str
    label: str | None


def list_list(source: Source) -> Listing:
    """Return what a list names; raises ValueError where it cannot be understood, or none of its images is there."""
    path = source.base / source.files[0]
    base = source.options.images or path.parent
    rows, remarks = _once(path, read_rows(path, source.options.columns))
    whole = source.path.is_dir()  # imagefolder's metadata, which may list other splits too
    names = _names(rows, base, source.path if whole else base)
    base = source.path if whole else base
    kept = [(row, name) for row, name in zip(rows, names) if not whole or not name.startswith(("/", "../"))]
    facts = _facts_of(base, [name for _, name in kept])
    if kept and all(length < 0 for _, length, _ in facts):
        raise ValueError(
            f"{path} names {len(kept):,} images, of which none is there (first {kept[0][1]}): name the folder that"
            " they lie in by --images (data.images)"
        )
    labels = _labels(path, [row for row, _ in kept])
    order = sorted(range(len(kept)), key=lambda k: order_key(facts[k][0]))
    facts, labels = [facts[k] for k in order], [labels[k] for k in order]
    rejected = [(name, "cannot be read (no such file)") for name, length, _ in facts if length < 0]
    candidates = [
        Candidate(name, -1, 0, length, label)
        for (name, length, _), label in zip(facts, labels)
        if length >= 0
    ]
    return Listing(
        base, None, candidates, rejected=rejected, facts=facts, texts=[path.resolve()], remarks=remarks
    )


def metadata_of(folder: Path) -> str | None:
    """Return the name, seen from a folder, of the metadata that labels its images: its own or its parent's."""
    for name in (*METADATA, *(f"../{name}" for name in METADATA)):
        path = folder / name
        if not path.is_file():
            continue
        try:
            head = table_of(path, text_of(path)).head or []
        except ValueError:  # somebody else's file of that name
            continue
        if "file_name" in head and column_of(head, LABELS) is not None:
            return name
    return None


def read_rows(path: Path, columns: str | None = None) -> list[Row]:
    """Return the rows of a list; raises ValueError naming a line, or columns that do not say what they are."""
    table = table_of(path, text_of(path))
    if not table.rows:
        raise ValueError(f"{path} lists nothing: give a line PATH,CLASS for every image")
    image, label = _columns(path, table, columns)
    box = table.head is not None and label is not None and bare(table.head[label]) == BOXES
    rows = []
    for line, cells in table.rows:
        text = None if label is None else cells[label].strip()
        rows.append(Row(line, cells[image], text.partition(" ")[0] if text and box else text))
    if empty := next((row for row in rows if not row.path.strip()), None):
        raise ValueError(f"{path}, line {empty.line} names no image: remove it")
    return rows


def _columns(path: Path, table: Table, asked: str | None) -> tuple[int, int | None]:
    """The positions of the image's column and the class's."""
    width = len(table.rows[0][1])
    if asked is not None:
        head = table.head or [str(k + 1) for k in range(width)]
        return asked_columns(asked, head, path)
    image = label = None
    if table.head is not None:
        image, label = column_of(table.head, NAMES), column_of(table.head, LABELS)
    some = [cells for _, cells in table.rows[:LOOKED_AT]]
    likely = max(range(width), key=lambda k: sum(is_image(cells[k]) for cells in some))
    if image is None or (not is_image(some[0][image]) and any(is_image(cells[likely]) for cells in some)):
        image = likely if any(is_image(cells[likely]) for cells in some) else image
    if image == label:
        label = None
    if image is None or (label is None and width > 2):
        which = "image" if image is None else "class"
        there = ", ".join(table.head or [f"{k + 1} ({cell})" for k, cell in enumerate(some[0])])
        raise ValueError(
            f"{path} does not say which column is the {which}: name them by --columns IMAGE,LABEL (data.columns), or"
            f" IMAGE alone where there are no classes; it has {there}"
        )
    return image, label if label is not None or width == 1 else 1 - image


def _once(path: Path, rows: list[Row]) -> tuple[list[Row], list[str]]:
    """The rows without those that say the same again; ValueError where two say another class of one image."""
    first: dict[str, Row] = {}
    for row in rows:
        other = first.setdefault(row.path, row)
        if other.label != row.label:
            raise ValueError(
                f"{path} calls {row.path} {other.label!r} in line {other.line} and {row.label!r} in line {row.line}:"
                " keep one"
            )
    again = len(rows) - len(first)
    return list(first.values()), [f"{again} lines of {path} say again what another says"] if again else []


def _names(rows: Sequence[Row], base: Path, seen_from: Path) -> list[str]:
    """The images' paths as they are in the index: relative where they lie below a folder, absolute elsewhere."""
    top, found = f"{os.path.abspath(seen_from)}/", _Found(base)
    names = []
    for row in rows:
        written = found.path(row.path)
        name = os.path.normpath(os.path.join(found.base, written))
        if name.startswith(top):
            names.append(name[len(top) :])
        else:
            names.append(name if os.path.isabs(written) else os.path.relpath(name, top))
    return names


class _Found:
    """Looks for the files that paths mean: as written, without blanks around, with slashes, with a suffix."""

    def __init__(self, base: Path) -> None:
        self.base, self._base = os.path.abspath(base), base
        self._folders: dict[str, dict[str, str]] = {}

    def path(self, written: str) -> str:
        """Return the path of a file that is there, else the path as it is written."""
        plain = written.strip()
        if is_image(written):
            ways = [written] if plain == written and "\\" not in written else [written, plain]
            if "\\" in written:
                ways.append(plain.replace("\\", "/"))
            if len(ways) == 1:  # the usual one: whether it is there is asked of all at once
                return written
            return next((way for way in ways if lexists(joined(self._base, way))), ways[-1])
        folder, _, stem = plain.replace("\\", "/").rpartition("/")
        return os.path.join(folder, self._files(folder).get(stem, stem))

    def _files(self, folder: str) -> dict[str, str]:
        if folder not in self._folders:
            try:
                names = sorted(listdir(joined(self._base, folder)))
            except OSError:
                names = []
            self._folders[folder] = {os.path.splitext(name)[0]: name for name in names if is_image(name)}
        return self._folders[folder]


def _facts_of(base: Path, names: list[str]) -> list[Fact]:
    """The facts of the files that are named; -1 bytes where there is none."""

    def facts(part: list[str]) -> list[Fact]:
        return [_fact(joined(base, name), name) for name in part]

    parts = [names[k : k + _CHUNK] for k in range(0, len(names), _CHUNK)]
    with threads(_THREADS) as pool:  # a folder's round trips on a network file system overlap
        return [fact for found in pool.map(facts, parts) for fact in found]


def _fact(path: str | RemotePath, name: str) -> Fact:
    try:
        status = stat_of(path)
    except StoreError:
        raise
    except (OSError, ValueError):  # a name with a zero byte is none
        return name, -1, 0
    return name, status.st_size, status.st_mtime_ns


def _labels(path: Path, rows: list[Row]) -> list[Label]:
    texts = [row.label for row in rows]
    if all(text is None or is_missing(text) for text in texts):
        return [None] * len(rows)
    check_filled(path, [(row.line, row.label or "", f" for {row.path}") for row in rows])
    return list(as_numbers([str(text) for text in texts]))
