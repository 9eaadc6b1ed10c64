"""From a recipe file and the words of a command line to a Config, and back to a file."""

from __future__ import annotations

import difflib
import importlib.util
import sys
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import draccus
from draccus import cfgparsing

from fastanc.config import Config, with_said
from fastanc.methods.base import Method

DEFAULT_RECIPE = "digits_anc"
_NO_BOOLEANS = ("off", "on", "no", "yes")  # words of ours that YAML 1.1 takes for booleans
# Short spellings of what is typed most.
_SHORT = {"resume": "run.resume", "name": "run.name", "out": "run.out", "plugin": "run.plugin"}


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with fastanc."""
    return sorted(p.stem for p in Path(str(resources.files("fastanc.recipes"))).glob("*.yaml"))


def method_names() -> list[str]:
    """Return the names of the methods that are registered."""
    return sorted(Method.get_known_choices())


def recipe_path(name: str) -> Path:
    """Return the file of a recipe given by bare name or by path; ValueError names the known ones."""
    if Path(name).suffix in {".yaml", ".yml"} and Path(name).is_file():
        return Path(name)
    folder = Path(str(resources.files("fastanc.recipes")))
    path = folder / f"{name.removesuffix('.yaml')}.yaml"
    if path.is_file():
        return path
    known = recipe_names()
    close = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise ValueError(
        f"there is no recipe {name!r}: {hint}known recipes are {', '.join(known)}, or give a .yaml file"
    )


def parse(args: Sequence[str]) -> Config:
    """Read `--recipe NAME | --config_path FILE` and `--group.field value` overrides into a Config.

    Without a recipe it is digits_anc.
    Raises ValueError with one sentence that names the field for a wrong key, type or value.
    """
    overrides = _pairs(list(args))
    files = [value for key, value in overrides if key in ("recipe", "config_path")]
    plugins = [value for key, value in overrides if key == "run.plugin"]
    if len(plugins) > 1:
        raise ValueError(f"give one --plugin, not {len(plugins)}: let it import the others")
    if len(files) > 1:
        raise ValueError(f"give one recipe, not {len(files)}: {', '.join(files)}")
    tree = _recipe(files[0] if files else DEFAULT_RECIPE)
    kinds = [value for key, value in overrides if key == "method.type"]
    _choose_method(tree, kinds[-1] if kinds else None)
    for key, value in overrides:
        if key not in ("recipe", "config_path"):
            _assign(tree, key, value if value in _NO_BOOLEANS else cfgparsing.parse_string(value))
    return with_said(decode(tree), (key for key, _ in overrides))


def configure(recipe: str, fields: Mapping[str, Any]) -> Config:
    """Return a recipe's Config with other values, group.field -> Python value; "method" takes a whole group.

    Raises ValueError with one sentence that names the field for a wrong key, type or value.
    """
    tree = _recipe(recipe)
    method = dict(fields.get("method", {}))
    _choose_method(tree, fields.get("method.type", method.pop("type", None)))
    if method:  # all of its knobs are given
        tree["method"] = dict(fields["method"])
    for key, value in fields.items():
        if key == "method":
            continue
        inner = value.items() if isinstance(value, Mapping) and "." not in key else ()
        for dotted, one in [(f"{key}.{name}", one) for name, one in inner] or [(key, value)]:
            _assign(tree, dotted, list(one) if isinstance(one, tuple) else one)
    return with_said(decode(tree), fields)


def _recipe(name: str) -> dict[str, Any]:
    path = recipe_path(name)
    with path.open(encoding="utf-8") as file:
        return cfgparsing.load_config(file, file=str(path)) or {}


def _choose_method(tree: dict[str, Any], kind: str | None) -> None:
    """Let a recipe play another method; its knobs belong to its own."""
    if kind is not None and kind != tree.get("method", {}).get("type"):
        tree["method"] = {"type": kind}


def decode(tree: dict[str, Any]) -> Config:
    """Return the Config of a nested dictionary; ValueError names a wrong field."""
    method = tree.get("method")
    if isinstance(method, str):
        raise ValueError(f"method is a group: write `method: {{type: {method}}}` or --method.type {method}")
    if isinstance(method, dict) and "type" not in method:
        tree = {**tree, "method": {"type": "anc", **method}}
    if isinstance(tree.get("run"), dict) and tree["run"].get("plugin"):
        import_plugin(str(tree["run"]["plugin"]))
    _check_keys(tree, Config, "")
    try:
        return draccus.decode(Config, tree)
    except (ValueError, TypeError):
        raise
    except Exception as error:
        sentence: BaseException = error
        while str(sentence).startswith("Couldn't instantiate") and sentence.__cause__ is not None:
            sentence = sentence.__cause__  # the checks of __post_init__, which name the field
        raise ValueError(" ".join(str(sentence).split())) from error


def import_plugin(file: str) -> None:
    """Import a user's Python file, once per process; ValueError says what is wrong with it."""
    path = Path(file).resolve()
    name = f"fastanc_plugin_{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    if name in sys.modules:
        return
    if not path.is_file() or path.suffix != ".py":
        raise FileNotFoundError(f"run.plugin: there is no Python file {file}: name the one with your method")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # as a script finds the files beside it; behind everything else
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"run.plugin {file} cannot be imported ({type(error).__name__}: {error})") from error


def dump(config: Config) -> str:
    """Return the whole configuration as YAML that `parse` reads back."""
    return str(draccus.dump(config))


def with_teacher(config: Config) -> list[Config]:
    """Return the runs a configuration stands for: its teacher's first, if that has to be trained yet."""
    weights, recipe = config.teacher.weights, config.teacher.recipe
    if (
        recipe is None
        or weights in (None, "random")
        or Path(weights).exists()  # a file, or the folder of a finished run
        or not config.method.needs_teacher
    ):
        return [config]
    folder = Path(weights).parent
    teacher = parse(["--recipe", recipe, "--run.name", folder.name, "--run.out", str(folder.parent)])
    if teacher.data.name != config.data.name or teacher.student.name != config.teacher.name:
        raise ValueError(
            f"teacher.weights: there is no file {weights}, and teacher.recipe {recipe} would train a"
            f" {teacher.student.name} on {teacher.data.name}, not the {config.teacher.name} on {config.data.name}"
            " of this run: name your teacher's file or recipe"
        )
    if config.data.root is not None:
        teacher = replace(teacher, data=replace(teacher.data, root=config.data.root))
    return [replace(teacher, run=replace(teacher.run, resume="latest")), config]


def _check_keys(tree: Any, owner: type, prefix: str) -> None:
    if not isinstance(tree, dict):
        raise ValueError(f"{prefix.rstrip('.') or 'the recipe'} is a group of fields, not {tree!r}")
    if issubclass(owner, Method):
        known = Method.get_known_choices()
        if tree["type"] not in known:
            raise ValueError(
                f"method.type {tree['type']!r} is unknown: use one of {', '.join(sorted(known))}"
            )
        owner = known[tree["type"]]
    names = {f.name for f in fields(owner)}
    for key, value in tree.items():
        if key == "type" and issubclass(owner, Method):
            continue
        if key not in names:
            close = difflib.get_close_matches(str(key), sorted(names), 1)
            hint = f"did you mean {prefix}{close[0]}? " if close else ""
            raise ValueError(
                f"there is no field {prefix}{key}: {hint}valid ones are {', '.join(sorted(names))}"
            )
        inner = Config.__dataclass_fields__[key].default_factory if owner is Config else None
        if isinstance(inner, type) and is_dataclass(inner):
            group = Method if key == "method" else inner
            _check_keys(value, group, f"{prefix}{key}.")


def _pairs(args: list[str]) -> list[tuple[str, str]]:
    pairs = []
    while args:
        word = args.pop(0)
        if not word.startswith("--"):
            raise ValueError(f"do not know what to do with {word!r}: write --group.field value")
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not args:
                raise ValueError(f"--{key} needs a value")
            value = args.pop(0)
        pairs.append((_SHORT.get(key, key), value))
    return pairs


def _assign(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *groups, name = dotted.split(".")
    for group in groups:
        tree = tree.setdefault(group, {})
        if not isinstance(tree, dict):
            raise ValueError(f"--{dotted}: {group} is not a group of fields")
    tree[name] = value
