"""Rows of any images and views by `preadv`: no mmap, no locks, exactly the bytes asked for; threads for storage.

A batch asks for some hundred rows of 4 KB that lie all over the shards of a view. What happens to one of them:

1. The view's table turns its image number into (shard, row); a shard's commit record says where each part of its rows
   begins, so a row is a file, an offset and a size. Rows that are neighbours on disk and in the batch become one
read.
2. One thread first reads whatever the page cache holds (RWF_NOWAIT), because a copy from memory is fastest without
   any hand-over; it stops at the first row that would wait for storage.
3. The rest is dealt to threads, each with reads enough to be worth waking: a disk is fast only when it is asked for
   much at a time, and `preadv` gives up the GIL while it waits.

`_Opened` is what makes this safe beside a writer without a lock in the reads: a view's open files, offsets and small
resident parts are arrays over the shard number, and when shards are committed they are replaced by longer arrays,
never changed. A thread that holds the older ones reads on as before; shard numbers never move.
"""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastanc.cache.rows import Field, Part, decode
from fastanc.cache.shards import Damaged, Shard
from fastanc.cache.table import ViewTable

_SPARE_FILES = 256
_THREADS, _READS_A_THREAD = 8, 16


class _Opened(NamedTuple):
    """The opened shards of a view, as arrays over the shard number; replaced whole when shards come."""

    files: np.ndarray
    offsets: dict[str, np.ndarray]
    """Part name -> where its section begins in each file."""
    resident: dict[str, np.ndarray]
    """Part name -> [rows of all shards, width]."""


def _with(opened: _Opened, shards: Sequence[Shard], parts: Sequence[Part]) -> _Opened:
    """Return what is opened with more shards opened behind it; on an error nothing has changed."""
    handles: list[int] = []
    try:
        for shard in shards:
            handles.append(_open(shard))
        offsets = {
            name: np.append(known, [shard.sections[name].offset for shard in shards])
            for name, known in opened.offsets.items()
        }
        resident = {
            part.name: np.concatenate(
                [opened.resident[part.name], *(_resident_rows(shard, part) for shard in shards)]
            )
            for part in parts
            if part.resident
        }
    except BaseException:
        for handle in handles:
            os.close(handle)
        raise
    return _Opened(np.append(opened.files, handles).astype(np.int64), offsets, resident)


def _open(shard: Shard) -> int:
    try:
        handle = os.open(shard.path, os.O_RDONLY)
    except OSError as error:
        raise ValueError(
            f"{shard.path} cannot be opened ({error.strerror}): run `fastanc cache verify`"
        ) from error
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_RANDOM)
    return handle


def _resident_rows(shard: Shard, part: Part) -> np.ndarray:
    try:
        data = shard.section(part.name)
    except Damaged as error:
        raise ValueError(f"{shard.path}: {error}: run `fastanc cache verify --drop`") from error
    return data[: shard.rows * part.row_bytes].view(part.disk_dtype).reshape(shard.rows, part.width)


class Reader:
    """Reads rows of a cache; safe to use from several threads.

    Args:
        folder: of the cache, for messages.
        tables: view number -> its table.
        fields: of the cache.
    """

    def __init__(self, folder: Path, tables: Callable[[int], ViewTable], fields: Sequence[Field]) -> None:
        self.fields = tuple(fields)
        self._folder, self._tables = folder, tables
        self._parts = [part for field in fields for part in field.parts()]
        self._views: dict[int, _Opened] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="cache-read")

    def get(self, index: np.ndarray, view: np.ndarray) -> dict[str, np.ndarray]:
        """Return the values [B, width] float32 of every field for image numbers [B] and view numbers [B].

        Raises:
            FileNotFoundError: a row is missing. ValueError: a shard is damaged.
        """
        rows, _ = self.read(index, view)
        return {name: value.numpy() for name, value in decode(rows, self.fields).items()}

    def read(
        self, index: np.ndarray, view: np.ndarray, *, partial: bool = False, pin: bool = False
    ) -> tuple[dict[str, Tensor], np.ndarray]:
        """Return the rows as stored, part name -> [B, part width], and which of them were present [B] bool.

        Args:
            index: image numbers [B].
            view: view numbers [B].
            partial: leave missing rows unset instead of raising.
            pin: put the rows into page-locked memory.
        """
        index, view = np.asarray(index, np.int64), np.asarray(view, np.int64)
        rows = {p.name: torch.empty(len(index), p.width, dtype=p.dtype, pin_memory=pin) for p in self._parts}
        present = np.zeros(len(index), bool)
        for number, at in by_view(view):
            table = self._tables(number)
            # Look up first, open then: a shard committed in between is opened in vain, never missed.
            shard, row = table.find(index[at])
            opened = self._opened(number, table)
            present[at] = shard >= 0
            if not present[at].all():
                if not partial:
                    raise self._absent(table, number, index[at][shard < 0])
                at, shard, row = at[shard >= 0], shard[shard >= 0], row[shard >= 0]
            if len(at):
                self._fill(rows, table, opened, at, shard, row)
        return rows, present

    def _opened(self, view: int, table: ViewTable) -> _Opened:
        with self._lock:
            opened = self._views.get(view)
            if opened is None:
                opened = _Opened(
                    np.empty(0, np.int64),
                    {part.name: np.empty(0, np.int64) for part in self._parts if not part.resident},
                    {p.name: np.empty((0, p.width), p.disk_dtype) for p in self._parts if p.resident},
                )
            fresh = table.shards[len(opened.files) :]
            if fresh:
                _allow_files(sum(len(known.files) for known in self._views.values()) + len(fresh))
                opened = _with(opened, fresh, self._parts)
            self._views[view] = opened
            return opened

    def _absent(self, table: ViewTable, view: int, images: np.ndarray) -> FileNotFoundError:
        damage = "".join(f"; {name} is not trusted: {why}" for name, why in list(table.damaged.items())[:1])
        return FileNotFoundError(
            f"view {view}, image {images[0]} (one of {len(images)} asked for) is not in the cache"
            f" {self._folder}{damage}: run `fastanc cache build`, which computes only what is missing"
        )

    def _fill(
        self,
        rows: dict[str, Tensor],
        table: ViewTable,
        opened: _Opened,
        at: np.ndarray,
        shard: np.ndarray,
        row: np.ndarray,
    ) -> None:
        jobs = []
        for part in self._parts:
            out = rows[part.name]
            if part.resident:
                place = np.asarray(table.bases)[shard] + row
                out.numpy()[at] = opened.resident[part.name][place]
                continue
            buffer = out.view(torch.uint8).numpy().data.cast("B")
            offset = opened.offsets[part.name][shard] + row * part.row_bytes
            reads = _runs(opened.files[shard], offset, at, part.row_bytes)
            # What lies in memory is copied fastest by one thread; waiting for storage wants many.
            done = _read_from_memory(buffer, reads)
            left = len(reads[0]) - done
            parts = min(left, max(1, min(_THREADS, left // _READS_A_THREAD)))
            jobs += [(buffer, [column[done + k :: parts] for column in reads]) for k in range(parts)]
        short = [_pread(jobs[0])] if len(jobs) == 1 else self._pool.map(_pread, jobs)
        if any(list(short)):
            raise ValueError(
                f"a shard of {table.folder} ends before its rows do: run `fastanc cache verify"
                " --drop`, then `fastanc cache build`"
            )

    def close(self) -> None:
        """Close every file."""
        self._pool.shutdown()
        with self._lock:
            for opened in self._views.values():
                for handle in opened.files.tolist():
                    os.close(handle)
            self._views.clear()


def by_view(view: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Return every view number of [B] with the places where it stands; nearly always there is one."""
    if len(view) and (view == view[0]).all():
        return [(int(view[0]), np.arange(len(view)))]
    return [(number, np.flatnonzero(view == number)) for number in np.unique(view).tolist()]


def _runs(file: np.ndarray, offset: np.ndarray, at: np.ndarray, row_bytes: int) -> list[list[int]]:
    """Join neighbouring rows that go to neighbouring places; yield files, offsets, places, sizes."""
    follows = offset[1:] - offset[:-1] == row_bytes
    if not follows.any():  # rows of a training batch: nothing to join
        return [file.tolist(), offset.tolist(), (at * row_bytes).tolist(), [row_bytes] * len(at)]
    broken = ~follows | (np.diff(file) != 0) | (np.diff(at) != 1)
    starts = np.concatenate(([0], np.flatnonzero(broken) + 1))
    lengths = np.diff(np.concatenate((starts, [len(at)])))
    columns = (file[starts], offset[starts], at[starts] * row_bytes, lengths * row_bytes)
    return [column.tolist() for column in columns]


def _read_from_memory(buffer: memoryview, reads: list[list[int]]) -> int:
    """Read until the first that would wait for storage; return how many were read before it."""
    preadv, done = os.preadv, 0
    try:
        for file, offset, place, size in zip(*reads):
            if preadv(file, [buffer[place : place + size]], offset, os.RWF_NOWAIT) != size:
                break
            done += 1
    except OSError as error:
        # Some file systems cannot tell, NFS among them: then threads read everything.
        if error.errno not in (errno.EAGAIN, errno.EOPNOTSUPP):
            raise
    return done


def _pread(job: tuple[memoryview, list[list[int]]]) -> bool:
    """Read one job's rows; return whether a file ended too early."""
    buffer, (files, offsets, places, sizes) = job
    preadv = os.preadv
    for file, offset, place, size in zip(files, offsets, places, sizes):
        done = preadv(file, [buffer[place : place + size]], offset)
        while done != size:
            more = preadv(file, [buffer[place + done : place + size]], offset + done)
            if not more:
                return True
            done += more
    return False


def _allow_files(needed: int) -> None:
    """Raise this process's limit of open files where the cache's shards need it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = needed + _SPARE_FILES
    if soft == resource.RLIM_INFINITY or wanted <= soft:
        return
    if hard != resource.RLIM_INFINITY and wanted > hard:
        raise ValueError(
            f"the cache needs {wanted} open files but the system allows {hard}: raise `ulimit -Hn`, or let fewer"
            " processes fill the next one, whose shards are then larger"
        )
    roomy = 2 * wanted
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (roomy if hard == resource.RLIM_INFINITY else min(roomy, hard), hard)
    )
