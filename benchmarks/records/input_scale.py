"""What the index, the order and the views of huge sets cost: `python -m benchmarks.records.input_scale`.

The rows are made up: names as long as ImageNet's, one tar, no pixels. A fresh process loads the index, touches every
column that a run reads, and walks through the order and views of some steps; an epoch's cost is their share.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import RECORDS, record, table
from fastanc.pipelines.drawing import draw
from fastanc.pipelines.index.table import Index
from fastanc.pipelines.order import Order
from fastanc.pipelines.views import RandomResizedCrop

BATCH, NAME_BYTES, RATE = 256, 28, 6000
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
    touch_s, mapped = time.perf_counter() - touched, memory_mb("VmRSS") - before
    order, rule = Order(len(index), BATCH, seed=0), RandomResizedCrop(224, 0)
    cpu = time.process_time()
    order(0)
    order_s, cpu = time.process_time() - cpu, time.process_time()
    drawn = sum(len(part.boxes) for part in draw(order, rule, index.sizes.__getitem__, range(steps)))
    epoch_s = order_s + (time.process_time() - cpu) * len(index) / drawn
    return {
        "rows": len(index),
        "index_mb": path.stat().st_size / 2**20,
        "load_ms": load_ms,
        "read_all_s": touch_s,
        "mapped_mb": mapped,
        "order_s": order_s,
        "order_and_views_epoch_s": epoch_s,
        "percent_of_epoch": 100 * epoch_s * RATE / len(index),
        "peak_mb": memory_mb("VmHWM"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[1_281_167, 14_197_122])
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
            command = [sys.executable, "-m", "benchmarks.records.input_scale", "--index", str(path)]
            command += ["--steps", str(chosen.steps)]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rows.append(json.loads(said))
    print(table(rows))
    print(f"appended to {record('input_scale', rows, RECORDS)}")


if __name__ == "__main__":
    main()
