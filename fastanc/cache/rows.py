"""The rows of the cache: their fields, how outputs become rows, and how rows become outputs again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastanc.batch import Outputs
from fastanc.cache import top

_DTYPES = {"fp16": torch.float16, "fp32": torch.float32, **dict.fromkeys(("uint8", *top.TOP), torch.uint8)}
_SCALE_BYTES = 8
PAGE = 4096
_FIELDS = ("features", "descriptors", "logits")


@dataclass(frozen=True)
class Field:
    """One of the teacher's outputs as the cache stores it."""

    name: str
    """A field of `Outputs`: features, descriptors or logits."""
    width: int
    """Values a row."""
    dtype: str = "fp16"
    """fp16, fp32, uint8 with the row's scale and offset behind it, or of logits one of `top.TOP`."""
    align: int = 1
    """Rows begin at multiples of so many bytes."""

    def __post_init__(self) -> None:
        if self.name not in _FIELDS:
            raise ValueError(f"the cache has no field {self.name!r}: use one of {', '.join(_FIELDS)}")
        if self.dtype not in _DTYPES:
            raise ValueError(
                f"rows of dtype {self.dtype!r} are unknown to the cache: use one of {', '.join(_DTYPES)}"
            )
        if self.top and self.name != "logits":
            raise ValueError(
                f"rows of dtype {self.dtype!r} keep classes: they are of logits, not {self.name}"
            )
        if self.top >= self.width:
            raise ValueError(
                f"teacher.rows {self.dtype} keeps {self.top} of the teacher's classes, which are {self.width}: set it"
                " to fp16, or to fewer than there are"
            )

    @property
    def top(self) -> int:
        """How many classes a row keeps; 0 where it keeps every value."""
        return top.TOP.get(self.dtype, 0)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.row_width * self.row_dtype.itemsize

    @property
    def row_width(self) -> int:
        """Elements of a row: the values, and for uint8 the row's scale and offset (float32) behind them."""
        if self.top:
            return top.row_bytes(self.top, self.width)
        return self.width + (_SCALE_BYTES if self.dtype == "uint8" else 0)

    @property
    def row_dtype(self) -> torch.dtype:
        """Of a row as it is stored, little-endian."""
        return _DTYPES[self.dtype]

    @property
    def stride(self) -> int:
        """Bytes from a row to the next."""
        return -(-self.row_bytes // self.align) * self.align


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
    """Round values [B, width] into rows: field name -> [B, row width] in the row's dtype, same device.

    uint8 rows are `low + code * scale`, low = min(0, row min), scale = (max(0, row max) - low) / 255: a row
    without negative values keeps its zeros, and the error is at most scale / 2 (plus float32 rounding).
    """
    rows = {}
    for field in fields:
        x = values[field.name].detach().float()
        if field.top:
            rows[field.name] = top.packed(x, field.top)
            continue
        if field.dtype != "uint8":
            rows[field.name] = x.to(_DTYPES[field.dtype])
            continue
        low = x.amin(1, keepdim=True).clamp_max(0)
        scale = (x.amax(1, keepdim=True).clamp_min(0) - low) / 255
        code = (x - low) / scale.clamp_min(torch.finfo(torch.float32).tiny)
        code = code.round_().clamp_(0, 255).to(torch.uint8)
        rows[field.name] = torch.cat((code, torch.cat((scale, low), 1).view(torch.uint8)), 1)
    return rows


@torch.no_grad()
def decode(rows: Mapping[str, Tensor], fields: Sequence[Field]) -> dict[str, Tensor]:
    """Return the values [B, width] float32 that rows stand for, the same bits on every device."""
    values = {}
    for field in fields:
        if field.top:
            kept, rest, ids = top.parts(rows[field.name], field.top, field.width)
            values[field.name] = top.spread(kept.float(), rest, ids, field.width)
            continue
        value = rows[field.name][:, : field.width].float()
        if field.dtype == "uint8":
            scale, low = _scales(rows[field.name]).split(1, dim=1)
            value = value.mul_(scale).add_(low)
        values[field.name] = value
    return values


def _scales(rows: Tensor) -> Tensor:
    """Return scale and offset [B, 2] float32 of uint8 rows."""
    # A copy: a view of float32 begins at a multiple of four bytes, which one row's end need not.
    return rows[:, -_SCALE_BYTES:].clone(memory_format=torch.contiguous_format).view(torch.float32)


@torch.no_grad()
def unrounded(
    values: Mapping[str, Tensor], rows: Mapping[str, Tensor], fields: Sequence[Field]
) -> dict[str, Tensor]:
    """Return what rows would stand for without rounding, had they been made of these values [B, width].

    That is the values, but of rows of the most probable classes, which keep those of `rows` here: of two classes that
    are equally probable either may have been kept.
    """
    exact = dict(values)
    for field in fields:
        if field.top:
            value = values[field.name].float()
            ids = top.parts(rows[field.name], field.top, field.width)[2].to(value.device)
            exact[field.name] = top.spread(*top.kept(value, ids), ids, field.width)
    return exact


def not_finite(row: Tensor, field: Field) -> Tensor:
    """Return which rows [B, row width] hold a value that is infinite or not a number, [B] bool."""
    if field.top:
        kept, rest, _ = top.parts(row, field.top, field.width)
        return ~(torch.isfinite(kept).all(1) & torch.isfinite(rest).all(1))
    return ~torch.isfinite(_scales(row) if field.dtype == "uint8" else row).all(1)


@torch.no_grad()
def head_logits(features: Tensor, head: nn.Linear) -> Tensor:
    """Return the logits [B, K] float32 of features [B, D], never under autocast.

    Online, filling and cached teachers all come through here, so equal features give equal bits.
    """
    with torch.autocast(features.device.type, enabled=False):
        bias = None if head.bias is None else head.bias.float()
        return F.linear(features.float(), head.weight.float(), bias)


def outputs_of(values: Mapping[str, Tensor], head: nn.Linear | None) -> Outputs:
    """Return the outputs that the cache's values stand for.

    Logits come from the head unless they are stored; of a teacher without classes they are [B, 0].
    """
    logits = values.get("logits")
    if logits is None and head is None:
        logits = values["features"][:, :0]
    elif logits is None:
        assert head is not None
        logits = head_logits(values["features"], head)
    return Outputs(logits, values.get("features"), None, values.get("descriptors"))
