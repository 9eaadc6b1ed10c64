"""What every kernel takes of a chip, without one: `python -m benchmarks.kernels_compiled` on any machine with Triton.

Every function of fastanc/kernels is called with tensors that have shapes and no memory; what it would launch is
compiled ahead of time for the chip, with the specialisation that the launch would have had. Shared memory is what the
launch asks for; registers and spills are read from the machine code by cuobjdump.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastanc.kernels.discriminator_move import discriminator_move
from fastanc.kernels.dropout import draw_seed, dropout_mask
from fastanc.kernels.fooling_move import fooling_move
from fastanc.kernels.logit_losses import soft_kl, squared_error
from fastanc.kernels.small_set import crop_flip
from fastanc.models.discriminators import TABLE1, discriminator

CHIPS = {"H100": (90, 232_448), "A100": (80, 166_912)}
"""Compute capability, and the bytes of shared memory that one block can have."""
LAYOUTS = [*(layout for layout in TABLE1 if re.fullmatch(r"\d+-\d+-\d+", layout)), "256-256-256"]
DEPTHS, BATCHES = (64, 512, 2048), (64, 256, 1024)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Launch(NamedTuple):
    """A kernel and what it is launched with."""

    kernel: Any
    arguments: Sequence[Any]
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The kernel's."""
        return str(self.kernel.__name__).strip("_")


class Demand(NamedTuple):
    """What one block of a kernel takes; None where nothing can read it from the machine code."""

    shared_bytes: int
    registers: int | None
    spilled_bytes: int | None


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Record what is launched inside in place of launching it; CUDA tensors are made without memory."""
    from triton.runtime.jit import JITFunction

    launches: list[Launch] = []

    def record(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        launches.append(Launch(kernel, arguments, options))

    run = JITFunction.run
    JITFunction.run = record
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield launches
    finally:
        JITFunction.run = run


def demand(launch: Launch, chip: str) -> Demand:
    """Compile a launch for a chip and return what it takes."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile, make_backend
    from triton.runtime.jit import MockTensor, create_function_from_signature

    target = GPUTarget("cuda", CHIPS[chip][0], 32)
    backend = make_backend(target)
    kernel = launch.kernel
    arguments = [MockTensor(a.dtype) if isinstance(a, torch.Tensor) else a for a in launch.arguments]
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    options, *source = kernel._pack_args(
        backend, dict(launch.options), *bind(*arguments, **dict(launch.options))
    )
    compiled = compile(ASTSource(kernel, *source), target=target, options=options.__dict__)
    return Demand(compiled.metadata.shared, *_of_machine_code(compiled.asm["cubin"]))


def _of_machine_code(cubin: bytes) -> tuple[int | None, int | None]:
    """Return registers of a thread, and the bytes of its stack: nothing else of these kernels can lie there."""
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        try:
            command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        except (AttributeError, OSError, RuntimeError, subprocess.CalledProcessError):
            return None, None
    registers, stack, local = (re.search(rf"{key}:(\d+)", said) for key in ("REG", "STACK", "LOCAL"))
    if not (registers and stack and local):
        return None, None
    return int(registers[1]), int(stack[1]) + int(local[1])


def move_launches(layout: str, depth: int, batch: int, dtype: str, drop: float = 0.5) -> list[Launch]:
    """Return what both moves launch for this discriminator."""
    with recorded() as launches:
        with torch.device("cuda"):
            parameters = list(discriminator(layout, depth).parameters())
        teacher, student = torch.empty(2, batch, depth, device="cuda", dtype=DTYPES[dtype]).unbind()
        discriminator_move(teacher, student, parameters, drop)
        fooling_move(student.clone().requires_grad_(), parameters, drop)
    return launches


def loss_launches(classes: int, batch: int, dtype: str) -> list[Launch]:
    """Return what both losses launch on logits."""
    with recorded() as launches:
        student = torch.empty(batch, classes, device="cuda", dtype=DTYPES[dtype], requires_grad=True)
        teacher = torch.empty(batch, classes, device="cuda")
        squared_error(student, teacher)
        soft_kl(student, teacher, 4.0)
    return launches


def other_launches(batch: int) -> list[Launch]:
    """Return what cutting a batch out of a small set launches, and drawing a mask."""
    with recorded() as launches:
        for channels in (1, 3):
            images = torch.empty(1000, 32, 32, channels, dtype=torch.uint8, device="cuda")
            picks = torch.empty(4, batch, dtype=torch.int64, device="cuda")
            crop_flip(images, picks[0], picks[1:3].t(), picks[3], 32, 4)
        dropout_mask(draw_seed(images.device), batch, 64, 0.5)
    return launches


def shapes() -> Iterator[tuple[dict[str, Any], Callable[[], list[Launch]]]]:
    """Yield the columns that name a shape, and what gives its launches."""
    for layout in LAYOUTS:
        for depth in DEPTHS:
            for batch in BATCHES:
                for dtype in DTYPES:
                    case = (layout, depth, batch, dtype)
                    columns = dict(zip(("layout", "D", "B", "dtype"), case))
                    yield columns, lambda case=case: move_launches(*case)
    for classes in (10, 1000, 32_000):
        for dtype in DTYPES:
            columns = {"layout": f"K {classes}", "D": None, "B": 256, "dtype": dtype}
            yield columns, lambda classes=classes, dtype=dtype: loss_launches(classes, 256, dtype)
    yield {"layout": "32 px", "D": None, "B": 256, "dtype": "uint8"}, lambda: other_launches(256)


def rows(chips: Sequence[str] = tuple(CHIPS)) -> list[dict[str, Any]]:
    """Return the whole table; shapes that compile to the same code are looked up in Triton's cache."""
    work = [(columns, launch, chip) for columns, get in shapes() for launch in get() for chip in chips]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        demands = list(pool.map(lambda item: demand(item[1], item[2]), work))
    return [
        {"kernel": launch.name, **columns, "chip": chip, **taken._asdict(), "limit_bytes": CHIPS[chip][1]}
        for (columns, launch, chip), taken in zip(work, demands)
    ]


def worst(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per kernel, layout and chip: the largest demands of all its shapes, and the shape with the most
    shared memory."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: -row["shared_bytes"]):
        most = found.setdefault((row["kernel"], row["layout"], row["chip"]), {**row, "shapes": 0})
        most["shapes"] += 1
        for key in ("registers", "spilled_bytes"):
            if row[key] is not None:
                most[key] = max(most[key], row[key])
    return sorted(found.values(), key=lambda row: (row["kernel"], row["layout"], row["chip"]))


def main() -> None:
    from benchmarks.harness import record, table

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chips", nargs="+", choices=list(CHIPS), default=list(CHIPS), help="these chips")
    made = worst(rows(parser.parse_args().chips))
    print(table(made))
    print(f"appended to {record('kernels_compiled', made)}")


if __name__ == "__main__":
    main()
