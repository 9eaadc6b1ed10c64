"""The folder of a run: opened by the one process that writes into it, finished once its summary is there."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from fastanc.files import make_folder, remove, sweep, write_text

SUMMARY = "summary.json"
PROFILE = "profile.json"
CLASSES = "classes.txt"
BEST = "best.safetensors"
TENSORBOARD = "tensorboard"
"""Folder of TensorBoard's files."""
TRACKED = "trackers.json"
"""Under what name or number each tracker keeps the run."""
_LEFT = (
    *(
        "checkpoints",
        SUMMARY,
        PROFILE,
        "student.safetensors",
        BEST,
        "student.pt2",
        "student.onnx",
        "estimators.safetensors",
    ),
    *(CLASSES, "samples.png", "metrics.jsonl", TRACKED, TENSORBOARD),
)
"""What a run and its exports leave, in the order in which a run that starts over removes it: a kill between leaves
no old checkpoint that could be taken for the new run's."""
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}
_TRIES = 100
_LONGEST = 1024
"""Bytes of what an owner says of itself."""
_FLOCK = "hhqqi0q"
"""Linux' struct flock: type, whence, start, length, process."""
_mine: set[Path] = set()
"""Folders that runs of this process own: a record lock does not bar its own process."""


class Owner:
    """The one process that writes into a run's folder: a lock that dies with it, in a file that names it.

    A record lock (lockf), because a worker that is forked must not hold it on when its parent is killed.
    Raises ValueError naming the host and the process that owns the folder; OSError where it cannot be written.
    """

    def __init__(self, folder: Path):
        self._made = [above for above in (folder, *folder.parents) if not above.exists()]
        self._place = folder.resolve()
        self._path = self._place / ".owner"
        if self._place in _mine:
            raise _taken(folder, f"host {socket.gethostname()} pid {os.getpid()}")
        self._file = self._locked(folder)
        self._file.truncate(0)
        self._file.seek(0)
        self._file.write(f"host {socket.gethostname()} pid {os.getpid()} since {time.ctime()}\n")
        self._file.flush()
        _mine.add(self._place)

    def _locked(self, folder: Path) -> TextIO:
        tries = 0
        while True:
            try:
                make_folder(folder)
                file = self._path.open("a+", errors="replace")
            # An owner that wrote nothing took the folder away in between, perhaps as `mkdir` was looking at it.
            except (FileNotFoundError, FileExistsError):
                tries += 1
                if tries == _TRIES:  # there is no making one here, as in /proc
                    raise
                continue
            file.seek(0)
            said = file.read(_LONGEST).strip()
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in _NO_LOCKS and not _lives(said):
                    return file
                file.close()
                if error.errno in (errno.EACCES, errno.EAGAIN) or error.errno in _NO_LOCKS:
                    raise _taken(folder, said or "another process") from error
                raise
            with suppress(OSError):
                if os.path.samestat(os.fstat(file.fileno()), self._path.stat()):
                    return file
            file.close()  # its owner ended, and took the file away, after it was opened here

    def release(self) -> None:
        """Give the folder free; it goes where it was made for a run that then wrote nothing."""
        if not self._file.closed:
            self._path.unlink(missing_ok=True)
            self._file.close()
            _mine.discard(self._place)
            with suppress(OSError):  # as soon as one holds something
                for folder in self._made:
                    folder.rmdir()


def owner_of(folder: Path) -> str:
    """Return who writes into a run's folder now, as `host H pid P since T`; "" where nobody does.

    It only asks: a lock that was taken, even for a moment, would refuse a run that begins, and a closed file of this
    process' own run would give that one's lock away.
    """
    if folder.resolve() in _mine:
        return f"host {socket.gethostname()} pid {os.getpid()}"
    said = ""
    try:
        with (folder / ".owner").open("rb") as file:
            said = file.read(_LONGEST).decode(errors="replace").strip()
            wish = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            held = struct.unpack(_FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, wish))[0] != fcntl.F_UNLCK
            return (said or "another process") if held else ""
    except OSError:  # there is none, it is not ours to read, or this file system has no locks
        return said if _lives(said) else ""


def _taken(folder: Path, owner: str) -> ValueError:
    return ValueError(
        f"{folder} belongs to a run that is under way ({owner}): wait for its end, or give another --run.name"
    )


def _lives(said: str) -> bool:
    """Tell whether who is named may still be at work, on a file system without locks."""
    words = said.split()
    if len(words) < 4 or not words[3].isdigit():
        return False
    if words[1] != socket.gethostname():
        return True
    try:
        os.kill(int(words[3]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return int(words[3]) != os.getpid()


def open_folder(folder: Path, config: str, *, start: int, total: int) -> None:
    """Make a run's folder ready for the steps `start` to `total`, and write its config.yaml; for its owner.

    What a killed run left unfinished goes. So does an earlier generation, of which a run that begins at step 0 keeps
    nothing, and the checkpoints behind `start`: a killed run is only ever resumed from what is its own. A run that
    has steps left is not finished: its summary goes too. Raises OSError where the folder cannot be written.
    """
    make_folder(folder)
    for own in (folder, folder / "checkpoints"):
        sweep(own)
    if start == 0 < total:
        for name in _LEFT:
            remove(folder / name)
    elif start < total:
        (folder / SUMMARY).unlink(missing_ok=True)
        for path in (folder / "checkpoints").glob("step-*"):
            if path.name > f"step-{start:08d}":
                remove(path)
    write_text(folder / "config.yaml", config)


def finish_folder(folder: Path, summary: Mapping[str, Any], classes: Sequence[str] = ()) -> None:
    """Write the names of the student's classes, one a line, and the summary, with which a run is finished."""
    if classes:
        lines = [" ".join(name.splitlines()) for name in classes]
        write_text(folder / CLASSES, "".join(f"{line}\n" for line in lines))
    write_text(folder / SUMMARY, json.dumps(summary, indent=1))


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Return the summary of a finished run; None for any other.

    One that an earlier version wrote and a kill cut off does not count: the run goes on from its last checkpoint.
    """
    try:
        summary = json.loads((folder / SUMMARY).read_text())
    except (OSError, ValueError):
        return None
    return summary if isinstance(summary, dict) and summary else None
