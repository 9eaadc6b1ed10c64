"""What answers to other pictures cost a student of mixed ones: `python -m benchmarks.records.clean_rows`.

A student sees mixed pictures (mixup). Three teachers: the one who is asked about the mixed picture, as fastanc does;
one whose answer is that to the own picture before it was mixed (`clean`), which is what a cache of plain views gives
to who mixes in the loader; and one whose answers to both pictures are mixed as the pictures were (`linear`), in
probabilities at the method's temperature. The cache of the plain views in `--cache_dir` must be complete
(`fastanc cache build`). Fields of the recipe may follow; the seeds are those of the runs.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import RECORDS, record, table
from fastanc.batch import Batch, Outputs
from fastanc.parsing import parse
from fastanc.teacher.cached import Cached
from fastanc.training.assemble import open_bench, open_run
from fastanc.training.folder import read_summary
from fastanc.training.processes import seed_step
from fastanc.training.run import Run
from fastanc.training.step import play

WAYS = ("mixed", "clean", "linear")
METRICS = ("error_pct", "agreement_pct", "teacher_kl")


class Elsewhere:
    """Answers a batch of mixed pictures with rows of the plain ones."""

    rows_computed = rows_read = 0

    def __init__(self, plain: Cached, run: Run, way: str, temperature: float) -> None:
        assert run.source.views.mixing is not None
        self._plain, self._mixing, self._way, self._t = plain, run.source.views.mixing, way, temperature

    def __call__(self, batch: Batch) -> Outputs:
        """Return logits [B, K]."""
        own = self._plain(batch).logits
        if self._way == "clean":
            return Outputs(own)
        drawn = self._mixing.draw(batch.index, batch.view)
        places = {pair: k for k, pair in enumerate(zip(batch.index.tolist(), batch.view.tolist()))}
        rows = [places[pair] for pair in zip(drawn.partner.tolist(), batch.view.tolist())]
        share = torch.from_numpy(drawn.own)[:, None]
        p = (own / self._t).softmax(1)
        return Outputs(self._t * (share * p + (1 - share) * p[rows]).log())

    def flush(self) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Stop reading."""
        self._plain.close()


def one(words: Sequence[str], cache_dir: Path, way: str, seed: int, out: Path) -> dict[str, Any]:
    """Train one student and return its summary's validation row."""
    common = [*words, "--teacher.cache_dir", str(cache_dir), "--run.seed", str(seed), "--run.out", str(out)]
    config = parse([*common, "--data.mix", "mixup", "--teacher.cache", "fill", "--run.name", f"{way}-{seed}"])
    temperature: float = getattr(config.method, "temperature", 1.0)
    with open_run(config) as run:
        if way != "mixed":
            bench = open_bench(parse(common), create=False)
            assert run.answers is not None
            run.answers.close()
            plain = Cached(bench.store, bench.teacher.network.head, None, device=run.source.device)
            run.answers = Elsewhere(plain, run, way, temperature)  # type: ignore[assignment]
            run._complete_cache = None
        for step, batch in run.batches():
            seed_step(run.seed, step, run.rank)
            run.players.set_lr(run.lr_factor(step))
            batch.target = run.ask_teacher(batch)
            run.after(step, play(run.method, run.players, batch, run.parts, run.plays(batch)))
        folder = run.finish()
    summary = read_summary(folder)
    assert summary is not None
    return {"way": way, "seed": seed, **{key: summary["val"][key] for key in METRICS}}


def summed(rows: Sequence[dict[str, Any]], way: str) -> dict[str, Any]:
    """Return the means of a way, and its error less that of `mixed` on the same seeds, with its standard error."""
    mine, mixed = ([row for row in rows if row["way"] == name] for name in (way, "mixed"))
    off = np.array([a["error_pct"] - b["error_pct"] for a, b in zip(mine, mixed, strict=True)])
    means = {key: float(np.mean([row[key] for row in mine])) for key in METRICS}
    spread = float(off.std(ddof=1) / len(off) ** 0.5) if len(off) > 1 else None
    return {"way": way, "n": len(off), **means, "off_pct": float(off.mean()), "standard_error": spread}


def main() -> None:
    """Measure, print a table, and append it to the records."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="cifar10_resnet56_resnet20", help="a recipe with a teacher")
    parser.add_argument(
        "--cache_dir", type=Path, required=True, help="folder of the complete cache of plain views"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(0 1 2)")
    chosen, fields = parser.parse_known_args()
    words = ["--recipe", chosen.recipe, "--method.type", "kd", "--method.alpha", "1.0", *fields]
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            one(words, chosen.cache_dir, way, seed, Path(folder)) for seed in chosen.seeds for way in WAYS
        ]
    found = [summed(rows, way) for way in WAYS]
    print(table(found))
    print(f"appended to {record('clean_rows', found, RECORDS)}")


if __name__ == "__main__":
    main()
