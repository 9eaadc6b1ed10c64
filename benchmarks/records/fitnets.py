"""FitNets' two regressors at several weights of the hint: `python -m benchmarks.records.fitnets`.

CIFAR-10 of FASTANC_DATA, its ResNet-56 (93.39 %) -> ResNet-8 with fastanc's own step; a share of the images, few
epochs, flips and padded crops, SGD with a cosine. One pass of the teacher serves every student, and all students of
a seed see the same batches from the same weights, so that rows differ by the regressor and the weight alone.
`supervised` is the row without a hint. After the run the top-1 error on test images, in percent.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import fastanc
from benchmarks.harness import RECORDS, record, table
from fastanc.batch import Batch, Outputs
from fastanc.methods.fitnets import FitNets
from fastanc.methods.supervised import Supervised
from fastanc.models import zoo
from fastanc.models.taps import Tapped
from fastanc.optimizers import OptimizerConfig
from fastanc.pipelines.small_sets import read_cifar
from fastanc.training.players import Players
from fastanc.training.schedule import factor

TEACHER = "weights/resnet56-4bfd9763.th"
REGRESSORS = ("linear", "conv-bn-relu")
PAD = 4


def network(name: str, weights: Path | None = None) -> Tapped:
    """Return a CIFAR network with its stage maps, normalised as its teacher was trained."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return zoo.build(name, num_classes=10, weights=weights, mean=mean, std=std, stages="auto")


def methods(weights: list[float]) -> dict[tuple[str, float], fastanc.Method]:
    """Return every regressor at every weight of the hint, and the labels alone."""
    found: dict[tuple[str, float], fastanc.Method] = {("none", 0.0): Supervised()}
    for regressor in REGRESSORS:
        for weight in weights:
            found[regressor, weight] = FitNets(regressor=regressor, hint_weight=weight)
    return found


def batches(
    images: Tensor, labels: Tensor, batch: int, epochs: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Give shuffled whole batches: each image flipped by chance and cropped from its padded self."""
    draw = torch.Generator().manual_seed(seed)
    px = images.shape[-1]
    for _ in range(epochs):
        for at in torch.randperm(len(images), generator=draw).split(batch):
            if len(at) < batch:
                continue
            padded = F.pad(images[at], (PAD,) * 4)
            corners = torch.randint(2 * PAD + 1, (batch, 2), generator=draw).tolist()
            crops = torch.stack([p[:, y : y + px, x : x + px] for p, (y, x) in zip(padded, corners)])
            flips = torch.rand(batch, generator=draw) < 0.5
            crops[flips] = crops[flips].flip(-1)
            yield crops, labels[at]


@torch.no_grad()
def error_pct(student: Tapped, images: Tensor, labels: Tensor) -> float:
    """Return the top-1 error in percent."""
    student.eval()
    wrong = sum(
        int((student(x).logits.argmax(1) != y).sum()) for x, y in zip(images.split(250), labels.split(250))
    )
    return 100 * wrong / len(labels)


def train_all(
    teacher: Tapped, grid: dict[tuple[str, float], fastanc.Method], data: dict[str, tuple[Tensor, Tensor]],
    *, batch: int, epochs: int, lr: float, seed: int,
) -> dict[tuple[str, float], float]:  # fmt: skip
    """Train every method's student on the same batches from the same weights and return its error."""
    games: dict[tuple[str, float], tuple[Tapped, Players]] = {}
    for key, method in grid.items():
        torch.manual_seed(seed)
        student = network("resnet8")
        optimizer = OptimizerConfig(lr=lr, weight_decay=5e-4, clip=1.0)
        games[key] = student, fastanc.players_of(method, student, teacher, optimizer)
    images, labels = data["train"]
    steps = len(images) // batch * epochs
    ask = fastanc.Online(teacher)
    moving = tqdm(
        batches(images, labels, batch, epochs, seed), total=steps, desc=f"seed {seed}", unit=" steps"
    )
    for step, (x, y) in enumerate(moving):
        target: Outputs = ask(Batch(x, labels=y, step=step))
        for key, (_, players) in games.items():
            players.set_lr(factor(step, steps, warmup_steps=steps // 12))
            fastanc.play(grid[key], players, Batch(x, labels=y, step=step, target=target))
    return {key: error_pct(student, *data["test"]) for key, (student, _) in games.items()}


def main() -> None:
    """Train, print and append to the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=5000, help="training images (5000)")
    parser.add_argument("--test_images", type=int, default=10000, help="test images (10000)")
    parser.add_argument("--epochs", type=int, default=12, help="epochs (12)")
    parser.add_argument("--batch", type=int, default=64, help="images a step (64)")
    parser.add_argument("--lr", type=float, default=0.1, help="learning rate (0.1)")
    parser.add_argument("--weights", type=float, nargs="+", default=[1.0, 100.0], help="of the hint (1 100)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="seeds (0 1)")
    chosen = parser.parse_args()
    root = Path(os.environ.get("FASTANC_DATA", "."))
    if not (root / TEACHER).is_file():
        parser.error(f"there is no {TEACHER}: set FASTANC_DATA to the folder that holds it and CIFAR-10")
    data = {}
    for split, count in (("train", chosen.images), ("test", chosen.test_images)):
        images, labels = (
            torch.as_tensor(part[:count]) for part in read_cifar(root, split, hundred=False)[:2]
        )
        data[split] = images.permute(0, 3, 1, 2).contiguous(), labels
    teacher, grid = network("resnet56_v1", root / TEACHER).eval(), methods(chosen.weights)
    options = {"batch": chosen.batch, "epochs": chosen.epochs, "lr": chosen.lr}
    found = [train_all(teacher, grid, data, seed=seed, **options) for seed in chosen.seeds]
    rows: list[dict[str, Any]] = [
        {
            "regressor": regressor,
            "hint_weight": weight,
            "error_pct": statistics.mean(one[regressor, weight] for one in found),
            "least": min(one[regressor, weight] for one in found),
            "most": max(one[regressor, weight] for one in found),
            "n": len(found),
            "images": chosen.images,
            "epochs": chosen.epochs,
        }
        for regressor, weight in grid
    ]
    print(table(rows))
    print(f"appended to {record('fitnets', rows, RECORDS)}")


if __name__ == "__main__":
    main()
