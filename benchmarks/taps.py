"""Whether fastanc taps what a network's logits are made of: `python -m benchmarks.taps [NAME ...]`.

Without names it takes every classifier of torchvision and the smallest network of every class in every module of
timm, at the smallest size of a few that each can read. Their weights are random. A row says which layer's input
are the features, and by how much the map of them by `head` differs from the logits of the same pass, relative to
the largest; or that there are none, and why. Of the stages it says where "auto" found maps, or why not. Mean and
std are those that its library publishes, which weights from a file are run with, too.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torchvision
from torch import Tensor
from tqdm import tqdm

from benchmarks.harness import record, table
from fastanc.cache.rows import head_logits
from fastanc.models import zoo
from fastanc.models.calibration import calibrate_batchnorm
from fastanc.models.probe import checked
from fastanc.models.stages import stages_of
from fastanc.models.taps import Tapped

CLASSES = 7
SIZES_PX = (64, 112, 224, 240, 256, 384)
_LARGEST = 2e8


def torchvision_names() -> list[str]:
    """Return every classifier of torchvision."""
    names = torchvision.models.list_models(module=torchvision.models)
    return [f"torchvision:{name}" for name in names]


def timm_names() -> Iterator[str]:
    """Yield the smallest network of every class in every module of timm, up to 2e8 parameters."""
    import timm

    for module in tqdm(timm.list_modules(), "timm's modules"):
        smallest: dict[str, tuple[int, str]] = {}
        for name in timm.list_models(module=module):
            with torch.device("meta"):
                network = timm.create_model(name, num_classes=CLASSES)
            found = (sum(p.numel() for p in network.parameters()), name)
            family = type(network).__name__
            smallest[family] = min(found, smallest.get(family, found))
        yield from (f"timm:{name}" for number, name in smallest.values() if number <= _LARGEST)


def build(name: str, sizes_px: Sequence[int] = SIZES_PX) -> Tapped:
    """Return a network at the first size that it can read; ValueError of the last where it reads none."""
    for px in sizes_px:
        try:
            return zoo.build(name, num_classes=CLASSES, image_px=px)
        except ValueError as error:
            refused = error
    raise refused


@torch.no_grad()
def difference(network: Tapped) -> float:
    """Return the largest difference of `head`'s map of the features from the logits, relative to the largest."""
    head = network.head
    assert head is not None
    if not head.weight.any():  # as many are made: two such heads would agree on anything
        head.weight.normal_()
    px = network.image_px
    calibrate_batchnorm(network, network.in_channels, px)
    images = torch.randint(256, (2, network.in_channels, px, px), dtype=torch.uint8)
    out = network.eval()(images)
    assert isinstance(out.features, Tensor)
    worst = (head_logits(out.features, head) - out.logits).abs().max()
    return (worst / out.logits.abs().max()).item()


def stages(network: Tapped) -> str:
    """Return the channels of the stage maps that "auto" finds, or why it finds none."""
    try:
        names = stages_of(network.bare)
        twin = Tapped(
            network.bare,
            stages=names,
            mean=network.mean,
            std=network.std,
            num_classes=CLASSES,
            image_px=network.image_px,
        )
        twin = checked(twin)
    except ValueError as error:
        return str(error).partition(":")[0].partition(", and no map")[0]
    images = torch.zeros(2, network.in_channels, network.image_px, network.image_px)
    with torch.no_grad():
        maps = twin.eval()(images).stages
    assert maps is not None
    assert all(m.shape[2] == m.shape[3] for m in maps)
    channels = [str(m.shape[1]) for m in maps]
    if len(channels) > 8:
        channels = [*channels[:4], "...", channels[-1]]
    return f"{len(maps)} maps, {' '.join(channels)} channels"


def normalisation(network: Tapped) -> dict[str, str]:
    """Return mean and std that the library publishes for a network's weights, and where it says so."""
    mean, std = network.published
    return {"mean": _numbers(mean), "std": _numbers(std), "normalised_by": network.published_by}


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def row(name: str, sizes_px: Sequence[int] = SIZES_PX) -> dict[str, Any]:
    """Return what fastanc found of one network."""
    torch.manual_seed(0)
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of networks that will be initialised otherwise one day
        try:
            network = build(name, sizes_px)
        except ValueError as error:
            return {"network": name, "features_of": "refused", "why": str(error)}
        found: dict[str, Any] = {
            "network": name,
            "family": type(network.bare).__name__,
            "px": network.image_px,
            "features_of": network.head_name or "logits only",
            "width": network.feature_dim,
            "difference": None if network.head is None else difference(network),
            "stages": stages(network),
            "why": network.no_head,
            **normalisation(network),
        }
    return {**found, "seconds": time.perf_counter() - began}


def main() -> None:
    """Probe, print a table, and append it to the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", help="e.g. torchvision:resnet18; all families without one")
    names = parser.parse_args().names or [*timm_names(), *torchvision_names()]
    rows = [row(name) for name in tqdm(names, "networks")]
    print(table(rows))
    print(f"appended to {record('taps', rows)}")


if __name__ == "__main__":
    main()
