"""256 real images are the same bits from any container, in any batch, on any threads and processes."""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastanc.pipelines.index.build import Index, build_index, index_path
from fastanc.pipelines.index.pack import pack
from fastanc.pipelines.jpeg.jpeg_set import JpegSet
from fastanc.pipelines.jpeg.options import JpegOptions
from fastanc.pipelines.order import Order
from fastanc.pipelines.views import RandomResizedCrop
from support.decoders import needs_dali
from support.images import put
from support.tars import tar_of_tars, write_tar

N, SEED = 256, 3
SOURCES = ("tree", "tar", "nested", "packed")
BATCHES, THREADS = (7, 128), (1, 2, 5)
Bits = dict[tuple[int, int], str]  # (image, view) -> hash of its pixels
PROCESSES = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_same_bits as tests  # once: four imports would take longer than the test
for rank in range(4):
    if os.fork() == 0:
        bits = tests.bits_of(Path(sys.argv[2]), 128, 1, 0, 2, rank, 4)
        Path(sys.argv[3], str(rank)).write_text(json.dumps([[*key, value] for key, value in bits.items()]))
        os._exit(0)
sys.exit(any(os.wait()[1] for _ in range(4)))
"""


@pytest.fixture(scope="module")
def sources(real_jpegs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same 256 images as a tree, a flat tar, a tar of tars, and packed without shrinking any."""
    root = tmp_path_factory.mktemp("bits")
    files = {f"n{i % 10:08d}/{path.name}": path.read_bytes() for i, path in enumerate(real_jpegs[:N])}
    put(root / "tree", files)
    write_tar(root / "flat.tar", files)
    tar_of_tars(root / "ILSVRC2012_img_train.tar", files)
    pack(root / "tree", root / "packed.tar", short_side=10_000, workers=1, progress=False)
    paths = (root / name for name in ("tree", "flat.tar", "ILSVRC2012_img_train.tar", "packed.tar"))
    found = dict(zip(SOURCES, paths))
    for source in found.values():
        build_index(source, workers=1, progress=False)
    return found


def bits_of(
    source: Path,
    batch: int,
    threads: int,
    start: int = 0,
    stop: int = 0,
    rank: int = 0,
    world: int = 1,
    plan: str = "auto",
) -> Bits:
    """The hashes of every (image, view) in steps start to stop - 1 of one process (an epoch without `stop`)."""
    order = Order(N, batch, rank, world, SEED)
    data = JpegSet("bits", Index.load(index_path(source)), (0.0,), (1.0,))
    data = data.on("cpu", JpegOptions(threads=threads, decode=plan))
    rule, stop = RandomResizedCrop(64, SEED), stop or start + order.steps_per_epoch
    batches = data.batches(order, rule, start=start, stop=stop)
    found = {}
    for part in batches:
        for i, view, image in zip(part.index.tolist(), part.view.tolist(), part.images.numpy()):
            found[i, view] = hashlib.blake2b(np.ascontiguousarray(image), digest_size=8).hexdigest()
    return found


@pytest.fixture(scope="module")
def reference(sources: dict[str, Path]) -> Bits:
    """Views 0 and 1 of all 256 images, one at a time, from the tree."""
    bits = bits_of(sources["tree"], 1, 1, stop=2 * N)
    assert len(set(bits.values())) == len(bits) == 2 * N
    return bits


def check(found: Bits, reference: Bits, count: int) -> None:
    assert len(found) == count
    assert {key: bits for key, bits in found.items() if reference[key] != bits} == {}


@pytest.mark.parametrize(
    ("source", "batch", "threads"), [("tree", 128, 5), ("tar", 7, 2), ("nested", 128, 1), ("packed", 7, 5)]
)
def test_same_bits_from_every_container(
    sources: dict[str, Path], reference: Bits, source: str, batch: int, threads: int
) -> None:
    check(bits_of(sources[source], batch, threads), reference, N // batch * batch)


@pytest.mark.parametrize(
    ("plan", "batch", "threads"),
    [pytest.param("cpu", 7, 5, marks=needs_dali), ("torchvision", 7, 5), ("torchvision", 128, 1)],
)
def test_same_bits_from_dali_and_without_it(
    sources: dict[str, Path], reference: Bits, plan: str, batch: int, threads: int
) -> None:
    check(bits_of(sources["tar"], batch, threads, plan=plan), reference, N // batch * batch)


@pytest.mark.parametrize(("source", "batch", "start"), [("nested", 128, 1), ("tar", 7, 30)])
def test_same_bits_from_a_later_step(
    sources: dict[str, Path], reference: Bits, source: str, batch: int, start: int
) -> None:
    # the second half of the first epoch and the first of the second
    stop = start + 2 if batch == 128 else start + 20
    found = bits_of(sources[source], batch, 2, start, stop)
    check(found, reference, (stop - start) * batch)
    assert {view for _, view in found} == {0, 1}


def test_same_bits_put_together_from_four_processes(
    sources: dict[str, Path], reference: Bits, tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "-c",
        PROCESSES,
        str(Path(__file__).parent),
        str(sources["nested"]),
        str(tmp_path),
    ]
    subprocess.run(command, check=True, timeout=1800)
    parts = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(4)]
    assert [len(part) for part in parts] == [64] * 4
    check({(i, view): bits for part in parts for i, view, bits in part}, reference, N)


@pytest.mark.slow
def test_same_bits_in_every_combination(sources: dict[str, Path], reference: Bits) -> None:
    for source, batch, threads in itertools.product(SOURCES, BATCHES, THREADS):
        check(bits_of(sources[source], batch, threads), reference, N // batch * batch)
