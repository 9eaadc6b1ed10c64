"""The CPU cores that a process may use."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Return how many CPU cores this process may use; where the system does not say (macOS), how many there are."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1
