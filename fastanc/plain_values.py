"""What a text or an object means as a plain value: text, a number, true or false, a path, a list."""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from numbers import Integral, Real
from pathlib import Path
from typing import Any

_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


class Wrong(Exception):
    """A value that is not what its field takes."""


def items(text: str) -> Iterator[str]:
    """Yield what is joined by commas, in brackets or without, each in quotes or without."""
    try:
        known = json.loads(text)
    except ValueError:
        known = None
    if isinstance(known, list) and all(isinstance(item, str) for item in known):
        yield from known
        return
    inner = text.strip()
    if inner[:1] in ("[", "(") and inner[-1:] == {"[": "]", "(": ")"}[inner[0]]:
        inner = inner[1:-1].strip().removesuffix(",")
    if inner:
        for row in csv.reader([inner], skipinitialspace=True):
            yield from (item.strip().strip("'") for item in row)


def first(found: Iterator[Any]) -> Any:
    """Return the first of what is found; Wrong where nothing is."""
    for one in found:
        return one
    raise Wrong


def _read_text(value: Any) -> str:
    if not isinstance(value, str | os.PathLike):
        raise Wrong
    return str(os.fspath(value)) if isinstance(value, os.PathLike) else str(value)


def _read_bool(value: Any) -> bool:
    if isinstance(value, str):
        return bool(first(_BOOLEANS[word] for word in [value.strip().lower()] if word in _BOOLEANS))
    if not isinstance(value, bool):
        raise Wrong
    return value


def _read_int(value: Any) -> int:
    if isinstance(value, str):
        if not re.fullmatch(r"[+-]?[0-9]+(_[0-9]+)*", value.strip()) or len(value) > 100:
            raise Wrong
    elif isinstance(value, bool) or not isinstance(value, Integral):
        raise Wrong
    return int(value)


def _read_float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, str | Real):
        raise Wrong
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise Wrong from None
    if not math.isfinite(number):
        raise Wrong
    return number


def _read_path(value: Any) -> Path:
    return Path(_read_text(value))


READERS: dict[Any, Callable[[Any], Any]] = {
    str: _read_text,
    bool: _read_bool,
    int: _read_int,
    float: _read_float,
    Path: _read_path,
}
"""The reader of each type; it raises Wrong for what the type does not take."""
