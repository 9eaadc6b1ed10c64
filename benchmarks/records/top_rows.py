"""What keeping the most probable classes does to a trained teacher's answer: `python -m benchmarks.records.top_rows`.

The teacher of the recipe sees the validation set once. Its logits go through rows of its most probable classes, and
both are softened by some temperatures: beside the Kullback-Leibler divergence of the rows from the teacher stands
what all classes together have that are not kept, in the rows and in the teacher. Fields of the recipe may follow.
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
from fastanc.cache.rows import Field, decode, encode
from fastanc.cache.top import TOP, most_probable
from fastanc.parsing import parse
from fastanc.training.assemble_input import open_input
from fastanc.training.assemble_networks import open_teacher
from fastanc.training.processes import make_accelerator

TEMPERATURES = (1.0, 2.0, 4.0)


def compared(logits: Tensor, field: Field, temperature: float) -> Tensor:
    """Return [3] float64, sums over a batch: KL in nats, and the share of the other classes, rows' and teacher's."""
    rebuilt = decode(encode({"logits": logits}, [field]), [field])["logits"]
    p, q = (F.log_softmax(z.double() / temperature, 1) for z in (logits, rebuilt))
    kept = most_probable(logits, field.top)
    shares = [1 - z.exp().gather(1, kept).sum(1) for z in (q, p)]
    return torch.stack([(p.exp() * (p - q)).sum(), *(share.sum() for share in shares)])


@torch.no_grad()
def measure(teacher: nn.Module, batches: Iterable[Any]) -> list[dict[str, Any]]:
    """Return a row for each kind of rows that keeps fewer classes than there are, at each temperature."""
    sums: dict[tuple[str, float], Tensor] = {}
    fields: dict[str, Field] = {}
    images = 0
    for batch in batches:
        logits = teacher(batch.images).logits.float()
        images += len(logits)
        fields = {
            kind: Field("logits", logits.shape[1], kind) for kind, k in TOP.items() if k < logits.shape[1]
        }
        for kind, field in fields.items():
            for temperature in TEMPERATURES:
                key = kind, temperature
                sums[key] = sums.get(key, 0) + compared(logits, field, temperature)
    return [
        {
            "rows": kind,
            "row_bytes": fields[kind].row_bytes,
            "classes": fields[kind].width,
            "temperature": temperature,
            "kl_nats": (found[0] / images).item(),
            "others_pct": (100 * found[1] / images).item(),
            "others_pct_teacher": (100 * found[2] / images).item(),
            "images": images,
        }
        for (kind, temperature), found in sums.items()
    ]


def main() -> None:
    """Measure, print a table, and append it to the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--recipe", default="cifar10_resnet56_resnet20", help="a recipe with a teacher")
    chosen, fields = parser.parse_known_args()
    config = parse(["--recipe", chosen.recipe, *fields])
    accelerator = make_accelerator(batch=config.data.batch)
    source = open_input(config, accelerator)
    teacher = open_teacher(config, source.train).network.to(accelerator.device)
    size = -(-source.val.num_images // source.eval_batch)
    rows = measure(teacher, tqdm(source.val_batches(), "teacher", size))
    print(table(rows))
    print(f"appended to {record('top_rows', rows, RECORDS)}")


if __name__ == "__main__":
    main()
