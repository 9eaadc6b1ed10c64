"""ImageNet's 1.28 million rows, made up: an epoch's order and views, and what their cost comes from."""

from __future__ import annotations

import time

import numpy as np
import pytest

from fastanc.pipelines import draws as counters
from fastanc.pipelines import views
from fastanc.pipelines.drawing import draw
from fastanc.pipelines.order import Order, _keyed
from fastanc.pipelines.views import RandomResizedCrop

N = 1_281_167
RATE = 6000  # images/s that one GPU may train


@pytest.fixture(scope="module")
def sizes() -> np.ndarray:
    return np.random.default_rng(0).integers(200, 600, (N, 2)).astype(np.int32)


def test_steps_are_permuted_and_drawn_in_blocks(sizes: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """What keeps order and views under 1 % of an epoch; `benchmarks/records/input_scale.py` measures the time."""
    batch, epochs = 256, 3
    order, rule = Order(N, batch, seed=0), RandomResizedCrop(224, 0)
    share = order.steps_per_epoch // 20
    draws, words = [], []
    boxes, philox = RandomResizedCrop.boxes, counters.philox

    def counted_boxes(rule: RandomResizedCrop, index: np.ndarray, *others: np.ndarray) -> views.Boxes:
        draws.append(len(index))
        return boxes(rule, index, *others)

    def counted_philox(counter: np.ndarray, key: int) -> np.ndarray:
        words.append(counter[0].size)
        return philox(counter, key)

    monkeypatch.setattr(RandomResizedCrop, "boxes", counted_boxes)
    monkeypatch.setattr(counters, "philox", counted_philox)
    _keyed.cache_clear()
    cost = []
    for epoch in range(epochs):
        steps = range(epoch * order.steps_per_epoch, epoch * order.steps_per_epoch + share)
        began = time.process_time()
        order(steps[0])
        permuted_s = time.process_time() - began
        began = time.process_time()
        drawn = sum(len(part.boxes) for part in draw(order, rule, sizes.__getitem__, steps))
        cost.append(permuted_s + (time.process_time() - began) * N / drawn)
        assert drawn == share * batch
    print(f"batch {batch}: {min(cost):.2f} s an epoch, {100 * min(cost) * RATE / N:.2f} % at {RATE} images/s")
    assert _keyed.cache_info().misses == epochs * -(-share // (4096 // batch))  # 0.5 ms each
    assert max(draws) == 4096  # a draw costs 0.6 ms whatever it draws
    assert len(draws) == epochs * -(-share * batch // 4096)
    # A first try and a flip for every view, and nine more tries for the third that did not fit: 4.8, not 11.
    assert sum(words) < 6 * sum(draws)


@pytest.mark.parametrize("batch", [7, 5000])
def test_drawing_together_changes_no_view(sizes: np.ndarray, batch: int) -> None:
    order, rule = Order(12_000, batch, seed=1), RandomResizedCrop(224, 5)
    first = order.steps_per_epoch - 1  # across the border of two epochs
    steps = range(first, first + 1300 if batch == 7 else first + 3)
    seen = 0
    for drawn, step in zip(draw(order, rule, sizes.__getitem__, steps), steps, strict=True):
        picks = order(step)
        boxes, flips = rule.boxes(picks.index, picks.view, sizes[picks.index])
        assert drawn.step == step
        assert (drawn.picks.index == picks.index).all()
        assert (drawn.picks.view == picks.view).all()
        assert (drawn.boxes == boxes).all()
        assert (drawn.flips == flips).all()
        seen += len(picks.index)
    assert seen == len(steps) * batch
