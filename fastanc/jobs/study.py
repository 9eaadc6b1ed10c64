"""`fastanc study`: the rows of a paper's table, each with several seeds, over one cache; killed, it goes on."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import draccus

from fastanc.config import Config
from fastanc.files import HOUR_S, make_folder, sweep, write_text
from fastanc.jobs.report import write_report
from fastanc.jobs.study_file import Study, rows_of
from fastanc.jobs.study_table import as_html, as_text, as_values, read_row, verdict
from fastanc.parsing import parse, with_teacher
from fastanc.quoting import brief
from fastanc.train import train
from fastanc.training.folder import read_summary

Overrides = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """One run of a study."""

    row: str
    config: Config

    @property
    def finished(self) -> bool:
        """Whether it has nothing left to do."""
        return read_summary(self.config.run.folder) is not None


def cells(study: Study, out: Path, scale: float, fields: Sequence[str]) -> tuple[list[Cell], list[Cell]]:
    """Return the runs that come first and the cells of the grid; `fields` are overrides of all of them.

    The seeds take turns, so that a study that was ended early has every row, if from fewer seeds.
    Raises ValueError for a wrong field, and for a finished cell that was made with other settings.
    """
    if not 0 < scale <= 1:
        raise ValueError(f"--scale is {scale}: give a share of the schedule, above 0 and up to 1")

    def cell(row: str, name: str, overrides: Overrides) -> Cell:
        # A later word wins in a mapping; options that only exist for the chosen method come after it.
        fixed = {"run.out": str(out), "run.name": name, "run.resume": "latest"}
        shared = {"recipe": study.recipe, **study.set, "teacher.cache_dir": str(out / "cache")}
        words = _words({**shared, **overrides, **fixed}, out)
        made = Cell(row, _scaled(parse([*words, *fields]), out, scale))
        _refuse_other_settings(made)
        return made

    first = [cell(name, name, overrides) for name, overrides in study.prepare.items()]
    grid = [
        cell(row, f"{_slug(row)}-seed{seed}", {**overrides, "run.seed": seed})
        for seed in study.seeds
        for row, overrides in rows_of(study)
    ]
    return first, grid


def _words(overrides: Overrides, out: Path) -> list[str]:
    """Return overrides as words of a command line, {out} replaced by the study's folder."""
    words = []
    for key, value in overrides.items():
        text = value.replace("{out}", str(out)) if isinstance(value, str) else json.dumps(value)
        words += [f"--{key}", text]
    return words


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")


def _scaled(config: Config, out: Path, scale: float) -> Config:
    """Shorten a configuration: epochs and images each to the square root of the scale, for latent vectors the epochs.

    A teacher that is yet to be trained is a short one of this study.
    """
    if scale == 1:
        return config
    weights, teacher = config.teacher.weights, config.teacher
    named = weights not in (None, "random") and teacher.members is None
    if teacher.recipe and weights is not None and named and not Path(weights).is_file():
        own = out / f"teacher-{Path(weights).parent.name}" / "student.safetensors"
        teacher = replace(teacher, weights=str(own))
    schedule = config.schedule
    has_images = "latents" not in config.method.needs
    epochs = max(1, round(schedule.epochs * (math.sqrt(scale) if has_images else scale)))
    part = epochs / schedule.epochs
    schedule = replace(schedule, epochs=epochs, warmup_epochs=schedule.warmup_epochs * part)
    data = (
        replace(config.data, share=min(1.0, config.data.share * scale / part)) if has_images else config.data
    )
    return replace(config, teacher=teacher, schedule=schedule, data=data)


def _refuse_other_settings(cell: Cell) -> None:
    folder = cell.config.run.folder
    if not cell.finished:
        return
    made = parse(["--config_path", str(folder / "config.yaml")])
    before, now = draccus.encode(made), draccus.encode(cell.config)
    for group in now:
        for key in now[group]:
            if before[group].get(key) != now[group][key] and (group, key) != ("run", "resume"):
                raise ValueError(
                    f"{folder} was finished with {group}.{key} {before[group].get(key)!r}, the study now has"
                    f" {now[group][key]!r}: set it back, or give another --out"
                )


def run_study(study: Study, out: Path, scale: float = 1.0, fields: Sequence[str] = ()) -> str:
    """Run what is not finished yet, one cell after the other, and return the table as text.

    Writes table.txt, table.json and report.html into `out`. A cell whose loss diverges is named below the table
    and tried again next time.
    """
    first, grid = cells(study, out, scale, fields)
    sweep(out, older_than_s=HOUR_S)  # another study may write here
    failures = []
    plan = [*first, *grid]
    for number, cell in enumerate(plan, 1):
        label = f"[{number}/{len(plan)}] {cell.row}, seed {cell.config.run.seed}"
        if cell.finished:
            print(f"{label}: finished before", flush=True)
            continue
        print(label, flush=True)
        try:
            for config in with_teacher(cell.config):
                if config is not cell.config:
                    print(f"{label}: its teacher first, {config.run.folder}", flush=True)
                    config = _scaled(config, out, scale)
                train(config)
        except ValueError as error:
            if cell in first:
                raise
            failures.append(f"{cell.row}, seed {cell.config.run.seed} failed: {error}")
            print(f"fastanc: {brief(failures[-1])}", flush=True)
        if cell in grid:
            _write(study, grid, out, _notes(study, grid, scale, fields, failures))
    notes = _notes(study, grid, scale, fields, failures)
    text = _write(study, grid, out, notes)
    finished = [cell.config.run.folder for cell in grid if cell.finished]
    if finished:
        write_report(finished, out / "report.html", as_html(*_table(study, grid), notes, study.base))
    return text


def _images_left(grid: Sequence[Cell]) -> str:
    shares = sorted({f"{100 * cell.config.data.share:.3g} %" for cell in grid if cell.config.data.share < 1})
    return f", {' or '.join(shares)} of the training images" if shares else ""


def _table(study: Study, grid: Sequence[Cell]) -> tuple[str, list[Any], str]:
    rows = []
    for name, _ in rows_of(study):
        runs = [cell.config.run for cell in grid if cell.row == name]
        folders, seeds = [run.folder for run in runs], [run.seed for run in runs]
        rows.append(read_row(name, folders, study.metric, study.paper.get(name), seeds))
    return study.title, rows, study.metric


def _write(study: Study, grid: Sequence[Cell], out: Path, notes: Sequence[str]) -> str:
    title, rows, metric = _table(study, grid)
    text = as_text(title, rows, metric, notes, study.base)
    make_folder(out)
    write_text(out / "table.txt", text)
    write_text(out / "table.json", json.dumps(as_values(title, rows, metric, notes, study.base), indent=1))
    return text


def _notes(
    study: Study, grid: Sequence[Cell], scale: float, fields: Sequence[str], failures: Sequence[str]
) -> list[str]:
    """Return what a reader must know: the scale, the overrides, the paper's other protocol, the failures."""
    notes = []
    if scale != 1:
        epochs = sorted({cell.config.schedule.epochs for cell in grid})
        notes.append(
            f"SCALED: {scale:g} of the full schedule ({', '.join(map(str, epochs))} epochs a run"
            f"{_images_left(grid)}); not comparable with the paper"
        )
    if fields:
        notes.append(f"overrides on the command line: {' '.join(fields)}")
    notes.append("spread: sample standard deviation over seeds; wall s: mean training time of a run")
    _, rows, metric = _table(study, grid)
    said = verdict(rows, metric)
    notes += [said] if said else []
    return [*notes, *study.protocol, *failures]
