"""Where fastanc keeps what it makes of the user's data."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Return the user's cache folder: FASTANC_CACHE, or fastanc in XDG_CACHE_HOME or ~/.cache."""
    if folder := os.environ.get("FASTANC_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastanc"
