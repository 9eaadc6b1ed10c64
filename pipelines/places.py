"""Where fastanc keeps what it makes of the user's data."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from fastanc.files import make_folder
from fastanc.pipelines.remote_path import RemotePath
from fastanc.pipelines.source_path import file_name


def cache_dir() -> Path:
    """Return the user's cache folder: FASTANC_CACHE, or fastanc in XDG_CACHE_HOME or ~/.cache.

    Raises ValueError where there is no home folder.
    """
    try:
        if folder := os.environ.get("FASTANC_CACHE"):
            return Path(folder).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastanc"
    except RuntimeError:
        raise ValueError(
            "there is no home folder to keep a cache in: set FASTANC_CACHE to a folder that may be written"
        ) from None


def beside(source: Path, suffix: str) -> Path:
    """Return where a file about a source lies: beside it, or in the cache folder where that cannot be written.

    Of a source in a store it is the working folder, where a copy of it would lie beside it.
    """
    is_remote = isinstance(source, RemotePath)
    source = source if is_remote else Path(os.path.abspath(source))
    folder, name = file_name(source)
    path = folder / f"{name}{suffix}"
    if is_remote or path.exists() or os.access(folder, os.W_OK):
        return path
    digest = hashlib.blake2b(os.fsencode(source), digest_size=6).hexdigest()
    return cache_dir() / "index" / f"{name}-{digest}{suffix}"


def make_cache_folder(name: str) -> Path:
    """Return a folder inside the cache folder, made if missing; ValueError where it cannot be."""
    folder = cache_dir() / name
    try:
        make_folder(folder)
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be made ({error.strerror}): set FASTANC_CACHE to a folder that may be written"
        ) from error
    return folder
