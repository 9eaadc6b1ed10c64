"""The cache on disk: a folder per identity, in it a folder per view; any number of writers."""

from __future__ import annotations

import json
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastanc import files
from fastanc.cache.checksum import seed_of
from fastanc.cache.column import Column, explain
from fastanc.cache.identity import (
    IDENTITY,
    differences,
    folder_name,
    identity_hash,
    no_cache,
    read_identity,
    shown,
    store_facts,
)
from fastanc.cache.reader import Reader
from fastanc.cache.rows import Field, encode, not_finite
from fastanc.cache.verified import Verified, verified

_SHOWN = 4
_OPEN_VIEWS = 16
_VIEW = re.compile(r"view-(\d{5,})")


class Store:
    """One cache: the rows of every (view, image) of one teacher on one data set.

    `Store.open` finds it by identity among the caches of a folder, `Store.at` by its own folder.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any]) -> None:
        self.path = path
        self.identity = dict(facts)
        self.hash = identity_hash(facts)
        self.num_images = int(facts["num_images"])
        self.fields = tuple(Field(**field) for field in facts["fields"])
        self._lock = threading.Lock()
        self._opened: OrderedDict[int, tuple[Column, ...]] = OrderedDict()
        self._not_synced: dict[int, tuple[Column, ...]] = {}

    @classmethod
    def open(
        cls,
        cache_dir: str | Path,
        identity: Mapping[str, Any],
        fields: Sequence[Field],
        num_images: int,
        create: bool = False,
    ) -> Store:
        """Return the cache of this identity under `cache_dir`.

        Args:
            cache_dir: holds any number of caches side by side.
            identity: from `identity.identity`; format, fields and num_images become part of it.
            fields: of a row.
            num_images: of the data set.
            create: make the cache where there is none.

        Raises:
            FileNotFoundError: there is none and `create` is False; names the nearest one and how it differs.
            ValueError: the cache is not readable, or cannot be made.
        """
        facts = store_facts(identity, fields, num_images)
        path = Path(cache_dir) / folder_name(facts)
        if not (path / IDENTITY).exists():
            if not create:
                raise FileNotFoundError(no_cache(Path(cache_dir), facts))
            make_cache(path, facts)
        store = cls.at(path)
        if found := differences(store.identity, facts):
            raise ValueError(f"{path} holds another identity, {shown(found)}: move that folder away")
        return store

    @classmethod
    def at(cls, path: str | Path) -> Store:
        """Return the cache in a folder; raises FileNotFoundError or ValueError where there is none."""
        return cls(Path(path), read_identity(Path(path)))

    @property
    def row_bytes(self) -> int:
        """Bytes on disk of one image in a view: the rows of all fields with their checksums."""
        return sum(field.stride + np.uint64().itemsize for field in self.fields)

    def columns(self, view: int) -> tuple[Column, ...]:
        """Return the columns of a view, one a field; those of the views used last stay open."""
        with self._lock:
            columns = self._opened.pop(view, None) or self._columns(view)
            self._opened[view] = columns
            if len(self._opened) > _OPEN_VIEWS:  # whoever still reads one keeps it open
                self._opened.popitem(last=False)
            return columns

    def _columns(self, view: int) -> tuple[Column, ...]:
        folder = self._folder(view)
        return tuple(
            Column(folder, field, self.num_images, seed_of(self.hash, view, field.name))
            for field in self.fields
        )

    def _folder(self, view: int) -> Path:
        return self.path / f"view-{view:05d}"

    def _view_folders(self) -> list[int]:
        names = (_VIEW.fullmatch(name) for name in os.listdir(self.path))
        return sorted(int(match[1]) for match in names if match)

    def views(self) -> list[int]:
        """Return the views that hold a row, ascending."""
        return [view for view in self._view_folders() if self.present(view)]

    def complete_views(self) -> list[int]:
        """Return the views that hold a row of every image, ascending."""
        return [view for view in self._view_folders() if self.complete(view)]

    def there(self, view: int) -> np.ndarray:
        """Return which images of a view have a row on disk now, [N] bool; their bytes are not looked at."""
        there = np.ones(self.num_images, bool)
        for column in self._columns(view):
            there &= column.load() != 0
        return there

    def present(self, view: int) -> int:
        """Return how many images of a view have a row now."""
        return int(np.count_nonzero(self.there(view)))

    def complete(self, view: int) -> bool:
        """Return whether every image of a view has a row now."""
        return self.present(view) == self.num_images

    def missing(self, view: int) -> np.ndarray:
        """Return the image numbers of a view that have no row now, ascending int64."""
        return np.flatnonzero(~self.there(view))

    def look_again(self, view: int, index: np.ndarray) -> np.ndarray:
        """Return which images [R] of a view have a row now, wherever it was written, [R] bool."""
        columns = self.columns(view)
        for column in columns:
            column.refresh(index)
        return np.logical_and.reduce([column.has(index) for column in columns])

    def put(self, view: int, index: np.ndarray, values: Mapping[str, np.ndarray | Tensor]) -> int:
        """Round values [R, width] of every field into rows, write them, return their bytes.

        Raises:
            ValueError: a value is not finite in the field's dtype, the disk is full, the folder is read-only.
        """
        return self.put_rows(
            view, index, encode({name: torch.as_tensor(v) for name, v in values.items()}, self.fields)
        )

    def put_rows(self, view: int, index: np.ndarray, rows: Mapping[str, Tensor]) -> int:
        """Write rows as `rows.encode` gives them, field name -> [R, row width] on the host; return their bytes.

        The first image's checksums are written last: until then its row is missing. A kill costs no more than these
        rows, a power failure those since `sync`.
        """
        index = np.asarray(index, np.int64)
        for field in self.fields:
            assert rows[field.name].shape == (len(index), field.row_width), field.name
            bad = not_finite(rows[field.name], field).numpy()
            if bad.any():
                raise ValueError(_not_finite(field, view, index[bad]))
        self._not_synced[view] = columns = self.columns(view)
        data = [rows[field.name].contiguous().view(torch.uint8).numpy() for field in self.fields]
        for column, block in zip(columns, data):
            column.write_rows(index, block)
        for column, block in zip(columns, data):
            column.write_sums(index, block)
        return len(index) * self.row_bytes

    def sync(self) -> None:
        """Make everything that this process wrote durable."""
        while self._not_synced:
            for column in self._not_synced.popitem()[1]:
                column.sync()

    def check_writable(self) -> None:
        """Raise ValueError now where a later write could not work."""
        probe = files.scratch(self.path / "probe")
        try:
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise explain(self.path, error) from error

    def reader(self) -> Reader:
        """Return a reader of all views."""
        return Reader(self.path, self.columns, self.fields)

    def info(self) -> dict[str, Any]:
        """Return the identity, and what every view holds and lacks, as plain values."""
        views = {}
        for view in self._view_folders():
            rows = self.present(view)
            found = [p.stat() for p in self._folder(view).iterdir()]
            views[view] = {
                "rows": rows,
                "missing": self.num_images - rows,
                "complete": rows == self.num_images,
                "bytes": sum(stat.st_blocks * 512 for stat in found),
            }
        return {
            "path": str(self.path),
            "identity": self.identity,
            "row_bytes": self.row_bytes,
            "views": views,
            "bytes": sum(view["bytes"] for view in views.values()),
        }

    def verify(self, *, drop: bool = False, progress: bool = False) -> list[Verified]:
        """Read every row, compare it with its checksum, and return what every view holds.

        Args:
            drop: declare the rows missing that were read and do not fit, so that the next build computes them again.
            progress: show a bar.

        Raises:
            OSError: a file cannot be read, which says nothing of its rows; nothing of it is dropped.
        """
        return [
            verified(view, self._columns(view), drop=drop, progress=progress) for view in self._view_folders()
        ]

    def prune(self, views: Sequence[int] = (), *, stray_age_s: float = files.HOUR_S) -> list[Path]:
        """Remove views, and what killed writers left; return what was removed.

        Args:
            views: to remove whole.
            stray_age_s: unfinished files last written longer ago are taken for a dead writer's.
        """
        removed = [self._folder(view) for view in views if self._folder(view).is_dir()]
        for folder in removed:
            files.remove(folder)
        with self._lock:
            for view in views:
                self._opened.pop(view, None)
        return removed + files.sweep(self.path, older_than_s=stray_age_s)


def make_cache(path: Path, facts: Mapping[str, Any]) -> None:
    """Make an empty cache; raises ValueError where that is not possible."""
    try:
        files.make_folder(path)
        files.write_text(path / IDENTITY, json.dumps(facts, indent=1))
    except OSError as error:
        raise explain(path, error) from error


def _not_finite(field: Field, view: int, images: np.ndarray) -> str:
    some = ", ".join(str(image) for image in images[:_SHOWN])
    return (
        f"view {view}: the {field.name} of {len(images)} images ({some}{', ...' if len(images) > _SHOWN else ''})"
        f" are not finite as {field.dtype}: store fp32 rows, or mend the teacher"
    )
