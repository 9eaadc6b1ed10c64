"""One numbering of the classes for two sets: a validation label becomes a position in the training set's classes.

Each set numbers its own classes from 0, so a set that lacks one of them would be scored with shifted labels. Names
are what counts; numbers (of label files, WebDataset, arrays, which have no names) are compared as numbers, and where
the training set has names, they are positions among them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from fastanc.batch import Batch
from fastanc.pipelines.dataset import DataSet
from fastanc.pipelines.index.class_numbers import places_among
from fastanc.pipelines.jpeg.options import JpegOptions
from fastanc.pipelines.order import Picking
from fastanc.pipelines.transfer import moved
from fastanc.pipelines.views import ViewRule


def numbered_as(train: DataSet, val: DataSet) -> DataSet:
    """Return the validation set with the classes of the training set; itself where they are the same already.

    It may lack classes. Raises ValueError that names a class with images which the training set does not know.
    """
    if train.labels is None or val.labels is None or train.classes == val.classes:
        return val
    places = places_among(train.classes, val.classes, _are_numbers(val))
    for k in np.unique(val.labels).tolist():
        if places[k] < 0:
            raise ValueError(
                f"the validation set {val.name} has images of the class {val.classes[k]!r}, which is none of the"
                f" {train.num_classes} classes of {train.name} ({_few(train.classes)}): leave it out of the"
                " validation set, or give both the same classes"
            )
    return Renumbered(val, train.classes, places)


def _are_numbers(data: DataSet) -> bool:
    """Whether a set's labels came as numbers; a folder that is called 0 is a name."""
    plain = data.classes in ([str(k) for k in range(first, first + data.num_classes)] for first in (0, 1))
    return bool(getattr(data, "numbered", plain))


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


class Renumbered:
    """A data set whose labels are positions in another list of classes: `places` [K] int64 says which.

    See `dataset.DataSet` for what all sets share.
    """

    def __init__(self, inner: DataSet, classes: list[str], places: np.ndarray) -> None:
        self._inner, self._places = inner, places
        self.name, self.num_images, self.channels = inner.name, inner.num_images, inner.channels
        self.mean, self.std, self.options = inner.mean, inner.std, inner.options
        self.classes, self.num_classes = list(classes), len(classes)
        self.remarks: list[str] = getattr(inner, "remarks", [])
        assert inner.labels is not None
        self.labels: np.ndarray | None = places[inner.labels]

    def on(self, device: torch.device | str, options: JpegOptions | None = None) -> Renumbered:
        """Return the same set bound to a device."""
        return Renumbered(self._inner.on(device, options), self.classes, self._places)

    def describe(self) -> dict[str, object]:
        """Return what fixes the pixels of a view, which no label does."""
        return self._inner.describe()

    def sizes(self, index: np.ndarray) -> np.ndarray:
        """Return the sizes [B, 2] of (w, h) in pixels of the stored images."""
        return self._inner.sizes(index)

    def subset(self, numbers: np.ndarray) -> Renumbered:
        """Return the set of some images, renumbered: `numbers` is [M] int64."""
        return Renumbered(self._inner.subset(numbers), self.classes, self._places)

    def batches(
        self, picks: Picking, rule: ViewRule, *, start: int = 0, stop: int | None = None
    ) -> Iterator[Batch]:
        """Return the batches of the set that it is made of, with other labels; the iterator has close()."""
        batches = self._inner.batches(picks, rule, start=start, stop=stop)
        places: torch.Tensor | None = None
        try:
            for batch in batches:
                assert batch.labels is not None
                if places is None:
                    places = moved(torch.from_numpy(self._places), batch.labels.device)
                yield replace(batch, labels=places[batch.labels])
        finally:
            if hasattr(batches, "close"):
                batches.close()
