"""What a sentence shows of the words that a user wrote: all of them, but where they are so long that they bury it."""

from __future__ import annotations

import re
from typing import Any

_SHOWN = 80  # characters of a wrong value
_MOST, _FIRST, _LAST = (
    300,
    200,
    60,
)  # of a word of a sentence: longer than any name of a file, so paths stay whole
_QUOTED = re.compile(rf"""(?<!\w)(['"])(?:(?!\1)[^\n]){{{_MOST + 1},}}\1(?!\w)""")
_WORD = re.compile(rf"\S{{{_MOST + 1},}}")
_LINE, _SIDE = 1500, 600  # of a whole line: a path may have blanks


def cut(text: str) -> str:
    """Return a text, its end left out where it is long."""
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def shown(value: Any) -> str:
    """Return a wrong value as a message shows it: cut where it is long."""
    return "null" if value is None else cut(repr(str(value) if isinstance(value, str) else value))


def brief(sentence: str) -> str:
    """Return a sentence as it is printed: of a word, a text in quotes or a line that is very long its two ends."""
    lines = _WORD.sub(_ends, _QUOTED.sub(_ends, sentence)).split("\n")
    return "\n".join(line if len(line) <= _LINE else f"{line[:_SIDE]}...{line[-_SIDE:]}" for line in lines)


def counted(number: float, thing: str) -> str:
    """Return how many there are of what: 1 epoch, 1,200 steps, 2 passes."""
    if number == 1:
        return f"1 {thing}"
    size = f"{number:,}" if isinstance(number, int) else f"{number:g}"
    return f"{size} {thing}{'es' if thing.endswith('s') else 's'}"


def _ends(found: re.Match[str]) -> str:
    return f"{found[0][:_FIRST]}...{found[0][-_LAST:]}"
