"""How strongly a loss pulls at a student: the norm of its gradient where the heads of all losses part."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastanc.batch import Outputs
from fastanc.models.taps import Adapted, unwrapped


def apart(out: Outputs) -> Outputs:
    """Return the same logits and features as siblings, so that a gradient at the features holds none of the logits'.

    Whether the one follows from the other in the graph is else a matter of what wraps the network.
    """
    features = None if out.features is None else out.features.view_as(out.features)
    return out._replace(logits=out.logits.view_as(out.logits), features=features)


def pulls(losses: Sequence[Tensor], out: Outputs, student: nn.Module, *, at_logits: bool) -> Tensor:
    """Return the norms [len(losses)] of the losses' gradients at a batch of the student's own features, detached.

    What reaches the logits is brought to the features by the head, and what reaches an adapter's features by the
    adapter, since both are linear: the graph between them may be hidden by a compiler or DDP.

    Args:
        losses: scalars of the outputs; their graph is kept.
        out: of the student, `apart`.
        student: tapped, with an adapter or without.
        at_logits: the norms at the logits instead, of losses that read nothing else.
    """
    return torch.stack([_norm(loss, out, student, at_logits) for loss in losses]).detach()


def _norm(loss: Tensor, out: Outputs, student: nn.Module, at_logits: bool) -> Tensor:
    asked = [value for value in (out.logits, out.features) if value is not None and value.requires_grad]
    slopes = torch.autograd.grad(loss, asked, retain_graph=True, allow_unused=True)
    by_output = {id(value): slope for value, slope in zip(asked, slopes) if slope is not None}
    on_logits, on_features = (by_output.get(id(value)) for value in (out.logits, out.features))
    if at_logits:
        return loss.new_zeros(()) if on_logits is None else on_logits.to(loss.dtype).norm()
    parts = []
    if on_features is not None:
        on_features = on_features.to(loss.dtype)
        if isinstance(student, Adapted):
            on_features = on_features @ student.adapter.weight.to(loss.dtype)
        parts.append(on_features)
    if on_logits is not None:
        head = unwrapped(student).head
        assert head is not None
        parts.append(on_logits.to(loss.dtype) @ head.weight.to(loss.dtype))
    return torch.stack(parts).sum(0).norm() if parts else loss.new_zeros(())
