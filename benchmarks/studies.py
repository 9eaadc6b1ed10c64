"""Keeps the table of a study among the results: `python -m benchmarks.studies FOLDER`.

`fastanc study` leaves table.json in its folder; the rows are copied with the environment of this machine, so run it
where the study ran. Rows without a finished run are left out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.harness import record, table


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Return the finished rows of a study; FileNotFoundError where there is none."""
    file = folder / "table.json"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} has no table.json: name the --out of `fastanc study`")
    study = json.loads(file.read_text())
    return [
        {
            "study": study["title"],
            "row": row["name"],
            study["metric"]: row["mean"],
            "spread": row["spread"],
            "n": row["n"],
            "wall_s": mean(row["wall_s"]),
            "paper": row["paper"],
        }
        for row in study["rows"]
        if row["n"]
    ]


def main() -> None:
    """Read, print and append to the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="the --out of `fastanc study`")
    rows = rows_of(parser.parse_args().folder)
    print(table(rows))
    print(f"appended to {record('study', rows)}")


if __name__ == "__main__":
    main()
