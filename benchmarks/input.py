"""Images per second of ways to feed a network, on the same files: `python -m benchmarks.input [--images N]`.

Views of 224 px in batches of 50 from the JPEGs of FASTANC_DATA/imagenet-samples. torchvision's ways end in normalised
floats, since that is what their users feed; DALI's and ours in uint8, which our networks normalise on the device.
All ways take turns, on one thread each; the medians of the rounds count. A turn begins and ends with every read-ahead
full and the process idle, so that exactly the images of a turn are paid for in it. Then: the first batch at step 0
and at step 10^6, the index pass, and start and peak memory of a process that does nothing else.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torchvision import datasets, io, transforms
from torchvision.transforms import v2

from benchmarks.harness import record, table
from fastanc.pipelines.index.build import Index, build_index, index_path
from fastanc.pipelines.index.pack import pack
from fastanc.pipelines.jpeg.jpeg_set import JpegSet
from fastanc.pipelines.jpeg.options import TORCHVISION, JpegOptions
from fastanc.pipelines.order import Order
from fastanc.pipelines.own_sets import as_dataset
from fastanc.pipelines.tar_file import END_MARK, member_bytes
from fastanc.pipelines.views import RandomResizedCrop

PX, BATCH = 224, 50
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Way = Callable[[Path], Iterator[int]]
"""From the folder of all sources, the number of images in batch after batch, for ever."""


def pil_loader(folder: Path) -> Iterator[int]:
    moves = [transforms.RandomResizedCrop(PX), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    moves.append(transforms.Normalize(MEAN, STD))
    yield from loaded(datasets.ImageFolder(folder / "tree", transforms.Compose(moves)))


def tensor_loader(folder: Path) -> Iterator[int]:
    floats = v2.ToDtype(torch.float32, scale=True)
    moves = [v2.RandomResizedCrop(PX, antialias=True), v2.RandomHorizontalFlip(), floats]
    moves.append(v2.Normalize(MEAN, STD))

    def decode(path: str) -> torch.Tensor:
        return io.decode_image(io.read_file(path), io.ImageReadMode.RGB)

    yield from loaded(datasets.ImageFolder(folder / "tree", v2.Compose(moves), loader=decode))


def loaded(dataset: datasets.ImageFolder) -> Iterator[int]:
    loader = torch.utils.data.DataLoader(dataset, BATCH, shuffle=True, drop_last=True)
    while True:
        for images, _ in loader:
            yield len(images)


def dali_own(folder: Path) -> Iterator[int]:
    from nvidia.dali import fn, pipeline_def

    @pipeline_def
    def graph() -> Any:
        encoded, _ = fn.readers.file(file_root=str(folder / "tree"), random_shuffle=True)
        pixels: Any = fn.decoders.image_random_crop(encoded, random_area=[0.08, 1.0])
        pixels = fn.resize(pixels, size=[PX, PX], antialias=True)
        return fn.flip(pixels, horizontal=fn.random.coin_flip())

    pipeline = graph(batch_size=BATCH, num_threads=1, device_id=None)
    pipeline.build()
    while True:
        outputs: Any = pipeline.run()
        yield len(outputs[0])


def ours(source: str, views: int = 1, start: int = 0, decode: str = "auto") -> Way:
    def begin(folder: Path) -> Iterator[int]:
        data = JpegSet("benchmark", Index.load(index_path(folder / source)), MEAN, STD)
        data = data.on("cpu", JpegOptions(threads=1, decode=decode))
        batch = BATCH - BATCH % views
        order = Order(data.num_images, batch, views_per_image=views)
        for part in data.batches(order, RandomResizedCrop(PX, 0), start=start):
            yield len(part.images)

    return begin


def own_objects(folder: Path) -> Iterator[int]:
    data = as_dataset(datasets.ImageFolder(folder / "tree"), progress=False).on("cpu", JpegOptions(threads=1))
    for part in data.batches(Order(data.num_images, BATCH), RandomResizedCrop(PX, 0)):
        yield len(part.images)


WAYS: dict[str, Way] = {
    "torchvision PIL DataLoader": pil_loader,
    "torchvision.io + v2 on tensors": tensor_loader,
    "DALI's own random crop": dali_own,
    "ours, tree": ours("tree"),
    "ours, tar": ours("flat.tar"),
    "ours, tar of tars": ours("nested.tar"),
    "ours, packed to 256 px": ours("packed.tar"),
    "ours, tar, 2 views a decode": ours("flat.tar", 2),
    "ours, tar, 4 views a decode": ours("flat.tar", 4),
    "ours, packed, 4 views a decode": ours("packed.tar", 4),
    "ours without DALI, tar": ours("flat.tar", decode=TORCHVISION),
    "ours without DALI, packed to 256 px": ours("packed.tar", decode=TORCHVISION),
    "ours without DALI, tar, 4 views a decode": ours("flat.tar", 4, decode=TORCHVISION),
    "ours, on torchvision's ImageFolder": own_objects,
}


BASES = ("torchvision PIL DataLoader", "DALI's own random crop")
"""What the others are compared with."""


def make_sources(jpegs: list[Path], folder: Path) -> list[dict[str, Any]]:
    """Write tree, tar, tar of tars and packed set; return the rates of the index passes."""
    classes: dict[str, dict[str, bytes]] = {}
    for path in jpegs:
        (folder / "tree" / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / "tree" / path.parent.name)
        classes.setdefault(path.parent.name, {})[path.name] = path.read_bytes()
    inner = {f"{name}.tar": tar_of(files) for name, files in classes.items()}
    flat = {f"{c}/{name}": data for c, files in classes.items() for name, data in files.items()}
    (folder / "nested.tar").write_bytes(tar_of(inner))
    (folder / "flat.tar").write_bytes(tar_of(flat))
    rows = []
    for source in ("tree", "flat.tar", "nested.tar"):
        for full in (True, False):
            began = time.perf_counter(), time.process_time()
            index = build_index(folder / source, workers=1, full=full, progress=False)
            wall_s, cpu_s = time.perf_counter() - began[0], time.process_time() - began[1]
            rates = {"images_per_s": len(index) / wall_s, "images_per_cpu_s": len(index) / cpu_s}
            rows.append({"what": f"index {source}{', full' if full else ''}", **rates})
    pack(folder / "tree", folder / "packed.tar", short_side=256, workers=1, progress=False)
    return rows


def tar_of(files: dict[str, bytes]) -> bytes:
    return b"".join(member_bytes(name, data) for name, data in files.items()) + END_MARK


def asleep() -> bool:
    """Return whether every other thread of this process sleeps; one that waits for a core is runnable, not idle."""
    own, states = threading.get_native_id(), []
    for task in Path("/proc/self/task").iterdir():
        try:
            states.append(
                task.name == str(own) or (task / "stat").read_text().rpartition(")")[2].split()[0] == "S"
            )
        except (FileNotFoundError, ProcessLookupError):  # the thread has ended meanwhile
            continue
    return all(states)


def _others_cpu_s() -> float:
    """Processor time of all other threads: looking at many of them takes this one long enough to be seen itself."""
    return time.process_time() - time.thread_time()


def settle() -> float:
    """Wait until the process has been idle for 30 ms; return when it became so.

    Idle is who takes no processor time because nothing is left to do: a process that others keep from the cores
    takes none either.
    """
    quiet, cpu_s = time.perf_counter(), _others_cpu_s()
    while time.perf_counter() - quiet < 0.03:
        time.sleep(0.003)
        if _others_cpu_s() - cpu_s > 0.001 or not asleep():
            quiet, cpu_s = time.perf_counter(), _others_cpu_s()
    return quiet


def turn(way: Iterator[int], images: int) -> tuple[float, float]:
    """Return images per second, and per second of processor time without that of waiting for idleness."""
    settle()
    began, began_cpu, done = time.perf_counter(), time.process_time(), 0
    while done < images:
        done += next(way)
    own_s = time.thread_time()
    wall_s = settle() - began
    return done / wall_s, done / (time.process_time() - began_cpu - (time.thread_time() - own_s))


def rates(folder: Path, images: int, rounds: int, only: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Images per second and per second of processor time; all ways run on side by side and take turns."""
    running = {name: way(folder) for name, way in WAYS.items() if not only or name in (*BASES, *only)}
    for way in running.values():
        for _ in range(3):
            next(way)
    wall: dict[str, list[float]] = {name: [] for name in running}
    cpu: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(rounds):
        for name, way in running.items():
            by_wall, by_cpu = turn(way, images)
            wall[name].append(by_wall)
            cpu[name].append(by_cpu)
    base, dali = (cpu[name] for name in BASES)
    return [
        {
            "what": name,
            "images_per_s": statistics.median(wall[name]),
            "images_per_cpu_s": statistics.median(cpu[name]),
            "of_pil": statistics.median(a / b for a, b in zip(cpu[name], base)),
            "of_dali": statistics.median(a / b for a, b in zip(cpu[name], dali)),
        }
        for name in running
    ]


def first_batches(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Milliseconds to the first batch in a process that has imported everything, by first step."""
    times: dict[int, list[float]] = {0: [], 10**6: []}
    for _ in range(3 * rounds):
        for start, found in times.items():
            began = time.perf_counter()
            way = ours("flat.tar", start=start)(folder)
            next(way)
            found.append(1e3 * (time.perf_counter() - began))
            way.close()  # type: ignore[attr-defined]
    return [
        {"what": f"ours, tar, first batch at step {start:,}", "first_batch_ms": statistics.median(found)}
        for start, found in times.items()
    ]


def alone(name: str, folder: Path, steps: int) -> None:
    """Print the seconds to the first batch, and the peak memory in MB after some steps."""
    began = time.perf_counter()
    way = WAYS[name](folder)
    next(way)
    first_s = time.perf_counter() - began
    for _ in range(steps):
        next(way)
    status = Path("/proc/self/status").read_text()  # getrusage would count the parent's memory too
    peak_kb = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    print(first_s, peak_kb / 1024, flush=True)
    os._exit(0)


def processes(folder: Path, names: list[str]) -> dict[str, dict[str, float]]:
    found = {}
    for name in names:
        command = [sys.executable, "-m", "benchmarks.input", "--alone", name, "--folder", str(folder)]
        began = time.perf_counter()
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        start_s = time.perf_counter() - began
        found[name] = {
            "process_s": start_s,
            "first_batch_ms": 1e3 * float(said[-2]),
            "peak_mb": float(said[-1]),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=150, help="images a way and turn (150)")
    parser.add_argument("--rounds", type=int, default=3, help="turns (3)")
    parser.add_argument("--files", type=int, default=300, help="JPEGs used (300)")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(WAYS),
        default=[],
        metavar="WAY",
        help="these, PIL, DALI; nothing else",
    )
    parser.add_argument("--alone", choices=list(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.alone:
        return alone(chosen.alone, chosen.folder, 3)
    jpegs = sorted(Path(os.environ.get("FASTANC_DATA", ".")).glob("imagenet-samples/*/*.JPEG"))[
        : chosen.files
    ]
    if not jpegs:
        parser.error("there are no JPEGs in imagenet-samples: set FASTANC_DATA to the folder that holds it")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        indexing = make_sources(jpegs, folder)
        rows = rates(folder, chosen.images, chosen.rounds, chosen.only)
        if not chosen.only:
            lone = processes(folder, [*BASES, "ours, tar"])
            rows = [row | lone.get(row["what"], {}) for row in rows]
            rows += first_batches(folder, chosen.rounds) + indexing
    print(table(rows))
    print(f"appended to {record('input', rows)}")
    return None


if __name__ == "__main__":
    main()
