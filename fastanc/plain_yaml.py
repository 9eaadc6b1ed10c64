"""YAML whose values stay the text that they are: nothing turns 12:30 into 750, 007 into 7 or no into false.

What a text means is asked of the field that it is for (`fields.read`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

_NULL_TAG = "tag:yaml.org,2002:null"


class Word(str):
    """A value as it was typed, on a command line or in a file without quotes: `null` and `none` are no value where a
    field may have none."""

    __slots__ = ()


class TextLoader(yaml.SafeLoader):
    """YAML whose scalars stay the text that they are (12:30, 007, yes), but for a plain null; no key comes twice."""

    yaml_implicit_resolvers = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping; ConstructorError for a key that is there twice."""
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value!r} is given twice", key.start_mark
                )
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
                if key.tag == _NULL_TAG:  # a name, not a value
                    key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep=deep)

    def construct_scalar(self, node: Any) -> str:
        """Return the text; without quotes it is as it would be typed on a command line."""
        text = str(super().construct_scalar(node))
        return text if node.style else Word(text)


class _Dumper(yaml.SafeDumper):
    """Writes what `TextLoader` reads back equal."""


TextLoader.add_constructor("tag:yaml.org,2002:str", TextLoader.construct_scalar)
TextLoader.add_implicit_resolver(_NULL_TAG, re.compile(r"(?:~|null|Null|NULL|)\Z"), ["~", "n", "N", ""])
TextLoader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"<<\Z"), ["<"])
_Dumper.add_implicit_resolver(
    _NULL_TAG, re.compile(r"(?:null|none)\Z", re.IGNORECASE), [*"nN"]
)  # these get quotes


def mapping_in(value: Any) -> Any:
    """Return the mapping that a word of a command line writes in braces, any other value as it is."""
    if not isinstance(value, Word):
        return value
    try:
        found = yaml.load(value, TextLoader)
    except yaml.YAMLError:
        return value
    return found if isinstance(found, dict) else value


def load_yaml(path: Path) -> Any:
    """Return what a YAML file says, every value as its text; ValueError names the file and the line."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), TextLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f", line {mark.line + 1}"
        said = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ValueError(
            f"{path}{line} is no YAML: {said}; put a text that holds signs of its own into quotes"
        ) from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text in UTF-8: name a YAML file") from None
    except RecursionError:
        raise ValueError(f"{path} is no configuration: it is nested too deep") from None


def dump_yaml(tree: Any) -> str:
    """Return plain values as YAML that `load_yaml` reads back: a text in quotes where it reads like a null."""
    return str(yaml.dump(tree, Dumper=_Dumper))
