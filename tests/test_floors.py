"""The house's rules: who imports whom, which names are taken, and that every test tests something."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

Place = tuple[int, ...]


def read_house(text: str) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
    """Return the floor of every room, and of every folder the rank of what lies in it, from docs/design.md."""
    floors: dict[str, int] = {}
    ranks: dict[str, dict[str, int]] = {}
    block = text.split("```house\n")[1].split("```")[0]
    folder = ""
    for line in block.splitlines():
        if line[0].isdigit():
            floor, room = line.split()[:2]
            folder = room.rstrip("/") if room.endswith("/") else ""
            if "/" not in room.rstrip("/"):
                floors[room.rstrip("/")] = int(floor)
        else:
            groups = [group.split() for group in line.split("<")]
            ranks[folder] = {name.rstrip("/"): k for k, group in enumerate(groups) for name in group}
    return floors, ranks


FLOORS, RANKS = read_house((ROOT / "docs" / "design.md").read_text())
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


def place(parts: Sequence[str]) -> Place:
    """Return where a module stands: the floor of its room, then its rank in each folder; lower is smaller."""
    found = [FLOORS[parts[0]]]
    for depth in range(1, len(parts)):
        found.append(RANKS["/".join(parts[:depth])][parts[depth]])
    return tuple(found)


def is_below(module: Sequence[str], importer: Sequence[str]) -> bool:
    """Tell whether the house lets one file import another: at the first folder where their ways part."""
    for depth, (mine, other) in enumerate(zip(importer, module)):
        if mine != other:
            return place(module[: depth + 1]) < place(importer[: depth + 1])
    return len(module) > len(importer)  # a package's __init__ gathers what lies inside it


MODULES = {tuple(module_of(path).split(".")[1:]): path for path in sources("fastanc", "pipelines")}


def existing(name: str) -> tuple[str, ...]:
    """Return the parts of the module that an imported name belongs to."""
    parts = tuple(name.split("."))
    while parts not in MODULES:
        parts = parts[:-1]
    return parts


def test_every_file_has_a_place() -> None:
    files = {parts for parts, path in MODULES.items() if path.name != "__init__.py" and parts}
    for parts in files:
        place(parts)
    named = {(room,) for room in FLOORS} | {
        (*folder.split("/"), name) for folder, names in RANKS.items() for name in names
    }
    assert named <= set(MODULES), "the table names what does not exist"


def test_the_house_tells_right_from_wrong() -> None:
    house = "```house\n0 a x\n2 b/ y\n   c d/ < e\n2 b/d/ z\n  f < g\n3 h x\n```"
    floors, ranks = read_house(house)
    assert floors == {"a": 0, "b": 2, "h": 3}
    assert ranks == {"b": {"c": 0, "d": 0, "e": 1}, "b/d": {"f": 0, "g": 1}}
    assert is_below(("batch",), ("teacher", "online"))
    assert not is_below(("teacher", "online"), ("batch",))
    assert is_below(("cache", "rows"), ("cache", "store"))
    assert not is_below(("cache", "store"), ("cache", "rows"))
    assert not is_below(("kernels", "mlp"), ("kernels", "small_set"))  # neighbours do not see each other
    assert is_below(("pipelines", "index", "sources", "tar"), ("pipelines", "index", "build"))


@pytest.mark.parametrize("path", sources("fastanc", "pipelines"), ids=module_of)
def test_a_file_imports_only_from_lower_floors(path: Path) -> None:
    mine = tuple(module_of(path).split(".")[1:])
    seen = {existing(name) for name in house_imports(path)} - {mine, ()}
    assert [".".join(other) for other in seen if not is_below(other, mine)] == [] or mine == ()


def test_a_method_sees_no_method_but_base() -> None:
    for path in sources("fastanc/methods"):
        seen = [name for name in house_imports(path) if room(name) == "methods"]
        assert [name for name in seen if not name.startswith("methods.base.")] == [], path.name


def test_pipelines_know_of_fastanc_only_batch_files_and_kernels() -> None:
    for path in sources("pipelines"):
        assert {room(name) for name in house_imports(path)} <= {
            "pipelines",
            "batch",
            "registry",
            "files",
            "quoting",
            "kernels",
        }, path.name


def test_nobody_below_imports_train_and_cli_only_when_called() -> None:
    # Under `accelerate launch fastanc/train.py` it is __main__; importing it would run a twin.
    importers = {
        room(module_of(path))
        for path in sources("fastanc", "pipelines")
        if any(room(name) == "train" for name in house_imports(path))
    }
    assert importers <= {"cli", "jobs", "api", "fastanc"}  # the last one for type checkers alone
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


def test_no_test_file_imports_another() -> None:
    files = {path.stem: path for path in (ROOT / "tests").glob("test_*.py")}
    for name, path in files.items():
        seen = {module.split(".")[0] for module, _ in imported(ast.parse(path.read_text()), name)}
        assert seen & files.keys() == set(), f"{name}: what test files share lies in tests/support"


def test_an_empty_test_would_be_found() -> None:
    code = (
        "def test_a(): run()\ndef run(): run(); print(1)\ndef test_b(): check()\ndef check():\n    assert 0"
    )
    functions = functions_of(code)
    found = {name: asserts(node, functions) for name, node in functions.items()}
    assert found == {"test_a": False, "run": False, "test_b": True, "check": True}
