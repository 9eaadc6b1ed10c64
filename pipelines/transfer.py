"""From the host to a device without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor


def moved(host: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host on a device; on a CPU it is the tensor itself.

    A copy to a GPU from memory that is not pinned waits until all work that was queued before it is done.
    """
    if device.type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)
