"""What a study's file says: its rows, seeds and overrides, whole or those that somebody chose."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from fastanc.fields import make
from fastanc.plain_yaml import Placed, load_yaml
from fastanc.quoting import shown

METRICS = {"error_pct": "error %", "accuracy_pct": "accuracy %"}
"""What a study may count, and the head of its column."""
_COMPARED = {"--data.name", "--teacher.name", "--student.name"}
"""With another one of these a number has nothing to do with the paper's."""
_OWN = {"run.out", "run.name", "run.resume"}


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a study's YAML file says."""

    title: str
    """One line above the table."""
    recipe: str
    """Recipe of every cell, unless an option names another."""
    grid: tuple[dict[str, dict[str, object] | None], ...]
    """Axes; each maps an option's name to its overrides. The rows are all their combinations."""
    seeds: tuple[int, ...] = (0,)
    """Every row is run once with each."""
    set: dict[str, object] = field(default_factory=dict)
    """Overrides of every cell."""
    prepare: dict[str, dict[str, object]] = field(default_factory=dict)
    """Runs that come first, by name; the cells name their files as {out}/NAME/FILE."""
    paper: dict[str, float] = field(default_factory=dict)
    """The paper's number of a row."""
    metric: str = "error_pct"
    """error_pct or accuracy_pct."""
    base: str | None = None
    """The row that every other one is compared with, seed by seed; null compares none."""
    protocol: tuple[str, ...] = ()
    """In what our runs differ from the paper's."""


def study_names() -> list[str]:
    """Return the names of the studies that come with fastanc."""
    return sorted(path.stem for path in _home().glob("*.yaml"))


def _home() -> Path:
    return Path(str(resources.files("fastanc.recipes"))) / "studies"


def load(name: str) -> Study:
    """Read a study by bare name or path; ValueError names what is wrong with it."""
    path = Path(name) if Path(name).suffix in {".yaml", ".yml"} else _home() / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(
            f"there is no study {shown(name)}: known ones are {', '.join(study_names())}, or give a file"
        )
    try:
        study = make(Study, load_yaml(path))
    except Placed as error:
        raise ValueError(f"study {error}") from error
    except ValueError as error:
        raise ValueError(f"study {path}: {error}") from error
    if study.metric not in METRICS:
        raise ValueError(f"study {path}: metric {shown(study.metric)} is unknown: use {' or '.join(METRICS)}")
    every = (study.set, *study.prepare.values(), *dict(rows_of(study)).values())
    own = _OWN & set().union(*every)
    if own:
        raise ValueError(f"study {path}: {min(own)} is what the study itself gives every run: leave it out")
    if study.base is not None and study.base not in dict(rows_of(study)):
        raise ValueError(
            f"study {path}: base {shown(study.base)} is no row of the grid: it has {', '.join(dict(rows_of(study)))}"
        )
    unknown = study.paper.keys() - dict(rows_of(study))
    if unknown:
        raise ValueError(f"study {path}: paper names {shown(min(unknown))}, which is no row of the grid")
    return study


def rows_of(study: Study) -> list[tuple[str, dict[str, Any]]]:
    """Return (name, overrides) of every row, in the order of the grid."""
    rows = []
    for options in itertools.product(*(axis.items() for axis in study.grid)):
        names, overrides = zip(*options)
        rows.append((" · ".join(names), {k: v for part in overrides for k, v in (part or {}).items()}))
    return rows


def chosen(
    study: Study,
    options: Sequence[str],
    seeds: Sequence[int],
    recipe: str | None,
    fields: Sequence[str] = (),
) -> Study:
    """Return a smaller study: the rows of some options of its axes, other seeds, another recipe below them.

    With another recipe, or `fields` that name another data set or network, the paper's numbers are left out.
    Raises ValueError for an option that no axis has.
    """
    known = [name for axis in study.grid for name in axis]
    for name in options:
        if name not in known:
            raise ValueError(f"--only {shown(name)} is no option of the study: it has {', '.join(known)}")
    grid = []
    for axis in study.grid:
        wanted = {name: overrides for name, overrides in axis.items() if name in options}
        grid.append(wanted or axis)
    rows = dict(rows_of(replace(study, grid=tuple(grid))))
    paper = {row: value for row, value in study.paper.items() if row in rows}
    left = "" if len(rows) == len(rows_of(study)) else f"only the rows with {', '.join(options)}"
    below = f"recipe {recipe} in the place of {study.recipe}" if recipe else ""
    if recipe or not _COMPARED.isdisjoint(field.partition("=")[0] for field in fields):
        paper = {}
        study = replace(study, title=f"{study.title}; but on other data or networks, see below")
    if twice := {seed for seed in seeds if list(seeds).count(seed) > 1}:
        raise ValueError(f"--seeds names {min(twice)} twice: a run cannot be counted as two")
    return replace(
        study,
        grid=tuple(grid),
        seeds=tuple(seeds) or study.seeds,
        recipe=recipe or study.recipe,
        paper=paper,
        base=study.base if study.base in rows else None,
        protocol=(*filter(None, (left, below)), *study.protocol),
    )
