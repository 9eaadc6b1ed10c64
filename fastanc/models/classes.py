"""Which classes a network knows, and a network that answers for some of them only."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fastanc.batch import Outputs
from fastanc.models.probe import checked
from fastanc.models.taps import Tapped


class Columns(nn.Module):
    """A network of which some logits count: images [B, C, H, W] -> logits [B, number of columns]."""

    columns: Tensor

    def __init__(self, network: nn.Module, columns: Sequence[int]) -> None:
        super().__init__()
        self.whole = network
        self.register_buffer("columns", torch.tensor(columns), persistent=False)

    def forward(self, images: Tensor) -> Tensor | Outputs:
        """Return the chosen logits, with the features that the network gives beside them."""
        out = self.whole(images)
        if isinstance(out, Outputs):
            return out._replace(logits=out.logits.index_select(1, self.columns))
        return out.index_select(1, self.columns)


@torch.no_grad()
def pick_classes(network: Tapped, columns: Sequence[int]) -> Tapped:
    """Return the network with the logits of some classes only, in this order; features and stages stay.

    Raises ValueError for a class that it does not have.
    """
    if wrong := [column for column in columns if not 0 <= column < network.num_classes]:
        raise ValueError(
            f"teacher.classes names class {wrong[0]}, but {network.name} knows 0 to {network.num_classes - 1}"
        )
    picked, stages = copy.deepcopy(network.bare), network.stage_names
    if network.head_name is None:
        picked, stages = Columns(picked, columns), tuple(f"whole.{name}" for name in stages)
    else:
        _cut(picked.get_submodule(network.head_name), list(columns))
    some = Tapped(
        picked,
        head=network.head_name,
        stages=stages,
        mean=network.mean,
        std=network.std,
        num_classes=len(columns),
        name=network.name,
        in_channels=network.in_channels,
        image_px=network.image_px,
    )
    some.normalised_by, some.weights_from = network.normalised_by, network.weights_from
    return checked(some)


def _cut(head: nn.Module, columns: list[int]) -> None:
    """Leave some rows of a linear layer or a 1x1 convolution, in place."""
    for name in ("weight", "bias"):
        if (old := getattr(head, name)) is not None:
            setattr(head, name, nn.Parameter(old.detach()[columns].clone(), old.requires_grad))
    setattr(head, "out_features" if isinstance(head, nn.Linear) else "out_channels", len(columns))


def read_columns(text: str, classes: Sequence[str], num_classes: int) -> list[int]:
    """Return the teacher's column for each of a set's classes.

    Args:
        text: numbers joined by commas, one for every class of the set in its order; or a file that holds the names
            of the teacher's classes, one a line in the order of its columns, in which the set's names are looked
            up: the whole line, or one of its parts between tabs or before a comma.
        classes: names of the set's classes.
        num_classes: of the teacher.

    Raises:
        ValueError: not one number for every class, or a name that the file does not hold.
        FileNotFoundError: there is no such file.
    """
    words = [word.strip() for word in text.split(",")]
    if all(word.isdecimal() for word in words):
        if len(words) != len(classes):
            raise ValueError(
                f"teacher.classes has {len(words)} numbers for the {len(classes)} classes of the set"
            )
        return _once([int(word) for word in words], classes)
    path = Path(text)
    if not path.is_file():
        raise FileNotFoundError(
            f"teacher.classes: there is no file {text}: give one with a class name a line, or numbers such as 0,217"
        )
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if len(lines) != num_classes:
        raise ValueError(
            f"teacher.classes: {path} has {len(lines)} lines for the teacher's {num_classes} classes: write one a"
            " line, without a header"
        )
    place: dict[str, int] = {}
    twice: set[str] = set()
    for number, line in enumerate(lines):
        parts = {part.strip() for part in (*line.split("\t"), line.split(",")[0])}
        for name in {line} | {part for part in parts if not part.isdecimal()}:
            if place.setdefault(name, number) != number:
                twice.add(name)
    if unclear := [name for name in classes if name in twice]:
        raise ValueError(
            f"teacher.classes: {path} has {unclear[0]!r} in more than one line: give numbers, or ids"
        )
    if missing := [name for name in classes if name not in place]:
        raise ValueError(
            f"teacher.classes: {path} lacks {len(missing)} of the set's {len(classes)} classes, {missing[0]!r} first"
        )
    return _once([place[name] for name in classes], classes)


def _once(columns: list[int], classes: Sequence[str]) -> list[int]:
    first: dict[int, str] = {}
    for column, name in zip(columns, classes):
        if (other := first.setdefault(column, name)) != name:
            raise ValueError(
                f"teacher.classes gives {other!r} and {name!r} the same class {column}: change one"
            )
    return columns
