"""Learning rates against hand calculations and torch's own scheduler."""

from __future__ import annotations

import pytest
import torch

from fastanc.training.schedule import factor


def test_cosine_equals_torch() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    for step in range(50):
        assert factor(step, 50) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        scheduler.step()


def test_papers_protocol_drops_once_at_80k() -> None:
    total = 260 * 391  # CIFAR at batch 128
    paper = {"name": "step", "milestones": (80_000 / total,), "gamma": 0.1}
    assert factor(79_999, total, **paper) == 1.0
    assert factor(80_000, total, **paper) == pytest.approx(0.1)
    assert factor(total - 1, total, **paper) == pytest.approx(0.1)


def test_warmup_is_linear_and_meets_the_schedule() -> None:
    values = [factor(step, 100, warmup_steps=4) for step in range(5)]
    assert values == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
