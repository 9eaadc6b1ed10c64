"""How a command ends: a user's mistake is one sentence and exit code 2, never a traceback."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fastanc.quoting import brief, cut
from fastanc.registry import place_of

MISTAKE, ENDED_AT_ONCE, SAVED = 2, 130, os.EX_TEMPFAIL
"""Exit codes: of a user's mistake, of Ctrl-C, and (75: try again later) of a run that saved itself first."""

_TOLD = (ValueError, OSError, RuntimeError, MemoryError, ModuleNotFoundError)
"""What says a user's mistake; of others only fastanc can be the cause."""
_MANY = ("--only",)  # options that are meant to be repeated
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_BARRED = {errno.EROFS, errno.EACCES, errno.EPERM}
_IN_THE_WAY = {errno.EEXIST, errno.ENOTDIR, errno.EISDIR}
_HOST = ("DefaultCPUAllocator", "alloc_cpu", "std::bad_alloc")
_DEVICE = ("out of memory", "cudaErrorMemoryAllocation", "CUBLAS_STATUS_ALLOC_FAILED")


class Interrupted(RuntimeError):
    """The run was asked to stop and has saved itself."""


class OutOfMemory(RuntimeError):
    """The host or the device ran out of memory; the message says what would take less."""


def command(job: Callable[[], int | None], again: str = "run the same command again to go on") -> int:
    """Do a command's work and return its exit code; a user's mistake is said in one sentence.

    So is whatever a user's own code raises (`registry`), with the line that it comes from.

    `again` says how an interrupted job goes on. FASTANC_DEBUG=1 raises mistakes, to show where they come from.
    """
    try:
        return int(job() or 0)
    except KeyboardInterrupt:
        code, said = ENDED_AT_ONCE, f"interrupted; {again}"
    except Interrupted as stopped:
        code, said = SAVED, f"{stopped}; {again}"
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Exception, SystemExit) as error:
        place = None if isinstance(error, OutOfMemory) or memory_of(error) else place_of(error)
        if os.environ.get("FASTANC_DEBUG") or not (place or isinstance(error, _TOLD)):
            raise
        code, said = MISTAKE, sentence(error)
        if place:
            said = f"{place}: {raised(error)}: mend it there (FASTANC_DEBUG=1 shows where it was called)"
    print(f"fastanc: {brief(said)}", file=sys.stderr)
    return code


def say_repeated(options: Sequence[str]) -> None:
    """Say of every option that stands more than once on a command line that its last value counts."""
    for name in sorted({name for name in options if options.count(name) > 1 and name not in _MANY}):
        if os.environ.get("RANK", "0") == "0":
            said = f"{cut(name)} is given {options.count(name)} times: the last one counts"
            print(f"fastanc: {said}", file=sys.stderr)


@contextmanager
def explained(*, batch: int, image_px: int, folder: Path | None = None) -> Iterator[None]:
    """Add to an error of the block what only who knows its configuration can say.

    Args:
        batch: images of a step over all processes.
        image_px: side of the images, pixels.
        folder: of the run, whose files --run.out would put elsewhere.

    Raises:
        OutOfMemory: host or device ran out of memory.
        OSError: the folder cannot be written.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if memory := memory_of(error):
            raise OutOfMemory(
                f"the {memory} ran out of memory with data.batch {batch} (over all processes) at {image_px} px:"
                " lower data.batch (or data.eval_batch, data.image_px), use more processes, or give teacher and"
                f" student bf16 (--run.precision, --teacher.precision): {_first_line(error)}"
            ) from error
        if folder is not None and isinstance(error, OSError) and _concerns(folder, error):
            raise OSError(_about(folder, error)) from error
        raise


def memory_of(error: BaseException) -> str | None:
    """Return which memory an error says to be short, "host" or "device", or None."""
    if isinstance(error, OutOfMemory) or not isinstance(error, RuntimeError | MemoryError | OSError):
        return None
    text = str(error)
    no_memory = isinstance(error, OSError) and error.errno == errno.ENOMEM
    if isinstance(error, MemoryError) or no_memory or any(word in text for word in _HOST):
        return "host"
    torch = sys.modules.get("torch")  # not imported for a command that does without
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return "device"
    return "device" if isinstance(error, RuntimeError) and any(word in text for word in _DEVICE) else None


def sentence(error: BaseException) -> str:
    """Return what a user is told of an error: its message, or a sentence for one of the system's."""
    if memory := memory_of(error):
        return f"the {memory} ran out of memory: {_first_line(error)}"
    if not isinstance(error, OSError) or error.errno is None:
        return str(error)
    place = None if error.filename is None else str(error.filename)
    return ": ".join(filter(None, (place, error.strerror, _advice(error.errno))))


def raised(error: BaseException) -> str:
    """Return an error's kind and what it says, in one line."""
    said = str(error).strip()
    return f"{type(error).__name__}: {said.splitlines()[0]}" if said else type(error).__name__


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _advice(number: int) -> str | None:
    if number in _FULL:
        return "free some space there, or choose another folder"
    if number in _BARRED:
        return "choose a file or folder that you have the right to, or ask for it"
    if number in _IN_THE_WAY:
        return "something else has that name, choose another"
    if number == errno.ENAMETOOLONG:
        return "choose a shorter name"
    if number in (errno.EMFILE, errno.ENFILE):
        return "raise the limit of open files (ulimit -n)"
    if number in (errno.EIO, errno.ESTALE):
        return "look at the disk that it lies on"
    return "correct the path" if number == errno.ENOENT else None


def _concerns(folder: Path, error: OSError) -> bool:
    """Tell whether a system's error is about the run's folder, what lies in it, or one that it lies in."""
    if error.errno is None or not isinstance(error.filename, str | os.PathLike):
        return False
    mine, its = (Path(os.path.abspath(path)) for path in (folder, error.filename))
    return its == mine or mine in its.parents or its in mine.parents


def _about(folder: Path, error: OSError) -> str:
    if error.errno in _FULL:
        return (
            f"no space is left for {folder} ({error.strerror}): free some and go on with --run.resume latest,"
            " or choose another --run.out"
        )
    if error.errno in _BARRED:
        return f"{folder} cannot be written ({error.strerror}): choose another --run.out"
    if error.errno in _IN_THE_WAY:
        return (
            f"{folder} cannot be made, {error.filename} is in the way: choose another --run.out or --run.name"
        )
    if error.errno == errno.ENAMETOOLONG:
        return f"{folder} cannot be made ({error.strerror}): choose a shorter --run.name"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{error.filename} cannot be opened ({error.strerror}): {_advice(error.errno)}"
    return (
        f"{os.fspath(error.filename)} cannot be read or written ({error.strerror}): look at its disk, or choose"
        " another --run.out"
    )
