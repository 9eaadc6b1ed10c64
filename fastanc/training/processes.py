"""The processes of a run: one Accelerator that is what the launcher meant, and sums over all of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs
from accelerate.state import AcceleratorState
from torch import Tensor

_PATIENCE = timedelta(hours=2)
"""Of processes that wait for each other: one may compile, or close a cache, much longer than another."""


def make_accelerator(
    *,
    precision: str = "fp32",
    batch: int = 1,
    clip: float = 0.0,
    accumulate: int = 1,
    deterministic: bool = False,
) -> Accelerator:
    """Return the Accelerator of this process; RuntimeError when the launcher started something else than it said.

    Works for one process, DDP (gloo on a CPU, NCCL on GPUs) and DeepSpeed ZeRO 0, 1, 2. `precision` is the
    student's arithmetic ("fp32", "bf16", "fp16"), `accumulate` the number of backward passes of an update; DeepSpeed
    also wants to know the global `batch` and the student's largest gradient norm `clip`. `deterministic` is of the
    whole process, see `choose_kernels`.
    """
    choose_kernels(deterministic)
    kept = AcceleratorState._shared_state.get("_mixed_precision")
    if kept is not None and kept != ("no" if precision == "fp32" else precision):
        # Accelerate keeps the first run's arithmetic for the process's life; this one wants another.
        AcceleratorState._reset_state()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    _refuse_silent_single(world)
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() in ("1", "true"):
        accelerator = _deepspeed(precision, max(1, batch // world // accumulate), clip, accumulate)
    else:
        accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            mixed_precision="no" if precision == "fp32" else precision,
            gradient_accumulation_steps=accumulate,
            kwargs_handlers=[
                # BatchNorm's statistics are averaged before they are used (validate.average_buffers), the same
                # way under every backend, instead of being overwritten by process 0's in every forward pass.
                DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False),
                InitProcessGroupKwargs(timeout=_PATIENCE),
            ],
        )
    accelerator.sync_gradients = (
        True  # the process's: a loop that ended between two parts may have left it off
    )
    if accelerator.num_processes != world:
        raise RuntimeError(
            f"the launcher started {world} processes but Accelerate sees {accelerator.num_processes}:"
            " use one of fastanc/recipes/launch/*.yaml"
        )
    return accelerator


def choose_kernels(deterministic: bool) -> None:
    """Let cuDNN try its kernels on every new shape and keep the fastest, or have the same bits every time."""
    torch.backends.cudnn.benchmark = not deterministic
    if (
        deterministic != torch.are_deterministic_algorithms_enabled()
    ):  # the call alone loads a compiler, for seconds
        torch.use_deterministic_algorithms(deterministic)
    if deterministic:  # read when cuBLAS is first used
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def average_flat(accelerator: Accelerator, tensors: Sequence[Tensor]) -> None:
    """Replace tensors by their mean over all processes, with one flat all-reduce."""
    if accelerator.num_processes == 1 or not tensors:
        return
    flat = accelerator.reduce(torch.cat([t.reshape(-1) for t in tensors]), reduction="mean")
    start = 0
    for tensor in tensors:
        tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
        start += tensor.numel()


def sum_over(accelerator: Accelerator) -> Callable[[Tensor], Tensor]:
    """Return the function that sums a tensor over all processes."""
    return lambda tensor: accelerator.reduce(tensor, reduction="sum")


def mean_over(accelerator: Accelerator) -> Callable[[Tensor], Tensor]:
    """Return the function that averages a tensor over all processes."""
    return lambda tensor: accelerator.reduce(tensor, reduction="mean")


def end_processes() -> None:
    """Leave the group of processes, at the end of a command."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch's generators as a pure function of (seed, step, process), so that resuming is arithmetic.

    The bits are those of `torch.manual_seed`, which in every step also asks for devices that nobody has.
    """
    number = (seed * 1_000_003 + step) * 8_191 + rank
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(number)


def _deepspeed(precision: str, micro_batch: int, clip: float, accumulate: int) -> Accelerator:
    try:
        import deepspeed.ops
        import transformers  # noqa: F401  (Accelerate's DeepSpeed path asks for its version)
    except ImportError as error:
        raise RuntimeError(f"DeepSpeed needs {error.name}: pip install deepspeed transformers") from error
    from accelerate import DeepSpeedPlugin

    # With ACCELERATE_USE_CPU set, Accelerate would silently run plain DDP instead.
    os.environ.pop("ACCELERATE_USE_CPU", None)
    os.environ["ACCELERATE_MIXED_PRECISION"] = "no"
    handlers = [InitProcessGroupKwargs(timeout=_PATIENCE)]
    if not torch.cuda.is_available():
        # Without gloo every process believes to be alone; the compiled op would need g++ and minutes.
        handlers = [InitProcessGroupKwargs(backend="gloo", timeout=_PATIENCE)]
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    plugin = DeepSpeedPlugin(gradient_accumulation_steps=accumulate)
    plugin.deepspeed_config.update(
        gradient_clipping=float(clip),  # left out, it would be 1.0
        train_micro_batch_size_per_gpu=micro_batch,
        zero_allow_untested_optimizer=True,
    )
    if precision != "fp32":
        # DeepSpeed's own bf16 section would cast BatchNorm; autocast keeps weights and statistics in fp32.
        dtype = {"bf16": "bfloat16", "fp16": "float16"}[precision]
        plugin.deepspeed_config["torch_autocast"] = {"enabled": True, "dtype": dtype}
    accelerator = Accelerator(deepspeed_plugin=plugin, kwargs_handlers=handlers)
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        raise RuntimeError(
            f"DeepSpeed was asked for but {accelerator.distributed_type} runs: check the launch file"
        )
    return accelerator


def _refuse_silent_single(world: int) -> None:
    """`accelerate launch --cpu --num_processes 2` starts ONE process and says nothing."""
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return
    if not any("accelerate" in word for word in words):
        return
    for option in ("--num_processes", "--num-processes"):
        asked = words[words.index(option) + 1] if option in words[:-1] else str(world)
        if asked.isdigit() and int(asked) > world == 1:
            raise RuntimeError(
                f"the launcher was asked for {asked} processes but started one: add --multi_gpu"
                " (on a CPU too), or use one of fastanc/recipes/launch/*.yaml"
            )
