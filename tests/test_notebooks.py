"""The notebooks: their outputs are stored, every cell runs anew, and what their key sentences say still holds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="notebooks are run with pip install 'fastanc[docs]'")

DOCS = Path(__file__).resolve().parent.parent / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")
NEAR = 8.0
"""Points by which a percentage may differ on another machine; counts are the same everywhere."""


def code_of(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cell: Any) -> str:
    return "".join(out.text for out in cell.outputs if out.output_type == "stream" and out.name == "stdout")


def same_but_for_percentages(told: str, now: str) -> bool:
    """Tell whether two outputs have the same words and counts, and percentages that are near."""
    if NUMBER.sub("#", told) != NUMBER.sub("#", now):
        return False
    for one, other in zip(NUMBER.finditer(told), NUMBER.finditer(now)):
        before, after = (float(match[0].replace(",", "")) for match in (one, other))
        is_percentage = told[one.end() :].startswith(" %")
        if abs(before - after) > (NEAR if is_percentage else 0):
            return False
    return True


@pytest.mark.parametrize(
    ("told", "now", "same"),
    [
        ("right on 95.5 % of 1,437", "right on 91.0 % of 1,437", True),
        ("right on 95.5 % of 1,437", "right on 80.0 % of 1,437", False),
        ("right on 95.5 % of 1,437", "right on 95.5 % of 1,436", False),
        ("they agree: True", "they agree: False", False),
    ],
)
def test_the_comparison_sees_words_counts_and_percentages(told: str, now: str, same: bool) -> None:
    assert same_but_for_percentages(told, now) == same


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stored_and_none_is_an_error(path: Path) -> None:
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    cells = code_of(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = [out.output_type for cell in cells for out in cell.outputs]
    assert "error" not in kinds
    assert "display_data" in kinds  # its plot
    sentences = [cell for cell in cells if "sentence" in cell.metadata.get("tags", ())]
    assert len(sentences) >= 2
    assert all(printed(cell) for cell in sentences)
    texts = "".join(str(out) for cell in cells for out in cell.outputs)
    assert re.findall(r"/(?:work|home|root|tmp)/\w+", texts) == []
    assert path.stat().st_size < 200_000


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs_and_its_sentences_hold(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the notebooks train on scikit-learn's digits")
    client = pytest.importorskip("nbclient", reason="notebooks are run with pip install 'fastanc[docs]'")
    stored, notebook = nbformat.read(path, 4), nbformat.read(path, 4)
    # A cell that fails raises CellExecutionError, with its text.
    client.NotebookClient(
        notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    for told, now in zip(code_of(stored), code_of(notebook)):
        if "sentence" in told.metadata.get("tags", ()):
            assert same_but_for_percentages(printed(told), printed(now)), f"{printed(told)}\n{printed(now)}"
