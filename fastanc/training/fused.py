"""The plays that fused kernels can make: the same terms and measures as the method's own, in a few launches.

Whether a play by kernels is worth its rounding (bf16 products in the discriminator) is for the caller to measure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor, nn

from fastanc.batch import Batch, Outputs
from fastanc.kernels.backend import runs_kernels
from fastanc.kernels.discriminator_move import discriminator_move
from fastanc.kernels.fooling_move import fooling_move
from fastanc.kernels.logit_losses import soft_kl, squared_error
from fastanc.kernels.mlp import widths
from fastanc.losses import cross_entropy, judgement_measures
from fastanc.methods.anc import Anc
from fastanc.methods.base import Method, Nets, Play, Played, sides
from fastanc.methods.kd import Kd
from fastanc.methods.l2 import L2

Loss: TypeAlias = Callable[[Nets, Batch, Outputs | None], Played]


def fused(method: Method, play: Play, nets: Nets) -> Loss | None:
    """Return a play's loss by kernels, to be called as `play.loss` is; None where they cannot make this play.

    Args:
        method: of exactly the class Anc, Kd or L2: a subclass may have other formulas.
        play: one of `method.plays`.
        nets: every network by name, on the device of the run.
    """
    if not runs_kernels(next(nets[play.player].parameters())):
        return None
    build = _BUILDERS.get((type(method), play.player))
    return None if build is None else build(method, nets)


def _anc_discriminator(method: Anc, nets: Nets) -> Loss | None:
    if method.regulariser != "adversarial" or not _is_plain(method) or not _holds(nets["discriminator"]):
        return None
    drop = method.dropout if method.regulariser_sample == "dropped" else 0.0

    def loss(nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        teacher, student = sides(batch, out)
        weights = list(nets["discriminator"].parameters())
        move = discriminator_move(_seen(teacher, method), _seen(student, method).detach(), weights, drop)
        on_teacher, on_student, _ = move.judged[..., None]
        # only the sum of the terms is minimised, so one of them brings the gradient of both
        terms = {"discriminate": move.loss - move.terms[2], "regularise": move.terms[2]}
        return Played(terms, judgement_measures(on_teacher, on_student))

    return loss


def _anc_student(method: Anc, nets: Nets) -> Loss | None:
    plain = _is_plain(method) and not method.saturating
    if method.data != "logits" or not plain or not _holds(nets["discriminator"]):
        return None

    def loss(nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        teacher, student = sides(batch, out)
        weights = list(nets["discriminator"].parameters())
        move = fooling_move(_seen(student, method), weights, method.dropout)
        error = squared_error(_logits(student), _logits(teacher), method.data_reduction)
        terms = {"fool": method.game_weight * move.loss, "data": method.lambda_data * error}
        return Played(terms, {"d_adversarial": move.judged.sigmoid().mean()})

    return loss


def _kd(method: Kd, nets: Nets) -> Loss | None:
    if method.alpha == 0 or not method.is_plain:
        return None

    def loss(nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        teacher, student = sides(batch, out)
        kl = soft_kl(_logits(student), _logits(teacher), method.temperature)
        terms = {"soft": method.alpha * kl}
        if method.alpha < 1:
            assert batch.labels is not None
            terms["labels"] = (1 - method.alpha) * cross_entropy(_logits(student), batch.labels)
        return Played(terms)

    return loss


def _l2(method: L2, nets: Nets) -> Loss | None:
    def loss(nets: Nets, batch: Batch, out: Outputs | None) -> Played:
        teacher, student = sides(batch, out)
        error = squared_error(_logits(student), _logits(teacher), method.data_reduction)
        return Played({"data": method.weight * error})

    return loss


_BUILDERS: dict[tuple[type[Method], str], Callable[[Any, Nets], Loss | None]] = {
    (Anc, "discriminator"): _anc_discriminator,
    (Anc, "student"): _anc_student,
    (Kd, "student"): _kd,
    (L2, "student"): _l2,
}


def _is_plain(method: Anc) -> bool:
    """Tell whether the moves' kernels have this game's formula; what wraps the discriminator `_holds` sees."""
    return method.game_loss == "bce" and method.label_smoothing == 0 and method.on != "both"


def _holds(discriminator: nn.Module) -> bool:
    """Tell whether the moves' kernels compute this network: three hidden layers with ReLU, narrow enough."""
    layers = [type(layer) for layer in discriminator.children()]
    return layers == [nn.Linear, nn.ReLU] * 3 + [nn.Linear] and bool(widths(list(discriminator.parameters())))


def _logits(outputs: Outputs) -> Tensor:
    assert outputs.logits is not None
    return outputs.logits


def _seen(outputs: Outputs, method: Anc) -> Tensor:
    """What the discriminator sees of a network, in the type it has: a kernel reads half precision as it is."""
    values = outputs.features if method.on == "features" else outputs.logits
    assert values is not None
    return values
