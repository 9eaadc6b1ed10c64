"""The decode plans of a CPU: DALI's own, where DALI is, and torchvision's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from fastanc.pipelines.jpeg import dali

needs_dali = pytest.mark.skipif(bool(dali.problem()), reason=dali.problem() or "DALI is there")
CPU_PLANS = (pytest.param("cpu", marks=needs_dali), "torchvision")
CPU_PLAN = "torchvision" if dali.problem() else "cpu"
"""What auto is on a CPU."""

WITHOUT_DALI = Path(__file__).parent / "without_dali"
"""A folder that hides DALI from whoever has it on PYTHONPATH."""


def without_dali(around: Mapping[str, str]) -> dict[str, str]:
    """Return an environment whose processes do not find DALI."""
    others = [path for path in around.get("PYTHONPATH", "").split(os.pathsep) if path]
    return {**around, "PYTHONPATH": os.pathsep.join([str(WITHOUT_DALI), *others])}
