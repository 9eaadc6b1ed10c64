"""From a recipe file and the words of a command line to a Config, and back to a file.

What a text means is asked of the field's type alone (`fields.read`), wherever the text comes from.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

import draccus

from fastanc import early
from fastanc.config import GROUPS, Config, DataConfig, with_said
from fastanc.errors import raised, say_repeated
from fastanc.fields import make
from fastanc.following import complete, follow
from fastanc.methods.base import Method
from fastanc.pipelines.own_looks import check_look
from fastanc.plain_yaml import Word, dump_yaml, load_yaml, mapping_in, placed
from fastanc.quoting import cut, shown
from fastanc.registry import place_of, remember_file

DEFAULT_RECIPE = "digits_anc"
OWN_RECIPE = "own_data"
# Short spellings of what is typed most.
_SHORT = {"resume": "run.resume", "name": "run.name", "out": "run.out", "plugin": "run.plugin"}
_FILES = ("recipe", "config_path")


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with fastanc."""
    return sorted(p.stem for p in Path(str(resources.files("fastanc.recipes"))).glob("*.yaml"))


def method_names() -> list[str]:
    """Return the names of the methods that are registered."""
    return sorted(Method.get_known_choices())


def recipe_path(name: str) -> Path:
    """Return the file of a recipe given by bare name or by path; ValueError names the known ones."""
    if Path(name).suffix in {".yaml", ".yml"} and os.path.isfile(name):
        return Path(name)
    folder = Path(str(resources.files("fastanc.recipes")))
    known = recipe_names()
    if (bare := name.removesuffix(".yaml")) in known:
        return folder / f"{bare}.yaml"
    if os.path.isdir(name):
        own = os.path.join(name, "config.yaml")
        raise ValueError(f"{name} is a folder: name {own if os.path.isfile(own) else 'a .yaml file'}")
    if os.path.exists(name):
        raise ValueError(f"{name} is no recipe by its name: give a file that ends in .yaml")
    if Path(name).suffix in {".yaml", ".yml"}:
        raise ValueError(
            f"there is no file {shown(name)}: correct its path, or name a recipe of `fastanc recipes`"
        )
    close = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise ValueError(
        f"there is no recipe {shown(name)}: {hint}known recipes are {', '.join(known)}, or give a .yaml file"
    )


def parse(args: Sequence[str], *, front: bool = False, images_only: bool = False) -> Config:
    """Read `--recipe NAME | --config_path FILE` and `--group.field value` overrides into a Config.

    Without a recipe it is own_data where data.name is a path, else digits_anc. Of a field given twice the last
    word counts. With `front`, for what a user typed, that is said, and names and files are looked at before anything
    slow is imported (`early`); with `images_only` those of the networks are not.
    Raises ValueError with one sentence that names the field for a wrong key, type or value.
    """
    overrides = _pairs(list(args))
    if front:
        say_repeated([f"--{key}" for key, _ in overrides if key not in _FILES])
    files = [value for key, value in overrides if key in _FILES]
    plugins = [value for key, value in overrides if key == "run.plugin"]
    if len(plugins) > 1:
        raise ValueError(f"give one --plugin, not {len(plugins)}: let it import the others")
    if len(files) > 1:
        raise ValueError(f"give one recipe, not {len(files)}: {', '.join(files)}")
    tree = _recipe(files[0] if files else _default_recipe(overrides))
    follow(tree, dict(overrides))
    kinds = [value for key, value in overrides if key == "method.type"]
    _choose_method(tree, kinds[-1] if kinds else None)
    for key, value in overrides:
        if key not in _FILES:
            _assign(tree, key, Word(value))
    check = early.check_images if images_only else early.check
    config = decode(tree, check if front else None)
    return with_said(config, (key for key, _ in overrides))


def data_group(path: Path) -> DataConfig:
    """Return the data group of a configuration's file alone, whatever the others need; ValueError as of `parse`."""
    tree = _recipe(str(path))
    with placed(tree, "data"):
        return make(DataConfig, mapping_in(tree.get("data", {})), "data.")


def plugin_of(path: Path) -> str | None:
    """Return the file that a run's configuration names as its plugin; None where it names none that is there."""
    try:
        tree = load_yaml(path)
    except (OSError, ValueError):
        return None
    run = tree.get("run") if isinstance(tree, dict) else None
    plugin = run.get("plugin") if isinstance(run, dict) else None
    return plugin if isinstance(plugin, str) and os.path.isfile(plugin) else None


def configure(recipe: str, fields: Mapping[str, Any]) -> Config:
    """Return a recipe's Config with other values, group.field -> Python value; "method" takes a whole group.

    Raises ValueError with one sentence that names the field for a wrong key, type or value.
    """
    tree = _recipe(recipe)
    flat = {key: value for key, value in fields.items() if key != "method"}
    for group, inner in fields.items():
        if group != "method" and isinstance(inner, Mapping) and "." not in group:
            flat |= {f"{group}.{name}": one for name, one in inner.items()}
    follow(tree, flat)
    method = dict(fields.get("method", {}))
    _choose_method(tree, fields.get("method.type", method.pop("type", None)))
    if method:  # all of its knobs are given
        tree["method"] = dict(fields["method"])
    for key, value in fields.items():
        if key == "method":
            continue
        inner = value.items() if isinstance(value, Mapping) and "." not in key else ()
        for dotted, one in [(f"{key}.{name}", one) for name, one in inner] or [(key, value)]:
            _assign(tree, dotted, one)
    return with_said(decode(tree), fields)


def _recipe(name: str) -> dict[str, Any]:
    path = recipe_path(name)
    tree = load_yaml(path)
    if not tree or not isinstance(tree, dict):
        what = "no recipe" if tree else "empty"
        raise ValueError(f"{path} is {what}: write groups of fields, such as `optimizer: {{lr: 0.1}}`")
    complete(tree)
    return tree


def _default_recipe(overrides: Sequence[tuple[str, str]]) -> str:
    """What is trained without a recipe: a user's own images know nothing of the digits' sizes and teacher."""
    own = any(key == "data.name" and os.path.exists(value) for key, value in overrides)
    return OWN_RECIPE if own else DEFAULT_RECIPE


def _choose_method(tree: dict[str, Any], kind: str | None) -> None:
    """Let a recipe play another method; its knobs belong to its own."""
    method = tree.get("method")
    if kind is not None and kind != (method.get("type") if isinstance(method, dict) else None):
        tree["method"] = {"type": kind}


def decode(tree: dict[str, Any], check: Callable[[Mapping[str, Any]], None] | None = None) -> Config:
    """Return the Config of a nested dictionary; ValueError names a wrong field.

    `check` sees the groups first. A plugin takes seconds to import: it comes last, and so does a method of its own.
    """
    groups = {one.name: one.default_factory for one in fields(Config)}
    for key in tree:
        if key not in groups:
            close = difflib.get_close_matches(str(key), list(groups), 1)
            hint = f"did you mean {close[0]}? " if close else ""
            with placed(tree, key):
                raise ValueError(
                    f"there is no field {cut(str(key))}: {hint}valid ones are {', '.join(sorted(groups))}"
                )
    made: dict[str, Any] = {}
    for name, kind in groups.items():
        if name != "method":
            with placed(tree, name):
                made[name] = make(kind, mapping_in(tree.get(name, {})), f"{name}.")  # type: ignore[arg-type]
    plugin = made["run"].plugin
    if plugin is not None:  # whole, so that the run goes on from any folder, however the file is spelt
        plugin = os.path.realpath(plugin)
        made["run"] = replace(made["run"], plugin=plugin)
    method = mapping_in(tree.get("method", {}))
    if plugin is None or _is_known(method):
        with placed(tree, "method"):
            made["method"] = _method(method)
    if check is not None:
        check(made)
    if plugin is not None:
        import_plugin(plugin)
        check_look(made["data"].looks)
        with placed(tree, "method"):
            made["method"] = _method(method)
    return Config(**made)


def _is_known(method: Any) -> bool:
    return isinstance(method, Mapping) and method.get("type", "anc") in Method.get_known_choices()


def _method(tree: Any) -> Method:
    if not isinstance(tree, Mapping):
        name = cut(str(tree))
        raise ValueError(f"method is a group: write `method: {{type: {name}}}` or --method.type {name}")
    return Method.chosen(tree if "type" in tree else {**tree, "type": "anc"}, "method")


def import_plugin(file: str) -> None:
    """Import a user's Python file, once per process; ValueError says what is wrong with it."""
    path = Path(file).resolve()
    name = f"fastanc_plugin_{path.stem}_{zlib.crc32(str(path).encode(errors='surrogateescape')):08x}"
    if name in sys.modules:
        return
    if not os.path.isfile(path) or path.suffix != ".py":
        raise FileNotFoundError(f"run.plugin: there is no Python file {file}: name the one with your method")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # as a script finds the files beside it; behind everything else
    remember_file(path)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a script's sys.exit() would end the command without a word
        del sys.modules[name]
        place = place_of(error)
        at = "" if place is None else f", {place}"
        raise ValueError(
            f"run.plugin {file} cannot be imported ({raised(error)}{at}): mend it first"
        ) from error


def dump(config: Config) -> str:
    """Return the whole configuration as YAML that `parse` reads back."""
    return dump_yaml(draccus.encode(config))


def with_teacher(config: Config) -> list[Config]:
    """Return the runs a configuration stands for: its teacher's first, if that has to be trained yet."""
    weights, recipe = config.teacher.weights, config.teacher.recipe
    if (
        recipe is None
        or weights in (None, "random")
        or config.teacher.members is not None
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


def _pairs(args: list[str]) -> list[tuple[str, str]]:
    pairs = []
    while args:
        word = args.pop(0)
        if not word.startswith("--"):
            meant = f"--recipe {word}" if Path(word).suffix in {".yaml", ".yml"} else "--group.field value"
            raise ValueError(f"do not know what to do with {shown(word)}: write {cut(meant)}")
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not args or _is_option(args[0]):
                raise ValueError(f"--{cut(key)} needs a value: write --{cut(key)} VALUE")
            value = args.pop(0)
        pairs.append((_SHORT.get(key, key), value))
    return pairs


def _is_option(word: str) -> bool:
    """Tell whether a word is an option of ours, which is no other's value unless it is written --key=value."""
    key = word[2:].partition("=")[0]
    group = key.partition(".")[0]
    named = key in (*_SHORT, *_FILES) or ("." in key and group in GROUPS)
    return word.startswith("--") and named


def _assign(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *groups, name = dotted.split(".")
    for group in groups:
        inner = mapping_in(tree.get(group) or {})
        if not isinstance(inner, dict):
            raise ValueError(f"--{cut(dotted)}: {cut(group)} is not a group of fields")
        if inner is not tree.get(group):
            tree[group] = inner
        tree = inner
    tree[name] = value
