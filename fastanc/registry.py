"""What a user's file registers under a name: networks, data sets, methods."""

from __future__ import annotations

import inspect
from typing import Any


def is_same(one: Any, other: Any) -> bool:
    """Tell whether two classes or functions are one that was defined twice, so that the later takes its name over.

    That is a notebook's cell which is run again, and a script that is also its own plugin file.
    """
    names = [(made.__module__, made.__qualname__) for made in (one, other)]
    files = [(getattr(inspect.getmodule(made), "__file__", None), made.__qualname__) for made in (one, other)]
    return names[0] == names[1] or (files[0] == files[1] and files[0][0] is not None)
