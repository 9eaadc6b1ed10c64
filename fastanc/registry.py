"""What a user's file registers under a name: networks, data sets, methods; and whether an error comes from there."""

from __future__ import annotations

import inspect
import os
import traceback
from typing import Any

_FILES: set[str] = set()
"""Of users' code: plugins, and whatever else registered something."""


def remember(made: Any) -> None:
    """Remember where a class or function that a user registers is written."""
    file = getattr(inspect.getmodule(made), "__file__", None)
    if file is not None:
        remember_file(file)


def remember_file(file: str | os.PathLike[str]) -> None:
    """Remember a file of a user's code."""
    _FILES.add(os.path.realpath(file))


def place_of(error: BaseException) -> str | None:
    """Return the line of a user's code from which an error comes, or None where it comes from nowhere there."""
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        if os.path.realpath(frame.filename) in _FILES:
            return f"{frame.filename}, line {frame.lineno}, in {frame.name}"
    return None


def is_same(one: Any, other: Any) -> bool:
    """Tell whether two classes or functions are one that was defined twice, so that the later takes its name over.

    That is a notebook's cell which is run again, and a script that is also its own plugin file.
    """
    names = [(made.__module__, made.__qualname__) for made in (one, other)]
    files = [(getattr(inspect.getmodule(made), "__file__", None), made.__qualname__) for made in (one, other)]
    return names[0] == names[1] or (files[0] == files[1] and files[0][0] is not None)
