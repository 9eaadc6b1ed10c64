"""Every row of a view read and compared with its checksum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from fastanc.cache.column import Column

_AT_ONCE_BYTES = 32 << 20


class Verified(NamedTuple):
    """What `Store.verify` found in one view."""

    view: int
    right: int
    """Rows of all fields that fit their checksums."""
    missing: int
    wrong: dict[str, np.ndarray]
    """Field -> images [R] whose bytes do not fit; only fields that have some."""


def verified(view: int, columns: Sequence[Column], *, drop: bool, progress: bool) -> Verified:
    """Return what the columns of a view hold; with `drop` the rows that do not fit are declared missing."""
    num_images, wrong = columns[0].num_images, {}
    there = np.ones(num_images, bool)
    for column in columns:
        bad = _wrong(column, f"view {view}, {column.field.name}", progress)
        there &= column.sums != 0
        there[bad] = False
        if len(bad):
            wrong[column.field.name] = bad
            if drop:
                column.drop(bad, column.sums[bad])
    right = int(np.count_nonzero(there))
    all_wrong = len(np.unique(np.concatenate(list(wrong.values())))) if wrong else 0
    return Verified(view, right, num_images - right - all_wrong, wrong)


def _wrong(column: Column, title: str, progress: bool) -> np.ndarray:
    """Return the images of a column whose rows do not fit, ascending; `progress` shows a bar."""
    found, step = [], max(1, _AT_ONCE_BYTES // column.field.stride)
    with tqdm(total=column.num_images, desc=title, unit=" rows", disable=None if progress else True) as bar:
        for first in range(0, column.num_images, step):
            index = np.arange(first, min(first + step, column.num_images))
            found.append(column.wrong(index[column.has(index)]))
            bar.update(len(index))
    return np.concatenate(found)
