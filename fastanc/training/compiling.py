"""Networks compiled in place, where that works, and the warm-up that compiles what a run will use and no more."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from fastanc.pipelines.jpeg.options import cores_per_process

_THREADS = "TORCHINDUCTOR_COMPILE_THREADS"


def compile_in_place(module: nn.Module, mode: str = "default") -> None:
    """Let a network's forward be compiled when it is first called, once for every size of its batches."""
    prepare_compiler()
    # All networks share Tapped.forward, so that their variants (who, in which mode, with a gradient or not, how
    # many images) count together against Dynamo's limit of 8, beyond which it stays eager.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    # A run's sizes are few and fixed: kernels for a size that may vary are slower, and full batches would get them.
    module.compile(mode=mode, dynamic=False)


def prepare_compiler() -> None:
    """Let the compiler take this process's cores, where nobody says how many: each of a node would take them all."""
    if not torch.cuda.is_available():  # it looks for CUDA's tools all the same, and warns of what it finds
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    if _THREADS in os.environ:
        return
    cores = cores_per_process()
    os.environ[_THREADS] = str(cores)  # read when it is imported, which takes seconds
    if (config := sys.modules.get("torch._inductor.config")) is not None:
        setattr(config, "compile_threads", cores)  # noqa: B010  (of an unknown module)


def warm_up(action: Callable[[], object], *together: nn.Module) -> str | None:
    """Do what compiles networks as the run will use them; return one sentence when that fails and eager mode stays.

    Their buffers, and random numbers, are afterwards what they were.
    """
    try:
        with unmoved(together):
            action()
    except Exception as error:  # any compiler error: eager is always right, only slower
        for part in (part for one in together for part in one.modules()):
            part._compiled_call_impl = None
        cause = getattr(error, "inner_exception", error)  # of what a backend raised
        reason = (str(cause).strip() or "no reason given").splitlines()[0]
        return f"torch.compile failed ({type(cause).__name__}: {reason}): running eager"
    return None


@contextmanager
def unmoved(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Put every buffer and the random numbers back: BatchNorm's statistics would begin with images of no set."""
    before = [(buffer, buffer.clone()) for module in modules for buffer in module.buffers()]
    devices = {buffer.device for buffer, _ in before if buffer.is_cuda}
    try:
        with torch.random.fork_rng(sorted(devices, key=str)):
            yield
    finally:
        with torch.no_grad():
            for buffer, kept in before:
                buffer.copy_(kept)
