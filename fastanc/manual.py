"""`fastanc train --help [WORD]`: every field with its type, range, default and what it is, as its source says it."""

from __future__ import annotations

import ast
import difflib
import inspect
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, NamedTuple, get_args

from fastanc.config import GROUPS, Config
from fastanc.fields import kinds, takes
from fastanc.methods.base import Method
from fastanc.parsing import import_plugin, method_names
from fastanc.plain_yaml import dump_yaml
from fastanc.quoting import shown

_HELP = ("-h", "--help")
_WIDTH = 110
_USAGE = """\
usage: fastanc train [--recipe NAME | --config_path FILE] [--plugin FILE] [--group.field value ...]
       accelerate launch fastanc/train.py (the same words, on many GPUs)

Trains one student. A recipe fixes the fields (`fastanc recipes` lists them; with fields alone it is digits_anc), and
words on the command line win. Text is taken as it is typed; null is no value where a field may have none; a list is
a,b,c. Short spellings: --name, --out and --resume of run, --plugin.
"""
_MORE = """\
More: fastanc train --help WORD ..., where WORD is a group, a method, `method TYPE`, or a part of a field's name.
"""


class Entry(NamedTuple):
    """One field as the manual prints it."""

    name: str
    """As it is written on the command line, without the dashes."""
    takes: str
    default: str
    says: str

    def __str__(self) -> str:
        head = f"  --{self.name}: {self.takes}; {self.default}"
        body = textwrap.fill(
            " ".join(self.says.split()), _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6
        )
        return f"{textwrap.fill(head, _WIDTH, subsequent_indent=' ' * 6)}\n{body}"


def asks_for_help(words: Sequence[str]) -> bool:
    """Tell whether -h or --help stands where an option does."""
    return _place_of_help(words) is not None


def manual(words: Sequence[str]) -> str:
    """Return the text that the words after --help ask for; ValueError for a word that no field has."""
    place = _place_of_help(words)
    assert place is not None
    if "--plugin" in words[:-1]:
        import_plugin(words[words.index("--plugin") + 1])
    first = words[place].partition("=")[2]
    topics = _topics([*([first] if first else []), *words[place + 1 :]])
    if not topics:
        return overview()
    if topics[0] == "method" and len(topics) > 1:
        return "\n".join(_method_page(name) for name in topics[1:])
    return "\n".join(_topic(topic) for topic in topics)


def _topics(words: Sequence[str]) -> list[str]:
    """Return what help is asked about: words, and fields as they are set; not the values of other options."""
    topics, rest = [], list(words)
    while rest:
        key, equals, _ = rest.pop(0).partition("=")
        if not key.startswith("-"):
            topics.append(key)
        elif key not in _HELP:
            topics += [key.lstrip("-")] if "." in key else []
            if not equals and rest and not rest[0].startswith("-"):
                rest.pop(0)
    return [topic for topic in topics if topic]


def _topic(word: str) -> str:
    if word in ("method", "method.type"):
        return _methods()
    if word in GROUPS:
        return _page(word, class_of(word), word)
    name = word.removeprefix("method.")  # as a group's field is written
    return _method_page(name) if name in method_names() else _found(word)


def _method_page(name: str) -> str:
    if name not in (known := method_names()):
        close = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ValueError(f"--help knows no method {shown(name)}: {hint}take one of {', '.join(known)}")
    return _page(f"--method.type {name}", Method.get_choice_class(name), "method")


def entries(owner: type, prefix: str) -> Iterator[Entry]:
    """Yield every field of a dataclass, those of a group inside it too."""
    told = _docstrings(owner)
    for one in fields(owner):
        kind, name = kinds(owner)[one.name], f"{prefix}.{one.name}"
        group = next(
            (arg for arg in (kind, *get_args(kind)) if isinstance(arg, type) and is_dataclass(arg)), None
        )
        yield Entry(name, takes(kind), _default(one), told.get(one.name, ""))
        if group is not None:
            yield from entries(group, name)


def class_of(group: str) -> type:
    """Return the dataclass of a group of fields; of the method it is the default one's."""
    made = next(one for one in fields(Config) if one.name == group).default_factory
    assert isinstance(made, type)
    return made


def _place_of_help(words: Sequence[str]) -> int | None:
    place = 0
    while place < len(words):
        if words[place].partition("=")[0] in _HELP:
            return place
        place += 2 if words[place].startswith("--") and "=" not in words[place] else 1
    return None


def overview() -> str:
    """Return what `fastanc train --help` prints."""
    told = _docstrings(Config)
    groups = "\n".join(f"  {group:10} {told[group]}" for group in GROUPS)
    return f"{_USAGE}\ngroups\n{groups}\n\nmethods (--method.type)\n  {', '.join(method_names())}\n\n{_MORE}"


def _methods() -> str:
    lines = [f"  {name:20} {summary(Method.get_choice_class(name))}" for name in method_names()]
    return (
        "\n".join(["method: the game; --method.type chooses it, --help method TYPE tells its fields", *lines])
        + "\n"
    )


def _page(title: str, owner: type, prefix: str) -> str:
    return "\n".join([f"{title}: {summary(owner)}", "", *map(str, entries(owner, prefix))]) + "\n"


def _found(word: str) -> str:
    every = [entry for group in GROUPS if group != "method" for entry in entries(class_of(group), group)]
    for name in method_names():
        for entry in entries(Method.get_choice_class(name), "method"):
            every.append(entry._replace(default=f"{entry.default} (--method.type {name})"))
    found = [str(entry) for entry in every if word in entry.name]
    if not found:
        names = [part for entry in every for part in (entry.name, entry.name.rpartition(".")[2])]
        known = [*GROUPS, *method_names(), *names]
        close = difflib.get_close_matches(word, known, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        groups = ", ".join(GROUPS)
        raise ValueError(f"--help knows no {shown(word)}: {hint}take a group ({groups}), a method or a field")
    return "\n".join(found) + "\n"


def summary(owner: type) -> str:
    """Return the first paragraph of a class's docstring, in one line."""
    return " ".join((inspect.getdoc(owner) or "").split("\n\n")[0].split())


def _default(one: Field[Any]) -> str:
    if one.default is MISSING:
        return "no default"
    if is_dataclass(one.default):
        return "its own defaults"
    value = "null" if one.default is None else dump_yaml([one.default]).strip().removeprefix("- ")
    return f"default {list(one.default) if isinstance(one.default, tuple) else value}"


def _docstrings(owner: type) -> dict[str, str]:
    """Return what stands below every field in the source, of a base class too."""
    told: dict[str, str] = {}
    for base in reversed(owner.__mro__):
        if not is_dataclass(base):
            continue
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        except (OSError, TypeError, SyntaxError):  # made without a file
            continue
        assert isinstance(body, ast.ClassDef)
        for one, after in zip(body.body, body.body[1:]):
            if (
                isinstance(one, ast.AnnAssign)
                and isinstance(one.target, ast.Name)
                and isinstance(after, ast.Expr)
            ):
                told[one.target.id] = str(ast.literal_eval(after.value))
    return told
