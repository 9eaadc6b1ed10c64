"""YAML whose values stay the text that they are: nothing turns 12:30 into 750, 007 into 7 or no into false.

What a text means is asked of the field that it is for (`fields.read`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

_NULL_TAG = "tag:yaml.org,2002:null"
_SIMPLE = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./@:+-]*(?<!:)")
_NULL = re.compile(r"(?:null|none)\Z", re.IGNORECASE)
_TWICE, _TAB = "is given twice", repr("\t")


class Word(str):
    """A value as it was typed, on a command line or in a file without quotes: `null` and `none` are no value where a
    field may have none."""

    __slots__ = ()


class Tree(dict[Any, Any]):
    """A mapping that knows in which line of which file its keys stand; a key that is set later stands in none."""

    file: str | None = None
    changed = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.lines: dict[Any, int] = {}

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value)
        self.lines.pop(key, None)
        self.changed = True

    def without(self, key: Any) -> Tree:
        """Return the mapping that lacks one key."""
        left = Tree({name: value for name, value in self.items() if name != key})
        left.file, left.changed, left.lines = self.file, self.changed, self.lines
        return left

    def place(self, key: Any) -> str:
        """Return the beginning of a sentence about a key, or, of None, about several of them."""
        if key is None:
            return "" if self.changed else f"{self.file}: "
        return f"{self.file}, line {self.lines[key]}: " if key in self.lines else ""


class Placed(ValueError):
    """What is wrong in a file, or beside one; the message says where."""


@contextmanager
def placed(tree: Any, key: Any = None) -> Iterator[None]:
    """Say of an error of the block in which file and line the key of a mapping stands, if it stands in one."""
    try:
        yield
    except Placed:
        raise
    except ValueError as error:
        if isinstance(tree, Tree) and tree.file is not None:
            raise Placed(f"{tree.place(key)}{error}") from error
        raise


class TextLoader(yaml.SafeLoader):
    """YAML whose scalars stay the text that they are (12:30, 007, yes), but for a plain null; no key comes twice."""

    yaml_implicit_resolvers = {}
    file: str | None = None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping; ConstructorError for a key that is there twice."""
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} {_TWICE}", key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
                if key.tag == _NULL_TAG:  # a name, not a value
                    key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep=deep)

    def construct_yaml_map(self, node: yaml.MappingNode) -> Generator[Tree, None, None]:
        """Yield the mapping, which is filled afterwards: an alias inside it may mean itself."""
        tree = Tree()
        yield tree
        tree.update(self.construct_mapping(node))
        tree.file = self.file
        tree.lines = {str(key.value): key.start_mark.line + 1 for key, _ in node.value}

    def construct_scalar(self, node: Any) -> str:
        """Return the text; without quotes it is as it would be typed on a command line."""
        text = str(super().construct_scalar(node))
        return text if node.style else Word(text)


class _Dumper(yaml.SafeDumper):
    """Writes what `TextLoader` reads back equal."""


TextLoader.add_constructor("tag:yaml.org,2002:str", TextLoader.construct_scalar)
TextLoader.add_constructor("tag:yaml.org,2002:map", TextLoader.construct_yaml_map)
TextLoader.add_implicit_resolver(_NULL_TAG, re.compile(r"(?:~|null|Null|NULL|)\Z"), ["~", "n", "N", ""])
TextLoader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"<<\Z"), ["<"])
_Dumper.add_representer(Tree, _Dumper.represent_dict)
_Dumper.add_implicit_resolver(_NULL_TAG, _NULL, [*"nN"])  # these get quotes


def mapping_in(value: Any) -> Any:
    """Return the mapping that a word of a command line writes in braces, any other value as it is."""
    return _inside(value, dict)


def list_in(value: Any) -> Any:
    """Return the list that a word of a command line writes in brackets, any other value as it is."""
    return _inside(value, list)


def _inside(value: Any, kind: type) -> Any:
    if not isinstance(value, Word):
        return value
    try:
        found = yaml.load(value, TextLoader)
    except yaml.YAMLError:
        return value
    return found if isinstance(found, kind) else value


def load_yaml(path: Path) -> Any:
    """Return what a YAML file says, every value as its text; ValueError names the file and the line."""
    try:
        text = path.read_text(encoding="utf-8")
        loader = TextLoader(text)
        loader.file = str(path)
        return loader.get_single_data()
    except yaml.YAMLError as error:
        raise ValueError(_about(path, text, error)) from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text in UTF-8: name a YAML file") from None
    except RecursionError:
        raise ValueError(f"{path} is no configuration: it is nested too deep") from None


def _about(path: Path, text: str, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        line = f", line {mark.line + 1}"
    else:  # a character that YAML has not
        line = f", line {text.count(chr(10), 0, getattr(error, 'position', 0)) + 1}"
    said = getattr(error, "problem", None) or str(error).splitlines()[0]
    if _TWICE in said:
        return f"{path}{line}: {said}: keep one of the two"
    advice = "put a text that holds signs of its own into quotes"
    return f"{path}{line} is no YAML: {said}; {'indent by spaces, no tabs' if _TAB in said else advice}"


def one_line(value: str | None) -> str:
    """Return a value as YAML of one line that `load_yaml` reads back, between braces too."""
    if value is None:
        return "null"
    if _SIMPLE.fullmatch(value) and not _NULL.fullmatch(value):
        return value
    quoted = yaml.dump(value, Dumper=_Dumper, default_style='"', width=math.inf, allow_unicode=True)
    return str(quoted).rstrip("\n")


def dump_yaml(tree: Any) -> str:
    """Return plain values as YAML that `load_yaml` reads back: a text in quotes where it reads like a null."""
    return str(yaml.dump(tree, Dumper=_Dumper))
