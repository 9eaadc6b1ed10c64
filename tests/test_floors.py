"""The house's rules: who imports whom, which names are taken, and that every test tests something."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# docs/design.md, section 2: a file imports only from lower floors, or from its own folder.
FLOORS = {
    **dict.fromkeys(("batch", "optimizers", "processes", "zero"), 0),
    "kernels": 1,
    **dict.fromkeys(("losses", "pipelines"), 2),
    "models": 3,
    "methods": 4,
    **dict.fromkeys(("teacher", "players", "rates", "schedule"), 5),
    **dict.fromkeys(("config", "checkpoint", "validate", "monitor", "report_page"), 6),
    **dict.fromkeys(("inputs", "parsing", "report", "export", "study_table"), 7),
    "assemble": 8,
    "game": 9,
    "run": 10,
    "train": 11,
    **dict.fromkeys(("demo", "study", "cache_jobs", "plan"), 12),
    "cli": 13,
}
TAKEN = {"torch", "torchvision", "accelerate", "deepspeed", "transformers", "numpy", "timm", "datasets"}
TAKEN |= {"evaluate", "draccus", "utils", *sys.stdlib_module_names}


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def module_of(path: Path) -> str:
    """Return the dotted name that a file is imported by."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] == "pipelines":
        parts.insert(0, "fastanc")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.AST, module: str, is_package: bool = False) -> Iterator[tuple[str, ast.stmt]]:
    """Yield every imported name, written out, at whatever depth it stands: `from a import b` is a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            here = module.split(".")
            up = here[: len(here) - node.level + is_package] if node.level else []
            start = ".".join([*up, *([node.module] if node.module else [])])
            yield from ((f"{start}.{alias.name}", node) for alias in node.names)


def house_imports(path: Path) -> list[str]:
    """Return what a file imports of fastanc, as parts after `fastanc.`; a version or the like is left out."""
    tree, module = ast.parse(path.read_text()), module_of(path)
    names = [name for name, _ in imported(tree, module, path.name == "__init__.py")]
    return [
        name.removeprefix("fastanc.")
        for name in names
        if name.startswith("fastanc.") and not name.startswith("fastanc.__")
    ]


def room(module: str) -> str:
    return module.removeprefix("fastanc.").split(".")[0]


def test_the_walker_sees_every_form_of_import() -> None:
    code = """
import fastanc.train as t, os
from fastanc import losses
from .views import boxes
from . import order
from ..batch import Batch
def f():
    from fastanc.models.taps import Tapped
"""
    found = {name for name, _ in imported(ast.parse(code), "fastanc.pipelines.jpeg")}
    assert found == {
        *("fastanc.train", "os", "fastanc.losses", "fastanc.pipelines.views.boxes"),
        *("fastanc.pipelines.order", "fastanc.batch.Batch", "fastanc.models.taps.Tapped"),
    }
    package = {name for name, _ in imported(ast.parse("from .x import y"), "fastanc.pipelines", True)}
    assert package == {"fastanc.pipelines.x.y"}


def test_every_file_has_a_floor() -> None:
    rooms = {room(module_of(path)) for path in sources("fastanc", "pipelines")} - {"fastanc", "recipes"}
    assert rooms <= set(FLOORS), "give it a floor here and in docs/design.md"


@pytest.mark.parametrize("path", sources("fastanc", "pipelines"), ids=module_of)
def test_a_file_imports_only_from_lower_floors(path: Path) -> None:
    mine = room(module_of(path))
    wrong = [
        name
        for name in house_imports(path)
        if room(name) != mine and FLOORS[room(name)] >= FLOORS.get(mine, -1)
    ]
    assert wrong == []


def test_a_method_sees_no_method_but_base() -> None:
    for path in sources("fastanc/methods"):
        seen = [name for name in house_imports(path) if room(name) == "methods"]
        assert [name for name in seen if not name.startswith("methods.base.")] == [], path.name


def test_pipelines_know_of_fastanc_only_batch_and_kernels() -> None:
    for path in sources("pipelines"):
        assert {room(name) for name in house_imports(path)} <= {"pipelines", "batch", "kernels"}, path.name


def test_nobody_below_imports_train_and_cli_only_when_called() -> None:
    # Under `accelerate launch fastanc/train.py` it is __main__; importing it would run a twin.
    importers = {
        room(module_of(path))
        for path in sources("fastanc", "pipelines")
        if any(room(name) == "train" for name in house_imports(path))
    }
    assert importers <= {"cli", "demo", "study"}
    body = ast.parse((ROOT / "fastanc" / "cli.py").read_text()).body
    top = ast.Module([node for node in body if isinstance(node, ast.Import | ast.ImportFrom)], [])
    assert "train" not in {room(name) for name, _ in imported(top, "fastanc.cli")}


def test_nobody_imports_bare_pipelines() -> None:
    for path in sources("fastanc", "pipelines", "tests", "benchmarks"):
        tree = ast.parse(path.read_text())
        names = [name for name, _ in imported(tree, module_of(path), path.name == "__init__.py")]
        assert [name for name in names if name.split(".")[0] == "pipelines"] == [], path


def test_no_file_bears_a_name_that_is_taken() -> None:
    # Python puts a started script's folder first on its path: fastanc/queue.py would be everyone's queue.
    names = {path.stem for path in (ROOT / "fastanc").iterdir() if path.is_dir() or path.suffix == ".py"}
    assert names & TAKEN == set()
    assert [path for path in sources("fastanc", "pipelines") if path.stem == "utils"] == []


def asserts(node: ast.AST, helpers: dict[str, ast.FunctionDef], seen: frozenset[str] = frozenset()) -> bool:
    """Tell whether code asserts something, by itself or through a function of the same file."""
    for part in ast.walk(node):
        if isinstance(part, ast.Assert):
            return True
        if not isinstance(part, ast.Call):
            continue
        called = part.func.attr if isinstance(part.func, ast.Attribute) else getattr(part.func, "id", "")
        if called.startswith("assert_") or called in ("raises", "warns", "gradcheck", "fail"):
            return True
        helper = helpers.get(called) if called not in seen else None
        if helper and asserts(helper, helpers, seen | {called}):
            return True
    return False


def functions_of(text: str) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("path", sorted((ROOT / "tests").glob("test_*.py")), ids=lambda path: path.stem)
def test_every_test_asserts_something(path: Path) -> None:
    functions = functions_of(path.read_text())
    empty = [n for n, node in functions.items() if n.startswith("test_") and not asserts(node, functions)]
    assert empty == []


def test_an_empty_test_would_be_found() -> None:
    code = (
        "def test_a(): run()\ndef run(): run(); print(1)\ndef test_b(): check()\ndef check():\n    assert 0"
    )
    functions = functions_of(code)
    found = {name: asserts(node, functions) for name, node in functions.items()}
    assert found == {"test_a": False, "run": False, "test_b": True, "check": True}
