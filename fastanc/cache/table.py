"""Where each image of a view lies: image number -> (shard, row).

Two ways of filling a cache meet here. `fastanc cache build` commits contiguous ranges of images; they are kept as
three sorted columns and found by bisection, some hundred numbers for ImageNet. Filling while training commits the
images of an epoch's order, so a shard holds a list; from the first list (or overlap) on, the view has a dense array
with one integer an image: its row counted over all shards, from which bisection over `bases` gives the shard back.
Rows of one image in several shards are equal (a row is a pure function of view and image), so the first found counts.
`refresh` reads only the records that are new, and a lookup takes the lock for less than a batch's bisection.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastanc.cache.rows import Part
from fastanc.cache.shards import Damaged, Shard, list_files, load_shard


class ViewTable:
    """The committed shards of one view; of an image that several shards hold, the first one found counts.

    Disjoint ranges are looked up by bisection and cost no memory; a view with lists (or overlapping ranges)
    takes one integer an image. Safe to use from several threads.
    """

    def __init__(self, folder: Path, identity: str, parts: Sequence[Part], num_images: int) -> None:
        self.folder = folder
        self.shards: list[Shard] = []
        self.bases: list[int] = []
        """Rows of all shards before each shard."""
        self.damaged: dict[str, str] = {}
        """Data file name -> why it is not trusted."""
        self._identity, self._parts, self._num_images = identity, parts, num_images
        self._known: set[Path] = set()
        self._ranges = np.empty((0, 3), np.int64)  # first, end, shard; sorted
        self._columns: list[
            np.ndarray
        ] = []  # of the ranges, each contiguous: they are searched in every step
        self._dense: np.ndarray | None = None  # image number -> row counted over all shards, or -1
        self._lock = threading.Lock()
        self.refresh()

    def refresh(self) -> None:
        """Take in what was committed since the last look."""
        with self._lock:
            self.damaged = {}
            for record in list_files(self.folder).records:
                if record in self._known:
                    continue
                try:
                    shard = load_shard(record, self._identity, self._parts)
                    index = shard.index() if shard.first is None else None
                    if not self._inside(shard, index):
                        raise Damaged(f"it names images outside 0..{self._num_images - 1}")
                except (Damaged, OSError) as error:
                    self.damaged[record.stem + ".bin"] = str(error)
                    continue
                self._add(shard, index)
                self._known.add(record)
            self._columns = [np.ascontiguousarray(column) for column in self._ranges.T]

    def _inside(self, shard: Shard, index: np.ndarray | None) -> bool:
        if index is None:
            assert shard.first is not None
            return shard.first >= 0 and shard.first + shard.rows <= self._num_images
        return bool(((index >= 0) & (index < self._num_images)).all())

    def _add(self, shard: Shard, index: np.ndarray | None) -> None:
        number, base = len(self.shards), self._total()
        self.shards.append(shard)
        self.bases.append(base)
        if index is None and self._dense is None:
            assert shard.first is not None
            first, end = shard.first, shard.first + shard.rows
            at = int(np.searchsorted(self._ranges[:, 0], first, side="right"))
            clear = (at == 0 or self._ranges[at - 1, 1] <= first) and (
                at == len(self._ranges) or end <= self._ranges[at, 0]
            )
            if clear:
                self._ranges = np.insert(self._ranges, at, (first, end, number), axis=0)
                return
            if at and self._ranges[at - 1, 0] == first and self._ranges[at - 1, 1] == end:
                return  # the same range a second time
        dense = self._made_dense()
        images = shard.index() if index is None else index
        fresh = dense[images] < 0
        dense[images[fresh]] = base + np.flatnonzero(fresh)

    def _total(self) -> int:
        return self.bases[-1] + self.shards[-1].rows if self.shards else 0

    def _made_dense(self) -> np.ndarray:
        room = np.int32 if self._total() < 2**31 else np.int64
        if self._dense is None:
            self._dense = np.full(self._num_images, -1, room)
            for first, end, number in self._ranges:
                self._dense[first:end] = self.bases[number] + np.arange(end - first)
        elif self._dense.dtype != room:
            self._dense = self._dense.astype(room)
        return self._dense

    def find(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return shard numbers [B] (-1 where missing) and rows [B] of image numbers [B], all int64."""
        with self._lock:
            if self._dense is not None:
                place = self._dense[index].astype(np.int64)
                shard = np.searchsorted(np.asarray(self.bases), place, side="right") - 1
                return shard, place - np.asarray(self.bases)[shard]
            if not len(self._ranges):
                return np.full(len(index), -1), np.zeros(len(index), np.int64)
            starts, ends, numbers = self._columns
            at = np.maximum(np.searchsorted(starts, index, side="right") - 1, 0)
            first = starts[at]
            return np.where((first <= index) & (index < ends[at]), numbers[at], -1), index - first

    def missing(self) -> np.ndarray:
        """Return the image numbers that no committed shard holds, ascending."""
        with self._lock:
            if self._dense is not None:
                return np.flatnonzero(self._dense < 0)
            absent = np.ones(self._num_images, bool)
            for first, end, _ in self._ranges:
                absent[first:end] = False
            return np.flatnonzero(absent)

    def num_present(self) -> int:
        """Return how many images the committed shards hold."""
        with self._lock:
            if self._dense is not None:
                return int((self._dense >= 0).sum())
            return int((self._ranges[:, 1] - self._ranges[:, 0]).sum())
