"""The rate of one decode plan, in a process of its own: what `probe` starts, since a plan may end the process."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fastanc.pipelines.jpeg.bytes import Place
from fastanc.pipelines.jpeg.jpeg_set import JpegSet
from fastanc.pipelines.jpeg.options import JpegOptions
from fastanc.pipelines.order import Order
from fastanc.pipelines.views import RandomResizedCrop

_BATCH, _OUT_PX = 256, 224
_WARM_UP_STEPS, _SECONDS = 4, 1.5


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

    def subset(self, numbers: np.ndarray) -> _Sample:
        return _Sample([list(self._places[i]) for i in numbers], self.sizes[numbers].tolist())

    def containers(self) -> list[tuple[str, int]]:
        return []

    def name(self, i: int) -> str:
        return self._places[i][0]


def _measure(request: dict[str, Any]) -> float:
    """Images per second of one plan, after a few steps of warming up."""
    data = JpegSet("probe", _Sample(request["places"], request["sizes"]), mean=(), std=())
    device, options = torch.device(request["device"]), JpegOptions(**request["options"])
    order = Order(len(data.index), min(_BATCH, len(data.index)))
    batches = data.on(device, options).batches(order, RandomResizedCrop(_OUT_PX, seed=0))
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
    print(_measure(json.load(sys.stdin)))
