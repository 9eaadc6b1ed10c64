"""The reference pages, written while the site is built: fields, commands, recipes and studies as the code has them.

A page says where with a line `<!-- generated: WHAT -->`; what stands there in the built page is one of `PARTS`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

from fastanc.arguments import local_path
from fastanc.cli import FIELD_WORDS
from fastanc.cli import _parser as command_parser
from fastanc.config import GROUPS
from fastanc.jobs.study_file import Study
from fastanc.manual import Entry, class_of, entries, overview, summary
from fastanc.methods.base import Method
from fastanc.parsing import method_names

MARK = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)
HOME = Path(str(resources.files("fastanc.recipes")))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register what Sphinx calls while it reads the pages."""
    app.add_object_type("field", "field", objname="field", indextemplate="pair: %s; field")
    app.add_lexer("house", TextLexer)  # the floors of docs/design.md, which a test reads
    app.connect("source-read", _filled)
    app.connect("autodoc-process-docstring", _kept_as_it_is, priority=400)  # napoleon's is 500
    app.connect("autodoc-process-docstring", _put_back, priority=600)
    app.connect("env-get-outdated", lambda app, env, *_: [d for d in env.found_docs if _marked(env, d)])
    return {"parallel_read_safe": True}


def filled(text: str) -> str:
    """Return a page with everything that is generated in the place of its marks; KeyError for an unknown one."""
    return MARK.sub(lambda mark: "\n".join(PARTS[mark[1]]()), text)


def _filled(app: Sphinx, docname: str, source: list[str]) -> None:
    source[0] = filled(source[0])


def _marked(env: Any, docname: str) -> bool:
    path = Path(env.doc2path(docname))
    return path.suffix == ".md" and MARK.search(path.read_text()) is not None


_KEPT: dict[str, list[str]] = {}
"""Docstrings of attributes: napoleon would take what stands before a colon in them for a type."""


def _kept_as_it_is(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    if what in ("attribute", "data", "property"):
        _KEPT[name] = list(lines)


def _put_back(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    if name in _KEPT:
        lines[:] = _KEPT.pop(name)


def verbatim(text: str) -> str:
    """Return a text of the code as Markdown that shows it as it is; what stands between backticks is code."""
    parts = " ".join(text.split()).split("`")
    plain = [re.sub(r"([\\*_{}\[\]<>#|~$&!])", r"\\\1", part) for part in parts]
    return "".join(f"`{part}`" if k % 2 else plain[k] for k, part in enumerate(parts))


def field_groups() -> Iterator[str]:
    """Every field of every group but the method's."""
    for group in GROUPS:
        if group != "method":
            owner = class_of(group)
            yield from (f"({group}-fields)=", f"## {group}", "", verbatim(summary(owner)), "")
            yield from _described(entries(owner, group))


def method_fields() -> Iterator[str]:
    """Every method with its fields."""
    for name in method_names():
        owner = Method.get_choice_class(name)
        yield from (f"(method-{name})=", f"## {name}", "", verbatim(summary(owner)), "")
        own = [entry._replace(name=f"{entry.name} ({name})") for entry in entries(owner, "method")]
        yield from _described(own) if own else ("It has no fields.", "")


def study_keys() -> Iterator[str]:
    """Every key of a study's file."""
    for entry in entries(Study, "study"):
        yield from _described([entry._replace(name=entry.name.removeprefix("study."))])


def _described(found: Iterable[Entry]) -> Iterator[str]:
    for entry in found:
        yield f":::{{field}} {entry.name}"
        yield f"{verbatim(entry.says)}\n"
        yield f"Takes {verbatim(entry.takes)}; {verbatim(entry.default)}."
        yield ":::\n"


def commands() -> Iterator[str]:
    """Every word of the command with its options, and how `fastanc train` is called."""
    yield from ("## fastanc train", "", "```text", overview(), "```", "")
    for words, parser in every_command(command_parser()):
        about = (parser.description or "").rstrip(".")
        yield from (f"## {words}", "", verbatim(f"{about[:1].upper()}{about[1:]}."), "")
        yield from ("```text", parser.format_usage().removeprefix("usage: ").rstrip(), "```", "")
        if parser.get_default("takes_fields"):
            yield from (
                f"It takes [fields](fields.md) too, and `--{'`, `--'.join(FIELD_WORDS)}` as `fastanc train` does.",
                "",
            )
        yield f"```{{program}} {words}\n```\n"
        for action in parser._actions:
            if action.dest != "help":
                yield from _option(action)


def every_command(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield (words, parser) of every command that does something; train has a parser of its own."""
    inner = [one for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
    if not inner and parser.prog != "fastanc train":
        yield parser.prog, parser
    for action in inner:
        for below in action.choices.values():
            yield from every_command(below)


def _option(action: argparse.Action) -> Iterator[str]:
    value = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
    head = ", ".join(f"{name}{value}" for name in action.option_strings) or action.dest
    yield f":::{{option}} {head}"
    yield f"{verbatim(action.help or '')}\n"
    yield f"{verbatim(_taken(action))}\n:::\n"


def _taken(action: argparse.Action) -> str:
    """Say in words what an option takes and what it is by default."""
    if action.nargs == 0:
        return "No value."
    words = {None: "A text", Path: "A path", int: "A whole number"}
    words |= {local_path: "A path"}
    said = words.get(action.type)  # type: ignore[call-overload]
    if action.choices is not None:
        said = f"One of {', '.join(map(str, action.choices))}"
    if said is None:  # its own reader says what it takes when it is given what it refuses
        try:
            action.type("nan")  # type: ignore[operator,misc]
        except argparse.ArgumentTypeError as error:
            said = str(error).partition("it takes ")[2].capitalize()
    assert said, action.dest
    many = {"+": ", one or more", "*": ", any number", "?": "; may be left out"}.get(str(action.nargs), "")
    needed = "; must be given" if action.required and action.option_strings else ""
    default = action.default
    if isinstance(default, list):
        default = " ".join(map(str, default))
    start = f"; default {default}" if default not in (None, "") else ""
    return f"{said}{many}{needed}{start}."


def recipes() -> Iterator[str]:
    """Every recipe: its head comment, and the file."""
    for path in sorted(HOME.glob("*.yaml")):
        yield from _file(path, f"recipe-{path.stem}", path.stem)


def launchers() -> Iterator[str]:
    """Every file for `accelerate launch`."""
    for path in sorted((HOME / "launch").iterdir()):
        yield from _file(path, f"launch-{path.stem}", path.name)


def studies() -> Iterator[str]:
    """Every study: its head comment, and the file."""
    for path in sorted((HOME / "studies").glob("*.yaml")):
        yield from _file(path, f"study-{path.stem}", path.stem)


def _file(path: Path, anchor: str, title: str) -> Iterator[str]:
    language = "bash" if path.suffix == ".sh" else "yaml"
    yield from (f"({anchor})=", f"## {title}", "", f"```{language}", path.read_text().rstrip(), "```", "")


PARTS = {
    "fields": field_groups,
    "methods": method_fields,
    "commands": commands,
    "recipes": recipes,
    "launchers": launchers,
    "studies": studies,
    "study_keys": study_keys,
}
"""What a page may ask for."""
