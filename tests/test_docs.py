"""What messages and documents say exists, exists; the examples they print are run."""

from __future__ import annotations

import ast
import copy
import importlib
import json
import re
import shlex
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import fastanc
from fastanc.cli import _fields_joined, _parser
from fastanc.config import Config
from fastanc.manual import asks_for_help
from fastanc.methods.base import Method
from fastanc.parsing import parse
from support.images import flat_folder
from support.tiny_run import LENETS, as_words

ROOT = Path(__file__).resolve().parent.parent
GROUPS = {f.name: f.default_factory for f in fields(Config)}
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TYPED = [ROOT / "docs" / "start.md", *sorted((ROOT / "docs" / "guides").glob("*.md"))]
"""Pages of which tests/test_guides.py runs every block as it stands, with the files that the reader writes."""
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
    modules = {p.stem for p in SOURCES} | {"safetensors", "pt2", "onnx", "pkl", "index", "mdb", *dir(Method)}
    found = [name for name in wrong(strings(path)) if name.split(".")[1] not in modules]
    assert found == []


@pytest.mark.parametrize("path", TEXTS + RECIPES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_documents_name_options_that_exist(path: Path) -> None:
    options = set(re.findall(r"--(" + "|".join(GROUPS) + r")\.([\w.]+)", path.read_text()))
    missing = [f"{g}.{n}" for g, n in sorted(options) if n.rstrip(".") not in KNOWN[g]]
    assert missing == []


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: p.name)
def test_documents_name_files_that_exist(path: Path) -> None:
    """A path in backticks, or in a map of files; a file that the reader is to write is called mine or my_."""
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
    """Beside what makes a configuration: a study, which shortens one, and who measures or writes one."""
    importers = set()
    for path in sorted((ROOT / "fastanc").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "fastanc.config":
                importers.add(path.relative_to(ROOT / "fastanc").as_posix())
    assert importers == {
        "__init__.py",
        "completion.py",
        "jobs/first_recipe.py",
        "jobs/measure.py",
        "jobs/study.py",
        "manual.py",
        "parsing.py",
        "train.py",
        "training/assemble.py",
        "training/assemble_compiled.py",
        "training/assemble_input.py",
        "training/assemble_named.py",
        "training/assemble_networks.py",
        "training/assemble_notes.py",
        "training/assemble_settings.py",
    }


def test_fields_among_a_job_s_own_options_keep_their_values() -> None:
    """README's `fastanc cache verify --recipe NAME --teacher 100`: NAME is not the job's optional path."""
    words = ["cache", "verify", "--recipe", "digits_anc", "--data.batch", "64", "--teacher", "100"]
    options, rest = _parser().parse_known_args(_fields_joined(words))
    assert (options.path, options.teacher) == (None, 100)
    assert parse(rest).data.batch == 64


PLACEHOLDERS = {"NAME": "digits_anc", "R": "digits_anc", "N": "1", "DIR": "1"}
"""What a document's word in capitals stands for where a field or number is read; other words are text as they are."""


def commands(text: str) -> list[str]:
    """Return the lines of a document, in blocks or backticks, that begin with fastanc or launch fastanc's trainer."""
    joined = re.sub(r"\\\n\s*", "", text)
    for block in re.findall(r"^```\w*\n(.*?)^```", joined, flags=re.DOTALL | re.MULTILINE):
        joined += "\n" + re.sub("^", "    ", block, flags=re.MULTILINE)
    lines = re.findall(r"^ {4}((?:fastanc|accelerate launch) .*)$", joined, flags=re.MULTILINE)
    found = [line for line in lines if "`" not in line] + re.findall(
        r"`((?:fastanc|accelerate launch) [^`\n]+)`", joined
    )
    parts = [part.strip() for line in found for part in re.sub(r"\s#.*", "", line).split(" ; ")]
    return [
        part
        for part in parts
        if re.match(r"fastanc [a-z]+\b(?! *\()|accelerate launch .*fastanc/train.py", part)
    ]


def complaint(line: str) -> str | None:
    """Return what the command's own parsers say against a line, files and plugins left out; None if it is read."""
    quoted = "'" in line  # what a shell hands over whole; elsewhere brackets say that a word may be left out
    split = shlex.split(line) if quoted else re.sub(r"[\[\]]", "", line).split()
    words = [PLACEHOLDERS.get(word, word) for word in split]
    if words[0] == "accelerate":
        at = words.index("fastanc/train.py")
        words = ["fastanc", "train", *words[at + 1 :]]
    words = words[1:]
    try:
        if words[0] == "train":
            return _fields_complaint(words[1:])
        one_of = [w for w in words if w != "|"]
        if "|" in words:  # fastanc cache info | verify: each is a word
            return next(filter(None, (complaint(f"fastanc {one_of[0]} {w}") for w in one_of[1:])), None)
        if not any(w.startswith("-") for w in words) and len(words) <= 1 + (words[0] == "cache"):
            words.append("--help")  # a mention: is there such a word?
        options, rest = _parser().parse_known_args(_fields_joined(words))
        if rest and not getattr(options, "takes_fields", False):
            return f"unrecognized {rest}"
        return _fields_complaint(rest)
    except SystemExit as ended:
        return None if ended.code == 0 else f"{line}: refused by its parser"


def _fields_complaint(words: list[str]) -> str | None:
    if asks_for_help(words):
        return None
    own = "--plugin" in words  # its names are registered by a file that the reader writes
    kept, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        value = [] if "=" in word or not rest else [rest.pop(0)]
        if word != "--plugin" and not (own and word.startswith("--method.")):
            kept += [word, *value]
    try:
        parse(kept)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("path", [p for p in TEXTS if p not in TYPED], ids=lambda p: p.name)
def test_commands_in_documents_are_read_by_the_real_parsers(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {line: complaint(line) for line in commands(path.read_text())}
    assert {line: said for line, said in found.items() if said} == {}


@pytest.mark.parametrize(
    "line",
    [
        "fastanc train --recipe own_dat --data.name FOLDER",
        "fastanc train --data.crops padded",
        "fastanc train --data.batch many",
        "fastanc index SRC --label FILE",
        "fastanc indexxx SRC --labels FILE",
        "fastanc cache info | verifyyy",
        "fastanc cache build --recipe NAME --student 5",
        "accelerate launch --config_file a.yaml fastanc/train.py --recipe nothing",
    ],
)
def test_a_wrong_command_in_a_document_is_caught(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    for text in (f"    {line}\n", f"Run `{line}` now"):
        (found,) = commands(text)
        assert complaint(found)


@pytest.mark.parametrize("path", [p for p in TEXTS if p.name != "design.md"], ids=lambda p: p.name)
def test_python_in_documents_compiles_and_names_what_fastanc_has(path: Path) -> None:
    """But for the house plan, whose blocks are sketches of signatures."""
    for block in blocks(path):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fastanc"):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, name.name) for name in node.names), ast.unparse(node)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert node.value.id != "fastanc" or hasattr(fastanc, node.attr), ast.unparse(node)


def blocks(path: Path) -> list[str]:
    """Return the Python blocks of a document, in order."""
    return re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL)


def test_readme_s_example_from_python_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flat_folder(tmp_path / "photos", 40, size=(96, 72))
    place: dict[str, object] = {"__name__": "__main__"}
    exec(compile(blocks(ROOT / "README.md")[0], "README.md", "exec"), place)
    result = place["result"]
    assert isinstance(result, fastanc.Result)
    assert 0 <= result.metrics["agreement_pct"] <= 100
    assert (result.folder / "summary.json").is_file()
    assert result.student(torch.zeros(2, 3, 64, 64)).shape == (2, 10)


def test_readme_s_own_loop_trains(tmp_path: Path) -> None:
    place: dict[str, object] = {}
    exec(compile(blocks(ROOT / "README.md")[1], "README.md", "exec"), place)
    torch.manual_seed(0)
    nets = [
        torch.nn.Sequential(
            torch.nn.Conv2d(3, w, 3, 2),
            torch.nn.AdaptiveAvgPool2d(1),
            torch.nn.Flatten(),
            torch.nn.Linear(w, 5),
        )
        for w in (16, 4)
    ]
    images = torch.rand(32, 3, 64, 64)
    loader = DataLoader(TensorDataset(images, torch.zeros(32, dtype=torch.int64)), batch_size=8)
    before = copy.deepcopy(nets[1].state_dict())
    student, moves = place["distil"](nets[0], nets[1], loader)  # type: ignore[operator]
    assert student is nets[1]
    assert [move.player for move in moves] == ["discriminator", "student"]
    assert all(not torch.equal(value, before[key]) for key, value in student.state_dict().items())
    assert all(not p.requires_grad for p in nets[0].parameters())


def test_the_method_of_the_page_of_methods_is_trained_as_it_is_printed(tmp_path: Path) -> None:
    (code,) = [block for block in blocks(ROOT / "docs" / "methods.md") if 'register_method("mine")' in block]
    (tmp_path / "mine.py").write_text(code)
    words = as_words({**LENETS, "run.out": str(tmp_path), "run.max_steps": "2", "data.batch": "16"})
    more = ["--plugin", str(tmp_path / "mine.py"), "--method.type", "mine", "--method.weight", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "fastanc.train", *words, *more], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in (tmp_path / "digits-anc" / "metrics.jsonl").open()]
    assert any("student/error" in line for line in lines)
