"""How good a network is: exact counts over all processes, and agreement with the teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from fastanc.batch import Batch, Outputs
from fastanc.losses import soft_kl
from fastanc.models.sizes import one_size, passed


@torch.no_grad()
def evaluate(
    network: nn.Module,
    batches: Iterable[Batch],
    reduce_sum: Callable[[Tensor], Tensor],
    num_images: int,
    teacher: Callable[[Batch], Outputs] | None = None,
    labels_count: bool = True,
    autocast: torch.dtype | None = None,
) -> dict[str, float]:
    """Return the network's quality on a data set, each image counted once over all processes.

    Args:
        network: images -> Outputs; the bare one, because processes may hold unequal numbers of batches. It is
            in eval mode meanwhile; every module's mode is restored.
        batches: this process's part of the set.
        reduce_sum: sum of a float64 vector over all processes, called once.
        num_images: images of the whole set.
        teacher: batch -> Outputs, from the network or the cache; adds the agreement with it.
        labels_count: whether the set's labels are the network's classes; else they are not looked at.
        autocast: dtype of its passes; None leaves the dtype of its weights.

    Returns:
        With labels `top1`, `top5` (of min(5, K) guesses; parts of 1), `error_pct` and `loss` (cross-entropy,
        nats); with a teacher `agreement_pct`, how often both have the same first guess, and `teacher_kl`, the mean
        of KL(teacher || student) (nats, temperature 1); with both `teacher_top1`.

    Raises:
        ValueError: neither labels nor a teacher, so that nothing can be counted.
    """
    device = next(network.parameters()).device
    # Counts are exact in float64 up to 2**53, so that they travel with the loss in one reduction.
    counts = torch.zeros(8, dtype=torch.float64, device=device)
    size = 0
    with examined(network, autocast) as logits_of:
        for batch in batches:
            size = max(size, len(batch.images))  # of all but the last
            labels = batch.labels if labels_count else None
            counts += _count(logits_of(batch.images, size), labels, batch, teacher)
    seen, labelled, top1, top5, agreed, divergence, loss, taught = reduce_sum(counts).tolist()
    assert seen == num_images, f"{seen:.0f} images were counted in a set of {num_images}"
    if not labelled and teacher is None:
        raise ValueError("the set has neither labels nor a teacher to agree with: leave its evaluation out")
    result = {}
    if labelled:
        result = {"top1": top1 / labelled, "top5": top5 / labelled}
        result |= {"error_pct": 100 * (labelled - top1) / labelled, "loss": loss / labelled}
    if teacher is not None:
        result |= {"agreement_pct": 100 * agreed / seen, "teacher_kl": divergence / seen}
        if labelled:
            result["teacher_top1"] = taught / labelled
    return result


@contextmanager
def examined(network: nn.Module, autocast: torch.dtype | None) -> Iterator[Callable[[Tensor, int], Tensor]]:
    """Put a network into eval mode for a while and yield (images, size of a pass) -> logits [B, K] fp32.

    Its arithmetic is `autocast` whatever stands around it: not all of what is examined was prepared for the training,
    and two students of one table must be measured alike.
    """
    modes = {module: module.training for module in network.modules()}

    @torch.no_grad()
    def logits_of(images: Tensor, size: int) -> Tensor:
        with torch.autocast(images.device.type, autocast, enabled=autocast is not None):
            return passed(network, images, size if one_size(network) else 0).logits.float()

    network.eval()
    try:
        yield logits_of
    finally:
        for module, mode in modes.items():
            module.training = mode


def _count(
    logits: Tensor, labels: Tensor | None, batch: Batch, teacher: Callable[[Batch], Outputs] | None
) -> Tensor:
    """Return [8] float64: images, labelled, right first, among five, as the teacher, KL, loss, teacher right."""
    size = len(logits)
    k = min(5, logits.shape[1])
    guesses = logits.topk(k, dim=1).indices
    zero = torch.zeros((), dtype=torch.float64, device=logits.device)
    top1 = top5 = agreed = divergence = loss = taught = zero
    if labels is not None:
        hits = guesses == labels[:, None]
        top1, top5 = hits[:, 0].sum(), hits.sum()
        loss = F.cross_entropy(logits, labels, reduction="none").double().sum()
    if teacher is not None:
        answer = teacher(batch).logits
        theirs = answer.topk(k, dim=1).indices[:, 0]
        divergence = soft_kl(logits, answer).double() * size
        agreed = (guesses[:, 0] == theirs).sum()
        taught = zero if labels is None else (theirs == labels).sum()
    labelled = size if labels is not None else 0
    return torch.stack(
        [
            zero + size,
            zero + labelled,
            *(zero + n for n in (top1, top5, agreed)),
            divergence,
            loss,
            zero + taught,
        ]
    )


@torch.no_grad()
def top1_of(
    teacher: Callable[[Batch], Outputs],
    batches: Iterable[Batch],
    reduce_sum: Callable[[Tensor], Tensor],
    device: torch.device,
) -> float:
    """Return how often a teacher's first guess is the label, over all processes' batches, parts of 1."""
    counts = torch.zeros(2, dtype=torch.float64, device=device)
    for batch in batches:
        assert batch.labels is not None
        right = (teacher(batch).logits.argmax(1) == batch.labels).sum()
        counts += torch.stack([right, torch.full_like(right, len(batch.index))])
    right, seen = reduce_sum(counts).tolist()
    return right / seen


def statistics(module: nn.Module) -> list[Tensor]:
    """Return the running means and variances of BatchNorm, of which each process gathers its own from its images.

    They are averaged over the processes before an evaluation and before a planned save.
    """
    return [
        buffer
        for layer in module.modules()
        if isinstance(layer, _BatchNorm)
        for buffer in (layer.running_mean, layer.running_var)
        if buffer is not None
    ]
