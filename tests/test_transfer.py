"""Nothing in a step copies to a GPU from memory that is not pinned; tried on a tensor that is none."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import fastanc.batch
import fastanc.pipelines
from fastanc.pipelines.transfer import moved


class Host:
    """A tensor of the host that writes down what becomes of it."""

    def __init__(self, told: list[tuple[Any, ...]]) -> None:
        self.told = told

    def pin_memory(self) -> Host:
        self.told.append(("pinned",))
        return self

    def to(self, device: torch.device, non_blocking: bool = False) -> Host:
        self.told.append((device.type, non_blocking))
        return self


@pytest.mark.parametrize(
    ("device", "expected"), [("cuda:1", [("pinned",), ("cuda", True)]), ("cpu", [("cpu", False)])]
)
def test_a_gpu_is_not_waited_for_and_a_cpu_copies_nothing(device: str, expected: list[Any]) -> None:
    told: list[tuple[Any, ...]] = []
    moved(Host(told), torch.device(device))  # type: ignore[arg-type]
    assert told == expected
    host = torch.arange(3)
    assert moved(host, torch.device("cpu")) is host


def test_whatever_a_step_makes_on_the_host_is_moved_by_it() -> None:
    homes = [Path(fastanc.pipelines.__path__[0])]
    homes += [Path(fastanc.batch.__file__).parent / room for room in ("cache", "teacher", "training")]
    files = [file for home in homes for file in home.rglob("*.py")]
    assert len(files) > 60
    copies = [
        (file.name, line)
        for file in files
        for line in file.read_text().splitlines()
        if re.search(r"from_numpy\(.*\.to\(", line)
    ]
    once = {"arrays.py": "self.images", "build.py": "features"}  # at a start; in a command that waits anyhow
    assert [(name, once[name] in line) for name, line in sorted(copies)] == [(name, True) for name in once]
