"""Latent vectors in the place of images, for methods that need no data set."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from fastanc.batch import Batch


def latents(size: int, latent_dim: int, *, seed: int, step: int, rank: int = 0) -> np.ndarray:
    """Return standard normal vectors [size, latent_dim] float32, a pure function of the arguments."""
    stream = np.random.Philox(key=[seed, 0], counter=[0, 0, step, rank])
    return np.random.Generator(stream).standard_normal((size, latent_dim), np.float32)


def latent_batches(
    size: int,
    latent_dim: int,
    *,
    seed: int,
    rank: int = 0,
    start: int = 0,
    stop: int | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[Batch]:
    """Yield the batches of steps start to stop - 1, whose images are latent vectors [size, latent_dim]."""
    nowhere = np.zeros(size, np.int64)
    step = start
    while stop is None or step < stop:
        drawn = torch.from_numpy(latents(size, latent_dim, seed=seed, step=step, rank=rank))
        images = drawn.to(device, non_blocking=True)
        yield Batch(images=images, index=nowhere, view=nowhere, labels=None, step=step)
        step += 1
