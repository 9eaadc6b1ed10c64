"""The traps of ANC's regularisers on a toy: the discriminator alone, against two fixed clouds of features.

`pytest tests/test_anc_traps.py -s` prints the table of docs/methods.md.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastanc import losses
from fastanc.models.discriminators import discriminator


def _train(regulariser: str, steps: int = 2000) -> dict[str, float]:
    """Train D 128-256-128 on 64-d features and return what it says, and the student's gradient per sample."""
    clouds = torch.Generator().manual_seed(1)
    centre_t, other = torch.rand(64, generator=clouds), torch.rand(64, generator=clouds)
    centre_s = (centre_t + other) / 2
    judge = discriminator("128-256-128", 64)
    optimizer = torch.optim.SGD(judge.parameters(), lr=0.01, momentum=0.9, weight_decay=2e-4)

    def draw(centre: Tensor, num: int) -> Tensor:
        return (centre + 0.5 * torch.randn(num, 64)).relu()

    for _ in range(steps):
        t, s = draw(centre_t, 128), draw(centre_s, 128)
        loss = losses.discriminator_loss(judge(t), judge(s))
        if regulariser == "dropped":
            loss = loss + losses.as_teacher(judge(F.dropout(s, 0.5)))
        elif regulariser == "clean":
            loss = loss + losses.as_teacher(judge(s))
        elif regulariser == "l1 sum":
            loss = loss + 0.99 * losses.weight_penalty(judge.parameters(), 1)
        elif regulariser == "l2 sum":
            loss = loss + 0.99 * losses.weight_penalty(judge.parameters(), 2)
        elif regulariser == "l2 mean":
            loss = loss + 0.99 * losses.weight_penalty(judge.parameters(), 2, "mean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    t, s = draw(centre_t, 2000), draw(centre_s, 2000).requires_grad_()
    judged = judge(F.dropout(s, 0.5))
    (pull,) = torch.autograd.grad(losses.as_teacher(judged) * len(s), s)
    says = {k: v.item() for k, v in losses.judgement_measures(judge(t), judge(s)).items()}
    return {**says, "d_adversarial": judged.sigmoid().mean().item(), "pull": pull.norm(dim=1).mean().item()}


@pytest.mark.slow
def test_which_regularisers_leave_the_student_a_gradient() -> None:
    found = {}
    for name in ("none", "dropped", "clean", "l1 sum", "l2 sum", "l2 mean"):
        torch.manual_seed(0)
        found[name] = _train(name)
        print(f"{name:8}", *(f"{key} {value:.3f}" for key, value in found[name].items()))
    # The dropout mask itself tells D what to call the teacher's: the student's loss is satisfied without learning.
    assert found["dropped"]["d_adversarial"] > 0.97
    assert found["dropped"]["pull"] < found["none"]["pull"] / 20
    assert found["clean"]["pull"] > 3 * found["dropped"]["pull"]
    # mu 0.99 on a plain sum leaves a discriminator that guesses, and no gradient at all; on a mean it does nothing.
    for name in ("l1 sum", "l2 sum"):
        assert found[name]["d_teacher"] == pytest.approx(0.5, abs=0.01)
        assert found[name]["pull"] < 1e-2
    assert found["l2 mean"]["pull"] == pytest.approx(found["none"]["pull"], rel=0.1)
