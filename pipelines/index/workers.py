"""A function over many jobs in several processes, results in order, and a journal of what is done."""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import signal
import subprocess
import sys
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO, TypeVar

from fastanc.files import named
from fastanc.pipelines.cores import usable_cores

Job = TypeVar("Job")
Result = TypeVar("Result")


def default_workers() -> int:
    """Return the number of cores this process may use, at most 32."""
    return min(usable_cores(), 32)


class _Helper:
    """A clean Python process that answers one job at a time.

    Not `multiprocessing`: forking breaks threads and CUDA, its other ways run the user's main script again
    in every worker, and its workers outlive a parent that was killed. A helper ends when its input does.
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )

    def ask(self, function: Callable[[Job], Result], job: Job) -> Result:
        """Return function(job), or raise what it raised."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            pickle.dump((function, job), self._process.stdin)
            self._process.stdin.flush()
            done, answer = pickle.load(self._process.stdout)
        except (EOFError, BrokenPipeError):
            raise RuntimeError(
                f"a worker process ended (exit code {self._process.wait()}): use fewer if memory is short"
            ) from None
        if not done:
            raise answer
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


def serve() -> None:
    """Answer the jobs of a `_Helper`, until its input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not mix with the answers
    while True:
        try:
            function, job = pickle.load(source)
        except EOFError:
            return
        try:
            answer = (True, function(job))
        except Exception as error:
            answer = (False, error)
        try:
            pickle.dump(answer, sink)
            sink.flush()
        except BrokenPipeError:  # the parent was killed
            return


def in_order(function: Callable[[Job], Result], jobs: Iterable[Job], workers: int) -> Iterator[Result]:
    """Yield function(job) for every job in order, computed by `workers` processes a few jobs ahead.

    One worker is this process itself. Raises what `function` raises, RuntimeError where a worker is killed.
    """
    if workers <= 1:
        yield from map(function, jobs)
        return
    helpers = [_Helper() for _ in range(workers)]
    idle: SimpleQueue[_Helper] = SimpleQueue()
    for helper in helpers:
        idle.put(helper)

    def run(job: Job) -> Result:
        helper = idle.get()
        try:
            return helper.ask(function, job)
        finally:
            idle.put(helper)

    ahead: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for job in jobs:
            ahead.append(pool.submit(run, job))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for helper in helpers:
            helper.close()
        pool.shutdown()


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
    """Results of numbered jobs, one JSON line each with its CRC-32, so that killed work goes on where it was.

    The file is locked while it is open: a second process that wants the same work waits. A journal of other
    work (another `stamp`) is begun anew, and a line that a kill cut in half is dropped.
    """

    def __init__(self, path: Path, stamp: str) -> None:
        self.path, self._file = path, _open_locked(path)
        self.done: dict[int, Any] = {}
        self._file.seek(0)
        end = 0
        for number, line in enumerate(self._file):
            text, _, crc32 = line.rpartition(b" ")
            if crc32 != b"%08x\n" % zlib.crc32(text):  # torn by a kill, or damaged
                break
            key, value = json.loads(text)
            if number == 0 and value != stamp:
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
        with named(self.path):
            text = json.dumps([job, result]).encode()
            self._file.write(text + b" %08x\n" % zlib.crc32(text))
            self._file.flush()

    def remove(self) -> None:
        """End the work: the journal is no longer needed."""
        os.unlink(self.path)
        self._file.close()

    def close(self) -> None:
        """Leave the journal for the next time."""
        self._file.close()
