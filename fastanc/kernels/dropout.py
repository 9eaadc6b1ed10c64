"""Dropout masks that no tensor holds: an entry's fate is a hash of a seed and of the entry's place.

So any kernel that knows the seed knows the mask, in any order, in forward and in backward. The hash is Philox 4x32
with 7 rounds, the fewest that pass BigCrush (Salmon et al. 2011).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs
# (a kernel's arguments are what Triton makes of them: pointers, scalars, tiles)

from __future__ import annotations

import torch
from torch import Tensor

from fastanc.kernels.backend import blocks, jit, runs_kernels, tl

_BLOCK = 1024


def draw_seed(device: torch.device) -> Tensor:
    """Return a mask's seed, [1] int64 on the device, drawn from torch's default generator of that device."""
    return torch.randint(0, 2**63 - 1, (1,), dtype=torch.int64, device=device)


@jit
def kept(seed, drop, b, d, D):
    """Whether dropout leaves the entries (b, d) of a sample [B, D]; `seed` is a value, not a pointer."""
    return tl.rand(seed, b * D + d, 7) >= drop


@jit
def _mask_kernel(seed, drop, out, B, D, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    keep = kept(tl.load(seed), drop, place // D, place % D, D)
    tl.store(out + place, keep.to(tl.uint8), mask=place < B * D)


def dropout_mask(seed: Tensor, batch: int, depth: int, drop: float) -> Tensor:
    """Return the mask [B, D] bool that the kernels draw from a seed: true where dropout leaves an entry.

    Where no kernel runs it is another mask, of the same distribution and as fixed by the seed.

    Args:
        seed: [1] int64, see `draw_seed`.
        batch, depth: B and D.
        drop: probability of false, below 1.
    """
    if not runs_kernels(seed):
        generator = torch.Generator(seed.device).manual_seed(int(seed))
        return torch.rand(batch, depth, device=seed.device, generator=generator) >= drop
    out = torch.empty((batch, depth), dtype=torch.uint8, device=seed.device)
    _mask_kernel[blocks(batch * depth, _BLOCK),](seed, drop, out, batch, depth, BLOCK=_BLOCK)
    return out.bool()
