"""The same images stored otherwise: padded crops want small arrays, resized crops want single images.

Where the user does not say (`data.crop` auto) the storage decides: arrays get padded crops, all others resized ones.
"""

from __future__ import annotations

import numpy as np

from fastanc.pipelines.arrays import ArraySet
from fastanc.pipelines.dataset import DataSet
from fastanc.pipelines.jpeg.options import cores_per_process
from fastanc.pipelines.order import evaluation_picks
from fastanc.pipelines.own_items import MOST_BYTES, Items, look_at
from fastanc.pipelines.torch_set import TorchSet
from fastanc.pipelines.views import CentreCrop

_TOGETHER = 256


def stored_for(data: DataSet, crop: str, image_px: int) -> DataSet:
    """Return a set as the crops want it that `data.crop` asks for: "padded", "resized", or "auto", as it is.

    Raises ValueError where padded crops would hold more than 2 GiB in memory.
    """
    if crop == "padded" and not isinstance(data, ArraySet):
        return _as_arrays(data, image_px)
    if crop == "resized" and isinstance(data, ArraySet):
        return _as_items(data)
    return data


def _as_arrays(data: DataSet, side: int) -> ArraySet:
    """The images in memory, each with its shorter side scaled to `side` px and its middle square kept."""
    shape = (data.num_images, side, side, data.channels)
    if np.prod(shape, dtype=np.int64) > MOST_BYTES:
        raise ValueError(
            f"data.crop padded holds all images in memory, at most {MOST_BYTES >> 30} GiB, and {data.num_images} of"
            f" {side} px are more: lower data.image_px, or set data.crop to resized"
        )
    images = np.empty(shape, np.uint8)
    for batch in data.batches(evaluation_picks(data.num_images, _TOGETHER), CentreCrop(side, side)):
        images[batch.index] = batch.images.permute(0, 2, 3, 1).cpu().numpy()
    return ArraySet(data.name, images, data.labels, data.classes, data.mean, data.std)


class _Pictures:
    """Arrays as a list of (image, label), or of images."""

    def __init__(self, data: ArraySet) -> None:
        self._data = data

    def __len__(self) -> int:
        return self._data.num_images

    def __getitem__(self, i: int) -> object:
        image, labels = self._data.images[i], self._data.labels
        return image if labels is None else (image, int(labels[i]))


def _as_items(data: ArraySet) -> TorchSet:
    items = Items(data.name, _Pictures(data))
    looks, _ = look_at(items, cores_per_process(), in_memory=False, progress=False)
    return TorchSet(data.name, items, looks, data.classes, data.mean, data.std)
