"""Runs side by side: a table for the terminal and one self-contained HTML file."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastanc.files import HOUR_S, make_folder, sweep, write_text
from fastanc.jobs.gains_table import describe
from fastanc.jobs.report_figures import RunFolder
from fastanc.jobs.report_page import page
from fastanc.jobs.run_list import FINISHED, find_runs, lines_of, look_at
from fastanc.parsing import data_group
from fastanc.training.folder import PROFILE, read_summary

LINE = 119
"""Characters of a table's line where nobody says how wide a terminal is."""
_DASH, _BETWEEN = "–", "  "
_HEAD = "run,state,"
"""What a table's file begins with."""


def summary_table(run_dirs: Sequence[Path], width: int | None = None) -> str:
    """Return the runs' head table as aligned text for a terminal.

    A column that says nothing is left out: one of dashes alone, and the state of runs that are all finished.

    Args:
        run_dirs: as of `write_report`.
        width: characters that a line may have; columns that have no room are left out, those that say least of the
            result first, and named below the table. None for any number.

    Raises:
        FileNotFoundError: one of the folders is not a run's.
    """
    runs = _read(_folders(run_dirs))
    labels = ["run", *(run.label for run in runs)]
    columns = {name: [name, *(_cell(run.summary, read) for run in runs)] for name, read in _COLUMNS.items()}
    told = {name: column for name, column in columns.items() if _says_something(name, column[1:])}
    table = {"run": labels, **told}
    no_room = []
    for name in _LEAST_FIRST:
        if width is None or _line_width(table) <= width:
            break
        if table.pop(name, None) is not None:
            no_room.append(name)
    lines = _aligned(table)
    if no_room:
        left_out = ", ".join(name for name in told if name in no_room)
        lines.append(f"no room for {left_out}: they are in `fastanc report` with --out or --csv FILE")
    return "\n".join(lines)


def _says_something(name: str, cells: Sequence[str]) -> bool:
    return any(cell != (FINISHED if name == "state" else _DASH) for cell in cells)


def _line_width(table: Mapping[str, Sequence[str]]) -> int:
    return sum(max(map(len, column)) for column in table.values()) + len(_BETWEEN) * (len(table) - 1)


def _aligned(table: Mapping[str, Sequence[str]]) -> list[str]:
    """The lines of a table of columns, words aligned left and numbers right, with a rule below the head."""
    filled = []
    for name, column in table.items():
        width = max(map(len, column))
        align = str.ljust if name in _WORDS else str.rjust
        filled.append([align(cell, width) for cell in (column[0], "-" * width, *column[1:])])
    return [_BETWEEN.join(row).rstrip() for row in zip(*filled)]


def write_report(run_dirs: Sequence[Path], out_path: Path, lead: str = "") -> Path:
    """Write one HTML file with no external part: head table, curves, throughput, notes, configurations.

    Args:
        run_dirs: folders with any of config.yaml, metrics.jsonl and summary.json, or folders that hold such ones; a
            run may still go on.
        out_path: the file to write; its folder is made.
        lead: HTML that stands above the runs, such as a study's table.

    Raises:
        FileNotFoundError: one of the folders is not a run's.
        FileExistsError: another kind of file has that name.
        ValueError: matplotlib is not installed.
    """
    out_path = Path(out_path)
    if out_path.is_dir():
        raise FileExistsError(
            f"{out_path} is a folder: name a file in it, such as {out_path / 'report.html'}"
        )
    if out_path.is_file() and not _begins(out_path, b"<!doctype"):
        raise FileExistsError(f"{out_path} exists and is no report: choose another name")
    shown: dict[Any, str] = {}
    folders = _folders(run_dirs)
    runs = [_with_views(run, folder, shown) for run, folder in zip(_read(folders), folders)]
    html = page(runs, ["run", *_COLUMNS], [_cells(run.summary) for run in runs], len(_WORDS), lead)
    make_folder(out_path.parent)
    sweep(out_path.parent, out_path.name, older_than_s=HOUR_S)
    write_text(out_path, html)
    return out_path


def write_csv(run_dirs: Sequence[Path], out_path: Path) -> Path:
    """Write the head table's values as they were measured, a line a run; errors as of `write_report`."""
    folders = _folders(run_dirs)
    out_path = Path(out_path)
    if out_path.is_dir() or (out_path.exists() and out_path.suffix.lower() != ".csv"):
        raise FileExistsError(f"{out_path} exists and is no table: name a file that ends in .csv")
    if out_path.is_file() and out_path.stat().st_size and not _begins(out_path, _HEAD.encode()):
        raise FileExistsError(f"{out_path} exists and is no table of runs: choose another name")
    rows = [{"run": run.label, **dict(_flat(run.summary))} for run in _read(folders)]
    text = io.StringIO()
    writer = csv.DictWriter(
        text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(rows)
    make_folder(out_path.parent)
    write_text(out_path, text.getvalue())
    return out_path


def _begins(path: Path, words: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(words)).lower() == words


def _flat(summary: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in summary.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif not isinstance(value, list):
            yield prefix + key, value


def _folders(run_dirs: Sequence[Path]) -> list[Path]:
    """The runs' folders, of a folder that holds runs all of them, each once."""
    found = dict.fromkeys(run.resolve() for folder in run_dirs for run in find_runs(Path(folder)))
    if not found:
        raise ValueError("there is no run to report: name at least one run's folder, or one that holds runs")
    return list(found)


def _known(folder: Path) -> dict[str, Any]:
    """The summary of a run; of one that is not finished what its configuration and last lines say."""
    run = look_at(folder)
    summary = read_summary(folder)
    if summary is None:
        words = {"method": run.method, "student": run.student, "teacher": run.teacher}
        summary = {key: value for key, value in words.items() if value} | {"steps": run.step, "val": run.val}
    return {"state": run.state, **summary}


def _read(folders: Sequence[Path]) -> list[RunFolder]:
    summaries = [_known(folder) for folder in folders]
    labels = _labels(
        folders, [str(summary.get("name") or folder.name) for summary, folder in zip(summaries, folders)]
    )
    return [
        RunFolder(
            label=label.encode("utf-8", "replace").decode(),  # a folder's name may be no UTF-8
            summary=summary,
            metrics=lines_of(folder),
            config=_bytes(folder / "config.yaml").decode(errors="replace"),
            profile=_profile(folder),
            samples=_bytes(folder / "samples.png"),
        )
        for folder, label, summary in zip(folders, labels, summaries)
    ]


def _labels(folders: Sequence[Path], names: Sequence[str]) -> list[str]:
    """The runs' names; of those that are not one run's alone the folder with the one above it, or the whole path."""
    labels = list(names)
    for longer in (lambda folder: f"{folder.parent.name}/{folder.name}", str):
        count = Counter(labels)
        labels = [longer(folder) if count[label] > 1 else label for folder, label in zip(folders, labels)]
    return labels


def _bytes(path: Path) -> bytes:
    """A file of a run; b"" where there is none, or none that can be read."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _profile(folder: Path) -> str:
    """What was measured of a run's networks, as a table; "" where nothing was, or where it cannot be read."""
    try:
        return describe(json.loads((folder / PROFILE).read_text()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return ""


def _with_views(run: RunFolder, folder: Path, shown: dict[Any, str]) -> RunFolder:
    """The run with a sheet of its views, where these are dressed or mixed, or with the reason why there is none.

    `shown` remembers which run has the sheet of which views: a study's cells share them.
    """
    try:
        data = data_group(folder / "config.yaml") if run.config else None
        if data is None or not data.finished:
            return run
    except (ValueError, OSError) as error:
        return replace(run, no_views=str(error))
    from fastanc.jobs.views_sheet import sheet_of_run  # other reports do without the decoder

    if data in shown:
        return replace(run, no_views=f"they are those of {shown[data]}")
    sheet, why_not = sheet_of_run(folder)
    if sheet:
        shown[data] = run.label
    return replace(run, views=sheet, no_views=why_not)


def _cells(summary: Mapping[str, Any]) -> list[str]:
    return [_cell(summary, read) for read in _COLUMNS.values()]


def _cell(summary: Mapping[str, Any], read: Callable[[Mapping[str, Any]], str]) -> str:
    try:
        return read(summary)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError, ZeroDivisionError):
        return _DASH  # missing, null, nan, or nothing that this version writes


def _network(summary: Mapping[str, Any]) -> str:
    teacher = summary.get("teacher")
    return f"{summary['student']} ← {teacher}" if teacher else summary["student"]


def _size(number: float) -> str:
    for power, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= power:
            return f"{number / power:.3g} {letter}"
    return f"{number:.0f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


# Column -> how it is read from summary.json; a key that is missing there becomes a dash.
_COLUMNS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "state": lambda s: s["state"],
    "method": lambda s: s["method"],
    "student ← teacher": _network,
    "teacher from": lambda s: s["teacher_source"] or _DASH,
    "labels": lambda s: f"{s['labels']:,}",
    "params": lambda s: _size(s["params"]),
    "smaller": lambda s: f"{s['teacher_params'] / s['params']:.3g} x",
    "MACs": lambda s: _size(s["macs"]),
    "error": lambda s: f"{s['val']['error_pct']:.2f} %",
    "teacher's": lambda s: f"{100 - 100 * s['val']['teacher_top1']:.2f} %",
    "agreement": lambda s: f"{s['val']['agreement_pct']:.2f} %",
    "KL": lambda s: f"{s['val']['teacher_kl']:.4g}",
    "best": lambda s: f"{s['best']['value']:.4g} at {s['best']['steps']}",
    "images/s": lambda s: f"{s['images_per_s']:,.0f}",
    "data wait": lambda s: f"{s['data_share']:.1%}",
    "teacher wait": lambda s: f"{s['teacher_share']:.1%}",
    "wall time": lambda s: _duration(s["wall_s"]),
}
_WORDS = ("run", "state", "method", "student ← teacher", "teacher from")  # aligned left; numbers follow
_LEAST_FIRST = (
    *(
        "data wait",
        "teacher wait",
        "KL",
        "images/s",
        "teacher's",
        "best",
        "MACs",
        "smaller",
        "params",
        "teacher from",
    ),
    *("agreement", "labels", "method", "wall time"),
)
"""In which order columns make room."""
