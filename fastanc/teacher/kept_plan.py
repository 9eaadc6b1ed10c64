"""The decode plan that a teacher's cache was made with: whoever fills or reads it must decode alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from fastanc.cache.identity import caches, differences, read_identity, store_facts
from fastanc.cache.store import Store
from fastanc.pipelines.dataset import DataSet
from fastanc.pipelines.viewing import Views
from fastanc.teacher.answers import CacheChoice
from fastanc.teacher.frozen import FrozenTeacher

_PLAN = {"dataset.decoder", "dataset.hw_decoder_load"}


class KeptPlan(NamedTuple):
    """A cache that fits but for its decode plan, and that plan."""

    plan: str
    path: Path


def kept_plan(
    kinds: Sequence[DataSet], views: Views, cache: CacheChoice, teacher: Callable[[], FrozenTeacher]
) -> KeptPlan | None:
    """Return the plan of the cache that is there for this teacher on these views, whatever its plan.

    Of several the one with most rows counts. `kinds` is the set bound with one decode plan of each kind; `teacher` is
    called only where a cache is of these views.
    """
    identities = _identities(cache.folder)
    fitting = [store for dataset in kinds for store in _fitting(dataset, views, cache, teacher, identities)]
    if not fitting:
        return None
    best = max(fitting, key=lambda store: (_rows(store), store.path.name))
    return KeptPlan(str(best.identity["dataset"]["decoder"]), best.path)


def _fitting(
    dataset: DataSet,
    views: Views,
    cache: CacheChoice,
    teacher: Callable[[], FrozenTeacher],
    identities: Sequence[tuple[Path, dict[str, Any]]],
) -> list[Store]:
    """The caches of this teacher on these views that were decoded with a plan of this set's kind."""
    if dataset.options is None:
        return []
    load = dataset.options.hw_decoder_load
    pixels = {"dataset": {"name": dataset.name, **dataset.describe()}, "rule": views.describe()}
    found = [
        path
        for path, theirs in identities
        if theirs["dataset"].get("hw_decoder_load", load) == load and _alike(theirs, pixels, of=tuple(pixels))
    ]
    if not found:
        return []
    ours = teacher()
    facts = store_facts(
        ours.identity(dataset, views, dataset.name), ours.fields(cache.rows, cache.align), dataset.num_images
    )
    stores = [Store.at(path) for path in found]
    return [store for store in stores if _alike(store.identity, facts, of=tuple(facts))]


def _rows(store: Store) -> int:
    return sum(view["rows"] for view in store.info()["views"].values())


def _identities(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    found = []
    for path in caches(folder):
        with suppress(ValueError, FileNotFoundError):  # who opens such a cache is told
            theirs = read_identity(path)
            if isinstance(theirs.get("dataset"), dict):
                found.append((path, theirs))
    return found


def _alike(theirs: Mapping[str, Any], ours: Mapping[str, Any], *, of: tuple[str, ...]) -> bool:
    """Whether these parts of two identities differ in nothing but the plan."""
    found = differences({part: theirs.get(part) for part in of}, {part: ours[part] for part in of})
    return {difference.key for difference in found} <= _PLAN
