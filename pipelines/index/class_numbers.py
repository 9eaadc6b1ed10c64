"""From the labels as they are written, names or numbers, to positions in a list of classes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fastanc.pipelines.index.sources import Label
from fastanc.pipelines.index.table import Index

_MOST_CLASSES, _NAMED = 1_000_000, 8


def few_of(names: Sequence[str]) -> str:
    """Return the first of some names, and how many more there are."""
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def number_labels(
    texts: Sequence[Label], classes: Sequence[str] | None, source: Path
) -> tuple[np.ndarray | None, list[str]]:
    """Return the labels as positions in the class list, and that list."""
    if not texts or texts[0] is None:
        return None, []
    if all(isinstance(text, int) for text in texts):
        return _whole_numbers([int(text or 0) for text in texts], classes, source)
    if any(isinstance(text, int) for text in texts):
        raise ValueError(f"{source} has class numbers and class names as labels: use one kind")
    names = list(classes) if classes else sorted({str(text) for text in texts})
    position = {name: k for k, name in enumerate(names)}
    if unknown := sorted({str(text) for text in texts} - set(position)):
        raise ValueError(
            f"{source} has the class {unknown[0]!r}, which is not among the {len(names)} classes given"
        )
    return np.array([position[str(text)] for text in texts], np.int64), names


def _whole_numbers(
    labels: Sequence[int], classes: Sequence[str] | None, source: Path
) -> tuple[np.ndarray, list[str]]:
    """Number labels that are numbers: from 0, or from 1 where every one from 1 on is there."""
    low, high = min(labels), max(labels)
    if high >= _MOST_CLASSES:
        raise ValueError(
            f"{source} has the label {high}: that is no class number, give 0 to the number of classes"
        )
    names = list(classes) if classes else [str(k) for k in range(high + 1)]
    first = int(not classes and len(set(labels)) == high and low == 1)
    if low < 0:
        raise ValueError(f"{source} has the label {low}: class numbers begin at 0, number the classes anew")
    if high >= len(names):
        raise ValueError(f"{source} has labels from {low} to {high}, not of {len(names)} classes")
    return np.array(labels, np.int64) - first, names[first:]


def places_among(names: Sequence[str], classes: Sequence[str], are_numbers: bool) -> np.ndarray:
    """Return the position of each of some classes among others' names, [K] int64; -1 where it has none.

    Names are what counts; where the classes are numbers and the others are not, numbers are positions among them.
    """
    if are_numbers and not all(name.isdecimal() for name in names):
        numbers = np.array([int(name) for name in classes], np.int64)
        return np.where(numbers < len(names), numbers, -1)
    position = {name: k for k, name in enumerate(names)}
    whole = {int(name): k for k, name in enumerate(names) if name.isdecimal()}
    alike = whole if len(whole) == len(names) else {}  # "07" is 7: pack writes numbers with leading zeros
    return np.array(
        [position.get(c, alike.get(int(c), -1) if c.isdecimal() else -1) for c in classes], np.int64
    )


def numbered_by(index: Index, names: list[str], where: Path) -> Index:
    """Return an index with the classes of a class map, `where` it was read from; they are part of what the set is.

    Raises ValueError that names a class with images which the map lacks.
    """
    if index.labels is None or index.classes == names:
        return index
    places = places_among(names, index.classes, index.numbered)
    for k in np.unique(index.labels).tolist():
        if places[k] < 0:
            raise ValueError(
                f"{index.source} has images of the class {index.classes[k]!r}, which is none of the {len(names)} in"
                f" {where}: add it, or leave its images out"
            )
    labels = places[index.labels]
    digest = hashlib.blake2b(index.fingerprint.encode() + labels.tobytes(), digest_size=16)
    digest.update(json.dumps(names).encode())
    return replace(index, labels=labels, classes=list(names), fingerprint=digest.hexdigest())


def thin_classes(labels: np.ndarray | None, classes: Sequence[str], fewest: int = 1) -> list[str]:
    """Return what is to be said of classes of at most `fewest` images, and of a set whose images are all of one."""
    if labels is None:
        return []
    counts = np.bincount(labels, minlength=len(classes))
    there, said = np.flatnonzero(counts).tolist(), []
    if len(there) == 1:
        said.append(f"all images are of one class, {classes[there[0]]}: no label tells them apart")
    for count, words in list(enumerate(("no image", "one image")))[: fewest + 1]:
        if few := [classes[k] for k in np.flatnonzero(counts == count).tolist()]:
            said.append(
                f"{len(few)} of {len(classes)} classes {'has' if len(few) == 1 else 'have'} {words}:"
                f" {few_of(few)}"
            )
    return said
