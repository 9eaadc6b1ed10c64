"""How JPEGs are decoded: the plans, and what else a user can choose.

| plan | JPEG decoded | box cut out | resized |
| --- | --- | --- | --- |
| mixed_roi | GPU, the box only | by the decoder | GPU |
| mixed | GPU, whole | GPU | GPU |
| cpu | CPU, the box only | by the decoder | GPU; on a machine without one the CPU |
| torchvision | CPU, whole | CPU | CPU |

The first three are DALI's; the last is for machines without it, with a GPU or not, and has the same pixels on all.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from fastanc.pipelines.cores import usable_cores

PLANS = ("mixed_roi", "mixed", "cpu")
"""DALI's plans of a GPU, one of which is measured to be the fastest."""
TORCHVISION = "torchvision"


@dataclass(frozen=True, kw_only=True)
class JpegOptions:
    """How JPEGs are decoded; `decode` and `hw_decoder_load` may change a pixel's last bits, no other may."""

    decode: str = "auto"
    """auto is torchvision without DALI; with it cpu on the CPU, on CUDA what `plan` decides once of mixed_roi, mixed
    and cpu."""
    threads: int | None = None
    """Decoding threads; None takes the cores that this process may use."""
    prefetch: int = 2
    """Batches that wait, finished, for the training step."""
    hw_decoder_load: float = 0.65
    """Share of a batch for the GPU's JPEG unit (mixed plans); 0, with a teacher's cache, decodes all alike."""

    def __post_init__(self) -> None:
        if self.decode not in ("auto", *PLANS, TORCHVISION):
            known = ", ".join(("auto", *PLANS, TORCHVISION))
            raise ValueError(f"decode {self.decode!r} is unknown: use {known}")
        if self.prefetch < 1 or (self.threads is not None and self.threads < 1):
            raise ValueError("prefetch and threads must be at least 1")


def cores_per_process() -> int:
    """Return how many CPU cores this process has, when it shares them with the others that were launched."""
    return max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
