"""What the index, the order and the views of huge sets cost: `python -m benchmarks.records.input_scale`.

The rows are made up: names as long as ImageNet's, one tar, no pixels. A fresh process loads the index, touches every
column that a run reads, and walks through the order and views of some steps, whose processor time is given for a step
and for an epoch. Beside it what an epoch's permutation takes as a table, which was the order of earlier versions. Of
`--simulated` rows there is no index on the disk: order and views are computed as of the others, what the index takes
follows from the bytes and the time for each row of the largest one before. `--joined` rows lie in ten parts, whose
indices are joined first.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import RECORDS, record, table
from fastanc.pipelines.drawing import draw
from fastanc.pipelines.index.joined import join
from fastanc.pipelines.index.table import Index
from fastanc.pipelines.order import TABLE, Order
from fastanc.pipelines.views import RandomResizedCrop

BATCH, NAME_BYTES, RATE, PARTS = 256, 28, 6000, 10
READ = ("sizes", "labels", "lengths", "offsets", "file_numbers", "name_ends", "name_bytes")


def made_up(rows: int) -> Index:
    """Return an index of so many rows whose names are all of one length."""
    numbers = np.arange(rows)
    sizes = np.stack([200 + numbers % 401, 200 + numbers % 307], 1).astype(np.int32)
    return Index(
        source=Path("made-up.tar"),
        sizes=sizes,
        labels=numbers % 1000,
        classes=[f"n{k:08d}" for k in range(1000)],
        crc32=numbers.astype(np.uint32),
        lengths=np.full(rows, 110_000),
        offsets=numbers * 110_592,
        file_numbers=np.zeros(rows, np.int32),
        files=[("made-up.tar", rows * 110_592)],
        note_numbers=np.zeros(rows, np.uint16),
        notes=[""],
        name_bytes=np.full(rows * NAME_BYTES, ord("n"), np.uint8),
        name_ends=NAME_BYTES * (numbers + 1),
        rejected=0,
        fingerprint="made up",
    )


def memory_mb(kind: str) -> float:
    """Return this process's VmRSS (now) or VmHWM (the most) in MB."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith(kind)) / 1024


def cost(path: Path, steps: int) -> dict[str, Any]:
    before, began = memory_mb("VmRSS"), time.perf_counter()
    index = Index.load(path)
    load_ms, touched = 1e3 * (time.perf_counter() - began), time.perf_counter()
    for column in READ:
        getattr(index, column).max()
    read = {
        "rows": len(index),
        "index_mb": path.stat().st_size / 2**20,
        "index_bytes_per_image": path.stat().st_size / len(index),
        "load_ms": load_ms,
        "read_all_s": time.perf_counter() - touched,
        "mapped_mb": memory_mb("VmRSS") - before,
    }
    walked = walk(len(index), index.sizes.__getitem__, steps)
    return read | walked | as_table(len(index)) | {"peak_mb": memory_mb("VmHWM")}


def walk(rows: int, sizes: Callable[[np.ndarray], np.ndarray], steps: int) -> dict[str, float]:
    """Processor time of the order, and of order and views, of some steps of an epoch, and the order's memory."""
    order, rule = Order(rows, BATCH, seed=0), RandomResizedCrop(224, 0)
    tracemalloc.start()
    order(order.steps_per_epoch // 2)
    order_kb = tracemalloc.get_traced_memory()[1] / 2**10
    tracemalloc.stop()
    cpu = time.process_time()
    for step in range(steps):
        order(step)
    order_s, cpu = time.process_time() - cpu, time.process_time()
    # Steps of their own, or the order would be at hand.
    drawn = sum(len(part.boxes) for part in draw(order, rule, sizes, range(steps, 2 * steps)))
    both_s = time.process_time() - cpu
    return {
        "order_us_per_step": 1e6 * order_s / steps,
        "order_and_views_us_per_step": 1e6 * both_s / steps,
        "percent_of_step": 100 * both_s * RATE / drawn,
        "order_peak_kb": order_kb,
    }


def as_table(rows: int) -> dict[str, float]:
    """Processor time and memory of one epoch's permutation as a table."""
    order, cpu = Order(rows, BATCH, seed=0, permutation=TABLE), time.process_time()
    tracemalloc.start()
    order(0)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {
        "table_us_per_step": 1e6 * (time.process_time() - cpu) / order.steps_per_epoch,
        "table_first_step_s": time.process_time() - cpu,
        "table_mb": kept / 2**20,
        "table_peak_mb": peak / 2**20,
    }


def simulated(rows: int, steps: int, like: Mapping[str, float]) -> dict[str, Any]:
    """The row of an index that is not written, from the bytes and times of each row of another one."""
    grown = rows / like["rows"]

    def sizes(numbers: np.ndarray) -> np.ndarray:
        return np.stack([200 + numbers % 401, 200 + numbers % 307], 1).astype(np.int32)

    of_index = {key: like[key] * grown for key in ("index_mb", "load_ms", "read_all_s")}
    return {
        "rows": rows,
        **of_index,
        "index_bytes_per_image": like["index_bytes_per_image"],
        **walk(rows, sizes, steps),
        "table_mb": 8 * rows / 2**20,
        "index_by_arithmetic": True,
    }


def of_parts(rows: int, steps: int) -> dict[str, Any]:
    """The row of an index that is joined from ten, and the processor time of joining and writing it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        places = [folder / f"part-{k}.tar" for k in range(PARTS)]
        for place in places:
            made_up(rows // PARTS).save(place.with_suffix(".index"))
        cpu = time.process_time()
        parts = [Index.load(place.with_suffix(".index")) for place in places]
        join(folder / "all.parts", places, parts).save(folder / "all.parts.index")
        join_s = time.process_time() - cpu
        return {**in_a_process(folder / "all.parts.index", steps), "parts": PARTS, "join_s": join_s}


def in_a_process(path: Path, steps: int) -> dict[str, Any]:
    """What `cost` finds in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.records.input_scale",
        "--index",
        str(path),
        "--steps",
        str(steps),
    ]
    found: dict[str, Any] = json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[1_281_167, 14_197_122])
    parser.add_argument("--simulated", type=int, nargs="*", default=[400_000_000])
    parser.add_argument("--joined", type=int, nargs="*", default=[14_197_120], help="rows of ten parts")
    parser.add_argument("--steps", type=int, default=800, help="steps walked through (800)")
    parser.add_argument("--index", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.index:
        print(json.dumps(cost(chosen.index, chosen.steps)))
        return
    rows = []
    for count in chosen.rows:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "made-up.index"
            made_up(count).save(path)
            rows.append(in_a_process(path, chosen.steps))
    rows += [simulated(count, chosen.steps, rows[-1]) for count in chosen.simulated]
    rows += [of_parts(count, chosen.steps) for count in chosen.joined]
    print(table(rows))
    print(f"appended to {record('input_scale', rows, RECORDS)}")


if __name__ == "__main__":
    main()
