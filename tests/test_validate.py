"""Exact counts, agreement, and averaged BatchNorm statistics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastanc.batch import Batch, Outputs
from fastanc.parsing import parse
from fastanc.training.assemble import open_run
from fastanc.training.validate import evaluate, statistics
from support.tiny_run import LENETS, as_words


class Table(nn.Module):
    """Gives image i the i-th row of a table of logits; an image's only value is its number."""

    def __init__(self, logits: Tensor):
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.norm, self.frozen = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
        self.train()
        self.frozen.eval()
        self.modes_seen: set[bool] = set()

    def forward(self, images: Tensor) -> Outputs:
        self.modes_seen |= {self.training, self.norm.training}
        return Outputs(self.logits[images.flatten().long()])


def batches(labels: Tensor | None, numbers: np.ndarray, size: int = 64) -> list[Batch]:
    made = []
    for start in range(0, len(numbers), size):
        index = numbers[start : start + size]
        images = torch.from_numpy(index).float().view(-1, 1, 1, 1)
        mine = None if labels is None else labels[torch.from_numpy(index)]
        made.append(Batch(images=images, index=index, view=np.zeros_like(index), labels=mine, step=0))
    return made


def alone(values: Tensor) -> Tensor:
    return values


@pytest.mark.parametrize("classes", [3, 10, 100])
def test_counts_equal_a_full_sort(classes: int) -> None:
    logits, labels = torch.randn(1001, classes), torch.randint(classes, (1001,))
    other = logits + torch.randn(1001, classes)
    network, teacher = Table(logits), Table(other)
    got = evaluate(
        network, batches(labels, np.arange(1001)), alone, 1001, teacher=lambda batch: teacher(batch.images)
    )
    place = (logits.argsort(dim=1, descending=True) == labels[:, None]).int().argmax(dim=1)
    assert got["top1"] == (place < 1).sum().item() / 1001
    assert got["top5"] == (place < 5).sum().item() / 1001
    assert got["error_pct"] == pytest.approx(100 * (1 - got["top1"]), abs=1e-12)
    assert got["loss"] == pytest.approx(F.cross_entropy(logits.double(), labels).item(), rel=1e-6)
    assert got["teacher_top1"] == (other.argmax(1) == labels).sum().item() / 1001
    same = (logits.argmax(1) == other.argmax(1)).sum().item()
    assert got["agreement_pct"] == pytest.approx(100 * same / 1001, abs=1e-12)
    p, q = other.double().softmax(1), logits.double().softmax(1)
    assert got["teacher_kl"] == pytest.approx((p * (p / q).log()).sum(1).mean().item(), rel=1e-5)


def test_three_processes_count_1001_images_once() -> None:
    logits, labels = torch.randn(1001, 10), torch.randint(10, (1001,))
    network = Table(logits)
    parts: list[Tensor] = []

    def collect(values: Tensor) -> Tensor:
        parts.append(values)
        return values if len(parts) < 3 else torch.stack(parts).sum(0)

    for rank in range(2):
        mine = np.arange(1001)[rank::3]
        evaluate(network, batches(labels, mine), collect, len(mine))
    whole = evaluate(network, batches(labels, np.arange(1001)[2::3]), collect, 1001)
    single = evaluate(network, batches(labels, np.arange(1001)), alone, 1001)
    assert whole["top1"] == single["top1"]
    assert whole["top5"] == single["top5"]
    assert whole["loss"] == pytest.approx(single["loss"], rel=1e-12)


def test_an_image_counted_twice_is_our_mistake() -> None:
    network, labels = Table(torch.randn(10, 4)), torch.randint(4, (10,))
    with pytest.raises(AssertionError, match="11 images were counted in a set of 10"):
        evaluate(network, batches(labels, np.array([*range(10), 3])), alone, 10)


def test_a_process_without_batches_takes_part() -> None:
    network = Table(torch.randn(4, 4))

    def with_the_others(values: Tensor) -> Tensor:
        return values + torch.tensor([4.0, 4, 2, 3, 0, 0, 8, 0], dtype=torch.float64)

    got = evaluate(network, [], with_the_others, 4)
    assert got == {"top1": 0.5, "top5": 0.75, "error_pct": 50.0, "loss": 2.0}


def test_modes_are_eval_meanwhile_and_restored_one_by_one() -> None:
    network, labels = Table(torch.randn(10, 4)), torch.randint(4, (10,))
    before = network.norm.running_mean.clone()
    evaluate(network, batches(labels, np.arange(10)), alone, 10)
    assert network.modes_seen == {False}
    assert network.training
    assert network.norm.training
    assert not network.frozen.training
    assert torch.equal(network.norm.running_mean, before)

    class Broken(nn.Module):
        def forward(self, images: Tensor) -> Outputs:
            raise RuntimeError("the teacher is gone")

    with pytest.raises(RuntimeError):
        evaluate(network, batches(labels, np.arange(10)), alone, 10, teacher=Broken())
    assert network.training


def test_a_set_without_labels_gives_agreement_only() -> None:
    network = Table(torch.randn(10, 4))
    unlabelled = batches(None, np.arange(10))
    got = evaluate(network, unlabelled, alone, 10, teacher=lambda batch: network(batch.images))
    assert got == {"agreement_pct": 100.0, "teacher_kl": 0.0}
    with pytest.raises(ValueError, match="neither labels nor a teacher"):
        evaluate(network, unlabelled, alone, 10)


def test_batchnorm_statistics_are_running_means_and_variances_and_nothing_else() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 2), nn.BatchNorm1d(2))
    net.append(nn.BatchNorm1d(2, track_running_stats=False))
    net.register_buffer("mean", torch.full((3,), 0.1))
    wanted = [net[1].running_mean, net[1].running_var, net[3].running_mean, net[3].running_var]
    assert [id(buffer) for buffer in statistics(net)] == [id(buffer) for buffer in wanted]


@pytest.mark.gpu
def test_counts_are_the_same_on_the_gpu() -> None:
    logits, labels = torch.randn(200, 10), torch.randint(10, (200,))
    on_cpu = evaluate(Table(logits), batches(labels, np.arange(200)), alone, 200)
    moved = batches(labels, np.arange(200))
    for batch in moved:
        batch.images, batch.labels = batch.images.cuda(), labels[batch.index].cuda()
    on_gpu = evaluate(Table(logits).cuda(), moved, alone, 200)
    assert on_gpu["top1"] == on_cpu["top1"]
    assert on_gpu["loss"] == pytest.approx(on_cpu["loss"], rel=1e-6)


@pytest.mark.parametrize("student", ["lenet5", "lenet5_half"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("ema", ["0", "0.5"])
def test_what_is_evaluated_does_not_depend_on_an_adapter_or_an_average(
    student: str, precision: str, ema: str, tmp_path: Path
) -> None:
    """The teacher's features are as wide as lenet5's: only the other student gets an adapter around it."""
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    computed: set[torch.dtype] = set()
    options = {"student.name": student, "run.precision": precision, "run.ema": ema, "run.max_steps": "1"}
    with open_run(parse(as_words({**LENETS, **options, "run.out": str(tmp_path)}))) as run:
        run.game.kept.bare.register_forward_hook(lambda *passed: computed.add(passed[2].dtype))
        run.evaluate()
    assert computed == {torch.float32 if precision == "fp32" else torch.bfloat16}
