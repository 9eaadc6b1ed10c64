"""What rounding the cache's rows does to a trained teacher's logits: `python -m benchmarks.records.rows`.

The teacher of the recipe sees the validation set once; its features are rounded to each kind of row and its logits
rebuilt from them by its head, as a student's run would. Beside the errors stand the Kullback-Leibler divergence from
the teacher's own distribution and how many first guesses flip. Fields of the recipe may follow.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from benchmarks.harness import RECORDS, record, table
from fastanc.cache.rows import Field, decode, encode, head_logits
from fastanc.parsing import parse
from fastanc.training.assemble_input import open_input
from fastanc.training.assemble_networks import open_teacher
from fastanc.training.processes import make_accelerator

KINDS = ("fp32", "fp16", "uint8")


def rounded(features: Tensor, kind: str) -> tuple[Tensor, int]:
    """Return features [B, D] as they come back from rows of one kind, and a row's bytes."""
    field = Field("features", features.shape[1], kind)
    values = decode(encode({"features": features}, [field]), [field])["features"]
    return values, field.row_bytes


class Tally:
    """Differences of rebuilt logits from the teacher's, over batches."""

    def __init__(self) -> None:
        self.images = self.flips = self.right = self.row_bytes = 0
        self.largest = self.squares = self.divergence = 0.0

    def add(self, exact: Tensor, rebuilt: Tensor, labels: Tensor | None) -> None:
        """Count one batch: logits [B, K] float64 both, labels [B] int64."""
        difference, guess = rebuilt - exact, rebuilt.argmax(1)
        self.images += len(exact)
        self.largest = max(self.largest, difference.abs().max().item())
        self.squares += difference.square().mean(1).sum().item()
        self.flips += int((guess != exact.argmax(1)).sum())
        self.right += 0 if labels is None else int((guess == labels).sum())
        p, q = F.log_softmax(exact, 1), F.log_softmax(rebuilt, 1)
        self.divergence += (p.exp() * (p - q)).sum().item()

    def row(self, kind: str, scale: float) -> dict[str, Any]:
        """Return the result; `scale` is the standard deviation of the teacher's logits."""
        return {
            "rows": kind,
            "row_bytes": self.row_bytes,
            "largest_error": self.largest,
            "rms_error": (self.squares / self.images) ** 0.5,
            "rms_of_logits": (self.squares / self.images) ** 0.5 / scale,
            "kl_nats": self.divergence / self.images,
            "top1_flips": self.flips,
            "top1_right": self.right,
            "images": self.images,
        }


@torch.no_grad()
def measure(teacher: nn.Module, head: nn.Linear, batches: Iterable[Any]) -> list[dict[str, Any]]:
    """Return a row for each kind of rows."""
    tallies, count, total, squares = {kind: Tally() for kind in KINDS}, 0, 0.0, 0.0
    for batch in batches:
        features = teacher(batch.images).features
        exact = head_logits(features, head).double()
        count += exact.numel()
        total, squares = total + exact.sum().item(), squares + exact.square().sum().item()
        for kind, tally in tallies.items():
            values, tally.row_bytes = rounded(features, kind)
            tally.add(exact, head_logits(values, head).double(), batch.labels)
    scale = (squares / count - (total / count) ** 2) ** 0.5
    return [tally.row(kind, scale) for kind, tally in tallies.items()]


def main() -> None:
    """Measure, print a table, and append it to the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--recipe", default="cifar10_resnet56_resnet20", help="a recipe with a teacher")
    chosen, fields = parser.parse_known_args()
    config = parse(["--recipe", chosen.recipe, *fields])
    accelerator = make_accelerator(batch=config.data.batch)
    source = open_input(config, accelerator)
    teacher = open_teacher(config, source.train).network.to(accelerator.device)
    if teacher.head is None:
        parser.error(f"{config.teacher.name} has no linear head: its cache stores logits, not features")
    size = -(-source.val.num_images // source.eval_batch)
    rows = measure(teacher, teacher.head, tqdm(source.val_batches(), "teacher", size))
    print(table(rows))
    print(f"appended to {record('rows', rows, RECORDS)}")


if __name__ == "__main__":
    main()
