"""How fast a decode plan is on the user's own images and GPU.

nvImageCodec 0.9 is reported to end the process in mixed_roi on some GPUs, so each plan is tried in a process
of its own (`measure`).
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from fastanc.pipelines.jpeg.bytes import Indexed
from fastanc.pipelines.jpeg.options import JpegOptions, cores_per_process

_SAMPLE, _TIMEOUT_S = 2048, 120.0


class Probed(NamedTuple):
    """What became of one plan."""

    plan: str
    images_per_s: float | None
    failure: str | None

    def __str__(self) -> str:
        return f"{self.plan} {self.failure or f'{self.images_per_s:.0f} images/s'}"


def probe(index: Indexed, device: torch.device | str, options: JpegOptions) -> Probed:
    """Decode images from all over the set with `options.decode` for a second or two, in another process."""
    images = np.unique(np.linspace(0, len(index) - 1, min(_SAMPLE, len(index))).astype(np.int64))
    request = {
        "places": index.places(images.tolist()),
        "sizes": index.sizes[images].tolist(),
        "device": str(device),
        "options": asdict(replace(options, threads=options.threads or cores_per_process())),
    }
    return ask([sys.executable, "-m", "fastanc.pipelines.jpeg.measure"], request, options.decode)


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
