"""A function over many jobs in several processes, results in order, and a journal of what is done."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def default_workers() -> int:
    """Return the number of cores this process may use, at most 32."""
    return min(len(os.sched_getaffinity(0)), 32)


def _end_with_parent() -> None:
    """Make this worker end when its parent was killed: a pool's workers would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def in_order(function: Callable[[Job], Result], jobs: Iterable[Job], workers: int) -> Iterator[Result]:
    """Yield function(job) for every job in order, computed by `workers` processes a few jobs ahead.

    One worker is this process itself. Workers are forked from a clean server process, never from this one,
    whose threads and CUDA state a fork would break.
    """
    if workers <= 1:
        yield from map(function, jobs)
        return
    context = multiprocessing.get_context("forkserver")
    ahead: deque[Future[Result]] = deque()
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent) as pool:
        try:
            for job in jobs:
                ahead.append(pool.submit(function, job))
                if len(ahead) > 2 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _open_locked(path: Path) -> BinaryIO:
    """Return the file opened for appending and locked; wait while another process holds it."""
    while True:
        file = open(path, "a+b")  # noqa: SIM115
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        except FileNotFoundError:
            pass
        file.close()  # its last owner removed it while we waited


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time into the block; the lock file is removed afterwards."""
    file = _open_locked(path)
    try:
        yield
    finally:
        os.unlink(path)
        file.close()


class Journal:
    """Results of numbered jobs, one JSON line each, so that killed work goes on where it was.

    The file is locked while it is open: a second process that wants the same work waits. A journal of other
    work (another `stamp`) is begun anew, and a line that a kill cut in half is dropped.
    """

    def __init__(self, path: Path, stamp: str) -> None:
        self.path, self._file = path, _open_locked(path)
        self.done: dict[int, Any] = {}
        self._file.seek(0)
        end = 0
        for number, line in enumerate(self._file):
            try:
                key, value = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n") or (number == 0 and value != stamp):
                break
            if number:
                self.done[key] = value
            end += len(line)
        self._file.truncate(end)
        if end == 0:
            self._write(-1, stamp)

    def add(self, job: int, result: Any) -> None:
        """Keep a job's result."""
        self.done[job] = result
        self._write(job, result)

    def _write(self, job: int, result: Any) -> None:
        self._file.write(json.dumps([job, result]).encode() + b"\n")
        self._file.flush()

    def remove(self) -> None:
        """End the work: the journal is no longer needed."""
        os.unlink(self.path)
        self._file.close()

    def close(self) -> None:
        """Leave the journal for the next time."""
        self._file.close()
