"""Keeps the table of a study among the results: `python -m benchmarks.studies FOLDER`.

`fastanc study` leaves table.json in its folder; the rows are copied with the environment of this machine, so run it
where the study ran. Rows without a finished run are left out. `--plot FILE` draws them too (SVG, PNG or PDF).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.harness import record, table

MEASURES = ("teacher_kl", "pull_share", "held_won", "distance")
"""Of a study of games: beside the error how alive the game was (docs/game.md)."""


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Return the finished rows of a study; FileNotFoundError where there is none."""
    file = folder / "table.json"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} has no table.json: name the --out of `fastanc study`")
    study = json.loads(file.read_text())
    paired = study.get("paired", {"base": "", "rows": []})
    pairs = {pair["name"]: pair for pair in paired["rows"]}
    seen = {key for row in study["rows"] for key in row.get("measures", {})}
    return [
        {
            "study": study["title"],
            "row": row["name"],
            study["metric"]: row["mean"],
            "spread": row["spread"],
            "n": row["n"],
            "wall_s": mean(row["wall_s"]),
            "paper": row["paper"],
            **(_less(pairs.get(row["name"]), paired["base"]) if pairs else {}),
            **{key: row["measures"].get(key) for key in MEASURES if pairs and key in seen},
        }
        for row in study["rows"]
        if row["n"]
    ]


def _less(pair: Mapping[str, Any] | None, base: str) -> dict[str, Any]:
    """What the paired comparison says of a row; dashes for the base itself."""
    keys = {
        f"less_{base}": "difference",
        "std_error": "error",
        "low": "low",
        "high": "high",
        "p_holm": "corrected",
    }
    return {name: None if pair is None else pair[key] for name, key in keys.items()}


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the rows as points, with the spread where there are several seeds, and the paper's number as a cross."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "fastanc"})  # words stay words
    metric = next(key for key in rows[0] if key.endswith("_pct"))
    names, places = [row["row"] for row in rows], range(len(rows))
    figure = Figure(figsize=(6.4, 0.8 + 0.34 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.errorbar(
        [row[metric] for row in rows],
        places,
        xerr=[row["spread"] or 0 for row in rows],
        fmt="o",
        color="#2563a8",
    )
    axes.plot([row["paper"] for row in rows], places, "x", color="#999999")
    axes.set(
        yticks=places, yticklabels=names, xlabel=metric.replace("_pct", ", %"), ylim=(len(rows) - 0.5, -0.5)
    )
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    """Read, print and append to the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="the --out of `fastanc study`")
    parser.add_argument("--plot", type=Path, help="file to draw the rows into")
    options = parser.parse_args()
    rows = rows_of(options.folder)
    print(table(rows))
    if options.plot:
        draw(rows, options.plot)
    print(f"appended to {record('study', rows)}")


if __name__ == "__main__":
    main()
