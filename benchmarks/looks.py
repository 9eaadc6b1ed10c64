"""What strong views cost the input, beside torchvision and DALI with the same policy: `python -m benchmarks.looks`.

Views of 224 px from the JPEGs of FASTANC_DATA/imagenet-samples in batches of 50: a random resized crop, a flip and a
policy, by ours (the run's own stream: cut, dressed, mixed), by torchvision on PIL pictures and on tensors, and by
DALI's auto_aug, which has RandAugment and TrivialAugment. All end in uint8 pictures; torchvision's erase and mix as
floats, which is what they take, and DALI's does not mix. All ways take turns on one thread; medians of images per
second of processor time count, since other processes may be there. `of_none` is the share of the same way's rate
without a policy, `of_ours` that of our rate with this policy.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torchvision import datasets, io
from torchvision.transforms import v2

from benchmarks.harness import record, table
from benchmarks.input import BATCH, PX, make_sources, turn
from fastanc.pipelines.index.build import Index, index_path
from fastanc.pipelines.jpeg.jpeg_set import JpegSet
from fastanc.pipelines.jpeg.options import JpegOptions
from fastanc.pipelines.looks import Looks
from fastanc.pipelines.mixing import Mixing
from fastanc.pipelines.order import Order
from fastanc.pipelines.pairing import Pairing
from fastanc.pipelines.viewing import Views
from fastanc.pipelines.views import RandomResizedCrop

GREY = (124, 116, 104)
STRONG = "rand-m9-n2 + erase + mix"
POLICIES = ("none", "jitter", "rand-m9-n2", "trivial", "three", "mix", STRONG)
CPU = torch.device("cpu")
_BILINEAR = v2.InterpolationMode.BILINEAR
Way = Iterator[int]


def ours(folder: Path, policy: str) -> Way:
    data = JpegSet("benchmark", Index.load(index_path(folder / "tree")), (), ()).on(
        "cpu", JpegOptions(threads=1)
    )
    name, looks, mixing = policy.partition(" ")[0], None, None
    if policy not in ("none", "mix"):
        looks = Looks(name, erase=0.25 if policy == STRONG else 0.0, fill=GREY)
    if policy in ("mix", STRONG):
        mixing = Mixing("both", Pairing(data.num_images, 0), out_px=PX)
    views = Views(RandomResizedCrop(PX, 0), looks, mixing)
    order = Order(data.num_images, BATCH, pairing=mixing and mixing.pairing)
    for batch in views.batches(data, order, CPU, threads=1):
        yield len(batch.images)


def _moves(policy: str) -> list[Callable[[Any], Any]]:
    own: dict[str, list[Callable[[Any], Any]]] = {
        "jitter": [v2.ColorJitter(0.4, 0.4, 0.4, 0.1)],
        "rand-m9-n2": [v2.RandAugment(2, 9, interpolation=_BILINEAR)],
        "trivial": [v2.TrivialAugmentWide(interpolation=_BILINEAR)],
        "three": [
            v2.RandomChoice(
                [v2.Grayscale(3), v2.RandomSolarize(128, p=1.0), v2.GaussianBlur(13, (0.1, 2.0))]
            ),
            v2.ColorJitter(0.3, 0.3, 0.3),
        ],
    }
    name = policy.partition(" ")[0]
    return [v2.RandomResizedCrop(PX, antialias=True), v2.RandomHorizontalFlip(), *own.get(name, [])]


def _loaded(
    folder: Path, policy: str, moves: list[Callable[[Any], Any]], load: Callable[[str], Any] | None
) -> Way:
    mixes = policy in ("mix", STRONG)
    moves = [*moves, *([v2.ToDtype(torch.float32, scale=True)] if mixes else [])]
    if policy == STRONG:
        moves.append(v2.RandomErasing(0.25))
    more = {} if load is None else {"loader": load}
    images = datasets.ImageFolder(folder / "tree", v2.Compose(moves), **more)
    mix = v2.RandomChoice([v2.MixUp(num_classes=1000), v2.CutMix(num_classes=1000)])
    while True:
        for batch, labels in torch.utils.data.DataLoader(images, BATCH, shuffle=True, drop_last=True):
            yield len(mix(batch, labels)[0] if mixes else batch)


def on_pil(folder: Path, policy: str) -> Way:
    yield from _loaded(folder, policy, [*_moves(policy), v2.PILToTensor()], None)


def on_tensors(folder: Path, policy: str) -> Way:
    def load(path: str) -> torch.Tensor:
        return io.decode_image(io.read_file(path), io.ImageReadMode.RGB)

    yield from _loaded(folder, policy, _moves(policy), load)


def by_dali(folder: Path, policy: str) -> Way:
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.auto_aug import rand_augment, trivial_augment

    fixed = {"shape": (PX, PX), "interp_type": types.INTERP_LINEAR}  # type: ignore[attr-defined]

    @pipeline_def(enable_conditionals=True)
    def graph() -> Any:
        encoded, _ = fn.readers.file(file_root=str(folder / "tree"), random_shuffle=True)
        pixels: Any = fn.decoders.image_random_crop(encoded, random_area=[0.08, 1.0])
        pixels = fn.resize(pixels, size=[PX, PX], antialias=True)
        pixels = fn.flip(pixels, horizontal=fn.random.coin_flip())
        if policy == "trivial":
            pixels = trivial_augment.trivial_augment_wide(pixels, **fixed)
        if policy in ("rand-m9-n2", STRONG):
            pixels = rand_augment.rand_augment(pixels, n=2, m=9, **fixed)
        if policy == STRONG:
            corner, extent = (fn.random.uniform(range=[0.0, 0.6], shape=2) for _ in range(2))
            pixels = fn.erase(pixels, anchor=corner, shape=extent, axis_names="HW", normalized=True)
        return pixels

    pipeline = graph(batch_size=BATCH, num_threads=1, device_id=None)
    pipeline.build()
    while True:
        outputs: Any = pipeline.run()
        yield len(outputs[0])


WAYS = {
    "ours": ours,
    "torchvision, PIL": on_pil,
    "torchvision, tensors": on_tensors,
    "DALI auto_aug": by_dali,
}
DALI_HAS = ("none", "rand-m9-n2", "trivial", STRONG)


def rates(folder: Path, images: int, rounds: int, policies: Sequence[str]) -> list[dict[str, Any]]:
    """Images per second of processor time; all ways run on side by side and take turns."""
    running = {
        (policy, name): begin(folder, policy)
        for policy in policies
        for name, begin in WAYS.items()
        if name != "DALI auto_aug" or policy in DALI_HAS
    }
    for way in running.values():
        for _ in range(3):
            next(way)
    cpu: dict[tuple[str, str], list[float]] = {key: [] for key in running}
    for _ in range(rounds):
        for key, way in running.items():
            cpu[key].append(turn(way, images)[1])
    return [
        {
            "policy": policy,
            "way": name,
            "images_per_cpu_s": statistics.median(found),
            "of_none": statistics.median(a / b for a, b in zip(found, cpu["none", name])),
            "of_ours": statistics.median(a / b for a, b in zip(found, cpu[policy, "ours"])),
        }
        for (policy, name), found in cpu.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=100, help="images a way and turn (100)")
    parser.add_argument("--rounds", type=int, default=5, help="turns (5)")
    parser.add_argument("--policies", nargs="+", default=POLICIES, choices=POLICIES, help="beside none (all)")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    jpegs = sorted(Path(os.environ.get("FASTANC_DATA", ".")).glob("imagenet-samples/*/*.JPEG"))
    if not jpegs:
        parser.error("there are no JPEGs in imagenet-samples: set FASTANC_DATA to the folder that holds it")
    with tempfile.TemporaryDirectory() as name:
        make_sources(jpegs, Path(name))
        rows = rates(
            Path(name), chosen.images, chosen.rounds, list(dict.fromkeys(["none", *chosen.policies]))
        )
    print(table(rows))
    print(f"appended to {record('looks', rows)}")


if __name__ == "__main__":
    main()
