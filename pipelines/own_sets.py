"""A user's own objects as data sets: arrays, and torch data sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fastanc.pipelines.arrays import ArraySet, channels_last
from fastanc.pipelines.dataset import DataSet
from fastanc.pipelines.jpeg.options import cores_per_process
from fastanc.pipelines.missing_labels import is_missing
from fastanc.pipelines.own_items import Items, look_at
from fastanc.pipelines.torch_set import TorchSet

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
KINDS = "a DataSet, a torch data set, uint8 images, a pair (images, labels)"


def as_dataset(
    value: Any,
    name: str | None = None,
    *,
    classes: Sequence[str] | None = None,
    in_memory: bool = True,
    threads: int | None = None,
    progress: bool = True,
) -> DataSet:
    """Return a user's object as a data set, called `name` in messages and in the cache's folder.

    | value | becomes |
    | --- | --- |
    | a `DataSet` | itself |
    | uint8 images [N, S, S, C], [N, C, S, S] or [N, S, S], or a pair (images, labels [N]) | an `ArraySet` |
    | a map-style torch data set of (image, label) or of images, see `own_items.Items` | a `TorchSet` |
    | the same, if all are squares of one size and have at most 2 GiB together | an `ArraySet` |

    Arrays may be tensors. A torch data set is read once here, on `threads` (all cores; 1 for one that threads cannot
    share), with a progress bar. `in_memory` false never makes an `ArraySet` of it, whose views are padded crops of
    the images' own size, but a `TorchSet`, whose views are random crops resized. `classes` names the classes; without
    it, they, mean and std are the torch data set's attributes of these names (a Subset's: those of what it is a part
    of), else "0".."K-1" and ImageNet's.
    Raises ValueError for another kind of object, and for an item that cannot be used, which is named.
    """
    if isinstance(value, DataSet):
        return value
    if _is_array(value):
        return _of_arrays(name or "arrays", value, None, classes)
    if _is_pair(value):
        return _of_arrays(name or "arrays", value[0], value[1], classes)
    if not _has_items(value):
        raise ValueError(f"{name or 'the data set'} is a {type(value).__name__}: give {KINDS}")
    name = name or type(value).__name__
    if not len(value):
        raise ValueError(f"{name} holds no items: give at least one image")
    items = Items(name, value)
    looks, pixels = look_at(items, threads or cores_per_process(), in_memory, progress)
    names = _classes(name, looks.labels, _attribute(value, "classes") if classes is None else classes)
    mean, std = (
        _statistic(name, what, _attribute(value, what), default)
        for what, default in zip(("mean", "std"), default_statistics(items.channels))
    )
    if pixels is not None:
        return ArraySet(name, pixels, looks.labels, names, mean, std)
    return TorchSet(name, items, looks, names, mean, std)


def is_own(value: Any) -> bool:
    """Tell whether `as_dataset` knows this kind of object."""
    return isinstance(value, DataSet) or _is_array(value) or _is_pair(value) or _has_items(value)


def default_statistics(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std of a set that does not say its own: ImageNet's, for grey images those of its average."""
    if channels == 3:
        return IMAGENET_MEAN, IMAGENET_STD
    return (sum(IMAGENET_MEAN) / 3,), (sum(IMAGENET_STD) / 3,)


def _is_array(value: Any) -> bool:
    return isinstance(value, (np.ndarray, torch.Tensor))


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and _is_array(value[0])


def _has_items(value: Any) -> bool:
    """Whether it is a map-style data set, or a list."""
    known = hasattr(value, "__len__") and hasattr(value, "__getitem__")
    return known and not isinstance(value, (str, bytes, tuple, dict))


def _numpy(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def _of_arrays(name: str, images: Any, labels: Any, classes: Sequence[str] | None) -> ArraySet:
    images = _numpy(images)
    images = channels_last(name, images[..., None] if images.ndim == 3 else images)
    numbers = None if labels is None else _whole_numbers(name, labels, len(images))
    return ArraySet(
        name, images, numbers, _classes(name, numbers, classes), *default_statistics(images.shape[3])
    )


def _whole_numbers(name: str, given: Any, count: int) -> np.ndarray | None:
    """The labels of `count` images; None where none of them has one. ValueError for the first that lacks it."""
    wanted = f"{name}: labels must be {count} whole numbers, one an image, not"
    try:
        labels = _numpy(given)
    except ValueError:  # lists of several lengths
        raise ValueError(f"{wanted} lists of several lengths") from None
    whole = labels.dtype.kind in "iu"
    if labels.shape == (count,):
        missing = labels == -1 if whole else np.array([is_missing(label) for label in labels.tolist()], bool)
        if count and missing.all():
            return None
        if missing.any():
            i = int(missing.argmax())
            raise ValueError(
                f"item {i} of {name} has the label {labels[i]}, which is none ({missing.sum()} of {count} are): give"
                " all items labels or none, or leave these out"
            )
    if not whole or labels.shape != (count,):
        raise ValueError(f"{wanted} {labels.dtype} {list(labels.shape)}")
    return labels


def _attribute(dataset: Any, name: str) -> Any:
    """A data set's attribute, or that of the data set which it is a part of (torch.utils.data.Subset); or None."""
    while dataset is not None:
        if hasattr(dataset, name):
            return getattr(dataset, name)
        dataset = getattr(dataset, "dataset", None)
    return None


def _classes(name: str, labels: np.ndarray | None, given: Any) -> list[str]:
    """The names of the classes; ValueError for the first label that is not a position among them."""
    if labels is None:
        return []
    named = isinstance(given, Sequence) and all(isinstance(word, str) for word in given)
    classes = list(given) if named else [str(k) for k in range(int(labels.max(initial=0)) + 1)]
    outside = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if len(outside):
        i = int(outside[0])
        raise ValueError(
            f"item {i} of {name} has the label {labels[i]}, which is none of the {len(classes)} classes:"
            f" labels are 0 to {len(classes) - 1}"
        )
    return classes


def _statistic(name: str, what: str, given: Any, default: tuple[float, ...]) -> tuple[float, ...]:
    """A data set's own mean or std, one number a channel on the 0..1 scale."""
    if given is None or callable(given):
        return default
    try:
        values = tuple(float(value) for value in given)
    except (TypeError, ValueError):
        values = ()
    if len(values) != len(default):
        raise ValueError(
            f"{name}.{what} is {given!r}: give one number for each of its {len(default)} channels"
        )
    return values
