"""The rows of the cache: their fields, how outputs become rows, and how rows become outputs again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastanc.batch import Outputs

_DTYPES = {"fp16": torch.float16, "fp32": torch.float32, "uint8": torch.uint8}
_DISK = {torch.float16: "<f2", torch.float32: "<f4", torch.uint8: "|u1"}
_FIELDS = ("features", "descriptors", "logits")


class Part(NamedTuple):
    """One array of a shard; a field has one, or two where its rows carry a scale."""

    name: str
    width: int
    dtype: torch.dtype
    resident: bool = False
    """Small enough to be kept in memory by a reader."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.width * self.dtype.itemsize

    @property
    def disk_dtype(self) -> np.dtype:
        """The array's dtype in the file: little-endian."""
        return np.dtype(_DISK[self.dtype])


@dataclass(frozen=True)
class Field:
    """One of the teacher's outputs as the cache stores it."""

    name: str
    """A field of `Outputs`: features, descriptors or logits."""
    width: int
    """Values a row."""
    dtype: str = "fp16"
    """fp16, fp32, or uint8 with the row's scale and offset beside it."""

    def __post_init__(self) -> None:
        if self.name not in _FIELDS:
            raise ValueError(f"the cache has no field {self.name!r}: use one of {', '.join(_FIELDS)}")
        if self.dtype not in _DTYPES:
            raise ValueError(
                f"rows of dtype {self.dtype!r} are unknown to the cache: use one of {', '.join(_DTYPES)}"
            )

    def parts(self) -> list[Part]:
        """Return the arrays that hold this field in a shard."""
        parts = [Part(self.name, self.width, _DTYPES[self.dtype])]
        if self.dtype == "uint8":
            parts.append(Part(_scale(self.name), 2, torch.float32, resident=True))
        return parts


def _scale(field: str) -> str:
    return f"{field}.scale"


def values_of(outputs: Outputs, fields: Sequence[Field]) -> dict[str, Tensor]:
    """Return the teacher's values [B, width] of every field."""
    values = {}
    for field in fields:
        value = getattr(outputs, field.name)
        if value is None:
            raise ValueError(f"the cache stores {field.name}, but the teacher gives none: tap them")
        values[field.name] = value
    return values


@torch.no_grad()
def encode(values: Mapping[str, Tensor], fields: Sequence[Field]) -> dict[str, Tensor]:
    """Round values [B, width] into rows: part name -> [B, part width] in the part's dtype, same device.

    uint8 rows are `low + code * scale`, low = min(0, row min), scale = (max(0, row max) - low) / 255: a row
    without negative values keeps its zeros, and the error is at most scale / 2 (plus float32 rounding).
    """
    rows = {}
    for field in fields:
        x = values[field.name].detach().float()
        if field.dtype != "uint8":
            rows[field.name] = x.to(_DTYPES[field.dtype])
            continue
        low = x.amin(1, keepdim=True).clamp_max(0)
        scale = (x.amax(1, keepdim=True).clamp_min(0) - low) / 255
        code = (x - low) / scale.clamp_min(torch.finfo(torch.float32).tiny)
        rows[field.name] = code.round_().clamp_(0, 255).to(torch.uint8)
        rows[_scale(field.name)] = torch.cat((scale, low), 1)
    return rows


@torch.no_grad()
def decode(rows: Mapping[str, Tensor], fields: Sequence[Field]) -> dict[str, Tensor]:
    """Return the values [B, width] float32 that rows stand for, the same bits on every device."""
    values = {}
    for field in fields:
        value = rows[field.name].float()
        if field.dtype == "uint8":
            scale, low = rows[_scale(field.name)].split(1, dim=1)
            value = value.mul_(scale).add_(low)
        values[field.name] = value
    return values


@torch.no_grad()
def head_logits(features: Tensor, head: nn.Linear) -> Tensor:
    """Return the logits [B, K] float32 of features [B, D], never under autocast.

    Online, filling and cached teachers all come through here, so equal features give equal bits.
    """
    with torch.autocast(features.device.type, enabled=False):
        bias = None if head.bias is None else head.bias.float()
        return F.linear(features.float(), head.weight.float(), bias)


def outputs_of(values: Mapping[str, Tensor], head: nn.Linear | None) -> Outputs:
    """Return the outputs that the cache's values stand for; logits from the head unless stored."""
    logits = values.get("logits")
    if logits is None:
        assert head is not None, "a cache without logits needs the teacher's head"
        logits = head_logits(values["features"], head)
    return Outputs(logits, values.get("features"), None, values.get("descriptors"))
