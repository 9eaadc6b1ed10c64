"""Fixtures every test file shares."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's background job ignores Ctrl-C, and so would all that the tests start: they would wait for ever.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_root() -> Path:
    root = os.environ.get("FASTANC_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("FASTANC_DATA names no folder with the real data sets")
    return Path(root).resolve()


@pytest.fixture(scope="session")
def real_jpegs(data_root: Path) -> list[Path]:
    paths = sorted((data_root / "imagenet-samples").glob("*/*.JPEG"))
    if not paths:
        pytest.skip(f"no JPEGs under {data_root}/imagenet-samples")
    return paths


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="no CUDA device")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)
