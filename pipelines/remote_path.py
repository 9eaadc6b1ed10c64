"""Paths whose files lie in a store that is read over the network: `s3://`, `gs://`, `hf://`, `https://`, `memory://`.

A RemotePath is a Path whose questions go to the store, as is what `/`, `parent` and `with_name` make of it. It is
written as its URL without what a URL may keep secret (a query, a name and password before the host): those are
remembered beside it for the store alone, so that no message, index or note can hold them.
"""

from __future__ import annotations

import io
import os
import posixpath
import re
import stat
from collections.abc import Iterator
from pathlib import Path, PosixPath
from typing import IO, Any
from urllib.parse import quote, unquote, urlsplit

from fastanc.pipelines import remote_store
from fastanc.pipelines.remote_store import WEB, Status
from fastanc.pipelines.remote_trouble import Refused, begin, changed

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://+(.+)", re.DOTALL)
_BUFFER = 1 << 13

_SHOWN = "/%*:@+,=&~!$'()"
"""What is shown of a web address as it is, beside letters and digits; a command holds it without quotes' help."""
Key = tuple[str, ...]

_urls: dict[Key, str] = {}
"""Of a path, the URL as it was given."""
_users: dict[str, str] = {}
"""NAME:PASSWORD@ of a host."""
_known: dict[Key, Status] = {}
"""What a store said of a path first; whatever differs from it later has changed."""
_compared: set[Key] = set()
"""Paths that are still, or were in this process, what is known of them."""


def is_url(text: str | os.PathLike[str]) -> bool:
    """Tell whether a text is the URL of a store rather than a path of this machine."""
    return _URL.fullmatch(os.fspath(text)) is not None


def path_of(text: str | os.PathLike[str]) -> Path:
    """Return what a user calls a source by: a RemotePath of a URL, a Path of all else."""
    if isinstance(text, Path):
        return text
    match = _URL.fullmatch(os.fspath(text))
    return _of_url(match[1].lower(), match[2]) if match else Path(text)


def _of_url(scheme: str, rest: str) -> RemotePath:
    begin()
    url = f"{scheme}://{rest}"
    if scheme not in WEB:
        return RemotePath(f"{scheme}:", rest)
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    names = [name if "%2f" in name.lower() else unquote(name) for name in parts.path.split("/")]
    path = RemotePath(f"{scheme}:", host, *filter(None, names))
    if at:
        _users[f"{scheme}://{host}"] = user + at
    _urls[path.parts] = url.partition("#")[0]
    return path


class RemotePath(PosixPath):
    """A file or folder in a store; raises StoreError where that fails (`remote_trouble`)."""

    def __str__(self) -> str:
        scheme, *rest = self.parts or ("",)
        if not scheme.endswith(":"):  # a part of one, as `relative_to` gives it
            return super().__str__()
        text = "/".join(rest)
        return f"{scheme}//{quote(text, _SHOWN) if scheme.rstrip(':') in WEB else text}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self.url, _known.get(self.parts))

    @property
    def url(self) -> str:
        """The URL for the store, with what it keeps secret."""
        if (given := _urls.get(self.parts)) is not None:
            return given
        scheme, host, *names = (*self.parts, "")
        key = posixpath.normpath(f"/{'/'.join(names)}").strip("/")  # `..` means what it means on a disk
        if scheme.rstrip(":") not in WEB:
            return f"{scheme}//{host}/{key}".rstrip("/")
        user = _users.get(f"{scheme}//{host}", "")
        return f"{scheme}//{user}{host}/{quote(key)}"

    def stat(self, *, follow_symlinks: bool = True) -> Status:  # type: ignore[override]
        """Return what the store says of it, asked once; raises FileNotFoundError where nothing is there."""
        if (found := _known.get(self.parts)) is None:
            found = _known[self.parts] = remote_store.status(self.url, str(self))
        return found

    def ask(self) -> Status:
        """Return what the store says of it now, and do not remember it: there may be millions of such files."""
        return remote_store.status(self.url, str(self))

    def check_unchanged(self) -> None:
        """Ask again; raises ValueError where it is another one than it was."""
        if self.ask().version != self.stat().version:
            raise changed(str(self))
        _compared.add(self.parts)

    def check_once(self) -> None:
        """Compare it with what another process of this pass saw, at its first use here."""
        if self.parts not in _compared:
            self.check_unchanged()

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        """Tell whether anything is there."""
        try:
            self.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Tell whether it is a file that may be read.

        A signature holds for one file alone, so of what may lie beside it, labels, none is found.
        """
        try:
            return stat.S_ISREG(self.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError, Refused):
            return False

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Tell whether it is a folder, which servers of files do not have."""
        return self.exists() and stat.S_ISDIR(self.stat().st_mode)

    def is_symlink(self) -> bool:
        """Tell that it is no link."""
        return False

    def resolve(self, strict: bool = False) -> RemotePath:
        """Return itself."""
        return self

    def read_at(self, length: int, offset: int) -> bytes:
        """Return bytes [offset, offset + length), fewer at its end."""
        return remote_store.read(self.url, str(self), self.stat(), length, offset)

    def read_whole(self, length: int) -> bytes:
        """Return all of a file of so many bytes, which is not asked about first."""
        known = _known.get(self.parts) or Status(stat.S_IFREG, length, 0, "")
        return remote_store.read(self.url, str(self), known, length, 0)

    def read_bytes(self) -> bytes:
        """Return the whole file."""
        return self.read_at(self.stat().st_size, 0)

    def open(self, *args: Any, **options: Any) -> IO[Any]:  # type: ignore[override]
        """Return it as a file of bytes that can be read and sought."""
        return io.BufferedReader(_Raw(self), _BUFFER)

    def scan(self) -> list[RemoteEntry]:
        """Return what lies in the folder, sorted; raises ValueError where the store lists none."""
        found = remote_store.entries(self.url, str(self))
        return [RemoteEntry(self / name, status) for name, status in found]


def forget() -> None:
    """Ask the stores anew of everything, as a new pass must."""
    begin()
    _known.clear()
    _compared.clear()


def _again(url: str, known: Status | None) -> RemotePath:
    """A path that came from another process, with what that one knows of it; which counts as long as they agree."""
    path = path_of(url)
    assert isinstance(path, RemotePath)
    if known is not None and _known.setdefault(path.parts, known).version != known.version:
        raise changed(str(path))
    return path


class RemoteEntry:
    """What lies in a folder of a store, as `os.scandir` gives it."""

    def __init__(self, path: RemotePath, status: Status) -> None:
        self.path, self.name, self._status = path, path.name, status

    def is_dir(self) -> bool:
        """Tell whether it is a folder."""
        return stat.S_ISDIR(self._status.st_mode)

    def is_symlink(self) -> bool:
        """Tell that it is no link."""
        return False

    def stat(self) -> Status:
        """Return what the store says of it."""
        return self._status


class _Raw(io.RawIOBase):
    """A file of a store, for libraries that want a file."""

    def __init__(self, path: RemotePath) -> None:
        self._path, self._position = path, 0
        self.name = str(path)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        start = (0, self._position, self._path.stat().st_size)[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        data = self._path.read_at(len(buffer), self._position)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def parents_of(path: Path) -> Iterator[Path]:
    """Yield the folders that a path lies in, the next one first, that may be archives."""
    if isinstance(path, RemotePath):
        yield from (above for above in path.parents if above.suffix.lower() in (".tar", ".zip"))
    else:
        yield from path.parents
