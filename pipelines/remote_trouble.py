"""What goes wrong with a store that is read over the network: tried again where that may help, then one sentence.

Nothing of a library's own message is shown: it may hold the whole URL, and with it a signature or a password.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

_WAITS_S = (0.05, 0.5, 1.5, 4.0, 9.0)
"""Before each further try; a store that is silent for longer than all of them is not there."""
_QUICK_S, _MOST_QUICK = 0.05, 20
"""The wait where a connection drops while other requests are answered, and how many such tries one request has."""
_BUSY = {408, 425, 429}
_REFUSED = {401, 403, 407}
_NONE = {404, 410}
_NO_RIGHT = ("NoCredentialsError", "PartialCredentialsError", "GatedRepoError", "CredentialRetrievalError")
_PACKAGES = {
    **{"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub"},
    **{"az": "adlfs", "abfs": "adlfs", "abfss": "adlfs", "http": "", "https": "", "memory": ""},
}
"""Stores that are read -> what fsspec needs for it. Its other ones want arguments that no URL has, or are none."""


class StoreError(ConnectionError):
    """A store that did not answer as it should; not the fault of any image, so a pass ends with it."""

    def __init__(self, said: str, shown: str) -> None:
        super().__init__(errno.ECONNABORTED, said, shown)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.strerror, self.filename)


class Refused(StoreError):
    """A file that may not be read; some stores say so of a file that is not there."""


_answers = [0]
"""How many requests of this process were answered."""
_ended: list[StoreError] = []
"""Why the pass that asks has ended, if it has: whoever still asks is told the same."""


def give_up(error: StoreError | None = None) -> None:
    """End all requests of this process that are on their way, or waiting to be tried again."""
    _ended.append(error or StoreError("is no longer asked for", ""))


def begin() -> None:
    """Ask again."""
    _ended.clear()


class Changed(ValueError):
    """A file that is another one than it was when the pass began."""


class ShortRead(Exception):
    """Fewer bytes came than were asked for."""


def tried(work: Callable[[], T], shown: str) -> T:
    """Return what `work` does, tried again while it fails as networks fail.

    Raises FileNotFoundError where nothing is there, StoreError where the store refuses or keeps failing, ValueError
    where a package is missing or the URL cannot be one.
    """
    waits_s, quick, tries = iter(_WAITS_S), 0, 0
    while True:
        if _ended:
            raise _ended[0]
        before, tries = _answers[0], tries + 1
        try:
            result = work()
        except Exception as error:
            final, wait_s = _final(error, shown), _QUICK_S
            if _status(error) is None and _answers[0] != before and quick < _MOST_QUICK:
                quick += 1  # others are answered: the connection was dropped, and a new one may hold
            elif final is None and (wait_s := next(waits_s, 0.0)) == 0:
                final = _failed(error, tries, shown)
            if isinstance(final, StoreError) and not isinstance(final, Refused):
                give_up(final)
            if final is not None:
                raise final from None
            _wait(wait_s)
        else:
            _answers[0] += 1
            return result


def _failed(error: Exception, tries: int, shown: str) -> StoreError:
    return StoreError(
        f"cannot be read, {tries} tries failed (the last: {_name(error)}): look at the connection, and run the same"
        " command again to go on",
        shown,
    )


def _wait(seconds: float) -> None:
    end = time.monotonic() + seconds
    while not _ended and (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 0.1))


def no_ranges(shown: str) -> ValueError:
    """Return the error about a server that sends only whole files."""
    return ValueError(
        f"{shown} lies on a server that sends no ranges of bytes, or does not say how long the file is: download it"
        " whole (`curl -LO`), and give the file"
    )


def changed(shown: str) -> Changed:
    """Return the error about a file that is no longer the one that was begun with."""
    return Changed(f"{shown} changed while it was being read: run the same command again")


def no_listing(shown: str) -> ValueError:
    """Return the error about a folder on a server of files."""
    return ValueError(
        f"{shown} is not one file, and a server of files lists no folder: give the URL of an archive, of parquet or"
        " of a list of its images"
    )


def check_scheme(scheme: str) -> None:
    """Raise ValueError for what is no store that is read."""
    if scheme not in _PACKAGES:
        raise ValueError(
            f"{scheme}:// is no store that is read: give s3://, gs://, az://, hf://, https:// or a path"
        )


def no_package(scheme: str) -> ValueError:
    """Return the error about a store whose package is not installed."""
    need = f"'fastanc[remote]' {_PACKAGES[scheme]}".rstrip()
    return ValueError(f"{scheme}:// is read by packages that are not installed: pip install {need}")


def _final(error: Exception, shown: str) -> Exception | None:
    """What another try would not mend, as it is told to the user; None for all else."""
    if isinstance(error, StoreError | Changed):
        return error
    status = _status(error)
    if status in _REFUSED or any(_is_refusal(one) for one in _chain(error)):
        number = f" ({status})" if status else ""
        return Refused(
            f"may not be read{number}: give credentials as the store's own tools take them, or a signed URL that has"
            " not expired",
            shown,
        )
    if any(type(one).__name__ == "TooManyRedirects" for one in _chain(error)):
        return StoreError("redirects without end: correct the URL", shown)
    if status in _NONE or (status is None and _is_missing(error)):
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), shown)
    if status == 416:
        return changed(shown)
    if status is not None and 400 <= status < 500 and status not in _BUSY:
        return StoreError(f"is answered with an error ({status}): correct the URL", shown)
    if isinstance(error, ValueError | TypeError | NotImplementedError | AttributeError):
        return StoreError(f"cannot be read ({_name(error)}): correct the URL", shown)
    return None


def _is_refusal(error: BaseException) -> bool:
    return isinstance(error, PermissionError) or type(error).__name__ in _NO_RIGHT


def _is_missing(error: Exception) -> bool:
    """Tell whether nothing is there; fsspec also says so of a server that it could not reach."""
    others = [one for one in _chain(error) if not isinstance(one, FileNotFoundError)]
    missing = isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError)
    return missing and not any(_is_of_network(one) for one in others)


def _is_of_network(error: BaseException) -> bool:
    return isinstance(error, OSError | TimeoutError) or type(error).__module__.startswith("aiohttp")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(8):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


def _status(error: Exception) -> int | None:
    """The status that an HTTP server answered with, wherever a library put it."""
    for one in _chain(error):
        response: Any = getattr(one, "response", None)
        said = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
        found = (
            getattr(one, "status", None),
            getattr(response, "status_code", None),
            said.get("HTTPStatusCode"),
            getattr(one, "code", None) if type(one).__module__.startswith("gcsfs") else None,
        )
        for status in found:
            if isinstance(status, int) and 100 <= status < 600:
                return status
    return None


def _name(error: Exception) -> str:
    """The kind of an error, in words where the system has some."""
    last = error
    for one in _chain(error):
        if isinstance(one, OSError) and one.errno is not None and one.strerror:
            return one.strerror if one.errno > 0 else type(one).__name__
        if isinstance(one, Exception) and not isinstance(one, FileNotFoundError):
            last = one
    return type(last).__name__
