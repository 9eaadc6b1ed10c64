"""The guides, typed word by word: block after block in one folder, as a reader does."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from support.page import blocks_of, page_before, type_in, type_inside

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = [DOCS / "start.md", *sorted((DOCS / "guides").glob("*.md"))]
pytest.importorskip("sklearn", reason="the guides train on scikit-learn's digits")


def finished(folder: Path, run: str) -> dict:
    return json.loads((folder / "runs" / run / "summary.json").read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_is_run_or_says_why_not(page: Path) -> None:
    blocks = blocks_of(page.read_text())
    assert blocks
    for block in blocks:
        runs = block.reason is None
        assert runs or len(block.reason or "") > 10, f"{page.name}, line {block.line}: give a reason"
        assert not runs or block.language != "yaml" or block.file, f"line {block.line}: which file is it?"
    assert sum(block.reason is None for block in blocks) >= 2
    # Blocks of other spellings would pass unseen.
    assert re.findall(r"^```(?:shell|sh|console|py|yml)$", page.read_text(), re.MULTILINE) == []
    assert "\n    fastanc " not in page.read_text(), "a command in a block that nobody runs"


def test_a_block_that_fails_is_named(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A\n\n```python\n# a.py\nx = 1\n```\n\n```bash\npython a.py\nls nowhere | cat\n```\n")
    with pytest.raises(AssertionError, match="page.md, line 8"):
        type_in(page, tmp_path)
    page.write_text(page.read_text().replace("```bash", "<!-- not run: it fails on purpose -->\n```bash"))
    assert type_in(page, tmp_path) == ""
    assert (tmp_path / "a.py").read_text() == "# a.py\nx = 1\n"


def test_own_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    type_inside(DOCS / "guides" / "own_look.md")
    assert (tmp_path / "shade.png").stat().st_size > 10_000


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder in which somebody typed the first page, and what was printed."""
    folder = tmp_path_factory.mktemp("first")
    return folder, type_in(DOCS / "start.md", folder)


@pytest.mark.slow
def test_ten_minutes(first: tuple[Path, str]) -> None:
    folder, said = first
    assert "1,707 images without labels" in said
    for run in ("first", "softened"):
        assert finished(folder, run)["val"]["agreement_pct"] > 80  # 92.2 and 91.1 where it was written
    assert "photos/0000.jpg" in said
    assert re.search(r"note: .*(rows|views).*", said)
    assert (folder / "report.html").is_file()


@pytest.mark.slow
def test_many_students(first: tuple[Path, str], tmp_path: Path) -> None:
    page = DOCS / "guides" / "many_students.md"
    assert page_before(page.read_text()) == "start"
    folder = tmp_path / "family"
    shutil.copytree(first[0], folder)
    said = type_in(page, folder)
    for run in ("dist", "l2", "kd", "longer"):
        assert finished(folder, run)["name"] == run
    # Eight views of the page before, and four more.
    assert f"the {12 * 1707:,} rows that are there fit their checksums" in said


@pytest.mark.slow
def test_own_method(tmp_path: Path) -> None:
    said = type_in(DOCS / "guides" / "own_method.md", tmp_path)
    assert "--method.critic_weight: a number, from 0 to 1000000; default 0.1" in said
    assert "no other could be tried" not in said  # its plays are read in float64 too
    assert any("student/fool" in line for line in (tmp_path / "runs" / "trial" / "metrics.jsonl").open())


@pytest.mark.slow
def test_own_network(tmp_path: Path) -> None:
    said = type_in(DOCS / "guides" / "own_network.md", tmp_path)
    assert "head head features (4, 32) stages [(4, 16, 16, 16), (4, 32, 8, 8)]" in said
    assert (tmp_path / "student" / "student.pt2").is_file()
    assert finished(tmp_path, "tiny")["steps"] == 10


@pytest.mark.slow
def test_own_images(tmp_path: Path) -> None:
    said = type_in(DOCS / "guides" / "own_images.md", tmp_path)
    assert "1797 images, 1 channel, 10 classes" in said
    assert "scans" in said
    assert (tmp_path / "scans.png").is_file()
    assert finished(tmp_path, "scans")["steps"] == 20


@pytest.mark.slow
def test_study(tmp_path: Path) -> None:
    said = type_in(DOCS / "guides" / "study.md", tmp_path)
    table = json.loads((tmp_path / "runs" / "study-my_study" / "table.json").read_text())
    assert [row["name"] for row in table["rows"]] == [
        f"{name} · rate 0.05" for name in ("l2", "anc", "softened")
    ]
    assert all(row["n"] == 2 for row in table["rows"])
    assert said.rstrip().endswith("\n6")  # cells that the second call found finished
