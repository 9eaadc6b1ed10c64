"""Where JPEGs are decoded: options, and a probe of which plan is fastest on the user's own images and GPU.

| plan | JPEG decoded | box cut out | resized |
| --- | --- | --- | --- |
| mixed_roi | GPU, the box only | by the decoder | GPU |
| mixed | GPU, whole | GPU | GPU |
| cpu | CPU, the box only | by the decoder | GPU |

nvImageCodec 0.9 is reported to end the process in mixed_roi on some GPUs, so each plan is tried in a process
of its own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from .order import Order
from .reading import Indexed, Place
from .views import RandomResizedCrop

PLANS = ("mixed_roi", "mixed", "cpu")
_SAMPLE, _BATCH, _OUT_PX = 2048, 256, 224
_WARM_UP_STEPS, _SECONDS, _TIMEOUT_S = 4, 1.5, 120.0


@dataclass(frozen=True, kw_only=True)
class JpegOptions:
    """How JPEGs are decoded; `decode` and `hw_decoder_load` may change a pixel's last bits, no other may."""

    decode: str = "auto"
    """On CUDA mixed_roi, mixed, cpu, or auto: what a probe finds fastest. On the CPU there is one plan."""
    threads: int | None = None
    """Decoding threads; None takes the cores that this process may use."""
    prefetch: int = 2
    """Batches that wait, finished, for the training step."""
    views_per_decode: int = 1
    """K views of an image from one decode; the order must have views_per_image K."""
    hw_decoder_load: float = 0.65
    """Share of a batch for the GPU's JPEG unit (mixed plans); 0 decodes every image in the same way."""
    largest_width_px: int = 0
    largest_height_px: int = 0
    """Memory set aside at start for images of this size (mixed plans); 0 grows when needed."""

    def __post_init__(self) -> None:
        if self.decode not in ("auto", *PLANS):
            raise ValueError(f"decode {self.decode!r} is unknown: use auto, {', '.join(PLANS)}")
        if self.prefetch < 1 or self.views_per_decode < 1 or (self.threads is not None and self.threads < 1):
            raise ValueError("prefetch, views_per_decode and threads must be at least 1")


def cores_per_process() -> int:
    """Return how many CPU cores this process has, when it shares them with the others that were launched."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


class Probed(NamedTuple):
    """What became of one plan."""

    plan: str
    images_per_s: float | None
    failure: str | None

    def __str__(self) -> str:
        return f"{self.plan} {self.failure or f'{self.images_per_s:.0f} images/s'}"


def decide(index: Indexed, device: torch.device | str, options: JpegOptions) -> str:
    """Return the fastest plan for this device, which is probed, and print one line about it.

    Raises RuntimeError with every plan's failure when none works.
    """
    probed = [probe(index, device, replace(options, decode=plan)) for plan in PLANS]
    found = ", ".join(map(str, probed))
    rates = {result.plan: result.images_per_s for result in probed if result.images_per_s is not None}
    if not rates:
        raise RuntimeError(f"no decode plan works on {device}: {found}")
    plan = max(rates, key=rates.__getitem__)
    print(f"decode plan: {plan} ({found})", flush=True)
    return plan


def probe(index: Indexed, device: torch.device | str, options: JpegOptions) -> Probed:
    """Decode images from all over the set with `options.decode` for a second or two, in another process."""
    images = np.unique(np.linspace(0, len(index) - 1, min(_SAMPLE, len(index))).astype(np.int64))
    request = {
        "places": index.places(images.tolist()),
        "sizes": index.sizes[images].tolist(),
        "device": str(device),
        "options": asdict(
            replace(options, views_per_decode=1, threads=options.threads or cores_per_process())
        ),
    }
    return ask([sys.executable, "-m", "fastanc.pipelines.decode_plan"], request, options.decode)


def ask(command: Sequence[str], request: dict[str, Any], plan: str, timeout_s: float = _TIMEOUT_S) -> Probed:
    """Run a probing command on a JSON request; whatever ends it becomes a failure in words."""
    try:
        done = subprocess.run(
            command, input=json.dumps(request), capture_output=True, text=True, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        return Probed(plan, None, f"hung for {timeout_s:.0f} s")
    if done.returncode < 0:
        return Probed(plan, None, f"crashed with {signal.Signals(-done.returncode).name}")
    if done.returncode:
        reason = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return Probed(plan, None, f"failed: {reason[-1]}")
    return Probed(plan, float(done.stdout.split()[-1]), None)


class _Sample:
    """The probed images, as an index."""

    def __init__(self, places: list[list[Any]], sizes: list[list[int]]) -> None:
        self._places: list[Place] = [(path, offset, length) for path, offset, length in places]
        self.sizes = np.array(sizes, np.int32)
        self.labels: np.ndarray | None = None
        self.classes: list[str] = []
        self.fingerprint = "probe"

    def __len__(self) -> int:
        return len(self.sizes)

    def places(self, indices: Sequence[int]) -> list[Place]:
        return [self._places[i] for i in indices]

    def containers(self) -> list[tuple[str, int]]:
        return []

    def name(self, i: int) -> str:
        return self._places[i][0]


def _measure(request: dict[str, Any]) -> float:
    """Images per second of one plan, after a few steps of warming up."""
    from .jpeg import JpegSet

    data = JpegSet("probe", _Sample(request["places"], request["sizes"]), mean=(), std=())
    device, options = torch.device(request["device"]), JpegOptions(**request["options"])
    batch = min(_BATCH, len(data.index))
    batches = data.batches(
        Order(len(data.index), batch), RandomResizedCrop(_OUT_PX, seed=0), device=device, options=options
    )
    for _ in range(_WARM_UP_STEPS):
        next(batches)
    steps, began = 0, time.perf_counter()
    while (passed_s := time.perf_counter() - began) < _SECONDS:
        images = next(batches).images
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        steps += 1
    return steps * len(images) / passed_s


if __name__ == "__main__":
    from fastanc.pipelines import decode_plan  # not __main__, its twin

    print(decode_plan._measure(json.load(sys.stdin)))
