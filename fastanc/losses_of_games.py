"""The losses of adversarial games beside the paper's cross entropy, what holds a discriminator back, and a distance.

`judged` are a discriminator's outputs [B, n] before any sigmoid, one column for each of n discriminators; the mean
is over all of them. What is trained minimises.
"""

from __future__ import annotations

from typing import Any

from fastanc.later import Tensor, torch
from fastanc.losses import as_student, as_teacher, fooling_loss, fp32

PROJECTIONS = 128
_PROJECTION_SEED = 20_180_314


def on_teacher(kind: str, judged: Tensor, smoothing: float = 0.0) -> Tensor:
    """What the discriminator pays on samples that it is to call the teacher's.

    Args:
        kind: bce (Goodfellow et al. 2014), hinge (Lim & Ye 2017, Miyato et al. 2018) or least_squares (Mao et al.
            2017, a = 0, b = c = 1, with the half).
        judged: [B, n].
        smoothing: the target is 1 - smoothing (one-sided, Salimans et al. 2016); hinge has no target.
    """
    if kind == "hinge":
        return (1 - fp32(judged)).relu().mean()
    if kind == "least_squares":
        return 0.5 * (fp32(judged) - (1 - smoothing)).square().mean()
    if smoothing == 0:
        return as_teacher(judged)
    return (1 - smoothing) * as_teacher(judged) + smoothing * as_student(judged)


def on_student(kind: str, judged: Tensor) -> Tensor:
    """What the discriminator pays on the student's samples."""
    if kind == "hinge":
        return (1 + fp32(judged)).relu().mean()
    if kind == "least_squares":
        return 0.5 * fp32(judged).square().mean()
    return as_student(judged)


def to_fool(kind: str, judged: Tensor, saturating: bool = False) -> Tensor:
    """What the student pays for being told apart: -log D, -D of the hinge game, (D - 1)^2 / 2."""
    if kind == "hinge":
        return -fp32(judged).mean()
    if kind == "least_squares":
        return 0.5 * (fp32(judged) - 1).square().mean()
    return fooling_loss(judged, saturating)


def as_odds(kind: str, judged: Tensor) -> Tensor:
    """Return outputs whose sign is the decision: least squares decides at 1/2, the others at 0."""
    return judged - 0.5 if kind == "least_squares" else judged


def slope_penalty(judged: Tensor, samples: Tensor) -> Tensor:
    """Half the squared norm of D's gradient at its samples, mean over samples and discriminators.

    At the teacher's samples it is R1 (Mescheder, Geiger, Nowozin 2018, eq. 9, gamma 1); at points between the two
    sides the zero-centred penalty of Thanh-Tung, Tran, Venkatesh 2019.

    Args:
        judged: [B, n], of `samples` alone: no sample's output may depend on another one.
        samples: [B, W] that require a gradient.
    """
    squares = [
        torch.autograd.grad(fp32(one).sum(), samples, create_graph=True)[0].square().sum(1).mean()
        for one in judged.unbind(1)
    ]
    return 0.5 * torch.stack(squares).mean()


def sliced_wasserstein(student: Tensor, teacher: Tensor, projections: int = PROJECTIONS) -> Tensor:
    """Mean over random directions of the 1-Wasserstein distance of two clouds projected on it, in float64.

    The directions are the same in every call for one width. Source: Rabin et al. 2011; Bonneel et al. 2015.

    Args:
        student: [N, W].
        teacher: [N, W], as many.
        projections: number of directions.
    """
    generator = torch.Generator().manual_seed(_PROJECTION_SEED)
    directions = torch.randn(student.shape[1], projections, generator=generator, dtype=torch.float64)
    directions = (directions / directions.norm(dim=0)).to(student.device)
    s, t = ((side.double() @ directions).sort(0).values for side in (student, teacher))
    return (s - t).abs().mean()


def relative_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """`sliced_wasserstein` of two clouds [N, W] in deviations of the teacher's projections; 0 where they are one."""
    mean, centred = teacher.double().mean(0), teacher.double()
    # Of a direction on the sphere the expected variance is the mean one of all entries.
    spread = (centred - mean).square().mean().sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    return sliced_wasserstein(student, teacher) / spread


def refuse_idle_knobs(method: Any) -> None:
    """Raise ValueError for knobs of a game (`methods/anc.py`) of which one makes another do nothing."""
    clashes = {
        "method.game_weight does nothing beside method.game_share, which sets the weight: leave one out": (
            method.game_share > 0 and method.game_weight != 1
        ),
        "method.game_share is a share beside the squared error, which method.lambda_data 0 leaves out": (
            method.game_share > 0 and method.lambda_data == 0
        ),
        "method.game_start does nothing with method.game_weight 0: leave one out": (
            method.game_start > 0 and method.game_weight == 0
        ),
        "method.saturating is a form of bce alone: set method.game_loss to bce": (
            method.saturating and method.game_loss != "bce"
        ),
        "method.label_smoothing moves a target, and hinge has none: set method.game_loss to bce or least_squares": (
            method.label_smoothing > 0 and method.game_loss == "hinge"
        ),
        "method.conditioned_by does nothing without method.condition: set that to softmax or class": (
            method.condition == "none" and method.conditioned_by != "projection"
        ),
        "method.penalty_at does nothing without method.gradient_penalty: give that a weight": (
            method.gradient_penalty == 0 and method.penalty_at != "teacher"
        ),
        "method.gradient_penalty asks for each sample's own gradient, which a batch's statistics mix: set"
        " method.standardise to teacher": method.gradient_penalty > 0 and method.standardise == "batch",
        "method.noise_steps does nothing without method.noise: give that a deviation": (
            method.noise_steps > 0 and method.noise == 0
        ),
        "method.regulariser l1 and l2 shrink weights, which method.spectral_norm scales back: take one of them": (
            method.spectral_norm and method.regulariser in ("l1", "l2")
        ),
    }
    for sentence, clash in clashes.items():
        if clash:
            raise ValueError(sentence)
