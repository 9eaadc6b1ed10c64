"""The losses that are asked for by name: by hand, and against float64 transcriptions of the papers' formulas."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from fastanc import losses, losses_of_logits
from support.tiny_game import make_game

LABELS = torch.tensor([0, 2, 1, 2])
Z = np.log(np.array([[2.0, 1.0, 1.0], [1.0, 4.0, 3.0], [1.0, 1.0, 6.0], [5.0, 2.0, 1.0]]))
"""Student: softmax at T 1 is [.5 .25 .25], [1/8 1/2 3/8], [1/8 1/8 3/4], [5/8 1/4 1/8]."""
W = np.log(np.array([[1.0, 1.0, 2.0], [2.0, 1.0, 1.0], [1.0, 2.0, 1.0], [1.0, 1.0, 2.0]]))
"""Teacher: [.25 .25 .5], [.5 .25 .25], [.25 .5 .25], [.25 .25 .5]."""


def random_pair(rows: int = 4, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, classes)) * 2, rng.normal(size=(rows, classes)) * 2


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def t(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(values))


# Transcriptions: loops over images and classes, NumPy float64, from the papers' words.


def dkd_plain(z: np.ndarray, w: np.ndarray, y: np.ndarray, temperature: float) -> tuple[float, float]:
    target = others = 0.0
    for p, q, label in zip(softmax(w / temperature), softmax(z / temperature), y):
        b_p, b_q = (np.array([v[label], 1 - v[label]]) for v in (p, q))
        target += float((b_p * np.log(b_p / b_q)).sum())
        rest_p, rest_q = np.delete(p, label), np.delete(q, label)
        rest_p, rest_q = rest_p / rest_p.sum(), rest_q / rest_q.sum()
        others += float((rest_p * np.log(rest_p / rest_q)).sum())
    return temperature**2 * target / len(y), temperature**2 * others / len(y)


def nkd_plain(z: np.ndarray, w: np.ndarray, y: np.ndarray, temperature: float) -> tuple[float, float]:
    target = np.mean([-p[k] * np.log(q[k]) for p, q, k in zip(softmax(w), softmax(z), y)])
    others = 0.0
    for own, theirs, label in zip(z, w, y):
        q, p = (softmax(np.delete(v, label)[None] / temperature)[0] for v in (own, theirs))
        others -= float((p * np.log(q)).sum())
    return float(target), temperature**2 * others / len(y)


def unrelated(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float(1 - a @ b / (np.sqrt(a @ a) * np.sqrt(b @ b) + 1e-8))  # the authors' 1e-8


def dist_plain(z: np.ndarray, w: np.ndarray, temperature: float) -> tuple[float, float]:
    q, p = softmax(z / temperature), softmax(w / temperature)
    rows = np.mean([unrelated(a, b) for a, b in zip(q, p)])
    columns = np.mean([unrelated(a, b) for a, b in zip(q.T, p.T)])
    return float(temperature**2 * rows), float(temperature**2 * columns)


def gram_plain(z: np.ndarray, w: np.ndarray, temperatures: tuple[float, ...]) -> tuple[float, float]:
    images = classes = 0.0
    for temperature in temperatures:
        q, p = softmax(z / temperature), softmax(w / temperature)
        for i in range(len(z)):
            images += sum(float(q[i] @ q[j] - p[i] @ p[j]) ** 2 for j in range(len(z))) / len(z)
        for k in range(z.shape[1]):
            classes += (
                sum(float(q[:, k] @ q[:, m] - p[:, k] @ p[:, m]) ** 2 for m in range(z.shape[1]))
                / (z.shape[1])
            )
    return images, classes


OURS: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, ...]]] = {
    "decoupled": lambda s, r: losses_of_logits.decoupled(s, r, LABELS, 4.0),
    "decoupled at T 1": lambda s, r: losses_of_logits.decoupled(s, r, LABELS, 1.0),
    "normalised": lambda s, r: losses_of_logits.normalised(s, r, LABELS, 2.0),
    "correlation": lambda s, r: losses_of_logits.correlation_losses(s, r, 4.0),
    "gram": lambda s, r: losses_of_logits.gram_losses(s, r, (1.0, 3.0)),
}
PLAIN: dict[str, Callable[[np.ndarray, np.ndarray], tuple[float, ...]]] = {
    "decoupled": lambda z, w: dkd_plain(z, w, LABELS.numpy(), 4.0),
    "decoupled at T 1": lambda z, w: dkd_plain(z, w, LABELS.numpy(), 1.0),
    "normalised": lambda z, w: nkd_plain(z, w, LABELS.numpy(), 2.0),
    "correlation": lambda z, w: dist_plain(z, w, 4.0),
    "gram": lambda z, w: gram_plain(z, w, (1.0, 3.0)),
}


@pytest.mark.parametrize("name", OURS)
def test_values_are_the_papers(name: str) -> None:
    for seed in range(3):
        z, w = random_pair(seed=seed)
        found = [value.item() for value in OURS[name](t(z), t(w))]
        assert found == pytest.approx(PLAIN[name](z, w), rel=1e-10, abs=1e-13)


@pytest.mark.parametrize("name", OURS)
def test_slopes_are_those_of_the_plain_formula(name: str) -> None:
    """Central differences of the transcription, whose error is about the square of the step."""
    z, w = random_pair(seed=5)
    student = t(z).requires_grad_()
    slope = torch.autograd.grad(torch.stack(OURS[name](student, t(w))).sum(), student)[0]
    for place in np.ndindex(*z.shape):
        step = np.zeros_like(z)
        step[place] = 1e-5
        rise = sum(PLAIN[name](z + step, w)) - sum(PLAIN[name](z - step, w))
        assert slope[place].item() == pytest.approx(rise / 2e-5, rel=1e-5, abs=1e-7)


def test_decoupled_by_hand() -> None:
    """T 1, first image, label 0: p (1/4, 3/4) against q (1/2, 1/2); others (1/3, 2/3) against (1/2, 1/2)."""
    target, others = losses_of_logits.decoupled(t(Z[:1]), t(W[:1]), LABELS[:1], 1.0)
    assert target.item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    assert others.item() == pytest.approx(math.log(2 / 3) / 3 + 2 * math.log(4 / 3) / 3)


def test_decoupled_and_the_whole_kl_are_one() -> None:
    """Eq. 5 of DKD: KL = TCKD + (1 - p_target) NCKD, image by image."""
    for z, w, label in zip(t(Z), t(W), LABELS):
        target, others = losses_of_logits.decoupled(z[None], w[None], label[None], 1.0)
        whole = losses.soft_kl(z[None], w[None])
        assert whole.item() == pytest.approx((target + (1 - w.softmax(0)[label]) * others).item())


def test_normalised_by_hand() -> None:
    """First image, label 0: -1/4 log 1/2; others at T 1 cross entropy of (1/3, 2/3) with (1/2, 1/2): log 2."""
    target, others = losses_of_logits.normalised(t(Z[:1]), t(W[:1]), LABELS[:1], 1.0)
    assert (target.item(), others.item()) == pytest.approx((math.log(2) / 4, math.log(2)))


def test_correlation_by_hand() -> None:
    """Rows less their mean: (2,-1,-1) and (-1,-1,2), -1/2; (-5,4,1) and (2,-1,-1), -15 / sqrt(42 * 6)."""
    rows, columns = losses_of_logits.correlation_losses(t(Z[:2]), t(W[:2]), 1.0)
    assert rows.item() == pytest.approx(1 - (-0.5 - 15 / math.sqrt(252)) / 2, rel=1e-5)
    # Two images: every column correlates with +1 or -1; the student's rise is -, +, +, the teacher's +, 0, -.
    assert columns.item() == pytest.approx((2 + 1 + 2) / 3, rel=1e-5)


def test_gram_by_hand() -> None:
    """One image: p p^T 3/8 in both, so 0; entries of p^T p times 16: (4,2,2; 2,1,1; 2,1,1), (1,1,2; 1,1,2; 2,2,4)."""
    images, classes = losses_of_logits.gram_losses(t(Z[:1]), t(W[:1]), (1.0,))
    assert images.item() == pytest.approx(0, abs=1e-15)
    assert classes.item() == pytest.approx((9 + 1 + 0 + 1 + 0 + 1 + 0 + 1 + 9) / 256 / 3)


def test_standardised_by_hand() -> None:
    """(1, 2, 3): mean 2, deviation with K - 1 is 1."""
    found = losses_of_logits.standardised(torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]))
    torch.testing.assert_close(found, torch.tensor([[-1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]))


def test_standardised_logits_have_no_scale_and_no_offset() -> None:
    z = t(Z)
    torch.testing.assert_close(
        losses_of_logits.standardised(z), losses_of_logits.standardised(5 * z - 3), rtol=1e-6, atol=1e-6
    )


def test_labels_loss_by_class_by_hand() -> None:
    """Logits 0: log 2 for each class, whatever the label; soft labels of one hot are the labels."""
    zeros = torch.zeros(2, 3, dtype=torch.float64)
    labels = torch.tensor([0, 2])
    assert losses_of_logits.binary_cross_entropy(zeros, labels).item() == pytest.approx(math.log(2))
    z = t(Z)
    hot = torch.eye(3, dtype=torch.float64)[LABELS]
    sigmoid = 1 / (1 + np.exp(-Z))
    right = -np.mean(np.where(hot.numpy() > 0, np.log(sigmoid), np.log(1 - sigmoid)))
    for given in (LABELS, hot):
        assert losses_of_logits.binary_cross_entropy(z, given).item() == pytest.approx(right)


def test_hard_labels_are_the_teachers() -> None:
    """arg max of W: 2, 0, 1, 2."""
    right = -np.log(softmax(Z))[np.arange(4), [2, 0, 1, 2]].mean()
    assert losses_of_logits.hard_label(t(Z), t(W)).item() == pytest.approx(right)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize(
    "rows", ["one image", "identical rows", "one class", "a sure teacher", "equal logits"]
)
def test_no_batch_spoils_a_loss(name: str, rows: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Value and slope stay finite in fp32, also where a correlation or a share is not defined."""
    z, w = random_pair(seed=2)
    count = 4
    if rows == "one image":
        z, w, count = z[:1], w[:1], 1
    if rows == "identical rows":
        z, w = np.repeat(z[:1], 4, 0), np.repeat(w[:1], 4, 0)
    if rows == "a sure teacher":
        w, z = 500.0 * np.eye(3)[[0, 2, 1, 1]], -300.0 * np.eye(3)[[0, 2, 1, 1]]
    if rows == "equal logits":
        z, w = np.zeros_like(z), np.zeros_like(w)
    labels = torch.zeros(4, dtype=torch.int64) if rows == "one class" else LABELS
    monkeypatch.setitem(globals(), "LABELS", labels[:count])
    student = t(z).float().requires_grad_()
    found = torch.stack(OURS[name](student, t(w).float()))
    slope = torch.autograd.grad(found.sum(), student)[0]
    assert found.isfinite().all()
    assert slope.isfinite().all()


def test_half_precision_enters_no_sum() -> None:
    z, w = (t(v).to(torch.bfloat16) for v in random_pair(seed=3))
    for name, ours in OURS.items():
        narrow, wide = ours(z, w), ours(z.double(), w.double())
        for one, other in zip(narrow, wide, strict=True):
            assert one.dtype == torch.float32
            assert one.item() == pytest.approx(other.item(), rel=1e-4, abs=1e-5), name


def ce_plain(z: np.ndarray, y: np.ndarray) -> float:
    return float(-np.log(softmax(z))[np.arange(len(y)), y].mean())


def kl_plain(z: np.ndarray, w: np.ndarray, temperature: float) -> float:
    p, q = softmax(w / temperature), softmax(z / temperature)
    return float(temperature**2 * (p * np.log(p / q)).sum() / len(z))


def z_scores(z: np.ndarray) -> np.ndarray:
    return (z - z.mean(1, keepdims=True)) / (z.std(1, ddof=1, keepdims=True) + 1e-7)


def dkd_terms(z: np.ndarray, w: np.ndarray, y: np.ndarray) -> dict[str, float]:
    target, others = dkd_plain(z, w, y, 4.0)
    return {"target": target, "others": 8 * others}


def nkd_terms(z: np.ndarray, w: np.ndarray, y: np.ndarray) -> dict[str, float]:
    target, others = nkd_plain(z, w, y, 1.0)
    return {"target": target, "others": 1.5 * others, "labels": ce_plain(z, y)}


def dist_terms(z: np.ndarray, w: np.ndarray, y: np.ndarray) -> dict[str, float]:
    classes, images = dist_plain(z, w, 1.0)
    return {"classes": 2 * classes, "images": 2 * images, "labels": ce_plain(z, y)}


def mlkd_terms(z: np.ndarray, w: np.ndarray, y: np.ndarray) -> dict[str, float]:
    images, classes = gram_plain(z, w, (2, 3, 4, 5, 6))
    return {"images": 0.9 * images, "classes": 0.9 * classes, "labels": 0.1 * ce_plain(z, y)}


def bce_plain(z: np.ndarray, y: np.ndarray) -> float:
    hot = np.eye(z.shape[1])[y]
    return float(-(hot * np.log(1 / (1 + np.exp(-z))) + (1 - hot) * np.log(1 / (1 + np.exp(z)))).mean())


Terms = Callable[[np.ndarray, np.ndarray, np.ndarray], dict[str, float]]
LOGIT_METHODS: list[tuple[str, dict[str, object], Terms]] = [
    ("dkd", {}, lambda z, w, y: {**dkd_terms(z, w, y), "labels": ce_plain(z, y)}),
    ("dkd", {"standardised": True, "labels_weight": 0.5}, lambda z, w, y: {
        **dkd_terms(z_scores(z), z_scores(w), y), "labels": 0.5 * ce_plain(z, y)
    }),
    ("nkd", {}, nkd_terms),
    ("dist", {}, dist_terms),
    ("mlkd", {}, lambda z, w, y: {
        **mlkd_terms(z, w, y), "instance": 0.9 * sum(kl_plain(z, w, T) for T in (2, 3, 4, 5, 6))
    }),
    ("mlkd", {"standardised": True}, lambda z, w, y: {
        **mlkd_terms(z, w, y),
        "instance": 0.9 * sum(kl_plain(z_scores(z), z_scores(w), T) for T in (2, 3, 4, 5, 6)),
    }),
    ("kd", {"standardised": True, "temperature": 2.0, "soft_factor": 10.0}, lambda z, w, y: {
        "soft": 9 * kl_plain(z_scores(z), z_scores(w), 2.0), "labels": 0.1 * ce_plain(z, y)
    }),
    ("kd", {"hard": True, "alpha": 0.5}, lambda z, w, y: {
        "soft": 0.5 * ce_plain(z, w.argmax(1)), "labels": 0.5 * ce_plain(z, y)
    }),
    ("kd", {"labels_loss": "bce", "alpha": 0.5}, lambda z, w, y: {
        "soft": 0.5 * kl_plain(z, w, 4.0), "labels": 0.5 * bce_plain(z, y)
    }),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "terms"), LOGIT_METHODS)
def test_terms_of_a_method_on_logits(name: str, options: dict[str, object], terms: Terms) -> None:
    game = make_game(name, **options)
    batch = game.batch(0)
    z = copy.deepcopy(game.start["student"])(batch.images).logits.detach().numpy()
    expected = terms(z, batch.target.logits.numpy(), batch.labels.numpy())
    found = {key: value.item() for key, value in next(game.moves(batch)).played.terms.items()}
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)
