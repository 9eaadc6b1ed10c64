"""One field of one view on disk: row i at offset i x stride of one file, its checksum at offset 8 i of another.

A row is there exactly when its checksum is not zero and fits its bytes (`checksum.checksums`). Whatever else happened
to it (never written, torn by a kill, flipped on the disk, half copied, copied from another view) makes it *missing*,
and a missing row is computed again. So no commit record, list, lock or order of writers is needed: any process may
write any row at any time, because a row is a pure function of view and image, and two writers at once leave a row
that is right or missing. A file that is shorter than it should be lacks the rows behind its end.

`sums` are the checksums in memory, 8 bytes an image, as they were when the column was opened and as this process has
written since; `refresh` looks at the file again for the images that somebody wants and does not find.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
import weakref
from contextlib import suppress
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from fastanc import files
from fastanc.cache.checksum import BYTES, checksums
from fastanc.cache.rows import Field

ROWS, SUMS = ".rows", ".sums"
_NO_RESERVATION = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class Column:
    """The rows of one field of a view, and their checksums; safe to use from several threads.

    Args:
        folder: of the view; need not exist before the first row is written.
        field: of the rows.
        num_images: of the data set.
        seed: of the checksums.
    """

    def __init__(self, folder: Path, field: Field, num_images: int, seed: int) -> None:
        self.field, self.num_images, self.seed = field, num_images, seed
        self.rows_path, self.sums_path = folder / f"{field.name}{ROWS}", folder / f"{field.name}{SUMS}"
        self._lock = threading.Lock()
        self._reading: int | None = None
        self._writing: tuple[int, int] | None = None

    def load(self) -> np.ndarray:
        """Return the checksums [N] uint64 that are on disk now; zero where no row is."""
        sums = np.zeros(self.num_images, np.uint64)
        try:
            found = np.fromfile(self.sums_path, "<u8", self.num_images)
        except FileNotFoundError:
            return sums
        sums[: len(found)] = found
        return sums

    @cached_property
    def sums(self) -> np.ndarray:
        """The checksums [N] uint64 in memory."""
        return self.load()

    def has(self, index: np.ndarray) -> np.ndarray:
        """Return for which images [R] memory knows a checksum, [R] bool."""
        return self.sums[index] != 0

    def refresh(self, index: np.ndarray) -> None:
        """Look at the file again for the checksums of some images."""
        try:
            file = os.open(self.sums_path, os.O_RDONLY)
        except FileNotFoundError:
            return
        try:
            for image in index.tolist():
                data = os.pread(file, BYTES, image * BYTES)
                self.sums[image] = int.from_bytes(data, "little") if len(data) == BYTES else 0
        finally:
            os.close(file)

    def handle(self) -> int | None:
        """Return the open file of the rows, None where there is none yet; it is closed with the column."""
        with self._lock:
            if self._reading is None:
                try:
                    self._reading = os.open(self.rows_path, os.O_RDONLY)
                except FileNotFoundError:
                    return None
                with suppress(AttributeError):  # macOS takes no advice
                    os.posix_fadvise(self._reading, 0, 0, os.POSIX_FADV_RANDOM)
                weakref.finalize(self, os.close, self._reading)
            return self._reading

    def read(self, index: np.ndarray) -> np.ndarray:
        """Return the bytes [R, row bytes] uint8 of ascending images [R], zeros behind the end."""
        first = int(index[0])
        data = np.zeros((int(index[-1]) + 1 - first, self.field.stride), np.uint8)
        left, offset, handle = data.data.cast("B"), first * self.field.stride, self.handle()
        with files.named(self.rows_path):
            while left and handle is not None and (done := os.preadv(handle, [left], offset)):
                left, offset = left[done:], offset + done
        return data[index - first, : self.field.row_bytes]

    def fits(self, index: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return for which images [R] the bytes [R, row bytes] fit the checksum in memory, [R] bool."""
        return checksums(rows, index, self.seed) == self.sums[index]

    def wrong(self, index: np.ndarray) -> np.ndarray:
        """Return those of ascending images [R] whose row does not fit its checksum, read twice."""
        for _ in range(2):
            if len(index):
                index = index[~self.fits(index, self.read(index))]
                self.refresh(index)
                index = index[self.has(index)]
        return index

    def write_rows(self, index: np.ndarray, rows: np.ndarray) -> None:
        """Write bytes [R, row bytes] uint8 of images [R]; they are not there before `write_sums`.

        Raises:
            ValueError: the disk is full or the folder cannot be written.
        """
        stride = self.field.stride
        if stride != rows.shape[1]:
            rows = np.pad(rows, ((0, 0), (0, stride - rows.shape[1])))
        self._write(0, index, np.ascontiguousarray(rows))

    def write_sums(self, index: np.ndarray, rows: np.ndarray) -> None:
        """Write the checksums of rows that were written; of the first image last (see `teacher/filling.py`)."""
        sums = checksums(rows, index, self.seed)
        self._write(1, index, sums.astype("<u8")[:, None].view(np.uint8))
        self.sums[index] = sums

    def drop(self, index: np.ndarray, sums: np.ndarray) -> None:
        """Declare rows missing, of those images [R] whose checksums on disk are still these [R]."""
        self.refresh(index)
        same = index[self.sums[index] == sums]
        self._write(1, same, np.zeros((len(same), BYTES), np.uint8))
        self.sums[same] = 0

    def sync(self) -> None:
        """Make what was written durable: the rows before their checksums."""
        if self._writing is not None:
            for handle in self._writing:
                getattr(os, "fdatasync", os.fsync)(handle)

    def _write(self, which: int, index: np.ndarray, data: np.ndarray) -> None:
        starts = np.concatenate(([0], np.flatnonzero(np.diff(index) != 1) + 1, [len(index)]))
        size = data.shape[1]
        try:
            handle = self._opened()[which]
            for first, end in zip(starts[-2::-1].tolist(), starts[:0:-1].tolist()):
                _pwrite(handle, data[first:end].data.cast("B"), int(index[first]) * size)
        except OSError as error:
            raise explain(self.rows_path.parent, error) from error

    def _opened(self) -> tuple[int, int]:
        """Return the files to write to, opened and as long as the view is at the first call."""
        with self._lock:
            if self._writing is None:
                files.make_folder(self.rows_path.parent)
                rows = self._created(self.rows_path, self.field.stride)
                self._writing = rows, self._created(self.sums_path, BYTES)
            return self._writing

    def _created(self, path: Path, size: int) -> int:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        weakref.finalize(self, os.close, handle)
        reserve(handle, self.num_images * size)
        return handle


def reserve(handle: int, size: int) -> None:
    """Make a file as long as `size`, with its room on the disk where the file system can promise that.

    Nothing is shortened or overwritten, so others may write at the same time. Raises OSError: ENOSPC before the first
    byte where there is not room for all of it.
    """
    found = os.fstat(handle)
    if found.st_size >= size:
        return
    disk = os.fstatvfs(handle)
    if size - found.st_blocks * 512 > disk.f_bavail * disk.f_frsize:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    fallocate = _fallocate()
    if fallocate is not None:
        if fallocate(handle, 0, 0, size) == 0:
            return
        failure = ctypes.get_errno()
        if failure not in _NO_RESERVATION:
            raise OSError(failure, os.strerror(failure))
    if os.fstat(handle).st_size < size:
        os.ftruncate(handle, size)


@lru_cache
def _fallocate() -> ctypes._NamedFuncPointer | None:
    """Return Linux's fallocate: `os.posix_fallocate` writes the whole file where the file system cannot reserve.

    None on other systems, which make the file as long as it will be, with holes.
    """
    call = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if call is None:
        return None
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong)
    return call


def _pwrite(handle: int, data: memoryview, offset: int) -> None:
    while data:
        done = os.pwrite(handle, data, offset)
        data, offset = data[done:], offset + done


def explain(folder: Path, error: OSError) -> ValueError:
    """Return the sentence for an error while writing into a folder of the cache."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ValueError(
            f"no space is left for {folder} ({error.strerror}): free some or choose another"
            " --teacher.cache_dir; every row that was written is safe"
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return ValueError(
            f"{folder} cannot be written ({error.strerror}): set --teacher.cache read, or choose another"
            " --teacher.cache_dir to fill"
        )
    return ValueError(
        f"writing into {folder} failed ({error.strerror}): look at its disk, or choose another --teacher.cache_dir;"
        " every row that was written is safe"
    )
