"""What a cache costs beside the time of its reads: `python -m benchmarks.cache_costs`.

Python's lock: how much less a thread that only counts gets done while rows are read (an idle machine is needed); a
writer that is handed few rows at a time; opening 30 views of ImageNet.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cache import BATCH, ROW_BYTES, VARIANTS, WIDTH, Read
from benchmarks.harness import record, table
from fastanc.cache.store import Field, Store
from fastanc.cache.writer import Writer

IMAGENET, VIEWS = 1_281_167, 30
READERS = ("ours", "ours, unchecked", "raw pread, 1 thread")


def counted_in(work: Callable[[], object]) -> tuple[float, float]:
    """Return what a thread that only counts gets to per second while work() runs, and work's seconds."""
    count, stop = 0, threading.Event()

    def counting() -> None:
        nonlocal count
        while not stop.is_set():
            for _ in range(1000):
                count += 1

    thread = threading.Thread(target=counting)
    thread.start()
    began = time.perf_counter()
    work()
    seconds = time.perf_counter() - began
    stop.set()
    thread.join()
    return count / seconds, seconds


def lock_us(read: Read, num_rows: int, rounds: int) -> float:
    """Return the microseconds of Python's lock that a row takes."""
    index = np.random.default_rng(1).permutation(num_rows)
    batches = np.array_split(index, max(1, len(index) // BATCH))
    found = []
    for _ in range(rounds):
        alone, _ = counted_in(lambda: time.sleep(1.0))
        beside, seconds = counted_in(lambda: [read(batch) for batch in batches])
        found.append((1 - beside / alone) * seconds / num_rows * 1e6)
    return float(np.median(found))


def writing_us(folder: Path, batch: int, num_rows: int) -> float:
    """Return the CPU microseconds of a row that is handed to a writer in batches of so many."""
    store = Store.open(folder / f"batch-{batch}", {}, (Field("features", WIDTH),), num_rows, create=True)
    writer, rows = Writer(store), {"features": torch.rand(batch, WIDTH).half()}
    index = np.random.default_rng(2).permutation(num_rows)
    began = time.process_time()
    for k in range(0, num_rows - batch + 1, batch):
        writer.add(np.zeros(batch, np.int64), index[k : k + batch], rows)
    writer.drain()
    busy = time.process_time() - began
    writer.close()
    return busy / num_rows * 1e6


def opening_ms(folder: Path) -> dict[str, float]:
    """Return the milliseconds to open 30 views of ImageNet (sparse files), to read a batch, and to count all rows."""
    fields = (Field("features", WIDTH),)
    path = Store.open(folder / "many", {}, fields, IMAGENET, create=True).path
    for view in range(VIEWS):
        place = path / f"view-{view:05d}"
        place.mkdir()
        for kind, size in (("rows", ROW_BYTES), ("sums", 8)):
            with (place / f"features.{kind}").open("wb") as file:
                file.truncate(IMAGENET * size)
    began = time.perf_counter()
    store = Store.at(path)
    reader = store.reader()
    opened = time.perf_counter()
    reader.read(np.arange(BATCH), np.zeros(BATCH, np.int64), partial=True)
    read = time.perf_counter()
    for view in range(VIEWS):
        store.complete(view)
    counted = time.perf_counter()
    return {
        "open": (opened - began) * 1e3,
        "first batch": (read - opened) * 1e3,
        "count all rows": (counted - read) * 1e3,
    }


def measure(folder: Path, num_rows: int, rounds: int) -> list[dict[str, Any]]:
    rows = np.random.default_rng(0).random((num_rows, WIDTH), np.float32).astype(np.float16)
    found: dict[str, tuple[float, str]] = {}
    for name in READERS:
        (place := folder / f"lock-{name.replace(' ', '-')}").mkdir()
        read = VARIANTS[name](place, rows)()
        read(np.arange(num_rows))
        found[f"Python's lock, {name}"] = lock_us(read, num_rows, rounds), "us/row"
    for batch in (1, 16, 256):
        found[f"writer, batch {batch}"] = writing_us(folder, batch, 8192), "CPU us/row"
    for name, cost in opening_ms(folder).items():
        found[f"{VIEWS} views of ImageNet: {name}"] = cost, "ms"
    columns = Store.at(next(folder.glob("many/*"))).columns(0)
    found["memory of an open view"] = sum(column.sums.nbytes for column in columns) / IMAGENET, "bytes/image"
    return [{"cost": name, "value": round(value, 2), "unit": unit} for name, (value, unit) in found.items()]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=20_000, help="rows of 4 KB that are read")
    parser.add_argument("--rounds", type=int, default=5, help="times that the lock is measured")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; the temporary folder by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rows = measure(Path(folder), options.rows, options.rounds)
    record("cache_costs", rows)
    print(table(rows))


if __name__ == "__main__":
    main()
