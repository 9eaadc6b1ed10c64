"""Reading a file of labels for images that lie in one flat folder or tar, such as ILSVRC2012's val set.

What is understood:

* a table of columns, separated by commas, semicolons or tabs, with quotes where a word holds one. With a header, the
  columns are found by their names (`columns.py`); without one there are two, `NAME CLASS`;
* lines `NAME CLASS` separated by blanks (Caffe's `val.txt`): the name is that of an image, the rest is the class;
* the `mv NAME CLASS/` lines of `valprep.sh`; Kaggle's `LOC_val_solution.csv`, whose first word is the class;
* `CLASS` alone, one line per image in the order of the sorted names, such as
  `imagenet_2012_validation_synset_labels.txt`;
* a number from 1 to 1000 alone: the devkit's `ILSVRC2012_validation_ground_truth.txt`. It is an ILSVRC ID,
  whose order is *not* that of the sorted WordNet ids: a second file with lines `ID WORDNET_ID` must be given.

A name may be a path, and may lack its suffix. UTF-8, or UTF-16 with a mark at its start. Every word of a line is
used, or the line is refused by its number: a class is never cut short.
"""

from __future__ import annotations

import csv
import os
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from fastanc.pipelines.index.columns import BOXES, LABELS, NAMES, bare, column_of
from fastanc.pipelines.missing_labels import is_missing

_WORDNET_ID = re.compile(r"\bn\d{8}\b")
_NUMBER = re.compile(r"[0-9]{1,18}")
_INTEGER = re.compile(r"-?[0-9]{1,18}")  # negative ones are refused where classes are numbered
_FLOAT = re.compile(r"(-?[0-9]{1,15})\.0+")  # how pandas writes whole numbers of a column with gaps
_DELIMITERS = "\t;,"


class _Row(NamedTuple):
    """A line of the file."""

    line: int
    cells: list[str]


def read_labels(
    path: Path, names: Sequence[str], synsets: Path | None = None, *, data: bytes | None = None
) -> tuple[list[str | int], list[str]]:
    """Return one label for every name (sorted), text or class numbers, and sentences on lines that went unused.

    `data` is what the file holds where it lies inside of another one; `path` is then for messages alone. Raises
    ValueError where the file does not cover the names, contradicts itself, cannot be understood, or holds
    ILSVRC2012_IDs and `synsets` is None; OSError where it cannot be read.
    """
    lines = [(k, line) for k, line in enumerate(text_of(path, data).splitlines(), 1) if line.strip()]
    if not lines:
        raise ValueError(f"{path} is empty: give a line NAME,CLASS for every image")
    moved = [_Row(k, _words(line)[1:]) for k, line in lines if re.match(r"\s*mv\s", line)]
    if moved:
        rows = [
            _Row(row.line, [row.cells[0], row.cells[-1].rstrip("/")]) for row in moved if len(row.cells) > 1
        ]
    else:
        table = _table(path, lines)
        rows = _columns(path, table) if table else _by_blanks(path, lines, names)
    if any(len(row.cells) == 1 for row in rows):
        check_filled(path, [(k, line.strip(), "") for k, line in lines])
        return as_numbers(_in_order(path, [" ".join(line.split()) for _, line in lines], names, synsets)), []
    found, remarks = _by_name(path, rows, names)
    return as_numbers(found), remarks


def check_filled(path: Path, labels: Sequence[tuple[int, str, str]]) -> None:
    """Raise ValueError for the first (line, label, of what) of a file of labels that has no class."""
    empty = [row for row in labels if is_missing(row[1])]
    if empty and len(empty) == len(labels):
        raise ValueError(f"{path} has no class in any line: give no file of labels for unlabelled images")
    for line, label, image in empty[:1]:
        said = f"it says {label}, " if label else ""
        raise ValueError(
            f"{path}, line {line} has no class{image} ({said}{len(empty)} of {len(labels)} lines have none): fill it"
            " in, or remove the line and the image"
        )


def text_of(path: Path, data: bytes | None = None) -> str:
    """Return a text in UTF-8, or in UTF-16 with a mark at its start; raises ValueError for any other file."""
    data = path.read_bytes() if data is None else data
    try:
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise ValueError(f"{path} is not a text in UTF-8: save it as CSV UTF-8")
    return text


def _table(path: Path, lines: list[tuple[int, str]]) -> list[_Row]:
    """The rows, by the delimiter that stands in every line; none where there is no such delimiter."""
    for delimiter in _DELIMITERS:
        if not all(delimiter in line for _, line in lines):
            continue
        try:
            parsed = [next(csv.reader([line], delimiter=delimiter, strict=True)) for _, line in lines]
        except csv.Error as error:
            raise ValueError(
                f"{path} has a line that is no row of a table ({error}): mend its quotes"
            ) from None
        rows = [_Row(k, [cell.strip() for cell in cells]) for (k, _), cells in zip(lines, parsed)]
        wide = len(rows[0].cells)
        odd = next((row for row in rows if len(row.cells) != wide), None)
        if odd is not None:
            raise ValueError(
                f"{path}, line {odd.line} has {len(odd.cells)} columns and line {rows[0].line} has {wide}: put a word"
                f" that holds a {delimiter!r} into quotes"
            )
        return rows
    return []


def _columns(path: Path, rows: list[_Row]) -> list[_Row]:
    """Rows of (name, label): the columns that a header names, or the two that there are."""
    head = rows[0].cells
    name, label = column_of(head, NAMES), column_of(head, LABELS)
    if name is not None and label is not None:
        rows = rows[1:]
        if bare(head[label]) == BOXES:  # Kaggle's: the class, then a box
            rows = [
                row._replace(cells=[*row.cells[:label], row.cells[label].partition(" ")[0]]) for row in rows
            ]
    elif len(head) == 2:
        name, label = 0, 1
    else:
        raise ValueError(
            f"{path} has {len(head)} columns, of which its first line does not say which are the image and the class:"
            f" call them image and label (it has {', '.join(rows[0].cells)})"
        )
    return [_Row(row.line, [row.cells[name], row.cells[label]]) for row in rows]


def _by_blanks(path: Path, lines: list[tuple[int, str]], names: Sequence[str]) -> list[_Row]:
    """Rows of (name, label) where lines begin with an image's name, or at least a file's; else of (line,)."""
    known = {key for name in names for key in _keys(name)}
    suffixes = "|".join(re.escape(end) for end in {os.path.splitext(name)[1] for name in names} if end)
    file_then_class = re.compile(
        rf"(.+?(?:{suffixes}))\s+(\S.*)", re.IGNORECASE
    )  # of an image that is not there
    rows = []
    for k, line in lines:
        words = _words(line) if line.lstrip().startswith('"') else line.split()
        ends = [n for n in range(len(words) - 1, 0, -1) if _plain(" ".join(words[:n])) in known]
        other = file_then_class.fullmatch(line.strip())
        if ends:
            cells = [" ".join(words[: ends[0]]), " ".join(words[ends[0] :])]
        else:
            cells = [" ".join(words)] if other is None else list(other.groups())
        rows.append(_Row(k, cells))
    pairs = [row for row in rows if len(row.cells) == 2]
    if len(pairs) * 2 <= len(rows):
        return [row._replace(cells=[" ".join(row.cells)]) for row in rows]
    odd = next((row for row in rows[len(rows[0].cells) == 1 :] if len(row.cells) == 1), None)
    if odd is not None:
        raise ValueError(f"{path}, line {odd.line} ({odd.cells[0]}) is not NAME CLASS: mend or remove it")
    return pairs


def _words(line: str) -> list[str]:
    """The words of a line of a shell; where its quotes do not close, those between blanks."""
    try:
        return shlex.split(line)
    except ValueError:
        return line.split()


def _in_order(path: Path, labels: list[str], names: Sequence[str], synsets: Path | None) -> list[str]:
    """The labels of a file that has one a line, without names."""
    if len(labels) == len(names) + 1 and bare(labels[0]) in LABELS:
        labels = labels[1:]
    if len(labels) != len(names):
        raise ValueError(
            f"{path} has {len(labels)} labels for {len(names)} images: it belongs to another set, or give lines"
            " NAME,CLASS"
        )
    files = tuple({_keys(name)[2] for name in names})
    odd = next((label for label in labels[:2] if label.startswith(files)), None)
    if odd is not None:
        raise ValueError(
            f"{path} has lines like {odd!r}, which begin with an image's name: put a comma between name and class"
        )
    if not all(_NUMBER.fullmatch(label) for label in labels):
        return labels
    if synsets is None:
        raise ValueError(
            f"{path} holds ILSVRC2012_IDs, which are not in the order of the classes: give a second file "
            "with lines 'ID WORDNET_ID' (synsets=), or labels by WordNet id"
        )
    wordnet = read_synsets(synsets)
    if missing := {int(label) for label in labels} - set(wordnet):
        raise ValueError(f"{synsets} does not say which class {min(missing)} of {path} is")
    return [wordnet[int(label)] for label in labels]


def _plain(name: str) -> str:
    """A path as it is compared: forward slashes, no leading `./`."""
    return name.replace("\\", "/").removeprefix("./")


def _keys(name: str) -> tuple[str, str, str, str]:
    """What an image may be called: its path, its file's name, and both without the suffix; the surest first."""
    path = _plain(name)
    file = path.rpartition("/")[2]
    return path, os.path.splitext(path)[0], file, os.path.splitext(file)[0]


def _one(key: str, name: str) -> bool:
    """Whether a line's path and an image's may be the same one: their last folders agree as far as both go."""
    folders = zip(reversed(key.split("/")[:-1]), reversed(_plain(name).split("/")[:-1]))
    return all(one == other for one, other in folders)


def _by_name(path: Path, rows: list[_Row], names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The label of every name, and what is to be said of the others."""
    suffixes = {os.path.splitext(name)[1].lower() for name in names}
    check_filled(path, [(line, label, f" for {name}") for line, (name, label) in rows])
    labels, lines = dict[str, str](), dict[str, int]()
    for line, (name, label) in rows:
        if labels.setdefault(_plain(name), label) != label:
            raise ValueError(
                f"{path} calls {name} {labels[_plain(name)]!r} in line {lines[_plain(name)]} and {label!r} in line"
                f" {line}: keep one"
            )
        lines.setdefault(_plain(name), line)
    bare = {key: os.path.splitext(key)[0] for key in labels if os.path.splitext(key)[1].lower() in suffixes}
    ways: tuple[tuple[int, Callable[[str], str]], ...] = (
        (0, lambda key: key),
        (1, lambda key: bare.get(key, key)),
        (2, lambda key: key.rpartition("/")[2]),
        (3, lambda key: bare.get(key, key).rpartition("/")[2]),
    )
    found, used = dict[str, str](), set[str]()
    for level, short in ways:
        rows_of: dict[str, list[str]] = {}
        for key in labels:
            rows_of.setdefault(short(key), []).append(key)
        for name in [name for name in names if name not in found]:
            mine = [key for key in rows_of.get(_keys(name)[level], []) if key not in used and _one(key, name)]
            for key in mine:
                if found.setdefault(name, labels[key]) != labels[key]:
                    raise ValueError(
                        f"{path} has several lines for {name}, with other classes: write whole paths"
                    )
            used.update(mine)
    if missing := [name for name in names if name not in found]:
        raise ValueError(f"{path} has no label for {missing[0]} ({len(missing)} of {len(names)} missing)")
    unused = [key for key in labels if key not in used]
    remark = f"{len(unused)} of {len(rows)} lines of {path} name no image of the set, first {unused[:1]}"
    return [found[name] for name in names], [remark] if unused else []


def as_numbers(labels: Sequence[str]) -> list[str | int]:
    """Return labels as class numbers where all of them are."""
    whole = [_FLOAT.sub(r"\1", label) for label in labels]
    if all(_INTEGER.fullmatch(label) for label in whole):
        return [int(label) for label in whole]
    return list(labels)


def read_synsets(path: Path) -> dict[int, str]:
    """Return ILSVRC2012_ID -> WordNet id from lines that hold both, the id first."""
    wordnet: dict[int, str] = {}
    for line in text_of(path).splitlines():
        number, found = re.match(r"\s*([0-9]{1,9})", line), _WORDNET_ID.search(line)
        if number and found:
            wordnet[int(number[1])] = found[0]
    if not wordnet:
        raise ValueError(f"{path} has no lines 'ID WORDNET_ID'")
    if 0 in wordnet or (
        len(wordnet) > 1 and [wordnet[k] for k in sorted(wordnet)] == sorted(wordnet.values())
    ):
        raise ValueError(
            f"{path} numbers the sorted WordNet ids, but ILSVRC2012_IDs begin at 1 in another order"
        )
    return wordnet
