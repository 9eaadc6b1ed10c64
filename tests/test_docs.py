"""What messages and documents say exists, exists; the examples they print are run."""

from __future__ import annotations

import ast
import re
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from fastanc.config import Config
from fastanc.methods.base import Method

ROOT = Path(__file__).resolve().parent.parent
GROUPS = {f.name: f.default_factory for f in fields(Config)}
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SOURCES = [
    path
    for folder in ("fastanc", "pipelines", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
RECIPES = sorted((ROOT / "fastanc" / "recipes").rglob("*.yaml"))
# An option on a command line, or a field that a sentence names: group.field, with the groups of the configuration.
NAMED = re.compile(r"(?<![\w./])(?:--)?(" + "|".join(GROUPS) + r")\.([a-z_]\w*(?:\.[a-z_]\w*)*)")


def known(group: str) -> set[str]:
    """Return the dotted names that a group has; of the methods all of them together."""
    owners = (
        [Method.get_choice_class(n) for n in Method.get_known_choices()]
        if group == "method"
        else [GROUPS[group]]
    )
    found = {"type"} if group == "method" else set()
    for owner in owners:
        for f in fields(owner):
            found.add(f.name)
            inner = f.default if is_dataclass(f.default) else None
            if f.name.endswith("optimizer"):
                found |= {f"{f.name}.{g.name}" for g in fields(GROUPS["optimizer"])}
            elif inner is not None:
                found |= {f"{f.name}.{g.name}" for g in fields(inner)}
    return found


KNOWN = {group: known(group) for group in GROUPS}


def strings(path: Path) -> str:
    """Return every string of a Python file but the names of modules and attributes."""
    tree = ast.parse(path.read_text())
    return "\n".join(
        n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)
    )


def named(text: str) -> set[tuple[str, str]]:
    return {(m[1], m[2]) for m in NAMED.finditer(text)}


def wrong(text: str) -> list[str]:
    return sorted(f"{group}.{name}" for group, name in named(text) if name not in KNOWN[group])


def test_the_scan_finds_fields_and_misses_none() -> None:
    assert named("set --teacher.rows_per_shard, or data.batch: see method.squeeze.pooling") == {
        ("teacher", "rows_per_shard"),
        ("data", "batch"),
        ("method", "squeeze.pooling"),
    }
    assert wrong("--teacher.rows_per_shard data.batch method.squeeze.pooling optimizer.lr") == [
        "teacher.rows_per_shard"
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_messages_name_fields_that_exist(path: Path) -> None:
    modules = {p.stem for p in SOURCES} | {"safetensors", "pt2", "onnx", "index", *dir(Method)}
    found = [name for name in wrong(strings(path)) if name.split(".")[1] not in modules]
    assert found == []


@pytest.mark.parametrize("path", TEXTS + RECIPES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_documents_name_options_that_exist(path: Path) -> None:
    options = set(re.findall(r"--(" + "|".join(GROUPS) + r")\.([\w.]+)", path.read_text()))
    missing = [f"{g}.{n}" for g, n in sorted(options) if n.rstrip(".") not in KNOWN[g]]
    assert missing == []


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: p.name)
def test_documents_name_files_that_exist(path: Path) -> None:
    """A path in backticks, or in README's map; a file that the reader is to write is called mine or my_."""
    found = set(
        re.findall(
            r"\b((?:fastanc|pipelines|benchmarks|tests|docs)/[\w/.-]+\.(?:py|md|yaml|svg))\b",
            path.read_text(),
        )
    )
    missing = [
        name
        for name in sorted(found)
        if "mine" not in name and "my_" not in name and not (ROOT / name).exists()
    ]
    assert missing == []


def test_one_file_reads_the_configuration() -> None:
    """Beside what makes a configuration, and a study, which shortens one for its cells."""
    importers = set()
    for path in sorted((ROOT / "fastanc").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "fastanc.config":
                importers.add(path.relative_to(ROOT / "fastanc").as_posix())
    assert importers == {
        "__init__.py",
        "api.py",
        "jobs/study.py",
        "parsing.py",
        "train.py",
        "training/assemble.py",
    }
