"""What a field of the configuration takes: its type, and beside that its range or its choices, said once.

A field is declared as `lr: Rate = 0.01`, where `Rate` is `Annotated[float, Range(0, 1000)]`. Help prints that, and
every source of a value is read by it: a command line, recipes, Python, and objects when they are made.
Text stays what was typed until the type of its field says what it means; nothing guesses from its looks.
"""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import draccus
import yaml

from fastanc.plain_values import READERS, Wrong, first, items
from fastanc.plain_yaml import Word, list_in, mapping_in, placed
from fastanc.quoting import cut, shown

_T = TypeVar("_T")
_NOTHING = ("null", "none")


@dataclass(frozen=True)
class Range:
    """The numbers that a field takes; None is no bound, `above` and `below` leave the bound itself out."""

    low: float | None = None
    high: float | None = None
    above: bool = False
    below: bool = False

    def __contains__(self, value: Any) -> bool:
        over = self.low is None or (value > self.low if self.above else value >= self.low)
        return over and (self.high is None or (value < self.high if self.below else value <= self.high))

    def __str__(self) -> str:
        if self.high is None:
            return f"above {self.low:g}" if self.above else f"{self.low:g} or more"
        end = f"{'less than ' if self.below else ''}{self.high:.10g}"
        if self.low is None:
            return f"up to {end}"
        return f"above {self.low:g}, up to {end}" if self.above else f"from {self.low:g} to {end}"


class OneOf(tuple[str, ...]):
    """The words that a field takes."""

    def __str__(self) -> str:
        return f"one of {', '.join(self)}"


class Filled:
    """Some text: not the empty one."""

    def __contains__(self, value: str) -> bool:
        return bool(value.strip()) and "\0" not in value

    def __str__(self) -> str:
        return "not an empty one"


class Length(tuple[int, ...]):
    """How many values a field takes."""

    def __contains__(self, value: Any) -> bool:
        return len(value) in tuple(self)

    def __str__(self) -> str:
        return " or ".join(map(str, self))


_RULES = (Range, OneOf, Filled, Length)
_MANY = 10**9
Text = Annotated[str, Filled()]
Positive = Annotated[int, Range(1, _MANY)]
Count = Annotated[int, Range(0, _MANY)]
Seed = Annotated[int, Range(0, 2**31 - 1)]  # what torch and NumPy take, with what a run makes of it
Pixels = Annotated[int, Range(1, 2**12)]
Padding = Annotated[int, Range(0, 2**12)]
Images = Annotated[int, Range(1, 2**20)]
Few = Annotated[int, Range(1, 1024)]
Ahead = Annotated[int, Range(1, 64)]  # so many batches are held at a time
Steps = Annotated[int, Range(1, 2**16)]  # an epoch's order is drawn at once
Threads = Annotated[int, Range(0, 1024)]
Width = Annotated[int, Range(1, 2**12)]
Share = Annotated[float, Range(0, 1, above=True)]
Unit = Annotated[float, Range(0, 1)]
BelowOne = Annotated[float, Range(0, 1, below=True)]
Ratio = Annotated[float, Range(1, 7)]
MixAlpha = Annotated[float, Range(0.01, 16)]
Inside = Annotated[float, Range(0, 1, above=True, below=True)]
Weight = Annotated[float, Range(0, 1e6)]
Temperature = Annotated[float, Range(0.01, 1000)]
Quality = Annotated[str, OneOf(("error_pct", "top1", "top5", "loss", "agreement_pct", "teacher_kl"))]
Tracker = Annotated[str, OneOf(("tensorboard", "wandb", "trackio", "mlflow"))]
Precision = Annotated[str, OneOf(("fp32", "bf16", "fp16"))]


class Plain:
    """The type of what another library takes: a text, a number, true or false, null, or a list of these."""


class Fields:
    """Base of a frozen dataclass whose fields are what their types say, however it is made."""

    group: ClassVar[str] = ""
    """What messages call it, as in `--group.field`."""

    def __post_init__(self) -> None:
        for name, kind in kinds(type(self)).items():
            object.__setattr__(self, name, read(getattr(self, name), kind, f"{self.group}.{name}"))


def kinds(owner: type) -> dict[str, Any]:
    """Return the declared type of every field of a dataclass, with its rules."""
    return _kinds(owner)


@cache
def _kinds(owner: Any) -> dict[str, Any]:
    hints = get_type_hints(owner, include_extras=True)
    return {one.name: hints[one.name] for one in fields(owner) if one.init}


def make(owner: type[_T], tree: Any, prefix: str = "") -> _T:
    """Return the dataclass of a mapping, name -> value as text, number or mapping; `prefix` is what stands before.

    Raises ValueError with one sentence that names a field which is unknown, or a value that its field does not take.
    """
    if not isinstance(tree, Mapping):
        raise ValueError(f"{prefix.rstrip('.') or 'the recipe'} is a group of fields, not {shown(tree)}")
    known = kinds(owner)
    for key in tree:
        if key not in known:
            close = difflib.get_close_matches(str(key), sorted(known), 1)
            hint = f"did you mean {prefix}{close[0]}? " if close else ""
            with placed(tree, key):
                raise ValueError(
                    f"there is no field {cut(f'{prefix}{key}')}: {hint}valid ones are {', '.join(sorted(known))}"
                )
    values = {}
    for key, value in tree.items():
        with placed(tree, key):
            values[key] = read(value, known[key], f"{prefix}{key}")
    missing = [
        one.name
        for one in fields(owner)  # type: ignore[arg-type]
        if one.init and one.name not in values and one.default is MISSING and one.default_factory is MISSING
    ]
    with placed(tree):
        if missing:
            raise ValueError(f"{prefix}{missing[0]} has no default: give it {takes(known[missing[0]])}")
        return owner(**values)


def read(value: Any, kind: Any, name: str) -> Any:
    """Return a value as a field's declared type; ValueError names the field, the value and what it takes."""
    try:
        return _read(value, kind, name)
    except Wrong:
        raise ValueError(f"{name} is {shown(value)}: it takes {takes(kind)}") from None


def takes(kind: Any) -> str:
    """Return in words what a field of this type takes, without "it takes"."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        said = ", ".join(str(rule) for rule in args[1:] if isinstance(rule, _RULES))
        if isinstance(args[1], Length):
            return f"{said} {takes(args[0])}"
        return said if isinstance(args[1], OneOf) else f"{takes(args[0])}, {said}"
    if origin in (Union, types.UnionType):
        return " or ".join(
            [takes(arg) for arg in args if arg is not type(None)] + ["null"] * (type(None) in args)
        )
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin in (tuple, list) and args:
        inner = [takes(arg) for arg in args if arg is not Ellipsis]
        return (
            f"values joined by commas, each {inner[0]}" if len(set(inner)) == 1 else f"({'; '.join(inner)})"
        )
    if isinstance(kind, type) and hasattr(kind, "chosen"):
        return getattr(kind, "spelt", "a name or {type: name, field: value}")
    if isinstance(kind, type) and is_dataclass(kind):
        return f"a group of {', '.join(kinds(kind))}"
    if origin is dict:
        return "{name: value, ...}"
    words = {str: "text", int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}
    return words.get(kind, f"a {getattr(kind, '__name__', kind)}")


def _read(value: Any, kind: Any, name: str) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        found = _read(value, args[0], name)
        if any(isinstance(rule, _RULES) and found not in rule for rule in args[1:]):
            raise Wrong
        return found
    if origin in (Union, types.UnionType):
        return _read_option(value, args, name)
    if origin is Literal:
        return first(arg for arg in args if arg == value or str(arg) == value)
    if origin in (tuple, list) and args:
        return _read_list(value, origin, args, name)
    if origin is dict and not isinstance(mapping_in(value), Mapping):
        raise Wrong
    if origin is dict:
        return {_read(k, args[0], name): _read(v, args[1], name) for k, v in mapping_in(value).items()}
    if isinstance(kind, type) and is_dataclass(kind):
        if isinstance(value, kind):
            return value
        tree = mapping_in(value)
        if (chosen := getattr(kind, "chosen", None)) is not None and isinstance(tree, str | Mapping):
            return chosen(tree, name)  # of one of several classes, which it names
        if not isinstance(tree, Mapping):
            raise Wrong
        return make(kind, tree, f"{name}.")
    if kind is Plain:
        return _read_plain(value)
    reader = READERS.get(kind)
    return reader(value) if reader is not None else _read_other(value, kind)


def _read_option(value: Any, args: tuple[Any, ...], name: str) -> Any:
    no_value = value is None or (isinstance(value, str) and value.lower() in _NOTHING)
    if type(None) in args and (value is None or (isinstance(value, Word) and no_value)):
        return None
    for arg in args:
        if arg is not type(None):
            try:
                return _read(value, arg, name)
            except Wrong:
                continue
    if type(None) in args and no_value:
        return None
    raise Wrong


def _read_list(value: Any, origin: type, args: tuple[Any, ...], name: str) -> Any:
    found = list_in(value) if is_dataclass(args[0]) else value
    found = list(items(found)) if isinstance(found, str) else found
    if not isinstance(found, list | tuple):
        raise Wrong
    each = [args[0]] * len(found) if origin is list or args[1:] == (Ellipsis,) else list(args)
    if len(each) != len(found):
        raise Wrong
    return origin(_read(item, kind, name) for item, kind in zip(found, each))


def _read_plain(value: Any) -> Any:
    """Read what nobody here knows the type of: without quotes it is a number, a boolean or null if it can be."""
    if isinstance(value, list | tuple):
        return [_read_plain(item) for item in value]
    if isinstance(value, Word):
        literals = {"true": True, "false": False, "null": None, "none": None}
        if value in literals:
            return literals[value]
        for kind in (int, float):
            with suppress(Wrong):
                return READERS[kind](value)
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise Wrong
    if value is not None and not isinstance(value, bool | int | float | str):
        raise Wrong
    return value


def _read_other(value: Any, kind: Any) -> Any:
    """Read a type of a user's own method by draccus, from YAML where it is text; `object` is as it comes."""
    if kind is object:
        return value
    if isinstance(value, Word):
        try:
            value = yaml.safe_load(value)
        except yaml.YAMLError:
            value = str(value)
    if kind is Any or (isinstance(kind, type) and isinstance(value, kind)):
        return value
    try:
        return draccus.decode(kind, value)
    except Exception:
        raise Wrong from None
