"""A GPU that is not there, as far as decode plans are concerned."""

from __future__ import annotations

import pytest
import torch

from fastanc.pipelines.jpeg import dali
from fastanc.pipelines.jpeg import plan as plans
from fastanc.pipelines.jpeg.options import JpegOptions
from fastanc.pipelines.jpeg.probe import Probed


class Machine:
    """A GPU with DALI and its probes: the rates that are measured next, and how often that was done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gpu, self.rates, self.measured = "NVIDIA H100", dict[str, float | None](), 0
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: self.gpu)
        monkeypatch.setattr(plans, "probe", self._probe)
        monkeypatch.setattr(dali, "problem", lambda: "")  # it is not called
        monkeypatch.setattr(dali, "version", lambda: "2.4.0")

    def _probe(self, index: object, device: object, options: JpegOptions) -> Probed:
        self.measured += 1
        rate = self.rates.get(options.decode)
        return Probed(options.decode, rate, None if rate else "crashed with SIGSEGV")

    def race(self, cpu: float | None, mixed: float | None, roi: float | None = None) -> None:
        self.rates = {"cpu": cpu, "mixed": mixed, "mixed_roi": roi}
