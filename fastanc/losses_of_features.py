"""Formulas of distillation by features, and by what a batch's features are to each other, in fp32 or wider.

Shapes follow the legend of `batch.py`: B batch, D feature width; every mean is over this process's batch, and what
relates images relates those of one pass of one process.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fastanc.later import F, Tensor, torch
from fastanc.losses import fp32, same_size

_LEAST = 1e-12  # square of a distance, below which its root has no slope


def direction(student: Tensor, teacher: Tensor, means: Tensor) -> Tensor:
    """1 - s . e / max(|s|, |t|) of [B, D] features, mean over the batch (KD++, Wang et al. 2023).

    `means` [B, D] are the teacher's class means of the images' classes, e their unit vectors: the student's features
    are drawn along e, at least as far as the teacher's reach.
    """
    s, t = fp32(student), fp32(teacher)
    along = (s * F.normalize(fp32(means), dim=1)).sum(1)
    return (1 - along / torch.maximum(s.norm(dim=1), t.norm(dim=1)).clamp_min(1e-6)).mean()


def contrast(
    anchors: Tensor, positives: Tensor, bank: Tensor, negative: Tensor, mean_exp: Tensor, temperature: float
) -> Tensor:
    """Noise-contrastive loss of CRD (Tian et al., ICLR 2020), mean over the batch.

    -log h(positive) - sum over the K negatives of log(1 - h), h = e^(a b / T) / (e^(a b / T) + K c).

    Args:
        anchors: [B, D], of unit length; the only ones with a gradient.
        positives: [B, D], of unit length, the other network's embeddings of the same images.
        bank: [N, D], the other network's embeddings of further images.
        negative: [B, N] bool, which rows of the bank are negatives of an anchor.
        mean_exp: c, the mean of e^(a b / T); the authors' code fixes it at the first batch.
        temperature: T.
    """
    anchors = fp32(anchors)
    odds = (negative.sum(1).clamp_min(1) * mean_exp).log()
    near = (anchors * fp32(positives).detach()).sum(1) / temperature
    far = anchors @ fp32(bank).detach().T / temperature
    pushed = F.logsigmoid(odds[:, None] - far).masked_fill(~negative, 0.0).sum(1)
    return -(F.logsigmoid(near - odds) + pushed).mean()


def queue_kl(student: Tensor, teacher: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """KL of the softmax similarities of [B, D] features to a queue [N, D], all of unit length (lightly-train's v1).

    softmax(t q / T) against softmax(s q / T), without a factor T^2, mean over the batch.
    """
    queue = fp32(queue)
    log_q, log_p = (F.log_softmax(fp32(f) @ queue.T / temperature, dim=1) for f in (student, teacher))
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def distances(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss of the distances of all pairs over their mean, of [B, D] features (RKD-D, Park et al. 2019)."""
    return F.smooth_l1_loss(_distances(fp32(student)), _distances(fp32(teacher)).detach())


def angles(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss of the angles of all B^3 triplets of [B, D] features, whose memory grows so (RKD-A, as above)."""
    return F.smooth_l1_loss(_angles(fp32(student)), _angles(fp32(teacher)).detach())


def similarity(student: Tensor, teacher: Tensor) -> Tensor:
    """||G_t - G_s||^2 / B^2, G = f f^T with rows of unit length (SP, ICCV 2019)."""
    s, t = (F.normalize(fp32(f) @ fp32(f).T, dim=1) for f in (student, teacher))
    return (t - s).square().mean()


def probabilistic(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over all pairs of p_t log(p_t / p_s), p the rows of (cosine + 1) / 2 over their sum (PKT, ECCV 2018).

    The authors' code is a mean over B^2 entries, with 1e-7 beside lengths and probabilities.
    """
    p, q = (_cosine_shares(fp32(f)) for f in (teacher, student))
    return (p * ((p + 1e-7) / (q + 1e-7)).log()).mean()


def correlation(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of kernel matrices of [B, D] features (CC, Peng et al., ICCV 2019).

    The Gaussian kernel of unit vectors to the second order of its Taylor series, gamma 0.4.
    """
    s, t = (_gaussian_kernel(fp32(f)) for f in (student, teacher))
    return F.mse_loss(s, t)


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of 1 - cos of [B, D] features (AM-RADIO, Ranzinger et al., CVPR 2024, eq. 2)."""
    return (1 - F.cosine_similarity(fp32(student), fp32(teacher))).mean()


def smooth_l1(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over images and features of x^2 / 2 below 1 and |x| - 1/2 above, x the difference (the same, eq. 3)."""
    return F.smooth_l1_loss(fp32(student), fp32(teacher))


def hierarchical(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """HCL of ReviewKD (Chen et al., CVPR 2021): errors of maps [B, C, H, W] and of their pooled forms.

    Of every pair the mean squared error at full size, and pooled to 4, 2 and 1 where that is smaller, weighted 1,
    1/2, 1/4, 1/8 over the sum of these; summed over the pairs. Of unequal sizes the larger is pooled first.
    """
    return torch.stack([_pyramid(*same_size(s, t)) for s, t in zip(student, teacher, strict=True)]).sum()


def _pyramid(student: Tensor, teacher: Tensor) -> Tensor:
    loss, weight, whole = F.mse_loss(student, teacher), 1.0, 1.0
    for size in (4, 2, 1):
        if size < student.shape[-2]:
            weight /= 2
            s, t = (F.adaptive_avg_pool2d(maps, size) for maps in (student, teacher))
            loss, whole = loss + weight * F.mse_loss(s, t), whole + weight
    return loss / whole


def _distances(features: Tensor) -> Tensor:
    """Return the distances of all pairs [B, B] over their mean, 0 on the diagonal."""
    count = len(features)
    squares = features.square().sum(1)
    found = (squares[:, None] + squares - 2 * features @ features.T).clamp_min(_LEAST).sqrt()
    found = found * (1 - torch.eye(count, dtype=found.dtype, device=found.device))
    return found / (found.sum() / max(count * (count - 1), 1)).clamp_min(_LEAST)


def _angles(features: Tensor) -> Tensor:
    """Return the cosines [B, B, B] at the first image of every triplet; 0 where two of them are one."""
    sides = F.normalize(features[None] - features[:, None], dim=2)
    return sides @ sides.transpose(1, 2)


def _cosine_shares(features: Tensor) -> Tensor:
    units = features / (features.norm(dim=1, keepdim=True) + 1e-7)
    halves = (units @ units.T + 1) / 2
    return halves / halves.sum(1, keepdim=True)


def _gaussian_kernel(features: Tensor, gamma: float = 0.4, order: int = 2) -> Tensor:
    units = F.normalize(features, dim=1)
    cosines = units @ units.T
    terms = [(2 * gamma) ** p / math.factorial(p) * cosines**p for p in range(order + 1)]
    return math.exp(-2 * gamma) * torch.stack(terms).sum(0)
