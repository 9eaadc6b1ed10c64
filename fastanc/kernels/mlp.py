"""A discriminator D - H1 - H2 - H3 - 1 with ReLU inside one program: no launch between its layers.

A program holds a block of samples. H1 and H3 stay on the chip at full width (at most 256); D and H2 are
walked in pieces, so a weight is read once per pass and block. Products are bf16, as under autocast; sums
are fp32. Parameters are the eight tensors of `discriminator.parameters()`: weight and bias of each layer,
in order.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs
# (a kernel's arguments are what Triton makes of them: pointers, scalars, tiles)

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastanc.kernels.backend import INTERPRETED, jit, power_of_two, tl
from fastanc.kernels.dropout import draw_seed, dropout_mask, kept

WIDEST = 256
# The interpreter cannot multiply bf16 and truncates where the GPU rounds: there the products are fp32.
OPERAND = torch.float32 if INTERPRETED else torch.bfloat16
_OPERAND = tl.constexpr(tl.float32 if INTERPRETED else tl.bfloat16)


class Move(NamedTuple):
    """A player's loss, and what the discriminator said."""

    loss: Tensor
    """Scalar fp32, with gradient."""
    terms: Tensor
    """[S] fp32, the mean loss on each of the S samples, no gradient; their sum is the loss."""
    judged: Tensor
    """[S, B] fp32, the discriminator's logits, no gradient."""


class Widths(NamedTuple):
    """The three hidden widths."""

    h1: int
    h2: int
    h3: int

    def pieces(self, depth: int, batch: int) -> dict[str, int]:
        """Return the kernels' compile-time sizes for samples of `depth` features and a batch.

        Two stages of fp32 weights [P1, BD], [BJ, P1] and [P3, BJ] have to fit into the chip's shared memory beside
        the samples, and eight warps keep the rest in registers: benchmarks/kernels_compiled.py has the table.
        """
        p1 = power_of_two(self.h1)
        return {
            "BB": 16 if batch <= 512 else 32,
            "BD": min(64 if p1 <= 128 else 32, power_of_two(depth)),
            "BJ": min(32, power_of_two(self.h2)),
            "P1": p1,
            "P3": power_of_two(self.h3),
            "num_warps": 8,
            "num_stages": 2,
        }


def widths(parameters: Sequence[Tensor]) -> Widths | None:
    """Return the widths of a discriminator that the kernels can hold, or None."""
    if [p.dim() for p in parameters] != [2, 1] * 4 or len(parameters[7]) != 1:
        return None
    hidden = Widths(*(len(p) for p in parameters[:6:2]))
    return hidden if min(hidden) > 1 and max(hidden) <= WIDEST else None


def adversarial_sample(student: Tensor, keep: Tensor | None, drop: float) -> Tensor:
    """The student's features [B, D] after dropout with a given mask; untouched without one."""
    return student if keep is None else student * keep.to(student.dtype) / (1 - drop)


def seed_of(student: Tensor, drop: float, seed: Tensor | None) -> Tensor | None:
    """The seed of a move's dropout: the given one, a new one, or None where nothing is dropped."""
    if drop == 0:
        return None
    return draw_seed(student.device) if seed is None else seed


def mask_of(student: Tensor, drop: float, seed: Tensor | None) -> Tensor | None:
    """The mask [B, D] of a seed from `seed_of`."""
    batch, depth = student.shape
    return None if seed is None else dropout_mask(seed, batch, depth, drop)


def judge(samples: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """The discriminator's logits [M] of samples [M, D], in fp32 or wider; any number of layers."""
    for weight, bias in zip(parameters[:-2:2], parameters[1:-2:2]):
        samples = F.linear(samples, weight, bias).relu()
    judged = F.linear(samples, parameters[-2], parameters[-1])[:, 0]
    return judged.to(torch.promote_types(judged.dtype, torch.float32))


@jit
def operand(values):
    """Round for the tensor cores."""
    return values.to(_OPERAND)


@jit
def dropped(values, seed, drop, b, d, D):
    """Entries [b, d] of a sample, or of its slope, after dropout; untouched without a seed."""
    if seed is not None:
        keep = kept(tl.load(seed), drop, b[:, None], d[None, :], D)
        values = tl.where(keep, values * (1.0 / (1.0 - drop)), 0.0)
    return values


@jit
def sample(x, x_b, x_d, seed, drop, b, d, B, D):
    """Samples [b, d] in fp32, dropped where there is a seed."""
    inside = (b < B)[:, None] & (d < D)[None, :]
    values = tl.load(x + b[:, None] * x_b + d[None, :] * x_d, mask=inside, other=0).to(tl.float32)
    return dropped(values, seed, drop, b, d, D)


@jit
def matrix(w, o, i, outs, ins):
    """Entries [o, i] of a weight [outs, ins], rounded for the tensor cores; 0 beyond it."""
    inside = (o < outs)[:, None] & (i < ins)[None, :]
    return operand(tl.load(w + o[:, None] * ins + i[None, :], mask=inside, other=0))


@jit
def rectified(values, bias, h, H):
    """ReLU of values plus bias; 0 beyond the layer's width."""
    return tl.maximum(values + tl.load(bias + h, mask=h < H, other=0)[None, :].to(tl.float32), 0.0)


@jit
def first_layer(
    x, x_b, x_d, seed, drop, w1, b1, b, h, B, D, H1,
    BB: tl.constexpr, BD: tl.constexpr, P1: tl.constexpr,
):  # fmt: skip
    """The first layer of a block of samples, [BB, P1]."""
    total = tl.zeros((BB, P1), dtype=tl.float32)
    for start in range(0, D, BD):
        d = start + tl.arange(0, BD)
        values = sample(x, x_b, x_d, seed, drop, b, d, B, D)
        total = tl.dot(operand(values), tl.trans(matrix(w1, h, d, H1, D)), total)
    return rectified(total, b1, h, H1)


@jit
def later_layers(
    hidden1, w2, b2, w3, b3, acts, acts_b, b, h, h3, B, H1, H2, H3,
    BB: tl.constexpr, BJ: tl.constexpr, P3: tl.constexpr,
):  # fmt: skip
    """The third layer, [BB, P3]; the second one's output is written to `acts` if that is given."""
    total = tl.zeros((BB, P3), dtype=tl.float32)
    for start in range(0, H2, BJ):
        j = start + tl.arange(0, BJ)
        hidden2 = rectified(tl.dot(operand(hidden1), tl.trans(matrix(w2, j, h, H2, H1))), b2, j, H2)
        if acts is not None:
            inside = (b < B)[:, None] & (j < H2)[None, :]
            tl.store(acts + b[:, None] * acts_b + j[None, :], hidden2, mask=inside)
        total = tl.dot(operand(hidden2), tl.trans(matrix(w3, h3, j, H3, H2)), total)
    return rectified(total, b3, h3, H3)


@jit
def slope_at_first(
    hidden1, slope3, w2, b2, w3, slopes, slopes_b, b, h, h3, B, H1, H2, H3,
    BB: tl.constexpr, BJ: tl.constexpr, P1: tl.constexpr,
):  # fmt: skip
    """The loss's slope at the first layer, [BB, P1]; the second layer's goes to `slopes` if that is given.

    The second layer is computed again, bit for bit: its weight is read here anyway.
    """
    total = tl.zeros((BB, P1), dtype=tl.float32)
    for start in range(0, H2, BJ):
        j = start + tl.arange(0, BJ)
        weight2 = matrix(w2, j, h, H2, H1)
        hidden2 = rectified(tl.dot(operand(hidden1), tl.trans(weight2)), b2, j, H2)
        slope2 = tl.dot(operand(slope3), matrix(w3, h3, j, H3, H2))
        slope2 = tl.where(hidden2 > 0, slope2, 0.0)
        if slopes is not None:
            inside = (b < B)[:, None] & (j < H2)[None, :]
            tl.store(slopes + b[:, None] * slopes_b + j[None, :], slope2, mask=inside)
        total = tl.dot(operand(slope2), weight2, total)
    return tl.where(hidden1 > 0, total, 0.0)


@jit
def verdict(hidden3, w4, b4, h3, H3):
    """The discriminator's logits of a block, [BB]."""
    weight = tl.load(w4 + h3, mask=h3 < H3, other=0).to(tl.float32)
    return tl.sum(hidden3 * weight[None, :], 1) + tl.load(b4).to(tl.float32)


@jit
def slope_at_third(slope, hidden3, w4, h3, H3):
    """The loss's slope at the third layer, [BB, P3], from its slope at the logits, [BB]."""
    weight = tl.load(w4 + h3, mask=h3 < H3, other=0).to(tl.float32)
    return tl.where(hidden3 > 0, slope[:, None] * weight[None, :], 0.0)


@jit
def softplus(values):
    """log(1 + e^values) without overflow."""
    return tl.maximum(values, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(values)))
