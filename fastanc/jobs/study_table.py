"""A study's table: mean, spread, number of runs and wall time of every row, the paper's number, and a base row's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from statistics import mean, stdev

import numpy as np

from fastanc.jobs.study_file import METRICS
from fastanc.jobs.study_pairs import Pair, as_cells, caption, holm, paired
from fastanc.jobs.study_pairs import as_values as paired_values
from fastanc.training.folder import read_summary
from fastanc.training.metrics import read_metrics

_DASH = "–"


@dataclass(frozen=True)
class Row:
    """One row: the values of its finished runs, and what the paper says."""

    name: str
    values: tuple[float, ...]
    wall_s: tuple[float, ...]
    planned: int
    """Runs that the study wants."""
    paper: float | None = None
    seeds: tuple[int, ...] = ()
    """Of the values."""
    measures: Mapping[str, float] = field(default_factory=dict)
    """Mean over the runs of whatever number all their last evaluations have."""

    @property
    def mean(self) -> float | None:
        """Mean of the runs; None before the first."""
        return mean(self.values) if self.values else None

    @property
    def spread(self) -> float | None:
        """Sample standard deviation (n - 1); None below two runs."""
        return stdev(self.values) if len(self.values) > 1 else None


def read_row(
    name: str, folders: Sequence[Path], metric: str, paper: float | None, seeds: Sequence[int] = ()
) -> Row:
    """Return a row from its runs' folders, one for each seed; a run that is not finished does not count yet."""
    values, walls, finished, measured = [], [], [], list[Mapping[str, float]]()
    for folder, seed in zip(folders, seeds or range(len(folders)), strict=True):
        summary = read_summary(folder)
        if summary is None:
            continue
        error = summary["val"]["error_pct"]
        finished.append(seed)
        measured.append(summary["val"])
        values.append(error if metric == "error_pct" else 100 - error)
        # Unlike the summary's, this time goes on where a run was resumed.
        lines = read_metrics(folder / "metrics.jsonl")
        walls.append(max((line["wall_s"] for line in lines if "wall_s" in line), default=0.0))
    every = [key for key in measured[0] if all(key in one for one in measured)] if measured else []
    measures = {key: mean(one[key] for one in measured) for key in every}
    return Row(name, tuple(values), tuple(walls), len(folders), paper, tuple(finished), measures)


def compared(rows: Sequence[Row], base: str | None) -> list[Pair]:
    """Return every row less the base row, seed by seed; nothing without one."""
    return [] if base is None else paired(base, {row.name: dict(zip(row.seeds, row.values)) for row in rows})


def verdict(rows: Sequence[Row], metric: str) -> str | None:
    """Say which rows Welch's t-test tells from the best one (5 %, Holm's correction for their number).

    Only rows of several runs are judged; None when there are fewer than two of them. Needs scipy.
    """
    judged = [row for row in rows if len(row.values) > 1]
    if len(judged) < 2:
        return None
    try:
        from scipy.stats import ttest_ind_from_stats
    except ImportError:
        return "which rows differ beyond chance is said with scipy: pip install scipy"
    worse = 1 if metric == "error_pct" else -1
    best, *others = sorted(judged, key=lambda row: worse * mean(row.values))
    sides = [(mean(row.values), stdev(row.values), len(row.values)) for row in (best, *others)]
    # Rows without any spread: p is 0, or not a number where the means are equal too.
    with np.errstate(all="ignore"):
        found = [ttest_ind_from_stats(*sides[0], *side, equal_var=False).pvalue for side in sides[1:]]
    found = [1.0 if math.isnan(p) else p for p in found]
    told = sorted(zip(found, holm(found), others), key=lambda one: one[0])
    apart = [row.name for _, corrected, row in told if corrected < 0.05]
    return (
        f"worse than the best row, {best.name}, beyond chance (Welch's t-test at 5 %, Holm's correction):"
        f" {', '.join(apart) or 'none'}"
    )


def _cells(rows: Sequence[Row], metric: str) -> list[list[str]]:
    head = ["row", METRICS[metric], "spread", "n", "wall s", "paper", "ours - paper"]
    body = []
    for row in rows:
        n = str(len(row.values)) if len(row.values) == row.planned else f"{len(row.values)} of {row.planned}"
        wall = f"{mean(row.wall_s):.1f}" if row.wall_s else _DASH
        apart = row.mean - row.paper if row.mean is not None and row.paper is not None else None
        difference = _DASH if apart is None else f"{apart:+.2f}"
        body.append([row.name, _text(row.mean), _text(row.spread), n, wall, _text(row.paper), difference])
    return [head, *body]


def _text(value: float | None) -> str:
    return _DASH if value is None else f"{value:.2f}"


def as_text(
    title: str, rows: Sequence[Row], metric: str, notes: Sequence[str], base: str | None = None
) -> str:
    """Return title, table, comparison with the base row and notes as aligned text."""
    lines = [title, "", *_aligned(_cells(rows, metric))]
    if base is not None and (pairs := compared(rows, base)):
        lines += ["", caption(base, pairs), "", *_aligned(as_cells(pairs))]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)]).rstrip() + "\n"


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table)]
    lines = [
        "  ".join([cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:]))]).rstrip()
        for cells in table
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return lines


def as_html(
    title: str, rows: Sequence[Row], metric: str, notes: Sequence[str], base: str | None = None
) -> str:
    """Return the same as a fragment of HTML."""
    tables = _html(_cells(rows, metric))
    if base is not None and (pairs := compared(rows, base)):
        tables += f"<p>{escape(caption(base, pairs))}</p>{_html(as_cells(pairs))}"
    said = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f"<section><h2>{escape(title)}</h2>{tables}<ul>{said}</ul></section>"


def _html(cells: Sequence[Sequence[str]]) -> str:
    head, *body = cells

    def line(tag: str, cells: Sequence[str]) -> str:
        kinds = ["", *[" class='n'"] * (len(cells) - 1)]
        return f"<tr>{''.join(f'<{tag}{k}>{escape(c)}</{tag}>' for k, c in zip(kinds, cells))}</tr>"

    return f"<table><thead>{line('th', head)}</thead><tbody>{''.join(line('td', c) for c in body)}</tbody></table>"


def as_values(
    title: str, rows: Sequence[Row], metric: str, notes: Sequence[str], base: str | None = None
) -> Mapping[str, object]:
    """Return the same as plain JSON values."""
    pairs = {} if base is None else {"paired": paired_values(base, compared(rows, base))}
    return {
        **pairs,
        "title": title,
        "metric": metric,
        "notes": list(notes),
        "rows": [
            {
                "name": row.name,
                "mean": row.mean,
                "spread": row.spread,
                "n": len(row.values),
                "planned": row.planned,
                "values": list(row.values),
                "seeds": list(row.seeds),
                "wall_s": list(row.wall_s),
                "paper": row.paper,
                "measures": dict(row.measures),
            }
            for row in rows
        ],
    }
