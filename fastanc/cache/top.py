"""Rows of a teacher's most probable classes: the number and log probability of each, and what all others have.

A row holds, in bytes, the mean probability of the classes that are not kept (its logarithm, float32), the numbers of
those that are (uint16, or int32 of more than 65,536 classes), the most probable first, and their log probabilities
(fp16). What it stands for is [K] again: the kept classes as they were, every other one with the mean. So softened by
temperature 1 a kept class has its probability, and the rest is spread evenly; by a higher one the others get more
than the teacher gives them, since the mean of roots is below the root of the mean.
"""

from __future__ import annotations

import math

from fastanc.later import F, Tensor, torch

TOP = {"top5": 5, "top10": 10, "top20": 20}
"""Types of rows, and how many classes they keep."""
_SHORT_IDS = 2**16
_REST_BYTES, _VALUE_BYTES = 4, 2


def row_bytes(count: int, width: int) -> int:
    """Return the bytes of a row that keeps `count` of `width` classes."""
    return _REST_BYTES + count * (_id_bytes(width) + _VALUE_BYTES)


def most_probable(logits: Tensor, count: int) -> Tensor:
    """Return the numbers [B, count] int64 of the largest logits [B, K]; of equal ones the first, on every device."""
    return logits.sort(dim=1, descending=True, stable=True).indices[:, :count]


def kept(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log probabilities [B, k] of some classes, and the mean [B, 1] of the others as a logarithm."""
    log_p = F.log_softmax(logits, dim=1)
    others = log_p.scatter(1, ids, -math.inf).logsumexp(1, keepdim=True)
    return log_p.gather(1, ids), others - math.log(logits.shape[1] - ids.shape[1])


def spread(values: Tensor, rest: Tensor, ids: Tensor, width: int) -> Tensor:
    """Return logits [B, width] of what `kept` returns."""
    return rest.expand(-1, width).scatter(1, ids, values)


def packed(logits: Tensor, count: int) -> Tensor:
    """Return rows [B, row bytes] uint8 of logits [B, K] float32."""
    ids = most_probable(logits, count)
    values, rest = kept(logits, ids)
    low = ids.to(torch.int32).view(torch.uint8).view(*ids.shape, -1)[..., : _id_bytes(logits.shape[1])]
    return torch.cat(
        (rest.contiguous().view(torch.uint8), low.flatten(1), values.half().contiguous().view(torch.uint8)), 1
    )


def parts(rows: Tensor, count: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return values [B, k] fp16, the rest's mean [B, 1] float32 and class numbers [B, k] int64 of rows."""
    # Copies: a view of wider values begins at a multiple of their size, which a row need not.
    rest, ids, values = (
        part.clone(memory_format=torch.contiguous_format)
        for part in rows.split((_REST_BYTES, count * _id_bytes(width), count * _VALUE_BYTES), dim=1)
    )
    short = width <= _SHORT_IDS
    numbers = ids.view(torch.int16).long() & 0xFFFF if short else ids.view(torch.int32).long()
    return values.view(torch.float16), rest.view(torch.float32), numbers


def _id_bytes(width: int) -> int:
    return 2 if width <= _SHORT_IDS else 4
