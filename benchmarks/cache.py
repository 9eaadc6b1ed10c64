"""How fast rows come out of the cache, beside the other ways to keep them: `python -m benchmarks.cache --rows N`.

Rows of 2048 x fp16 (4 KB) in random order, none twice, a batch at a time. Cold: the files' pages are dropped with
POSIX_FADV_DONTNEED before, and the reader is opened anew. The variants take turns, so that a busy machine slows
all of them; the median over the rounds counts, and `of_raw` is the median of each round's ratio to the
faster of the two raw preads (8 threads, which cold pages want, and one, which is best for warm ones). `unchecked` is
ours without comparing the checksums.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.harness import record, table
from fastanc.cache.column import Column
from fastanc.cache.store import Field, Store

WIDTH, ROW_BYTES, THREADS, BATCH = 2048, 4096, 8, 256
MAX_FILES = 20_000
WRITTEN_AT_ONCE = 16_384
Read = Callable[[np.ndarray], np.ndarray]
Rates = dict[str, dict[str, list[tuple[float, float]]]]
"""Store -> cold or warm -> rows/s and rows per CPU second of every round."""


def ours(folder: Path, rows: np.ndarray) -> Callable[[], Read]:
    store = Store.open(folder, {}, (Field("features", WIDTH),), len(rows), create=True)
    for first in range(0, len(rows), WRITTEN_AT_ONCE):
        block = rows[first : first + WRITTEN_AT_ONCE]
        store.put(0, np.arange(first, first + len(block)), {"features": block})

    def begin() -> Read:
        reader = Store.at(store.path).reader()
        return lambda index: reader.read(index, np.zeros(len(index), np.int64))[0]["features"].numpy()

    return begin


@contextmanager
def unchecked() -> Iterator[None]:
    """Take every row for right in the block."""
    fits = Column.fits
    Column.fits = lambda self, index, rows: np.ones(len(index), bool)  # type: ignore[method-assign]
    try:
        yield
    finally:
        Column.fits = fits  # type: ignore[method-assign]


def ours_unchecked(folder: Path, rows: np.ndarray) -> Callable[[], Read]:
    begin = ours(folder, rows)

    def begin_unchecked() -> Read:
        read = begin()

        def without(index: np.ndarray) -> np.ndarray:
            with unchecked():
                return read(index)

        return without

    return begin_unchecked


def raw_pread(folder: Path, rows: np.ndarray, threads: int = THREADS) -> Callable[[], Read]:
    rows.tofile(folder / "rows.bin")

    def begin() -> Read:
        file = os.open(folder / "rows.bin", os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
        pool = ThreadPoolExecutor(threads)

        def read(index: np.ndarray) -> np.ndarray:
            out = np.empty((len(index), WIDTH), np.float16)
            buffer, offsets = out.data.cast("B"), (index * ROW_BYTES).tolist()

            def part(first: int) -> None:
                for k in range(first, len(offsets), threads):
                    os.preadv(file, [buffer[k * ROW_BYTES : (k + 1) * ROW_BYTES]], offsets[k])

            list(pool.map(part, range(threads)))
            return out

        return read

    return begin


def npy_memmap(folder: Path, rows: np.ndarray) -> Callable[[], Read]:
    np.save(folder / "rows.npy", rows)

    def begin() -> Read:
        mapped = np.load(folder / "rows.npy", mmap_mode="r")
        return lambda index: mapped[index]

    return begin


def safetensors_slices(folder: Path, rows: np.ndarray) -> Callable[[], Read]:
    from safetensors import safe_open
    from safetensors.numpy import save_file

    save_file({"rows": rows}, folder / "rows.safetensors")

    def begin() -> Read:
        part = safe_open(folder / "rows.safetensors", "np").get_slice("rows")
        return lambda index: np.concatenate([part[k : k + 1] for k in index.tolist()])

    return begin


def lmdb_values(folder: Path, rows: np.ndarray) -> Callable[[], Read]:
    import lmdb

    path = str(folder / "lmdb")
    with (
        lmdb.open(path, map_size=4 * rows.nbytes + (1 << 24)) as environment,
        environment.begin(write=True) as txn,
    ):
        for k, row in enumerate(rows):
            txn.put(k.to_bytes(8, "big"), row.tobytes())

    def begin() -> Read:
        transaction = lmdb.open(path, readonly=True, lock=False, readahead=False).begin(buffers=True)

        def read(index: np.ndarray) -> np.ndarray:
            keys = [k.to_bytes(8, "big") for k in index.tolist()]
            return np.stack([np.frombuffer(transaction.get(key, b""), np.float16) for key in keys])

        return read

    return begin


def file_per_row(folder: Path, rows: np.ndarray) -> Callable[[], Read]:
    for k, row in enumerate(rows):
        row.tofile(folder / str(k))

    def begin() -> Read:
        return lambda index: np.stack([np.fromfile(folder / str(k), np.float16) for k in index.tolist()])

    return begin


VARIANTS: dict[str, Callable[[Path, np.ndarray], Callable[[], Read]]] = {
    "ours": ours,
    "ours, unchecked": ours_unchecked,
    "raw pread": raw_pread,
    "raw pread, 1 thread": partial(raw_pread, threads=1),
    ".npy memmap": npy_memmap,
    "safetensors get_slice": safetensors_slices,
    "LMDB": lmdb_values,
    "one file per row": file_per_row,
}


def drop_pages(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            file = os.open(path, os.O_RDONLY)
            os.fsync(file)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)


def load_pages(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                while file.read(1 << 24):
                    pass


def timed(read: Read, index: np.ndarray, rows: np.ndarray) -> tuple[float, float]:
    """Return rows/s and rows per CPU second; the last batch is compared with the truth, outside the clock."""
    batches = np.array_split(index, max(1, len(index) // BATCH))
    began, busy = time.perf_counter(), time.process_time()
    for batch in batches:
        got = read(batch)
    seconds, busy = time.perf_counter() - began, time.process_time() - busy
    np.testing.assert_array_equal(got, rows[batches[-1]])
    return len(index) / seconds, len(index) / busy


def measure_all(folder: Path, num_rows: int, num_cold: int, rounds: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    rows = rng.random((num_rows, WIDTH), np.float32).astype(np.float16)
    begins, counts = {}, {}
    for name, make in tqdm(VARIANTS.items(), "writing"):
        (place := folder / name.replace(" ", "-")).mkdir()
        counts[name] = min(num_rows, MAX_FILES) if make is file_per_row else num_rows
        begins[name] = make(place, rows[: counts[name]])
    rates: Rates = {name: {"warm": [], "cold": []} for name in VARIANTS}
    for _ in tqdm(range(rounds), "rounds"):
        for name, begin in begins.items():
            drop_pages(folder / name.replace(" ", "-"))
            index = rng.permutation(counts[name])
            rates[name]["cold"].append(timed(begin(), index[:num_cold], rows))
            load_pages(folder / name.replace(" ", "-"))
            read = begin()
            timed(read, index[:num_cold], rows)
            rates[name]["warm"].append(timed(read, rng.permutation(counts[name]), rows))
    return [row(name, kind, rates, counts[name]) for kind in ("warm", "cold") for name in VARIANTS]


def row(name: str, kind: str, rates: Rates, count: int) -> dict[str, Any]:
    found, per_cpu_s = np.array(rates[name][kind]).T
    raw = np.max([rates[other][kind] for other in rates if other.startswith("raw")], axis=0)[:, 0]
    return {
        "store": name,
        "pages": kind,
        "rows_per_s": round(float(np.median(found))),
        "rows_per_cpu_s": round(float(np.median(per_cpu_s))),
        "MB_per_s": round(float(np.median(found)) * ROW_BYTES / 1e6, 1),
        "slowest": round(float(found.min())),
        "fastest": round(float(found.max())),
        "of_raw": round(float(np.median(found / raw)), 3),
        "rows": count,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=200_000, help="rows of 4 KB in every store")
    parser.add_argument("--cold-rows", type=int, default=4_096, help="rows read in a cold round")
    parser.add_argument("--rounds", type=int, default=5, help="times that the variants take turns")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; the temporary folder by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rows = measure_all(Path(folder), options.rows, options.cold_rows, options.rounds)
    record("cache", rows)
    print(table(rows))


if __name__ == "__main__":
    main()
