"""Rows of any images and views by `preadv`: no mmap, no locks, exactly the bytes asked for; threads for storage.

A batch asks for some hundred rows of 4 KB that lie all over a view. What happens to one of them:

1. Its checksum is looked up in memory: zero, and it is missing. Else its place in the file is its image number times
   the row's bytes. Rows that are neighbours on disk and in the batch become one read.
2. One thread first reads whatever the page cache holds (RWF_NOWAIT), because a copy from memory is fastest without
   any hand-over; it stops at the first row that would wait for storage.
3. The rest is dealt to threads, each with reads enough to be worth waking: a disk is fast only when it is asked for
   much at a time, and `preadv` gives up the GIL while it waits.
4. The batch's bytes are compared with their checksums, all rows at once. One that does not fit may have been written
   a moment ago by somebody else: its checksum and its bytes are read once more. If they still do not fit, it is
   missing, like a row that was never written.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastanc import files
from fastanc.cache.column import Column
from fastanc.cache.rows import Field, decode

_THREADS, _READS_A_THREAD = 8, 16


class Reader:
    """Reads rows of a cache; safe to use from several threads.

    Args:
        folder: of the cache, for messages.
        columns: view number -> its columns, one a field.
        fields: of the cache.
    """

    def __init__(
        self, folder: Path, columns: Callable[[int], Sequence[Column]], fields: Sequence[Field]
    ) -> None:
        self.fields = tuple(fields)
        self._folder, self._columns = folder, columns
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="cache-read")

    def get(self, index: np.ndarray, view: np.ndarray) -> dict[str, np.ndarray]:
        """Return the values [B, width] float32 of every field for image numbers [B] and view numbers [B].

        Raises:
            FileNotFoundError: a row is missing. ValueError: its bytes do not fit their checksum.
        """
        rows, _ = self.read(index, view)
        return {name: value.numpy() for name, value in decode(rows, self.fields).items()}

    def read(
        self, index: np.ndarray, view: np.ndarray, *, partial: bool = False, pin: bool = False
    ) -> tuple[dict[str, Tensor], np.ndarray]:
        """Return the rows as stored, field name -> [B, row width], and which of them were present [B] bool.

        Args:
            index: image numbers [B].
            view: view numbers [B].
            partial: leave missing rows undefined instead of raising.
            pin: put the rows into page-locked memory.
        """
        index, view = np.asarray(index, np.int64), np.asarray(view, np.int64)
        rows = {
            f.name: torch.empty(len(index), f.row_width, dtype=f.row_dtype, pin_memory=pin)
            for f in self.fields
        }
        present = np.zeros(len(index), bool)
        for number, at in by_view(view):
            columns, images = self._columns(number), index[at]
            there = _there(columns, images)
            if not partial and not there.all():
                _refresh(columns, images[~there])
                there = _there(columns, images)
            present[at[there]] = self._filled(rows, columns, images[there], at[there])
            if not partial and not present[at].all():
                raise self._absent(number, columns, images[~present[at]])
        return rows, present

    def _filled(
        self, rows: dict[str, Tensor], columns: Sequence[Column], images: np.ndarray, at: np.ndarray
    ) -> np.ndarray:
        """Read the rows of images [R] to their places [R]; return which of them fit their checksums [R] bool."""
        right = self._once(rows, columns, images, at)
        if not right.all():
            wrong = np.flatnonzero(~right)
            _refresh(columns, images[wrong])
            right[wrong] = self._once(rows, columns, images[wrong], at[wrong])
        return right

    def _once(
        self, rows: dict[str, Tensor], columns: Sequence[Column], images: np.ndarray, at: np.ndarray
    ) -> np.ndarray:
        right = np.ones(len(at), bool)
        if not len(at):
            return right
        jobs = []
        for column in columns:
            data = rows[column.field.name].view(torch.uint8).numpy()
            if (file := column.handle()) is None:
                return ~right
            buffer, size = data.data.cast("B"), column.field.row_bytes
            reads = _runs(images * column.field.stride, at, size)
            # What lies in memory is copied fastest by one thread; waiting for storage wants many.
            with files.named(column.rows_path):
                done = _read_from_memory(file, buffer, reads)
            left = len(reads[0]) - done
            parts = min(left, max(1, min(_THREADS, left // _READS_A_THREAD)))
            jobs += [
                (column.rows_path, file, buffer, [part[done + k :: parts] for part in reads])
                for k in range(parts)
            ]
        if len(jobs) == 1:
            _pread(jobs[0])
        else:
            list(self._pool.map(_pread, jobs))
        for column in columns:
            data = rows[column.field.name].view(torch.uint8).numpy()
            right &= column.fits(images, data if len(at) == len(data) else data[at])
        return right

    def _absent(self, view: int, columns: Sequence[Column], images: np.ndarray) -> OSError | ValueError:
        where = f"view {view}, image {images[0]} (one of {len(images)} asked for)"
        if _there(columns, images[:1]).all():
            return ValueError(
                f"{where} is damaged in the cache {self._folder}: its bytes do not fit their checksum: run `fastanc"
                " cache verify --drop`, then `fastanc cache build`, or set --teacher.cache fill"
            )
        return FileNotFoundError(
            f"{where} is not in the cache {self._folder}: run `fastanc cache build`, which computes only what is"
            " missing"
        )

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()


def _there(columns: Sequence[Column], images: np.ndarray) -> np.ndarray:
    return np.logical_and.reduce([column.has(images) for column in columns])


def _refresh(columns: Sequence[Column], images: np.ndarray) -> None:
    for column in columns:
        column.refresh(images)


def by_view(view: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Return every view number of [B] with the places where it stands; nearly always there is one."""
    if len(view) and (view == view[0]).all():
        return [(int(view[0]), np.arange(len(view)))]
    return [(number, np.flatnonzero(view == number)) for number in np.unique(view).tolist()]


def _runs(offset: np.ndarray, at: np.ndarray, row_bytes: int) -> list[list[int]]:
    """Join neighbouring rows that go to neighbouring places; return offsets, places, sizes."""
    follows = offset[1:] - offset[:-1] == row_bytes
    if not follows.any():  # rows of a training batch: nothing to join
        return [offset.tolist(), (at * row_bytes).tolist(), [row_bytes] * len(at)]
    starts = np.concatenate(([0], np.flatnonzero(~follows | (np.diff(at) != 1)) + 1))
    lengths = np.diff(np.concatenate((starts, [len(at)])))
    return [column.tolist() for column in (offset[starts], at[starts] * row_bytes, lengths * row_bytes)]


def _read_from_memory(file: int, buffer: memoryview, reads: list[list[int]]) -> int:
    """Read until the first that would wait for storage; return how many were read before it."""
    preadv, done = os.preadv, 0
    if not hasattr(os, "RWF_NOWAIT"):  # macOS cannot tell either
        return 0
    try:
        for offset, place, size in zip(*reads):
            if preadv(file, [buffer[place : place + size]], offset, os.RWF_NOWAIT) != size:
                break
            done += 1
    except OSError as error:
        # Some file systems cannot tell, NFS among them: then threads read everything.
        if error.errno not in (errno.EAGAIN, errno.EOPNOTSUPP):
            raise
    return done


def _pread(job: tuple[Path, int, memoryview, list[list[int]]]) -> None:
    """Read one job's rows; where the file ends too early they are zeros, which fit no checksum."""
    path, file, buffer, reads = job
    preadv = os.preadv
    with files.named(path):
        for offset, place, size in zip(*reads):
            done = preadv(file, [buffer[place : place + size]], offset)
            while done != size:
                more = preadv(file, [buffer[place + done : place + size]], offset + done)
                if not more:
                    buffer[place + done : place + size] = bytes(size - done)
                    break
                done += more
