"""Files in stores that are read over the network, through fsspec: what lies there, and ranges of bytes of it.

A URL is asked for here as it was given, with its signature; `shown` is what messages may say of it.
"""

from __future__ import annotations

import hashlib
import stat
import threading
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from fastanc.pipelines.remote_trouble import (
    ShortRead,
    changed,
    check_scheme,
    no_listing,
    no_package,
    no_ranges,
    tried,
)

WEB = ("http", "https")
_BY_FILE = (*WEB, "hf")
"""Stores whose files are opened: of a range of a whole file they would fetch more, or not see that it is none."""
_REMEMBER = ("s3", "hf")
"""Stores that say again what they once said of a file, unless they are asked to look anew."""
_SILENT_S = 30
_TIMES = ("LastModified", "last_modified", "mtime", "updated", "modified", "created", "Last-Modified")
_VERSIONS = ("ETag", "etag", "blob_id", "generation", "md5Hash", "Content-MD5")
_kept = threading.local()


class Status(NamedTuple):
    """What a store says of a file or folder, named as `os.stat` names it."""

    st_mode: int
    st_size: int
    st_mtime_ns: int
    """Where the store says no time, a number that changes with the file's version."""
    version: str
    """Whatever the store changes with the file."""


def scheme_of(url: str) -> str:
    """Return what stands before ://, in lower case."""
    return url.partition("://")[0].lower()


def _file_system(scheme: str) -> Any:
    """The store of a scheme; raises ValueError naming the package that reads it."""
    check_scheme(scheme)
    try:
        import fsspec

        options: dict[str, Any] = {}
        if scheme in WEB:
            import aiohttp

            limits = aiohttp.ClientTimeout(total=None, sock_connect=_SILENT_S, sock_read=_SILENT_S)
            options = {"client_kwargs": {"timeout": limits, "trust_env": True}}
        return fsspec.filesystem(scheme, **options)
    except ImportError:
        raise no_package(scheme) from None


def status(url: str, shown: str) -> Status:
    """Return what lies at a URL; raises FileNotFoundError where nothing does, StoreError as `tried`."""
    scheme = scheme_of(url)
    store, anew = _file_system(scheme), {"refresh": True} if scheme in _REMEMBER else {}
    found = _status_of(tried(lambda: store.info(url, **anew), shown))
    if scheme in WEB and (found.st_size < 0 or not _has_ranges(url, found.st_size, shown)):
        raise no_ranges(shown)
    return found


def _status_of(info: Mapping[str, Any]) -> Status:
    folder, size = info.get("type") == "directory", info.get("size")
    said = next((str(info[key]) for key in _VERSIONS if info.get(key)), "")
    time_ns = next(filter(None, (_nanoseconds(info.get(key)) for key in _TIMES)), 0)
    version = f"{size} {said or time_ns}"
    if not time_ns and said:
        time_ns = int.from_bytes(hashlib.blake2b(version.encode(), digest_size=7).digest(), "little")
    mode = stat.S_IFDIR if folder else stat.S_IFREG
    return Status(mode, size if isinstance(size, int) else 0 if folder else -1, time_ns, version)


def _nanoseconds(time: Any) -> int:
    """A time as stores say it, in ns since 1970; 0 where it is none."""
    try:
        if isinstance(time, str):
            time = (
                parsedate_to_datetime(time)
                if "," in time
                else datetime.fromisoformat(time.replace("Z", "+00:00"))
            )
        return int((time.timestamp() if isinstance(time, datetime) else float(time)) * 1e9)
    except (TypeError, ValueError):
        return 0


_ranged: dict[str, bool] = {}


def _has_ranges(url: str, size: int, shown: str) -> bool:
    """Whether a web server sends the byte that is asked for, and not the whole file; asked once a server."""
    host = url.split("/", 3)[2]
    if host not in _ranged and size > 1:

        def probe() -> bool:
            try:
                return len(_read(url, size, 1, 1)) == 1
            except ValueError:  # fsspec says so: the whole file came, or would have
                return False

        _ranged[host] = tried(probe, shown)
    return _ranged.get(host, True)


def entries(url: str, shown: str) -> list[tuple[str, Status]]:
    """Return name and status of all that lies in a folder, sorted; raises ValueError where nothing can say it."""
    scheme = scheme_of(url)
    if scheme in WEB:
        raise no_listing(shown)
    store = _file_system(scheme)
    found = tried(lambda: store.ls(url, detail=True), shown)
    here = str(store._strip_protocol(url)).strip("/")
    named = [(str(info["name"]).rstrip("/").rpartition("/")[2], info) for info in found]
    return sorted(
        (name, _status_of(info))
        for name, info in named
        if name and str(info["name"]).strip("/") != here  # some stores list the folder in itself
    )


def read(url: str, shown: str, known: Status, length: int, offset: int) -> bytes:
    """Return bytes [offset, offset + length) of a file, fewer at its end; raises as `tried` and `changed`."""
    length = min(length, known.st_size - offset)
    if length <= 0:
        return b""
    _file_system(scheme_of(url))  # whose absence no further try would mend

    def attempt() -> bytes:
        data = _read(url, known.st_size, length, offset)
        if len(data) != length:
            raise changed(shown) if _is_other(url, shown, known) else ShortRead
        return data

    return tried(attempt, shown)


def _is_other(url: str, shown: str, known: Status) -> bool:
    try:
        now = status(url, shown)
        return now.st_size != known.st_size or known.version not in ("", now.version)
    except OSError:
        return False


def _read(url: str, size: int, length: int, offset: int) -> bytes:
    scheme = scheme_of(url)
    store = _file_system(scheme)
    if scheme not in _BY_FILE:
        data: bytes = store.cat_file(url, start=offset, end=offset + length)
        return data
    kept, this = getattr(_kept, "file", None), (store, url, size)  # of this thread: a file has one position
    if kept is None or kept[0] != this:
        _kept.file = kept = this, store.open(url, "rb", size=size, cache_type="none")
    file = kept[1]
    file.seek(offset)
    data = file.read(length)
    return data
