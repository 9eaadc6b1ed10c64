"""Shell completion: the words of the command, and every field of the configuration with its choices."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, get_args, get_origin

from fastanc.config import GROUPS, Config
from fastanc.fields import OneOf, kinds
from fastanc.methods.base import Method
from fastanc.parsing import method_names, recipe_names

_FILES = (
    "config_path",
    "plugin",
    "data.name",
    "data.root",
    "teacher.weights",
    "teacher.cache_dir",
    "run.out",
)


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return what a shell reads to complete the command of this parser; ValueError where shtab is not installed."""
    try:
        import shtab
    except ImportError as error:
        raise ValueError("completion is written by shtab: pip install 'fastanc[completion]'") from error
    for job in _taking_fields(parser):
        known = {option for action in job._actions for option in action.option_strings}
        for name, choices in _fields().items():
            if f"--{name}" in known:
                continue
            action = job.add_argument(f"--{name}", choices=choices or None)
            if name in _FILES:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    return str(shtab.complete(parser, shell))


def _taking_fields(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, job in action.choices.items():
                if name == "train" or job.get_default("takes_fields"):
                    yield job
                yield from _taking_fields(job)


def _fields() -> dict[str, tuple[str, ...]]:
    """Every field as it is written on the command line -> its choices, () where it takes anything; all methods'."""
    found = {
        "config_path": (),
        "plugin": (),
        "recipe": tuple(recipe_names()),
        "method.type": tuple(method_names()),
    }
    owners = {one.name: one.default_factory for one in fields(Config)}
    for group in GROUPS:
        if group != "method":
            found |= _below(owners[group], group)
    for name in method_names():
        for field, choices in _below(Method.get_choice_class(name), "method").items():
            found[field] = tuple(dict.fromkeys((*found.get(field, ()), *choices)))
    return found


def _below(owner: Any, prefix: str) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for name, kind in kinds(owner).items():
        found[f"{prefix}.{name}"] = _choices(kind)
        for inner in (kind, *get_args(kind)):
            if isinstance(inner, type) and is_dataclass(inner) and not hasattr(inner, "chosen"):
                found |= _below(inner, f"{prefix}.{name}")
    return found


def _choices(kind: Any) -> tuple[str, ...]:
    if kind is bool:
        return ("true", "false")
    if get_origin(kind) is Annotated:
        words = [rule for rule in get_args(kind)[1:] if isinstance(rule, OneOf)]
        return tuple(words[0]) if words else ()
    return tuple(word for arg in get_args(kind) for word in _choices(arg))
