"""Where fastanc keeps what it makes of the user's data."""

from __future__ import annotations

import os
from pathlib import Path

from fastanc.files import make_folder


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
