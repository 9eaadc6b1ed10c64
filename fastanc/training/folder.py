"""The folder of a run: opened by the one process that writes into it, finished once its summary is there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastanc.files import make_folder, sweep, write_text

SUMMARY = "summary.json"


def open_folder(folder: Path, config: str, has_steps_left: bool = True) -> None:
    """Make a run's folder, remove what a killed run left unfinished there, and write its config.yaml.

    A run that has steps left is not finished, whatever an earlier one left: its summary is removed.
    Raises OSError where the folder cannot be written.
    """
    make_folder(folder)
    for own in (folder, folder / "checkpoints"):
        sweep(own)
    if has_steps_left:
        (folder / SUMMARY).unlink(missing_ok=True)
    write_text(folder / "config.yaml", config)


def finish_folder(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write the summary, with which a run is finished."""
    write_text(folder / SUMMARY, json.dumps(summary, indent=1))


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Return the summary of a finished run; None for any other.

    One that an earlier version wrote and a kill cut off does not count: the run goes on from its last checkpoint.
    """
    try:
        summary = json.loads((folder / SUMMARY).read_text())
    except (OSError, ValueError):
        return None
    return summary if isinstance(summary, dict) and summary else None
