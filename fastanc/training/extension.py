"""A finished run that is lengthened: from where, and at what rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastanc.training.checkpoint import damage
from fastanc.training.folder import read_summary

FIELDS: dict[str, frozenset[str]] = {
    "run": frozenset({"parent"}),
    "schedule": frozenset({"extend", "extend_name"}),
}
"""Group -> the fields in which a run differs from the one that it lengthens, beside those that are free."""


@dataclass(frozen=True)
class Extension:
    """What a run goes on from that lengthens another one."""

    parent: str
    """Folder of the run that it lengthens."""
    steps: int
    """That this one had made."""
    factor: float | None
    """Of its base learning rates in its last step; None where its checkpoint is too old to say."""


def last_checkpoint(parent: Path, own: Path) -> Path:
    """Return the checkpoint of a finished run's end; ValueError where there is none, or `own` is its folder."""
    if parent.resolve() == own.resolve():
        raise ValueError(f"run.parent {parent} is this run's own folder: give another --run.name")
    steps = (read_summary(parent) or {}).get("steps")
    if not isinstance(steps, int):
        raise ValueError(
            f"run.parent {parent} is not the folder of a finished run: let it end first, or name another"
        )
    path = parent / "checkpoints" / f"step-{steps:08d}"
    reason = damage(path) if path.is_dir() else "it is not there"
    if reason is not None:
        raise ValueError(
            f"run.parent {parent} cannot be extended without the checkpoint of its end, {path}: {reason}; train it"
            " again with a larger schedule.epochs"
        )
    return path


def begun(parent: Path, meta: Mapping[str, Any]) -> Extension:
    """Return what a run begins from, by what lies beside the other one's last checkpoint."""
    return Extension(str(parent), int(meta["step"]), meta.get("lr_factor"))


def kept(meta: Mapping[str, Any]) -> Extension | None:
    """Return what a run had begun from, by its own checkpoint; None for one that lengthens no other."""
    found = meta.get("extension")
    return Extension(**found) if found else None
