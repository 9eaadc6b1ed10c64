"""What a teacher costs a real run, by where its outputs come from: `python -m benchmarks.sources --recipe NAME`.

| run | teacher | cache |
| --- | --- | --- |
| supervised | none | none |
| online | run in every step | none |
| filling | run in every step | every row is written |
| cached | not run | read |

Each is `python -m fastanc.train` of the recipe in a process of its own, and its rate is what the run itself
reports: from the first line of its log to the last, so that neither start nor evaluation count. They take turns,
round by round. The cached run reads what the filling run of its round left behind, or with `--cache_dir` a complete
cache of the recipe that is there already (the filling run then stops after `--steps`, in a cache of its own).
Fields of the recipe may follow: `--teacher.weights FILE --data.batch 64`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness import record, table
from fastanc.config import Config
from fastanc.parsing import parse
from fastanc.pipelines.catalogue import open_dataset

SOURCES = {
    "supervised": ["--method.type", "supervised"],
    "online": ["--teacher.cache", "off"],
    "filling": ["--teacher.cache", "fill"],
    "cached": ["--teacher.cache", "read"],
}


def measure_once(source: str, words: Sequence[str], steps: int, out: Path, cache_dir: Path) -> dict[str, Any]:
    """Run one source through the public entry and return its summary; RuntimeError with what it said if it fails."""
    command = [
        *(sys.executable, "-m", "fastanc.train", *words, *SOURCES[source]),
        *("--run.out", str(out), "--run.name", source, "--run.resume", "anew", "--run.eval_every", "0"),
        *("--run.max_steps", str(steps), "--run.log_every", str(max(1, steps // 5))),
        *("--teacher.cache_dir", str(cache_dir)),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the {source} run failed: {done.stderr.strip().splitlines()[-1]}")
    summary: dict[str, Any] = json.loads((out / source / "summary.json").read_text())
    return summary


def one_round(words: Sequence[str], steps: int, cache_dir: Path | None, number: int) -> dict[str, Any]:
    """Return every source's summary; odd rounds go backwards as far as the cache allows."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        out, own = Path(folder), Path(folder) / "cache"
        fill_steps = steps if cache_dir else steps_to_fill(parse(words))
        order = list(SOURCES) if number % 2 == 0 else ["filling", "cached", "online", "supervised"]
        for source in order:
            cache = cache_dir if cache_dir and source == "cached" else own
            found[source] = measure_once(
                source, words, fill_steps if source == "filling" else steps, out, cache
            )
            print(f"round {number + 1}: {source} {found[source]['images_per_s']:.2f} images/s", flush=True)
    return found


def steps_to_fill(config: Config) -> int:
    """Steps after which every view of every image was seen; ValueError where they would not end."""
    if not config.data.views:
        raise ValueError("data.views is 0, so that no cache is ever complete: give --data.views 1")
    data = config.data
    images = open_dataset(data.name, "train", data.root, data.share, data.val_share).num_images
    steps = data.views * (images // data.batch)
    if config.schedule.epochs < config.data.views:
        raise ValueError(f"schedule.epochs {config.schedule.epochs} is below data.views {config.data.views}")
    return steps


def rows_of(config: Config, rounds: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each source: medians over the rounds, and the ratio to supervised and to online."""
    rows = []
    for source in SOURCES:
        mine = [found[source] for found in rounds]
        rows.append(
            {
                "teacher": config.teacher.name if source != "supervised" else "-",
                "student": config.student.name,
                "px": config.data.image_px,
                "batch": config.data.batch,
                "method": mine[0]["method"],
                "source": source,
                "images_per_s": median(s["images_per_s"] for s in mine),
                "images_per_cpu_s": median(s["images_per_s"] / (s["cpu_share"] * s["cores"]) for s in mine),
                "data_share": median(s["data_share"] for s in mine),
                "teacher_share": median(s["teacher_share"] for s in mine),
                "of_supervised": median(
                    f[source]["images_per_s"] / f["supervised"]["images_per_s"] for f in rounds
                ),
                "times_online": median(
                    f[source]["images_per_s"] / f["online"]["images_per_s"] for f in rounds
                ),
                "rounds": len(rounds),
            }
        )
    return rows


def main() -> None:
    """Measure, print a table, and append it to the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--recipe", default="imagenette_resnet152_resnet18", help="a recipe with a teacher")
    parser.add_argument("--steps", type=int, default=10, help="steps of a run (10)")
    parser.add_argument("--rounds", type=int, default=1, help="turns (1)")
    parser.add_argument("--cache_dir", type=Path, help="holds a complete cache for the cached run")
    chosen, fields = parser.parse_known_args()
    words = ["--recipe", chosen.recipe, *fields]
    config = parse(words)
    rounds = [one_round(words, chosen.steps, chosen.cache_dir, number) for number in range(chosen.rounds)]
    rows = rows_of(config, rounds)
    print(table(rows))
    print(f"appended to {record('sources', rows)}")


if __name__ == "__main__":
    main()
