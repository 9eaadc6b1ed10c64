"""What stands in the place of a label where there is none."""

from __future__ import annotations

import operator
import re
from typing import Any

_WORDS = frozenset(
    {
        *("nan", "-nan", "none", "null", "na", "n/a", "<na>", "nat", "#n/a", "#n/a n/a", "#na"),
        *("1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan"),
    }
)
"""What tables say of an empty cell, in lower case: all that pandas reads as one, and what it and Python write."""
_MINUS_ONE = re.compile(r"-1(\.0*)?")


def is_missing(label: Any) -> bool:
    """Tell whether a label, as text or as an object, says that there is none: None, NaN, -1, or a word for them."""
    if label is None:
        return True
    try:
        return operator.index(label) == -1
    except TypeError:
        pass
    text = str(label.item() if getattr(label, "shape", None) == () else label).strip().lower()
    return not text or text in _WORDS or bool(_MINUS_ONE.fullmatch(text))
