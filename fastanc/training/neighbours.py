"""How good features are where nobody gives logits: every image is judged by its nearest neighbours in the set."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastanc.batch import Batch, Outputs
from fastanc.models.sizes import one_size, passed
from fastanc.pipelines.transfer import moved

_NEIGHBOURS, _TEMPERATURE = 20, 0.07  # DINO's (Caron et al. 2021, appendix F)
_ROWS = 1024


@torch.no_grad()
def evaluate_features(
    network: nn.Module,
    batches: Iterable[Batch],
    reduce_sum: Callable[[Tensor], Tensor],
    num_images: int,
    width: int,
    teacher: Callable[[Batch], Outputs] | None = None,
    teacher_width: int = 0,
    autocast: torch.dtype | None = None,
) -> dict[str, float]:
    """Return the quality of a network's features on a set, each image judged once, by all others.

    Args:
        network: images -> Outputs with features [B, width].
        batches: this process's part of the set.
        reduce_sum: sum of a tensor over all processes.
        num_images: of the whole set, N; N x width numbers are held.
        width: D of the features.
        teacher: batch -> Outputs, from the network or the cache; adds the agreement with it.
        teacher_width: D of its features.
        autocast: dtype of the network's passes; None leaves the dtype of its weights.

    Returns:
        With labels `top1` (parts of 1) and `error_pct` of a vote of the 20 nearest neighbours by cosine, weighted by
        exp(cosine / 0.07); with a teacher `agreement_pct`, how often an image's nearest neighbour is the same for
        both, and with both `teacher_top1`.
    """
    device = next(network.parameters()).device
    own, theirs = (torch.zeros(num_images, d, device=device) for d in (width, teacher_width))
    labels = torch.zeros(num_images, dtype=torch.int64, device=device)  # 0: none
    modes = {module: module.training for module in network.modules()}
    network.eval()
    size = 0
    try:
        for batch in batches:
            at = moved(torch.from_numpy(batch.index), device)
            size = max(size, len(batch.images)) if one_size(network) else 0
            with torch.autocast(device.type, autocast, enabled=autocast is not None):
                features = passed(network, batch.images, size).features
            assert features is not None
            own[at] = features.float()
            if batch.labels is not None:
                labels[at] = batch.labels + 1
            if teacher is not None and (told := teacher(batch).features) is not None:
                theirs[at] = told.float().to(device)
    finally:
        for module, mode in modes.items():
            module.training = mode
    own, theirs, labels = reduce_sum(own), reduce_sum(theirs), reduce_sum(labels)
    nearest, right = _judged(own, labels)
    result: dict[str, float] = {}
    if labelled := int((labels > 0).sum()):
        result = {"top1": right / labelled, "error_pct": 100 * (labelled - right) / labelled}
    if teacher is not None:
        of_teacher, teacher_right = _judged(theirs, labels)
        result["agreement_pct"] = 100 * float((nearest == of_teacher).double().mean())
        if labelled:
            result["teacher_top1"] = teacher_right / labelled
    return result


def _judged(features: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    """Return every image's nearest neighbour [N], and how many of the labelled ones are told by a vote of theirs."""
    unit, right, nearest = F.normalize(features, dim=1), 0, []
    count, classes = min(_NEIGHBOURS, len(unit) - 1), int(labels.max()) + 1
    for start in range(0, len(unit), _ROWS):
        rows = torch.arange(start, min(start + _ROWS, len(unit)), device=unit.device)
        cosines = unit[rows] @ unit.T
        cosines[torch.arange(len(rows), device=unit.device), rows] = -2.0  # nobody votes on itself
        best = cosines.topk(max(count, 1), dim=1)
        nearest.append(best.indices[:, 0])
        votes = torch.zeros(len(rows), classes, dtype=torch.float64, device=unit.device)
        votes.scatter_add_(1, labels[best.indices], (best.values.double() / _TEMPERATURE).exp())
        votes[:, 0] = 0
        right += int(((votes.argmax(1) == labels[rows]) & (labels[rows] > 0)).sum())
    return torch.cat(nearest), right
