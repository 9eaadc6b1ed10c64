"""A test file once more, in a process whose Triton kernels run in the interpreter.

Triton decides between compiler and interpreter when a kernel is defined, so it takes a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def passes_in_the_interpreter(file: str) -> bool:
    """Run a test file's CPU tests with `TRITON_INTERPRET=1`; fail with what they said, skip where nothing can run."""
    pytest.importorskip("triton")
    around = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not gpu", file],
        env=around,
        cwd=Path(__file__).parent.parent.parent,
        capture_output=True,
        text=True,
    )
    if "only 0-dimensional arrays can be converted to Python scalars" in done.stdout:
        pytest.skip("the interpreter of this Triton cannot loop with this NumPy (Triton 3.6 with NumPy 2.4)")
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    return " passed" in done.stdout
