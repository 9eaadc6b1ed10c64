"""Somebody else's numbering of the classes, from a file: a list of names in order, or numbers by name.

* JSON: `["tench", "goldfish"]`, `{"tench": 0, "goldfish": 1}`, `{"0": "tench", "1": "goldfish"}`, or lists as in
  Keras's `imagenet_class_index.json`, `{"0": ["n01440764", "tench"], ...}`, of which the first word is the class;
* text: one class a line in order, such as timm's `class_map.txt`; of lines that all begin with a WordNet id, such as
  those of Kaggle's `LOC_synset_mapping.txt`, that is the class.

timm sorts folders naturally (class_2 before class_10), torchvision and fastanc by bytes (class_10 before class_2):
weights that were trained with the one's numbers need them with the other too.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from fastanc.pipelines.index.labels import text_of

_WORDNET_ID = re.compile(r"n\d{8}(?=\s|$)")
_MOST_CLASSES = 1_000_000


def read_class_map(path: Path) -> list[str]:
    """Return the names of the classes by number; raises ValueError where they are not 0 to K - 1."""
    text = text_of(path)
    if text.lstrip()[:1] in ("{", "["):
        try:
            names = _of_json(path, json.loads(text))
        except (ValueError, RecursionError) as error:
            if str(path) in str(error):
                raise
            raise ValueError(f"{path} is not JSON ({error}): mend it") from None
    else:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        ids = [found[0] for line in lines if (found := _WORDNET_ID.match(line))]
        names = ids if len(ids) == len(lines) else lines
    if not names:
        raise ValueError(f"{path} names no classes: give a JSON list of names, or one name a line")
    if len(set(names)) < len(names):
        twice = next(name for k, name in enumerate(names) if name in names[:k])
        raise ValueError(f"{path} has the class {twice!r} twice: name each once")
    return names


def _of_json(path: Path, found: Any) -> list[str]:
    if isinstance(found, list):
        return [_name(path, one) for one in found]
    if isinstance(found, dict) and all(isinstance(value, (str, list)) for value in found.values()):
        found = {_name(path, value): key for key, value in found.items()}
    if not isinstance(found, dict):
        raise ValueError(f"{path} is neither a list of names nor a mapping of names to numbers: give one")
    numbers = {name: _number(path, name, value) for name, value in found.items()}
    names = {number: name for name, number in numbers.items()}
    if len(names) < len(numbers) or (names and {*names} != {*range(len(names))}):
        odd = next((k for k in range(_MOST_CLASSES) if k not in names), 0)
        what = (
            f"gives no class the number {odd}"
            if len(names) == len(numbers)
            else "gives two classes one number"
        )
        raise ValueError(f"{path} {what}: number {len(numbers)} classes from 0 to {len(numbers) - 1}")
    return [names[k] for k in range(len(names))]


def _name(path: Path, value: Any) -> str:
    if isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{path} has {json.dumps(value)[:40]} in the place of a class's name: give text")
    return value


def _number(path: Path, name: str, value: Any) -> int:
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _MOST_CLASSES:
        raise ValueError(
            f"{path} gives the class {name!r} the number {json.dumps(value)[:40]}: number from 0 on"
        )
    return value
