"""From JPEG files to an updated student, fastanc's loop beside a plain one: `python -m benchmarks.end_to_end`.

| loop | input | teacher | step |
| --- | --- | --- | --- |
| plain | PIL in DataLoader workers | run on every batch | eager, fp32 (`baseline_loop.py`) |
| plain, channels_last | PIL in DataLoader workers | run on every batch | eager, fp32, channels_last |
| plain, our input | fastanc's pipeline | run on every batch | eager, fp32, channels_last |
| plain, our cache | PIL, fixed views | rows read from the cache | eager, fp32, channels_last |
| fastanc | fastanc's pipeline | rows read from the cache | channels_last; on CUDA bf16 and compiled |
| fastanc, synthetic | random images on the device | rows read from the cache | the same |

`times_best_plain` is against the faster of the first two, the loops that use nothing of fastanc, for each rate by
itself. The loops take turns; each begins its input anew and is timed after some steps. Processor seconds are those of
this process and its workers. Cached rows are random numbers: their values cost nothing. The images are FASTANC_DATA's
imagenet-samples, copied to the temporary folder; or `--folder`, a folder of class folders, read in place.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from itertools import chain, count, repeat
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.models import ResNet
from torchvision.transforms.v2 import functional

from benchmarks import baseline_loop
from benchmarks.baseline_loop import PlainGame
from benchmarks.harness import record, table
from benchmarks.step import defaults, synthetic
from benchmarks.step_game import Game, Setting, frozen_teacher, make_method, wait
from fastanc.batch import Batch
from fastanc.cache.rows import Field
from fastanc.cache.store import Store
from fastanc.methods.base import TeacherSpec
from fastanc.pipelines.index.build import build_index
from fastanc.pipelines.jpeg.jpeg_set import JpegSet
from fastanc.pipelines.jpeg.options import JpegOptions, cores_per_process
from fastanc.pipelines.order import Order
from fastanc.pipelines.views import RandomResizedCrop
from fastanc.teacher.cached import Cached

_VIEWS = 2
PLAIN = ("plain", "plain, channels_last")
"""The loops that use nothing of fastanc: what a speed-up is claimed over."""
Step = Callable[[], None]


def real_images(folder: Path, copies: int, every: int = 1) -> Path:
    """Copy each `every`-th of FASTANC_DATA's ImageNet samples `copies` times into `folder`/train, and return that.

    Raises ValueError where there are none.
    """
    source = Path(os.environ.get("FASTANC_DATA", "")) / "imagenet-samples"
    files = sorted(source.glob("*/*.JPEG")) if os.environ.get("FASTANC_DATA") else []
    if not files:
        raise ValueError(
            "FASTANC_DATA names no folder with imagenet-samples: set it, or give a folder of class folders"
            " with --folder"
        )
    for file in files[::every]:
        (folder / "train" / file.parent.name).mkdir(parents=True)
        for k in range(copies):
            shutil.copyfile(file, folder / "train" / file.parent.name / f"{k}-{file.name}")
    return folder / "train"


class FixedViews(Dataset):
    """PIL images of given views: what it takes to read a cache from the plain loop."""

    def __init__(self, folder: Path, data: JpegSet, rule: RandomResizedCrop):
        self.images, self.data, self.rule = ImageFolder(str(folder)), data, rule
        numbers = {path: k for k, (path, _) in enumerate(self.images.samples)}
        self.rows = [numbers[str(folder / data.index.name(k))] for k in range(data.num_images)]

    def __getitem__(self, pick: tuple[int, int]) -> Tensor:
        index, view = (np.array([number]) for number in pick)
        boxes, flips = self.rule.boxes(index, view, self.data.sizes(index))
        x, y, w, h = boxes[0].tolist()
        image, _ = self.images[self.rows[pick[0]]]
        image = functional.resized_crop(image, y, x, h, w, [self.rule.out_px, self.rule.out_px])
        image = functional.horizontal_flip(image) if flips[0] else image
        pixels = functional.to_dtype(functional.pil_to_tensor(image), torch.float32, scale=True)
        return functional.normalize(pixels, baseline_loop.MEAN, baseline_loop.STD)


def _bare(setting: Setting, name: str) -> ResNet:
    """Return torchvision's own network, in its own memory format."""
    network = setting.network(name).bare.to(memory_format=torch.contiguous_format)
    if not isinstance(network, ResNet):
        raise ValueError(
            f"the plain loop knows torchvision's ResNets, not {name}: name one, e.g. torchvision:resnet18"
        )
    return network


class Contest:
    """The loops over one folder: each opens its input and gives a step to call."""

    def __init__(
        self, folder: Path, cache: Path, setting: Setting, device: torch.device, workers: int, decode: str
    ):
        self.folder, self.setting, self.device, self.workers = folder, setting, device, workers
        index = build_index(folder, out=cache / "train.index", progress=False)
        data = JpegSet("samples", index, baseline_loop.MEAN, baseline_loop.STD)
        self.data = data.on(device, JpegOptions(threads=workers, decode=decode))
        self.rule = RandomResizedCrop(setting.image_px, seed=0)
        self.order = Order(len(index), setting.batch, views=_VIEWS)
        mode = "compiled" if device.type == "cuda" else "eager"
        plain = replace(setting, precision="fp32")
        self.teacher = frozen_teacher(plain, device, "eager")
        width = self.teacher.feature_dim
        assert width is not None
        self.spec = TeacherSpec(setting.num_classes, width, (), self.teacher)
        self.store = Store.open(cache, {}, [Field("features", width)], len(index), create=True)
        for view in range(_VIEWS):
            self.store.put(view, np.arange(len(index)), {"features": torch.randn(len(index), width)})
        self.plain, self.plain_last = (
            PlainGame(_bare(plain, plain.teacher), _bare(plain, plain.student), device, memory_format=memory)
            for memory in (torch.contiguous_format, torch.channels_last)
        )
        network = setting.network(setting.student).to(device)
        self.game = Game(
            make_method("anc"),
            network,
            None,
            iter(()),
            device,
            spec=self.spec,
            precision=setting.precision,
            mode=mode,
        )
        self.loops: dict[str, Callable[[], AbstractContextManager[Step]]] = {
            "plain": lambda: self._plain_loop(self.plain),
            "plain, channels_last": lambda: self._plain_loop(self.plain_last),
            "plain, our input": self._our_input,
            "plain, our cache": self._our_cache,
            "fastanc": lambda: self._fastanc(self._decoded()),
            "fastanc, synthetic": lambda: self._fastanc(synthetic(setting, self.order, device)),
        }

    def _decoded(self) -> Iterator[Batch]:
        return self.data.batches(self.order, self.rule)

    def _cached(self) -> Cached:
        return Cached(self.store, self.teacher.head, self.order, device=self.device)

    @contextmanager
    def _plain_loop(self, plain: PlainGame) -> Generator[Step, None, None]:
        cuda = self.device.type == "cuda"
        loader = baseline_loop.loader(
            self.folder, self.setting.image_px, self.setting.batch, self.workers, cuda
        )
        batches = chain.from_iterable(repeat(loader))

        def step() -> None:
            images, _ = next(batches)
            plain.step(images.to(self.device, non_blocking=True))

        yield step

    @contextmanager
    def _our_input(self) -> Generator[Step, None, None]:
        mean, std = (
            torch.tensor(values, device=self.device).view(3, 1, 1)
            for values in (self.data.mean, self.data.std)
        )
        batches = self._decoded()

        def step() -> None:
            self.plain_last.step((next(batches).images.float() / 255 - mean) / std)

        yield step
        batches.close()  # type: ignore[attr-defined]

    @contextmanager
    def _our_cache(self) -> Generator[Step, None, None]:
        picks = (list(zip(*map(np.ndarray.tolist, self.order(step)))) for step in count())
        loader = DataLoader(
            FixedViews(self.folder, self.data, self.rule),
            batch_sampler=picks,
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
        )
        batches, teacher, at = iter(loader), self._cached(), count()

        def step() -> None:
            images, number = next(batches).to(self.device, non_blocking=True), next(at)
            picks = self.order(number)
            target = teacher(Batch(images, picks.index, picks.view, None, number))
            assert target.features is not None
            self.plain_last.step(images, (target.features, target.logits))

        yield step
        teacher.close()

    @contextmanager
    def _fastanc(self, batches: Iterator[Batch]) -> Generator[Step, None, None]:
        self.game.batches, self.game.teacher = batches, self._cached()
        yield self.game.step
        self.game.teacher.close()
        batches.close()  # type: ignore[attr-defined]


def processor_s() -> float:
    """Return the processor seconds of this process and the workers that live now."""
    children = psutil.Process().children(recursive=True)
    return time.process_time() + sum(t.user + t.system for t in (child.cpu_times() for child in children))


def timed(contest: Contest, name: str, warmup: int, steps: int) -> dict[str, float]:
    """Return the rates of one turn, and which share of it fastanc's loop waited for images."""
    clock = contest.game.clock
    with contest.loops[name]() as step:
        clock("")
        for _ in range(warmup):
            step()
        wait(contest.device)
        clock.taken()
        clock("")
        cpu_s, began = processor_s(), time.perf_counter()
        for _ in range(steps):
            step()
        wait(contest.device)
        seconds, cpu_s = time.perf_counter() - began, processor_s() - cpu_s
    images, spent = steps * contest.setting.batch, clock.taken()
    rates = {"images_per_s": images / seconds, "images_per_cpu_s": images / cpu_s}
    return {**rates, "data_share": spent["data"] / spent["step"]} if spent["step"] else rates


def turns(
    contest: Contest, rounds: int, warmup: int, steps: int, begin: Callable[[str], None] = lambda what: None
) -> Iterator[tuple[str, dict[str, float]]]:
    """Let the loops take turns; yield the name and the rates of each, `begin` being told of it before."""
    names = list(contest.loops)
    for number in range(rounds):
        for name in names[:: -1 if number % 2 else 1]:
            begin(f"{name}, turn {number + 1}")
            yield name, timed(contest, name, warmup, steps)


def gathered(taken: Iterable[tuple[str, dict[str, float]]], setting: Setting) -> list[dict[str, Any]]:
    """Return the comparison's rows from all turns."""
    by_name: dict[str, list[dict[str, float]]] = {}
    for name, rates in taken:
        by_name.setdefault(name, []).append(rates)
    return rows_of(by_name, setting)  # the first turns were in the order of the loops


def rows_of(turns: dict[str, list[dict[str, float]]], setting: Setting) -> list[dict[str, Any]]:
    """Return a row for each loop from the rates of its turns, the same number of each."""

    def middle(name: str, rate: str) -> float:
        return median(turn[rate] for turn in turns[name])

    def ratio(name: str, other: str, rate: str) -> float:
        return median(a[rate] / b[rate] for a, b in zip(turns[name], turns[other]))

    def times_best_plain(name: str, rate: str) -> float:
        return ratio(name, max(PLAIN, key=lambda plain: middle(plain, rate)), rate)

    return [
        {
            "loop": name,
            "student": setting.student.removeprefix("torchvision:"),
            "teacher": setting.teacher.removeprefix("torchvision:"),
            "px": setting.image_px,
            "batch": setting.batch,
            **{rate: middle(name, rate) for rate in ("images_per_s", "images_per_cpu_s")},
            "times_best_plain": times_best_plain(name, "images_per_s"),
            "times_best_plain_per_cpu_s": times_best_plain(name, "images_per_cpu_s"),
            "of_synthetic": ratio(name, "fastanc, synthetic", "images_per_s"),
            "data_share": middle(name, "data_share") if name.startswith("fastanc") else None,
        }
        for name in turns
    ]


@contextmanager
def opened(
    setting: Setting, device: torch.device, *, workers: int | None = None, folder: Path | None = None,
    copies: int = 1, every: int = 1, decode: str = "auto",
) -> Generator[Contest, None, None]:  # fmt: skip
    """Prepare images and cache in a temporary folder and yield the contest over them."""
    with tempfile.TemporaryDirectory() as place:
        images = folder or real_images(Path(place), copies, every)
        yield Contest(images, Path(place), setting, device, workers or cores_per_process(), decode)


def default(device: torch.device) -> Setting:
    """Return ResNet-152 to ResNet-18 at a size for the device."""
    setting = next(s for s in defaults(device) if s.student == "torchvision:resnet18")
    return setting if device.type == "cuda" else replace(setting, image_px=128, batch=16)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    normal = default(device)
    parser.add_argument("--student", default=normal.student, help="a torchvision ResNet")
    parser.add_argument("--teacher", default=normal.teacher, help="a torchvision ResNet")
    parser.add_argument("--image_px", type=int, default=normal.image_px)
    parser.add_argument("--batch", type=int, default=normal.batch)
    parser.add_argument("--rounds", type=int, default=3, help="turns of every loop")
    parser.add_argument("--warmup", type=int, default=10 if cuda else 1, help="steps before the clock starts")
    parser.add_argument("--steps", type=int, default=30 if cuda else 3, help="steps of a turn")
    parser.add_argument("--workers", type=int, help="DataLoader workers and decoding threads; the cores")
    parser.add_argument("--folder", type=Path, help="a folder of class folders of JPEGs")
    parser.add_argument("--copies", type=int, default=8 if cuda else 1, help="of each sample image")
    parser.add_argument("--decode", default="auto", help="plan of fastanc's decoder; auto probes first")
    chosen = parser.parse_args()
    sizes = {name: getattr(chosen, name) for name in ("student", "teacher", "image_px", "batch")}
    place = {name: getattr(chosen, name) for name in ("workers", "folder", "copies", "decode")}
    amount = (chosen.rounds, chosen.warmup, chosen.steps)
    try:
        with opened(replace(normal, **sizes), device, **place) as contest:
            rows = gathered(turns(contest, *amount), contest.setting)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    record("end_to_end", rows)
    print(table(rows))


if __name__ == "__main__":
    main()
