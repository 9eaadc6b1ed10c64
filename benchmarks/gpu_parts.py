"""The parts of `benchmarks.gpu_check` and the calls that they are made in: each part yields rows of one table.

On the GPU, or tiny on the CPU to rehearse. What a part measures with is imported inside it, so that a package or a
name that is missing costs this part alone.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from benchmarks.gpu_decode import decode_rates, decode_stability
from benchmarks.gpu_reducer import reducer
from benchmarks.gpu_rows import Part, Row, begin, row
from benchmarks.gpu_steps import end_to_end, step_of, teacher
from benchmarks.gpu_tests import tests


def kernels(rehearse: bool) -> Iterator[Row]:
    """Every kernel against its compiled reference, by `benchmarks/kernels.py`."""
    from benchmarks.kernel_cases import CASES
    from benchmarks.kernels import Worker, decisions

    environment = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "2"}
    if rehearse:
        environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    chosen = ["squared_error", "crop_flip"] if rehearse else list(CASES)
    workers = [Worker(kernel, environment) for kernel in chosen]
    for worker in workers:
        begin(f"{worker.kernel}: compiled, all side by side")
        worker.wait()
    found = []
    for worker in workers:
        begin(f"{worker.kernel}: timed, alone")
        rows = worker.rows()
        yield from map(_kernel_row, rows)
        found += rows
    yield from map(_kernel_row, decisions(found))


def _kernel_row(each: Row) -> Row:
    taken = each.get("kernel_graph_us", each.get("kernel_us"))
    return row(
        f"{each['kernel']}, {each['shape']}",
        str(each.get("verdict", each.get("failure", ""))),
        ms=None if taken is None else taken / 1e3,
        ratio=each.get("speedup"),
    )


def plays(rehearse: bool) -> Iterator[Row]:
    """What `run.kernels auto` would choose for each play at 32 px, and what every spelling costs."""
    from benchmarks.plays import METHODS, rows

    size, precision = (8, "fp32") if rehearse else (128, "bf16")
    for method in ("l2",) if rehearse else ("anc", "kd", *(m for m in METHODS if m not in ("anc", "kd"))):
        begin(method)
        for each in rows(method, size, precision):
            wrong = each["failure"] or f"{each['error']:.1e} from float64"
            yield row(
                f"{method}, {each['player']}, {each['spelling']}",
                f"{wrong}{', chosen' if each['chosen'] else ''}; host {each['host_ms'] or 0:.3f} ms",
                ms=each["device_ms"],
                ratio=each["saved_of_step"],
            )


def launched(rehearse: bool) -> Iterator[Row]:
    """The public entry in each precision, one process by torchrun and under ZeRO-1; "reducer" has DDP."""
    from benchmarks import launches

    batch, words = 64 if rehearse else 512, _launched_words()
    if words is None:
        yield row("all", "needs scikit-learn, or CIFAR-10 in FASTANC_DATA")
        return
    words += ["--data.batch", str(batch), "--schedule.epochs", "40"]
    torchrun = ["torch.distributed.run", "--standalone", "--nproc_per_node", "1"]
    starts: dict[str, Callable[[Path], Sequence[str]]] = {
        "torchrun": lambda folder: torchrun,
        "ZeRO-1": partial(launches.accelerate, processes=1, zero_stage=1, cpu=rehearse),
    }
    lacking = _lacking("deepspeed", "transformers")
    for precision in ("fp32",) if rehearse else ("bf16", "fp32", "fp16"):
        for start, launcher in starts.items():
            case = f"{start}, one process, {precision}"
            if start == "ZeRO-1" and lacking:
                yield row(case, f"needs {lacking}")
                continue
            begin(case)
            try:
                found = launches.measure_once(
                    [*words, "--run.precision", precision], 10 if rehearse else 60, launcher
                )
            except RuntimeError as error:
                yield row(case, f"FAILED: {error}")
                continue
            said = f"{found['start_s']:.1f} s to the first line of the log"
            yield row(case, said, images_per_s=1e3 * batch / found["ms_step"], ms=found["ms_step"])


def _launched_words() -> list[str] | None:
    """Return a small recipe whose images are here: the digits, which scikit-learn brings, or CIFAR-10.

    No start waits for the probe of the decode plans: the digits' is fixed, CIFAR-10 needs none.
    """
    from benchmarks import launches

    if not _lacking("sklearn"):
        return [*launches.RECIPE, *launches.RANDOM_TEACHER, "--data.decode", "cpu"]
    if (Path(os.environ.get("FASTANC_DATA", "")) / "cifar-10-batches-py").is_dir():
        names = ["--student.name", "resnet20", "--teacher.name", "resnet8"]
        return ["--recipe", "cifar10_resnet56_resnet20", *names, *launches.RANDOM_TEACHER]
    return None


def _lacking(*packages: str) -> str | None:
    """Return the first of these packages that is not installed."""
    return next((name for name in packages if importlib.util.find_spec(name) is None), None)


PARTS = {
    "tests": Part(tests, 200, 200),
    "kernels": Part(kernels, 240, 130),
    "teacher": Part(teacher, 240, 110),  # its compiled code is in the compiler's cache for the steps after it
    "step resnet18": Part(step_of("resnet18"), 240, 140),
    "stability": Part(decode_stability, 90, 90),
    "reducer": Part(reducer, 150, 110),
    "decode": Part(decode_rates, 200, 180),
    "launches": Part(launched, 240, 180),
    "step resnet50": Part(step_of("resnet50"), 240, 240),
    # The 32 px step may be bound by launches, which graphs save.
    "step resnet20": Part(step_of("resnet20_v1", ("compiled", "eager", "graphs")), 240, 130),
    "plays": Part(plays, 150, 40),
    "end to end": Part(end_to_end, 240, 170),
}

CALLS = (
    ("tests", "kernels", "teacher", "step resnet18"),
    ("stability", "reducer", "decode", "launches"),
    ("step resnet50", "step resnet20", "plays", "end to end"),
)
"""Parts of one call of `CALL_S`, the most important first."""
CALL_S = 590.0


def allowance(names: Sequence[str], left_s: float) -> float:
    """Return the seconds that the first of these parts may take, so that every part after it keeps its least."""
    first, kept_s = PARTS[names[0]], sum(PARTS[name].least_s for name in names[1:])
    return min(first.limit_s, left_s, max(left_s - kept_s, first.least_s))
