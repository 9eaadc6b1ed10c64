"""The losses that are asked for by name: by hand, and against float64 transcriptions of the papers' formulas."""

from __future__ import annotations

import copy
import math
import os
import re
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor

from fastanc import losses, losses_of_features, losses_of_logits
from fastanc.methods.base import TeacherSpec
from fastanc.methods.dkd import Dkd
from fastanc.methods.kd import Kd
from fastanc.models.memories import ClassMeans, Contrasted, Ring
from fastanc.models.taps import changed_by
from fastanc.parsing import dump, parse
from fastanc.train import train
from fastanc.training.checkpoint import load
from fastanc.training.processes import end_processes
from fastanc.training.step import play
from support.processes import forked
from support.tiny_game import BATCH, make_game
from support.tiny_run import LENETS, as_words

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


# Features. S, R are the student's and the teacher's, three images of width 2.
S = np.array([[3.0, 4.0], [0.0, 1.0], [-1.0, 0.0]])
R = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])


def units(f: np.ndarray) -> np.ndarray:
    return f / np.sqrt((f**2).sum(1, keepdims=True))


def huber(gap: float) -> float:
    return gap**2 / 2 if abs(gap) < 1 else abs(gap) - 0.5


def far_plain(f: np.ndarray) -> np.ndarray:
    far = np.array([[np.sqrt(((a - b) ** 2).sum()) for b in f] for a in f])
    return far / far[far > 0].mean()


def angle_plain(f: np.ndarray) -> np.ndarray:
    count, found = len(f), np.zeros((len(f),) * 3)
    for i, j, k in np.ndindex(count, count, count):
        if i not in (j, k):
            a, b = f[j] - f[i], f[k] - f[i]
            found[i, j, k] = a @ b / np.sqrt((a @ a) * (b @ b))
    return found


def rkd_plain(of: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray, np.ndarray], float]:
    return lambda s, r: float(np.mean([huber(gap) for gap in (of(s) - of(r)).flatten()]))


def sp_plain(s: np.ndarray, r: np.ndarray) -> float:
    return float(((units(s @ s.T) - units(r @ r.T)) ** 2).sum() / len(s) ** 2)


def pkt_plain(s: np.ndarray, r: np.ndarray) -> float:
    q, p = (f / (np.sqrt((f**2).sum(1, keepdims=True)) + 1e-7) for f in (s, r))
    q, p = ((f @ f.T + 1) / 2 for f in (q, p))
    q, p = (m / m.sum(1, keepdims=True) for m in (q, p))
    return float((p * np.log((p + 1e-7) / (q + 1e-7))).mean())


def cc_plain(s: np.ndarray, r: np.ndarray) -> float:
    def kernel(f: np.ndarray) -> np.ndarray:
        c = units(f) @ units(f).T
        return np.exp(-0.8) * (1 + 0.8 * c + 0.8**2 / 2 * c**2)

    return float(((kernel(s) - kernel(r)) ** 2).mean())


def direction_plain(s: np.ndarray, r: np.ndarray) -> float:
    means = np.stack([r[0], -r[1], r[2] + 1])
    return float(
        np.mean([1 - a @ m / max(np.sqrt(a @ a), np.sqrt(b @ b)) for a, b, m in zip(s, r, units(means))])
    )


QUEUE = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 0.0], [-0.8, 0.6]])
NEGATIVE = np.array([[1, 1, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0]], dtype=bool)


def queue_plain(s: np.ndarray, r: np.ndarray) -> float:
    return kl_plain(s @ QUEUE.T, r @ QUEUE.T, 0.5) / 0.25


def crd_plain(s: np.ndarray, r: np.ndarray) -> float:
    total = 0.0
    for a, b, negative in zip(s, r, NEGATIVE):
        noise = 2.5 * max(negative.sum(), 1)
        near = np.exp(a @ b / 0.5)
        total -= np.log(near / (near + noise))
        total -= sum(np.log(noise / (np.exp(a @ q / 0.5) + noise)) for q in QUEUE[negative])
    return float(total / len(s))


def along_means(s: Tensor, r: Tensor) -> Tensor:
    return losses_of_features.direction(s, r, torch.stack([r[0], -r[1], r[2] + 1]))


def cosine_plain(s: np.ndarray, r: np.ndarray) -> float:
    return float(
        np.mean(
            [1 - sum(a * b for a, b in zip(x, y)) / math.hypot(*x) / math.hypot(*y) for x, y in zip(s, r)]
        )
    )


def smooth_l1_plain(s: np.ndarray, r: np.ndarray) -> float:
    gaps = [abs(float(a - b)) for a, b in zip(s.ravel(), r.ravel())]
    return sum(gap * gap / 2 if gap < 1 else gap - 0.5 for gap in gaps) / len(gaps)


def crd(s: Tensor, r: Tensor) -> Tensor:
    constant = torch.tensor(2.5, dtype=s.dtype)
    return losses_of_features.contrast(s, r, t(QUEUE).to(s.dtype), t(NEGATIVE), constant, 0.5)


PAIRS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[np.ndarray, np.ndarray], float]]] = {
    "distances": (losses_of_features.distances, rkd_plain(far_plain)),
    "angles": (losses_of_features.angles, rkd_plain(angle_plain)),
    "similarity": (losses_of_features.similarity, sp_plain),
    "probabilistic": (losses_of_features.probabilistic, pkt_plain),
    "correlation": (losses_of_features.correlation, cc_plain),
    "direction": (along_means, direction_plain),
    "cosine": (losses_of_features.cosine_distance, cosine_plain),
    "smooth_l1": (losses_of_features.smooth_l1, smooth_l1_plain),
    "queue": (lambda s, r: losses_of_features.queue_kl(s, r, t(QUEUE).to(s.dtype), 0.5), queue_plain),
    "contrast": (crd, crd_plain),
}


@pytest.mark.parametrize("name", PAIRS)
def test_values_and_slopes_of_a_loss_on_features(name: str) -> None:
    ours, plain = PAIRS[name]
    for seed in range(3):
        s, r = random_pair(3, 2, seed)
        student = t(s).requires_grad_()
        found = ours(student, t(r))
        assert found.item() == pytest.approx(plain(s, r), rel=1e-9, abs=1e-12)
        slope = torch.autograd.grad(found, student)[0]
        for place in np.ndindex(*s.shape):
            step = np.zeros_like(s)
            step[place] = 1e-5
            rise = (plain(s + step, r) - plain(s - step, r)) / 2e-5
            assert slope[place].item() == pytest.approx(rise, rel=1e-4, abs=1e-6)


def test_relations_by_hand() -> None:
    """Distances of the student: sqrt 18, sqrt 32, sqrt 2; of the teacher: sqrt 5, 1, sqrt 2."""
    s, r = np.sqrt([18, 32, 2]), np.sqrt([5, 1, 2])
    expected = 2 * sum(huber(a - b) for a, b in zip(s / s.mean(), r / r.mean())) / 9
    assert losses_of_features.distances(t(S), t(R)).item() == pytest.approx(expected)
    # Rows of f f^T: (25, 4, -3), (4, 1, 0), (-3, 0, 1) and (1, 0, 1), (0, 4, 2), (1, 2, 2).
    rows = np.array([[25, 4, -3], [4, 1, 0], [-3, 0, 1.0]]), np.array([[1, 0, 1], [0, 4, 2], [1, 2, 2.0]])
    gap = (units(rows[0]) - units(rows[1])) ** 2
    assert losses_of_features.similarity(t(S), t(R)).item() == pytest.approx(gap.mean())


def test_direction_by_hand() -> None:
    """s (3, 4), mean along x: 3 of the norm 5; t (0, 2) of norm 2 with s (0, 1) along y: 1/2."""
    found = losses_of_features.direction(t(S[:2]), t(R[:2]), torch.tensor([[7.0, 0.0], [0.0, 3.0]]).double())
    assert found.item() == pytest.approx(1 - (3 / 5 + 1 / 2) / 2)


def test_contrast_by_hand() -> None:
    """Similarity 1 at T 1, one negative at 0, c 1: -log e/(e + 1) - log 1/2; a row that is no negative is unread."""
    anchor, bank = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[0.0, 1.0], [torch.nan, 9.0]]).double()
    for rows, negative in ((bank[:1], [[True]]), (bank.nan_to_num(), [[True, False]])):
        found = losses_of_features.contrast(
            anchor, anchor, rows, torch.tensor(negative), torch.tensor(1.0).double(), 1.0
        )
        assert found.item() == pytest.approx(math.log((math.e + 1) / math.e) + math.log(2))


def test_hierarchical_by_hand() -> None:
    """A gap of 1 everywhere is 1 at every size, and pairs add up; of sum zero, all of it is at full size."""
    ones, zeros = torch.ones(2, 3, 8, 8).double(), torch.zeros(2, 3, 8, 8).double()
    small = [maps[:, :, :1, :1] for maps in (ones, zeros)]
    assert losses_of_features.hierarchical([ones, small[0]], [zeros, small[1]]).item() == pytest.approx(2)
    signs = ones.clone()
    signs[:, :, ::2] = -1
    assert losses_of_features.hierarchical([signs], [zeros]).item() == pytest.approx(
        1 / (1 + 0.5 + 0.25 + 0.125)
    )


def test_hierarchical_is_the_authors_sum() -> None:
    s, r = (torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.manual_seed(k)) for k in (0, 1))
    expected = 0.0
    for size, weight in ((4, 1.0), (2, 0.5), (1, 0.25)):
        side = 4 // size
        blocks = [f.numpy().reshape(2, 3, size, side, size, side).mean((3, 5)) for f in (s, r)]
        expected += weight * float(((blocks[0] - blocks[1]) ** 2).mean()) / 1.75
    assert losses_of_features.hierarchical([s], [r]).item() == pytest.approx(expected)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("rows", ["one image", "identical rows", "all zero", "equal"])
def test_no_batch_spoils_a_loss_on_features(name: str, rows: str) -> None:
    s, r = random_pair(3, 2, 4)
    if rows == "identical rows":
        s, r = np.repeat(s[:1], 3, 0), np.repeat(r[:1], 3, 0)
    if rows == "all zero":
        s, r = np.zeros_like(s), np.zeros_like(r)
    if rows == "equal":
        r = s
    if rows == "one image" and name not in ("direction", "contrast"):
        s, r = s[:1], r[:1]
    student = t(s).float().requires_grad_()
    found = PAIRS[name][0](student, t(r).float())
    assert found.isfinite()
    assert torch.autograd.grad(found, student)[0].isfinite().all()


def test_a_ring_holds_the_last_rows() -> None:
    ring, everything = Ring(5, 2), torch.arange(24.0).view(12, 2)
    for start, count in ((0, 3), (3, 4), (7, 2), (9, 3)):
        ring.push(everything[start : start + count])
        last = everything[: start + count][-5:]
        assert sorted(ring.rows[:, 0].tolist()) == sorted([*last[:, 0].tolist(), *[0.0] * (5 - len(last))])
    ring.push(everything)
    assert ring.rows[:, 0].sum() == everything[:5, 0].sum()


def test_class_means_are_the_means_of_all_that_came() -> None:
    means, rng = ClassMeans(4, 3).double(), np.random.default_rng(0)
    features, labels = rng.normal(size=(30, 3)), rng.integers(0, 3, 30)
    for start in range(0, 30, 6):
        means.push(t(features[start : start + 6]), t(labels[start : start + 6]))
    for k in range(3):
        np.testing.assert_allclose(means.means[k], features[labels == k].mean(0), rtol=1e-12)
    assert (means.means[3] == 0).all()  # a class that never came


def test_the_bank_gives_negatives_of_other_classes_alone() -> None:
    bank = Contrasted(3, 2, 4)
    labels = torch.tensor([2, 0])
    assert not bank.negatives(labels).any()  # nothing is known yet
    unit = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    bank.push(unit, unit, labels, 1.0)
    assert bank.negatives(torch.tensor([2, 0, 1])).tolist() == [
        [False, True, False, False],
        [True, False, False, False],
        [True, True, False, False],
    ]
    first = bank.scales.values.clone()
    assert first.tolist() == pytest.approx([(math.e + 1) / 2] * 2)  # similarities 1, 0, 0, 1
    bank.push(-unit, unit, labels, 1.0)
    assert torch.equal(bank.scales.values, first)


def test_srrl_puts_features_through_the_teachers_head() -> None:
    game = make_game("srrl", connector="linear", feature_weight=2.0, head_weight=3.0)
    batch = game.batch(0)
    player = copy.deepcopy(game.start["student"])
    out = player.student(batch.images)
    (linear,) = player.connector
    connected = out.features @ linear.weight.T + linear.bias
    through = connected @ game.teacher.head.weight.T + game.teacher.head.bias
    expected = {
        "features": 2 * ((connected - batch.target.features) ** 2).mean().item(),
        "head": 3 * ((through - batch.target.logits) ** 2).mean().item(),
        "labels": ce_plain(out.logits.detach().numpy(), batch.labels.numpy()),
    }
    # The head's copy is fp32 where the tiny game is float64.
    found = next(game.moves(batch)).played.terms
    assert {k: v.item() for k, v in found.items()} == pytest.approx(expected, rel=1e-5)


def test_review_fuses_from_deep_to_shallow() -> None:
    """Every level against its own transcription; nearest growth doubles, or quadruples from one pixel."""
    game = make_game("reviewkd", weight=2.0)
    batch = game.batch(0)
    player = copy.deepcopy(game.start["student"])
    out = player.student(batch.images)
    maps, deeper, made = [*out.stages, out.features[:, :, None, None]], None, list[Tensor]()
    for own, fusion in zip(maps[::-1], list(player.fusions)[::-1], strict=True):
        x = fusion.enter(own)
        if deeper is not None:
            times = x.shape[-1] // deeper.shape[-1]
            y = deeper.repeat_interleave(times, 2).repeat_interleave(times, 3)
            a, b = fusion.attend(torch.cat([x, y], 1)).split(1, 1)
            x = x * a + y * b
        made.append(fusion.leave(x))
        deeper = x
    theirs = [*batch.target.stages, batch.target.features[:, :, None, None]]
    review = losses_of_features.hierarchical(made[::-1], theirs)
    found = next(game.moves(batch)).played.terms["review"]
    assert found.item() == pytest.approx(2 * review.item(), rel=1e-12)


def test_the_queue_trains_no_head() -> None:
    game = make_game("queue", size=4)
    before = game.student.bare.fc.weight.detach().clone()
    game.step(0)
    assert game.student.bare.fc.weight.detach() == pytest.approx(before, rel=1e-4)  # but for weight decay
    rows = game.players["student"].module.memory.rows
    teacher = game.batch(0).target.features.numpy()
    np.testing.assert_allclose(rows, units(teacher)[:4], rtol=1e-6)


@pytest.mark.parametrize("name", ["queue", "kdpp", "crd"])
def test_in_parts_every_image_is_remembered_once(name: str) -> None:
    for parts in (1, 2):
        game = make_game(name)
        play(game.method, game.players, game.batch(0), parts)
        state = game.weights()
        places = [value.item() for key, value in state.items() if key.endswith("place")]
        counts = [value.sum().item() for key, value in state.items() if key.endswith("counts")]
        assert set(places + counts) == {BATCH}


def run(folder: Path, name: str, steps: str, **options: str) -> dict[str, Any]:
    """Train some steps of sixteen digits and return what the last checkpoint holds."""
    fields = {**LENETS, "data.batch": "16", "optimizer.lr": "0.01", "run.checkpoint_every": "3"}
    fields |= {"run.out": str(folder), "run.name": name, "run.max_steps": steps, "teacher.rows": "fp32"}
    fields |= {"teacher.cache_dir": str(folder / "cache")}
    path = train(parse(as_words({**fields, **options})))
    (state,) = (path / "checkpoints").glob(f"step-*{steps}")
    return load(state)[0]


def modules(state: dict[str, Any]) -> dict[str, Tensor]:
    return {f"{name}.{key}": v for name, one in state["players"].items() for key, v in one["module"].items()}


@pytest.mark.parametrize(
    ("name", "options"),
    [("queue", {"method.size": "24"}), ("kdpp", {}), ("crd", {"method.negatives": "24"})],
)
def test_stopped_and_resumed_equals_uninterrupted(name: str, options: dict[str, str], tmp_path: Path) -> None:
    """Memories included, and whether the teacher's rows come from the network or from the cache."""

    options = {**options, "method.type": name}
    whole = modules(run(tmp_path, "whole", "6", **options))
    run(tmp_path, "cut", "3", **options, **{"teacher.cache": "fill"})
    resumed = modules(
        run(tmp_path, "cut", "6", **options, **{"run.resume": "latest", "teacher.cache": "fill"})
    )
    assert whole.keys() == resumed.keys()
    assert any("rows" in key or "means" in key for key in whole)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def as_process(rank: int, port: int, work: Callable[[], object]) -> int:
    """Do some work in a child that is one of two processes of a run."""

    def child() -> None:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="true")
        AcceleratorState._reset_state(reset_partial_state=True)
        torch.set_num_threads(1)
        work()
        end_processes()

    return forked(child)


def test_each_of_two_processes_gets_its_own_memory_back(tmp_path: Path) -> None:
    # In a sum: an adapter that DDP's own pass does not reach learns all the same.
    parts = "[{type: queue, size: 12}, {type: kd, alpha: 1}]"
    options = {"method.type": "sum", "method.parts": parts}

    def work() -> None:
        run(tmp_path, "whole", "6", **options)
        run(tmp_path, "cut", "3", **options)
        run(tmp_path, "cut", "6", **options, **{"run.resume": "latest"})

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [as_process(rank, port, work) for rank in (0, 1)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    whole, resumed = (load(tmp_path / name / "checkpoints" / "step-00000006")[0] for name in ("whole", "cut"))
    rows, places = whole["memories"]
    assert rows.shape[:2] == (2, 12)
    assert not torch.equal(rows[0], rows[1])  # of the images that each has seen
    assert places.tolist() == [6 * 8 % 12] * 2
    for one, other in zip(whole["memories"], resumed["memories"], strict=True):
        assert torch.equal(one, other)
    assert all(torch.equal(value, modules(resumed)[key]) for key, value in modules(whole).items())
    first = load(tmp_path / "whole" / "checkpoints" / "step-00000003")[0]
    (adapter,) = (key for key in modules(whole) if key.endswith("adapter.weight"))
    assert not torch.equal(modules(first)[adapter], modules(whole)[adapter])


@pytest.mark.parametrize(("relation", "weight"), [("sp", 3000), ("pkt", 30000), ("cc", 1), ("sp", 7)])
def test_a_relation_has_its_own_weight(relation: str, weight: int) -> None:
    game = make_game("relations", relation=relation, weight=7 if weight == 7 else None, alpha=1.0)
    batch = game.batch(0)
    features = copy.deepcopy(game.start["student"])(batch.images).features.detach().numpy()
    plain = {"sp": sp_plain, "pkt": pkt_plain, "cc": cc_plain}[relation](
        features, batch.target.features.numpy()
    )
    found = next(game.moves(batch)).played.terms[relation].item()
    assert found == pytest.approx(weight * plain, rel=1e-9)


def test_a_sum_is_its_parts() -> None:
    """On the first step every player of every part has the terms that it has alone, and names do not collide."""
    parts = [
        {"type": "anc", "dropout": 0.0},
        {"type": "dkd", "warmup_steps": 4},
        {"type": "crd"},
        {"type": "dkd"},
    ]
    game = make_game("sum", parts=parts, weights=(1, 0.5, 2, 1))
    assert game.method.needs == {"logits", "features", "labels", "soft_labels"}
    assert list(game.players) == ["student", "anc_discriminator", "crd_embedding"]
    assert [play.player for play in game.method.plays] == ["anc_discriminator", "crd_embedding", "student"]
    assert [watch.column for watch in game.method.watches] == ["anc_won", "anc_d_adversarial"]
    batch = game.batch(1)
    out = copy.deepcopy(game.start["student"]).student(batch.images)
    features = [changed_by(player, out).features for player in copy.deepcopy(game.start["student"].players)]
    assert [f.shape[1] for f in features] == [9, 4, 128, 4]
    moves = {move.player: move.played for move in game.moves(batch)}
    discriminator = copy.deepcopy(game.start["anc_discriminator"])
    told = losses.discriminator_loss(discriminator(batch.target.features), discriminator(features[0]))
    assert moves["anc_discriminator"].terms["anc_discriminate"].item() == pytest.approx(told.item())
    terms = {key: value.item() for key, value in moves["student"].terms.items()}
    z, w, y = out.logits.detach().numpy(), batch.target.logits.numpy(), batch.labels.numpy()
    for name, weight, ramp in (("dkd", 0.5, 0.25), ("dkd2", 1.0, 1.0)):
        for key, value in dkd_terms(z, w, y).items():
            assert terms[f"{name}_{key}"] == pytest.approx(weight * ramp * value)
        assert terms[f"{name}_labels"] == pytest.approx(weight * ce_plain(z, y))
    assert terms["anc_data"] == pytest.approx(((z - w) ** 2).sum(1).mean())
    before = game.start["student"].players[0].adapter.weight
    assert not torch.equal(game.players["student"].module.players[0].adapter.weight, before)


@pytest.mark.parametrize(
    "words",
    [
        ["--method.parts", "[{type: dkd, beta: 2}, kd]", "--method.weights", "1,0.5"],
        ["--method.parts=[dkd, kd]"],
        ["--method.parts", "dkd,kd"],
    ],
)
def test_parts_are_read_from_a_command_line_and_written_down(words: list[str], tmp_path: Path) -> None:
    config = parse(["--method.type", "sum", *words])
    first, second = config.method.parts
    assert (type(first), type(second)) == (Dkd, Kd)
    assert first.beta == (2 if "beta" in " ".join(words) else 8)
    file = tmp_path / "config.yaml"
    file.write_text(dump(config))
    assert parse(["--config_path", str(file)]) == config


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{parts: []}", "method.parts is empty"),
        ("{parts: [dkdd]}", "method.parts.type 'dkdd' is unknown: did you mean dkd?"),
        ("{parts: [{type: dkd, gama: 1}]}", "there is no field method.parts.gama"),
        ("{parts: [dkd, kd], weights: [1]}", "method.weights are 1 and method.parts 2"),
        ("{parts: [datafree]}", "datafree cannot be a part"),
        ("{parts: [sum, kd]}", "sum cannot be a part"),
        ("{parts: [3]}", "method.parts.type '3' is unknown"),
        ("{parts: [[kd]]}", "method.parts is"),
    ],
)
def test_wrong_parts_are_one_sentence(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "sum.yaml"
    file.write_text("method: " + text.replace("{", "{type: sum, ", 1))
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        parse(["--config_path", str(file)])
    assert "\n" not in str(caught.value)


def test_two_classes_have_no_relation_between_them() -> None:
    """Why `dist` without labels and standardised logits are refused there: rows of two give no gradient at all."""
    z, w = (t(values).requires_grad_() for values in random_pair(rows=16, classes=2))
    classes, images = losses_of_logits.correlation_losses(z, w.detach(), 1.0)
    (slope,) = torch.autograd.grad(classes, z, retain_graph=True)
    (other,) = torch.autograd.grad(images, z)
    assert slope.abs().max() < 1e-5 * other.abs().max()
    first = losses_of_logits.standardised(z)
    assert torch.allclose(first.abs(), torch.full_like(first, 2**-0.5), atol=1e-5)  # the deviation with K - 1


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dist", {"labels_weight": 0.0}),
        ("kd", {"standardised": True}),
        ("mlkd", {"standardised": True}),
        ("dkd", {"standardised": True}),
    ],
)
def test_what_learns_nothing_of_two_classes_says_so(name: str, options: dict[str, Any]) -> None:
    game = make_game(name, **options)
    student = game.players["student"]
    assert game.method.networks(student, TeacherSpec(3))
    with pytest.raises(ValueError, match=r"a teacher of two classes is: set .* (to|above) "):
        game.method.networks(student, TeacherSpec(2))
    plain = replace(game.method, **({"labels_weight": 1.0} if name == "dist" else {"standardised": False}))
    assert plain.networks(student, TeacherSpec(2))
