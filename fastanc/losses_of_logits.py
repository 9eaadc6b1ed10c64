"""Formulas of distillation by logits beyond KL and squared error, accumulated in fp32 or wider.

Shapes follow the legend of `batch.py`: B batch, K classes; every mean is over this process's batch.
"""

from __future__ import annotations

from collections.abc import Sequence

from fastanc.later import F, Tensor, torch
from fastanc.losses import fp32

_FAR = 1000.0  # below any logit: its softmax is 0 in every precision, and no difference of two is nan


def check_more_than_two(num_classes: int, what: str, instead: str) -> None:
    """Raise ValueError for a loss that says nothing of two classes: their shares are one number, p and 1 - p.

    A row of two has the correlation 1 or -1 with any other, and standardised it is the same pair, whatever p is: what
    is left has no gradient, or (correlations over the images) leaves open where the border lies.
    """
    if num_classes == 2:
        raise ValueError(f"{what} learns nothing of how sure a teacher of two classes is: {instead}")


def standardised(logits: Tensor) -> Tensor:
    """(z - mean) / (deviation + 1e-7) of every row of [B, K] logits, the deviation with K - 1 (Sun et al. 2024).

    In the authors' code (logit-standardization-KD) it stands before the softmax of T, for teacher and student alike.
    """
    logits = fp32(logits)
    centred = logits - logits.mean(1, keepdim=True)
    return centred / (logits.std(1, keepdim=True) + 1e-7)


def hard_label(student: Tensor, teacher: Tensor) -> Tensor:
    """Cross entropy of [B, K] logits with the teacher's arg max, mean over the batch (DeiT, Touvron et al.)."""
    return F.cross_entropy(fp32(student), teacher.argmax(1))


def binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over batch and classes of each class's own cross entropy (ResNet strikes back, Wightman et al. 2021).

    Args:
        logits: [B, K].
        labels: [B] int64, or [B, K] probabilities.
    """
    logits = fp32(logits)
    if not labels.is_floating_point():
        labels = F.one_hot(labels, logits.shape[1])
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))


def decoupled(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """TCKD and NCKD of Decoupled KD (Zhao et al., CVPR 2022, eq. 7), each times T^2, mean over the batch.

    Args:
        student: [B, K] logits, K 2 or more; `teacher` likewise.
        labels: [B] int64, the target classes.
        temperature: of both softmaxes.

    Returns:
        KL of (target, all others), and KL over the others alone.
    """
    target = _is_target(student, labels)
    s, t = fp32(student) / temperature, fp32(teacher) / temperature
    pairs = torch.stack([_split(s, target), _split(t, target)])  # [2, B, 2] log probabilities
    apart_s, apart_t = (F.log_softmax(z - _FAR * target, dim=1) for z in (s, t))
    return _kl(pairs[0], pairs[1]) * temperature**2, _kl(apart_s, apart_t) * temperature**2


def normalised(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The two parts of NKD (Yang et al., ICCV 2023): on the target class, and on the others, renormalised.

    The first, -p_t log p_s, is without a temperature; the second, a cross entropy at T, is times T^2 (cls_KD's code).
    Both are means over the batch of [B, K] logits; `labels` are [B] int64.
    """
    target = _is_target(student, labels)
    student, teacher = fp32(student), fp32(teacher)
    p_t = F.softmax(teacher, dim=1).gather(1, labels[:, None])
    log_p_s = F.log_softmax(student, dim=1).gather(1, labels[:, None])
    s, t = (z / temperature - _FAR * target for z in (student, teacher))
    # The target's own entry, 0 times a large number, is left out.
    others = (F.softmax(t, dim=1) * F.log_softmax(s, dim=1)).masked_fill(target, 0.0)
    return -(p_t * log_p_s).mean(), -others.sum(1).mean() * temperature**2


def correlation_losses(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """1 - Pearson's correlation of the softened classes of [B, K] logits, times T^2 (DIST, Huang et al. 2022).

    Returns:
        Within the rows (relations of classes), mean over the batch, and within the columns (relations of the batch's
        images), mean over the classes. The T^2 is that of the authors' code. What does not vary has correlation 0.
    """
    s, t = (F.softmax(fp32(z) / temperature, dim=1) for z in (student, teacher))
    return _uncorrelated(s, t) * temperature**2, _uncorrelated(s.T, t.T) * temperature**2


def gram_losses(student: Tensor, teacher: Tensor, temperatures: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Squared distances of the Gram matrices of softened classes, summed over T (MLKD, Jin et al., CVPR 2023).

    Returns:
        For p = softmax(z / T), z [B, K]: ||p_s p_s^T - p_t p_t^T||^2 / B and ||p_s^T p_s - p_t^T p_t||^2 / K.
    """
    of_batch, of_classes = [], []
    for temperature in temperatures:
        s, t = (F.softmax(fp32(z) / temperature, dim=1) for z in (student, teacher))
        of_batch.append((s @ s.T - t @ t.T).square().sum() / len(s))
        of_classes.append((s.T @ s - t.T @ t).square().sum() / s.shape[1])
    return torch.stack(of_batch).sum(), torch.stack(of_classes).sum()


def _is_target(logits: Tensor, labels: Tensor) -> Tensor:
    return F.one_hot(labels, logits.shape[1]).bool()


def _split(softened: Tensor, target: Tensor) -> Tensor:
    """Return log p of the target class and of all others together, [B, 2]."""
    of_all = softened.logsumexp(1)
    inside = (softened * target).sum(1) - of_all
    outside = (softened - _FAR * target).logsumexp(1) - of_all
    return torch.stack([inside, outside], dim=1)


def _kl(log_q: Tensor, log_p: Tensor) -> Tensor:
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def _uncorrelated(student: Tensor, teacher: Tensor) -> Tensor:
    s, t = (rows - rows.mean(1, keepdim=True) for rows in (student, teacher))
    return 1 - ((s * t).sum(1) / (s.norm(dim=1) * t.norm(dim=1) + 1e-8)).mean()
