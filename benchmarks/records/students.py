"""Five students from one cache against five with an online teacher: `python -m benchmarks.records.students`.

The students are those of a small sweep: L2, KD, ANC on features, ANC on logits, and ANC again with another seed. Each
is `python -m fastanc.train` of the recipe for `--steps` steps, once with the teacher run in every step and once from
the cache; the first of the cached ones runs the teacher and writes its rows, as a first student does. The other four
read the complete cache of the recipe in `--cache_dir` (`fastanc cache build` makes it). `s` is the time that the
steps took, without start and evaluation. Fields of the recipe may follow.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness import RECORDS, record, table
from benchmarks.sources import measure_once
from fastanc.parsing import parse

STUDENTS = {
    "l2": ["--method.type", "l2"],
    "kd": ["--method.type", "kd"],
    "anc, features": ["--method.type", "anc", "--method.on", "features"],
    "anc, logits": ["--method.type", "anc", "--method.on", "logits"],
    "anc, another seed": ["--method.type", "anc", "--run.seed", "1"],
}


def one_round(words: Sequence[str], steps: int, cache_dir: Path) -> dict[str, dict[str, float]]:
    """Return images/s of every student: online, and as one of five that share a cache."""
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, method) in enumerate(STUDENTS.items()):
            out = Path(folder) / str(number)
            first = number == 0
            online = measure_once("online", [*words, *method], steps, out, out / "cache")
            shared = measure_once(
                "filling" if first else "cached",
                [*words, *method],
                steps,
                out,
                out / "cache" if first else cache_dir,
            )
            found[name] = {"online": online["images_per_s"], "shared": shared["images_per_s"]}
            print(
                f"{name}: {online['images_per_s']:.1f} and {shared['images_per_s']:.1f} images/s", flush=True
            )
    return found


def rows_of(rounds: Sequence[Mapping[str, Mapping[str, float]]], images: int) -> list[dict[str, Any]]:
    """Return a row for each student and one for all: medians over the rounds, for so many images a student."""
    rows, totals = [], {"online": 0.0, "shared": 0.0}
    for name in STUDENTS:
        seconds = {way: images / median(found[name][way] for found in rounds) for way in totals}
        totals = {way: total + seconds[way] for way, total in totals.items()}
        rows.append(_row(name, seconds, "filled" if not rows else "read", images, len(rounds)))
    return [*rows, _row("all five", totals, "", len(STUDENTS) * images, len(rounds))]


def _row(name: str, seconds: Mapping[str, float], cache: str, images: int, rounds: int) -> dict[str, Any]:
    return {
        "student": name,
        "cache": cache,
        "online_s": seconds["online"],
        "shared_s": seconds["shared"],
        "times": seconds["online"] / seconds["shared"],
        "images": images,
        "rounds": rounds,
    }


def main() -> None:
    """Measure, print a table, and append it to the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--recipe", default="cifar10_resnet56_resnet20", help="a recipe with a teacher")
    parser.add_argument("--cache_dir", type=Path, required=True, help="holds a complete cache of the recipe")
    parser.add_argument("--steps", type=int, default=60, help="steps of a run (60)")
    parser.add_argument("--rounds", type=int, default=1, help="turns (1)")
    chosen, fields = parser.parse_known_args()
    words = ["--recipe", chosen.recipe, *fields]
    rounds = [one_round(words, chosen.steps, chosen.cache_dir) for _ in range(chosen.rounds)]
    rows = rows_of(rounds, chosen.steps * parse(words).data.batch)
    print(table(rows))
    print(f"appended to {record('students', rows, RECORDS)}")


if __name__ == "__main__":
    main()
