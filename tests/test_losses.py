"""Every formula: values by hand, gradients in float64, and the known optimum of the discriminator's game."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastanc import losses

LABELS = torch.tensor([0, 2, 1, 2])


def _maps(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def _fixed(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9))


LOGITS, JUDGED, MAPS = (4, 3), (4, 1), (2, 3, 4, 4)
CASES: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...]]] = {
    "squared_error_sum": (losses.squared_error, (LOGITS, LOGITS)),
    "squared_error_mean": (lambda s, t: losses.squared_error(s, t, "mean"), (LOGITS, LOGITS)),
    "absolute_error_sum": (losses.absolute_error, (LOGITS, LOGITS)),
    "absolute_error_mean": (lambda s, t: losses.absolute_error(s, t, "mean"), (LOGITS, LOGITS)),
    "soft_kl": (lambda s, t: losses.soft_kl(s, t, 3.0), (LOGITS, LOGITS)),
    "cross_entropy": (lambda s: losses.cross_entropy(s, LABELS), (LOGITS,)),
    "kd_terms": (
        lambda s: torch.stack(list(losses.kd_terms(s, _fixed(*LOGITS), LABELS, 0.7, 2.0).values())),
        (LOGITS,),
    ),
    "as_teacher": (losses.as_teacher, (JUDGED,)),
    "as_student": (losses.as_student, (JUDGED,)),
    "discriminator_loss": (losses.discriminator_loss, (JUDGED, JUDGED)),
    "fooling_loss": (losses.fooling_loss, (JUDGED,)),
    "fooling_loss_saturating": (lambda s: losses.fooling_loss(s, True), (JUDGED,)),
    "weight_penalty_1": (lambda a, b: losses.weight_penalty([a, b], 1), ((3, 2), (4,))),
    "weight_penalty_2": (lambda a, b: losses.weight_penalty([a, b], 2, "mean"), ((3, 2), (4,))),
    "can_source_loss": (losses.can_source_loss, ((4, 2), (4, 2))),
    "can_class_loss": (lambda t, s: losses.can_class_loss(t, s, LABELS), (LOGITS, LOGITS)),
    "can_fooling_loss": (losses.can_fooling_loss, ((4, 2),)),
    "can_fooling_loss_non_saturating": (lambda s: losses.can_fooling_loss(s, False), ((4, 2),)),
    "hint": (losses.hint, (MAPS, (2, 3, 8, 8))),
    "attention_transfer": (losses.attention_transfer, (MAPS, (2, 5, 8, 8))),
    "flow": (losses.flow, (MAPS, (2, 2, 2, 2))),
    "fsp": (lambda a, b, c, d: losses.fsp((a, b), (c, d)), (MAPS, (2, 2, 2, 2), MAPS, (2, 2, 2, 2))),
    "one_hotness": (losses.one_hotness, (LOGITS,)),
    "activation": (losses.activation, ((4, 6),)),
    "information": (losses.information, (LOGITS,)),
    "disagreement": (losses.disagreement, (LOGITS, LOGITS)),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_in_float64(name: str) -> None:
    function, shapes = CASES[name]
    inputs = [_maps(*shape).requires_grad_() for shape in shapes]
    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("name", CASES)
def test_half_precision_is_summed_in_fp32(name: str) -> None:
    function, shapes = CASES[name]
    inputs = [_maps(*shape).half() for shape in shapes]
    result = function(*inputs)
    expected = function(*(value.float() for value in inputs))
    if name != "kd_terms":  # whose fixed teacher is float64
        assert result.dtype == torch.float32
    torch.testing.assert_close(result, expected)


def test_squared_error_sums_classes_and_averages_images() -> None:
    student, teacher = (
        torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]),
        torch.tensor([[0.0, 0.0, 1.0], [1.0, 1.0, 1.0]]),
    )
    assert losses.squared_error(student, teacher).item() == pytest.approx((1 + 4 + 4 + 3) / 2)
    assert losses.squared_error(student, teacher, "mean").item() == pytest.approx(12 / 6)
    assert losses.absolute_error(student, teacher).item() == pytest.approx((1 + 2 + 2 + 3) / 2)
    assert losses.absolute_error(student, teacher, "mean").item() == pytest.approx(8 / 6)


def test_a_sum_beyond_the_range_of_fp16_is_finite() -> None:
    far = torch.full((1, 1000), 100.0, dtype=torch.float16)
    assert losses.squared_error(far, -far).item() == pytest.approx(1000 * 200**2)


def test_soft_kl_by_hand() -> None:
    # At T = 2 the teacher says (3/4, 1/4) and the student (1/2, 1/2).
    # In float64: the two terms of the sum nearly cancel.
    teacher = torch.tensor([[2 * math.log(3), 0.0]], dtype=torch.float64)
    student = torch.zeros(1, 2, dtype=torch.float64)
    expected = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert losses.soft_kl(student, teacher, 2.0).item() == pytest.approx(expected, rel=1e-12)


def test_kd_leaves_out_what_has_no_weight() -> None:
    logits = torch.randn(4, 3)
    assert set(losses.kd_terms(logits, logits, None, 1.0, 2.0)) == {"soft"}
    assert set(losses.kd_terms(logits, logits, LABELS, 0.0, 2.0)) == {"labels"}


def test_game_terms_are_binary_cross_entropies() -> None:
    judged_t, judged_s = _maps(7, 1), _maps(7, 1)
    one, zero = torch.ones_like(judged_t), torch.zeros_like(judged_t)
    bce = F.binary_cross_entropy
    expected = bce(judged_t.sigmoid(), one) + bce(judged_s.sigmoid(), zero)
    torch.testing.assert_close(losses.discriminator_loss(judged_t, judged_s), expected)
    torch.testing.assert_close(losses.fooling_loss(judged_s), bce(judged_s.sigmoid(), one))
    torch.testing.assert_close(losses.fooling_loss(judged_s, True), (1 - judged_s.sigmoid()).log().mean())
    assert losses.as_teacher(torch.tensor([[-200.0]])).item() == pytest.approx(200.0)  # no log(0)


def test_saturating_and_not_pull_the_same_way_with_different_strength() -> None:
    judged = torch.tensor([[-4.0]], requires_grad=True)  # D is sure that this is the student
    pulls = [
        torch.autograd.grad(losses.fooling_loss(judged, kind), judged)[0].item() for kind in (False, True)
    ]
    d = 1 / (1 + math.exp(4.0))
    assert pulls == pytest.approx([-(1 - d), -d], rel=1e-5)


def test_weight_penalty_by_hand() -> None:
    parameters = [nn.Parameter(torch.tensor([[1.0, -2.0]])), nn.Parameter(torch.tensor([3.0]))]
    assert losses.weight_penalty(parameters, 1).item() == 6
    assert losses.weight_penalty(parameters, 2).item() == 14
    assert losses.weight_penalty(parameters, 1, "mean").item() == 2
    # Minimised, it shrinks the weights: the sign that a re-implementation of the paper got wrong.
    losses.weight_penalty(parameters, 2).backward()
    assert torch.equal(parameters[0].grad.sign(), parameters[0].sign())


def test_measures_count_right_decisions() -> None:
    measures = losses.judgement_measures(torch.tensor([[2.0], [-1.0]]), torch.tensor([[-3.0], [-4.0]]))
    assert measures["won"].item() == pytest.approx(0.75)
    assert measures["d_teacher"].item() == pytest.approx(
        (1 / (1 + math.exp(-2)) + 1 / (1 + math.e)) / 2, rel=1e-5
    )


def test_can_terms_are_log_probabilities() -> None:
    source_t, source_s = _maps(4, 2), _maps(4, 2)
    p_t, p_s = source_t.softmax(1), source_s.softmax(1)
    torch.testing.assert_close(
        losses.can_source_loss(source_t, source_s), -(p_t[:, 0].log() + p_s[:, 1].log()).mean()
    )
    torch.testing.assert_close(losses.can_fooling_loss(source_s), p_s[:, 1].log().mean())
    torch.testing.assert_close(losses.can_fooling_loss(source_s, False), -p_s[:, 0].log().mean())
    class_t, class_s = _maps(4, 3), _maps(4, 3)
    picked = [logits.softmax(1)[torch.arange(4), LABELS].log() for logits in (class_t, class_s)]
    torch.testing.assert_close(
        losses.can_class_loss(class_t, class_s, LABELS), -(picked[0] + picked[1]).mean()
    )


def test_attention_ignores_channels_and_scale() -> None:
    maps = torch.rand(2, 3, 4, 4)
    wide = 5 * maps.repeat(1, 4, 1, 1)
    assert losses.attention_transfer(maps, wide).item() == pytest.approx(0, abs=1e-12)
    # Two positions: the student looks at the left one, the teacher at the right one.
    left, right = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 2.0]]]])
    assert losses.attention_transfer(left, right).item() == pytest.approx(1.0)


def test_hint_pools_the_larger_map() -> None:
    small = torch.tensor([[[[4.0]]]])
    large = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    assert losses.hint(small, large).item() == pytest.approx(1.5**2)
    assert losses.hint(large, small).item() == pytest.approx(1.5**2)


def test_fsp_matrix_is_a_loop_over_channels() -> None:
    shallow, deep = _maps(2, 3, 4, 4), _maps(2, 5, 4, 4)
    matrix = losses.flow(shallow, deep)
    for b in range(2):
        for i in range(3):
            for j in range(5):
                assert matrix[b, i, j].item() == pytest.approx(
                    (shallow[b, i] * deep[b, j]).sum().item() / 16, rel=1e-12, abs=1e-14
                )


def test_dafl_terms_have_their_least_values_where_the_paper_wants_them() -> None:
    sure = 50 * torch.eye(4)  # one-hot outputs, all classes equally often
    assert losses.one_hotness(sure).item() == pytest.approx(0, abs=1e-6)
    assert losses.information(sure).item() == pytest.approx(-math.log10(4), rel=1e-5)
    assert losses.information(50 * torch.eye(4)[:1].repeat(4, 1)).item() == pytest.approx(0, abs=1e-6)
    assert losses.one_hotness(torch.zeros(2, 4)).item() == pytest.approx(math.log(4), rel=1e-5)
    assert losses.activation(torch.tensor([[1.0, -3.0]])).item() == -2
    assert losses.disagreement(torch.zeros(2, 3), torch.full((2, 3), 0.5)).item() == -0.5


@pytest.mark.parametrize("regularised", [False, True])
def test_discriminator_reaches_the_optimum_of_its_game(regularised: bool) -> None:
    """D* = p_t / (p_t + p_s), and (p_t + p_s) / (p_t + 2 p_s) with adversarial samples (docs/methods.md)."""
    counts_t, counts_s = torch.tensor([40, 20, 10, 20, 10, 0]), torch.tensor([0, 10, 10, 20, 40, 20])
    points = torch.eye(6)
    teacher, student = points.repeat_interleave(counts_t, 0), points.repeat_interleave(counts_s, 0)
    judge = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(judge.parameters(), lr=0.02)
    for step in range(800):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1 - step / 800)
        loss = losses.discriminator_loss(judge(teacher), judge(student))
        if regularised:
            loss = loss + losses.as_teacher(judge(student))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    p_t, p_s = counts_t / counts_t.sum(), counts_s / counts_s.sum()
    best = (p_t + p_s) / (p_t + 2 * p_s) if regularised else p_t / (p_t + p_s)
    found = judge(points).sigmoid().flatten().detach()
    # 1 where only the teacher is, 1/2 where only the student is, 2/3 where they match.
    torch.testing.assert_close(found, best, rtol=0, atol=0.02)
