"""Whether NVIDIA's DALI can be used here: where it is missing or does not load, torchvision decodes (`whole`)."""

from __future__ import annotations

import sys
from functools import cache

import torch


@cache
def problem() -> str:
    """Return why DALI cannot be used here, as a clause; "" where it can."""
    try:
        import nvidia.dali.fn  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name in ("nvidia", "nvidia.dali"):
            return "DALI is not installed"
        return f"DALI does not load: {error}"
    except Exception as error:  # a library of another CUDA, an old glibc: whatever loading it leads to
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return f"DALI does not load: {lines[0]}"
    return ""


def version() -> str:
    """Return DALI's version, which decides about pixels."""
    import nvidia.dali

    return str(nvidia.dali.__version__)


def remedy() -> str:
    """Return how to get DALI on this machine, as a clause; "" where there is none for it."""
    if sys.platform != "linux":
        return ""
    extra = "dali-cuda12" if (torch.version.cuda or "13").startswith("12.") else "dali"
    return f"pip install 'fastanc[{extra}]'"
