"""Who answers a batch: the network in every step, the cache alone, or the network where the cache has a gap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch

from fastanc.cache.store import Store
from fastanc.cache.top import TOP
from fastanc.pipelines.dataset import DataSet
from fastanc.pipelines.viewing import Views
from fastanc.teacher.cached import Cached
from fastanc.teacher.filling import Filling
from fastanc.teacher.frozen import FrozenTeacher
from fastanc.teacher.online import Online
from fastanc.teacher.prefetch import Picked

Answers: TypeAlias = Online | Cached | Filling
_CACHED = frozenset({"logits", "features", "descriptors"})


@dataclass(frozen=True, kw_only=True)
class CacheChoice:
    """Whether and where a teacher's rows are kept."""

    mode: str
    """off runs the teacher in every step, fill writes what is missing, read insists on a complete cache."""
    folder: Path
    rows: str
    """fp16, fp32, uint8, or one of `top.TOP`."""
    align: int = 1
    """Rows begin at multiples of so many bytes."""
    memory_bytes: int = 0
    """Complete views are held in memory when they fit into so much (read)."""


def holds(reads: frozenset[str]) -> bool:
    """Return whether a cache can hold what is read of the teacher."""
    return reads <= _CACHED


def runs_network(answers: Answers, views: int | None) -> bool:
    """Return whether a run over so many views, or over ever new ones, will pass images through the network."""
    if isinstance(answers, Filling):
        return views is None or not all(answers.store.complete(view) for view in range(views))
    return isinstance(answers, Online)


def open_store(
    teacher: FrozenTeacher, dataset: DataSet, views: Views, cache: CacheChoice, *, create: bool
) -> Store:
    """Open the cache of this teacher on these views; FileNotFoundError names the nearest where there is none."""
    facts = teacher.identity(dataset, views, dataset.name)
    return Store.open(
        cache.folder, facts, teacher.fields(cache.rows, cache.align), dataset.num_images, create=create
    )


def open_answers(
    teacher: FrozenTeacher,
    dataset: DataSet,
    views: Views,
    picks: Callable[[int], Picked],
    cache: CacheChoice,
    reads: frozenset[str],
    device: torch.device,
) -> Answers:
    """Return who answers the training batches.

    Args:
        teacher: the network.
        dataset: the training set.
        views: of it.
        picks: step -> index and view of this process.
        cache: what is kept.
        reads: what the method reads of the teacher: of logits, features, stages, descriptors.
        device: of the training.

    Raises:
        ValueError: the cache cannot hold what is read, or cannot be written.
        FileNotFoundError: there is no such cache to read.
    """
    online = teacher.online(device)
    if cache.mode == "off":
        return online
    if beyond := reads - _CACHED:
        raise ValueError(
            f"the method reads the teacher's {', '.join(sorted(beyond))}, which no cache holds: --teacher.cache off"
        )
    store = open_store(teacher, dataset, views, cache, create=cache.mode == "fill")
    if cache.mode == "fill":
        return Filling(online, store, teacher.network.head, picks, device=device)
    return Cached(
        store,
        teacher.network.head,
        picks,
        device=device,
        host_budget_bytes=cache.memory_bytes,
        device_budget_bytes=cache.memory_bytes if device.type == "cuda" else 0,
    )


def open_val_answers(
    teacher: FrozenTeacher, dataset: DataSet, views: Views, cache: CacheChoice, device: torch.device
) -> Answers:
    """Return who answers the validation batches, with which a student's are compared.

    Where training fills a cache these rows are kept beside it, so that every later student reads them. They are whole
    rows in any case: what a student is measured by must not depend on how many classes its training kept.
    """
    online = teacher.online(device)
    if cache.mode == "off":
        return online
    plain, head = teacher.plain, teacher.network.head
    facts = plain.identity(dataset, views, f"{dataset.name}-val")
    fields = plain.fields("fp16" if cache.rows in TOP else cache.rows, cache.align)
    if cache.mode == "fill":
        store = Store.open(cache.folder, facts, fields, dataset.num_images, create=True)
        return Filling(online, store, head, device=device)
    try:
        store = Store.open(cache.folder, facts, fields, dataset.num_images)
    except FileNotFoundError:
        return online
    return Cached(store, head, None, device=device) if store.complete(0) else online
