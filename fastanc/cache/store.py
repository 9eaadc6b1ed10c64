"""The cache on disk: a folder per identity, in it a folder per view; any number of writers."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fastanc.cache.identity import (
    IDENTITY,
    described,
    differences,
    folder_name,
    identity_hash,
    no_cache,
    read_identity,
    shown,
)
from fastanc.cache.reader import Reader
from fastanc.cache.rows import Field, encode
from fastanc.cache.shards import (
    DATA,
    Damaged,
    Untold,
    explain,
    list_files,
    load_shard,
    make_folder,
    write_file,
    write_shard,
)
from fastanc.cache.table import ViewTable
from fastanc.files import TEMPORARY, scratch

ROWS_PER_SHARD = 16384
_SHOWN = 4


class Damage(NamedTuple):
    """A file of a cache that is not trusted."""

    view: int
    shard: str
    reason: str
    told: bool = True
    """Whether it was read whole and is wrong; if not it may be sound, and is never dropped."""


class Store:
    """One cache: the rows of every (view, image) of one teacher on one data set.

    `Store.open` finds it by identity among the caches of a folder, `Store.at` by its own folder.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any], rows_per_shard: int) -> None:
        self.path = path
        self.identity = dict(facts)
        self.hash = identity_hash(facts)
        self.num_images = int(facts["num_images"])
        self.fields = tuple(Field(**field) for field in facts["fields"])
        self.rows_per_shard = rows_per_shard
        self._parts = [part for field in self.fields for part in field.parts()]
        self._tables: dict[int, ViewTable] = {}

    @classmethod
    def open(
        cls,
        cache_dir: str | Path,
        identity: Mapping[str, Any],
        fields: Sequence[Field],
        num_images: int,
        rows_per_shard: int = ROWS_PER_SHARD,
        create: bool = False,
    ) -> Store:
        """Return the cache of this identity under `cache_dir`.

        Args:
            cache_dir: holds any number of caches side by side.
            identity: from `identity.identity`; fields and num_images become part of it.
            fields: of a row.
            num_images: of the data set.
            rows_per_shard: of the shards that this process writes; not part of the identity.
            create: make the cache where there is none.

        Raises:
            FileNotFoundError: there is none and `create` is False; names the nearest one and how it differs.
            ValueError: the cache is not readable, or cannot be made.
        """
        facts = {**identity, "fields": described(fields), "num_images": num_images}
        path = Path(cache_dir) / folder_name(facts)
        if not (path / IDENTITY).exists():
            if not create:
                raise FileNotFoundError(no_cache(Path(cache_dir), facts))
            make_folder(path)
            write_file(path / IDENTITY, [json.dumps(facts, indent=1).encode()])
        store = cls.at(path, rows_per_shard)
        if found := differences(store.identity, facts):
            raise ValueError(f"{path} holds another identity, {shown(found)}: move that folder away")
        return store

    @classmethod
    def at(cls, path: str | Path, rows_per_shard: int = ROWS_PER_SHARD) -> Store:
        """Return the cache in a folder; raises FileNotFoundError or ValueError where there is none."""
        return cls(Path(path), read_identity(Path(path)), rows_per_shard)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, all fields."""
        return sum(part.row_bytes for part in self._parts)

    def table(self, view: int) -> ViewTable:
        """Return the table of a view; `refresh` it to see what was committed since."""
        table = self._tables.get(view)
        if table is None:  # two threads may come here at once: both get the first one's
            table = ViewTable(self._folder(view), self.hash, self._parts, self.num_images)
            table = self._tables.setdefault(view, table)
        return table

    def _folder(self, view: int) -> Path:
        return self.path / f"view-{view:05d}"

    def _view_folders(self) -> list[int]:
        return sorted(int(folder.name[5:]) for folder in self.path.glob("view-*"))

    def views(self) -> list[int]:
        """Return the views that hold a committed row, ascending."""
        return [view for view in self._view_folders() if self.present(view)]

    def present(self, view: int) -> int:
        """Return how many images of a view are committed now."""
        self.table(view).refresh()
        return self.table(view).num_present()

    def complete(self, view: int) -> bool:
        """Return whether every image of a view is committed now."""
        return self.present(view) == self.num_images

    def missing(self, view: int) -> np.ndarray:
        """Return the image numbers of a view that are not committed now, ascending int64."""
        self.table(view).refresh()
        return self.table(view).missing()

    def todo(self, view: int, rank: int = 0, world: int = 1) -> np.ndarray:
        """Return this process's share of the image numbers that are missing now: neighbours, ascending."""
        return np.array_split(self.missing(view), world)[rank]

    def put(self, view: int, index: np.ndarray, values: Mapping[str, np.ndarray | Tensor]) -> int:
        """Round values [R, width] of every field into rows, commit them as one shard, return its bytes.

        Raises:
            ValueError: a value is not finite in the field's dtype, the disk is full, the folder is read-only.
        """
        rows = encode({name: torch.as_tensor(value) for name, value in values.items()}, self.fields)
        return self.put_rows(view, index, {name: value.cpu().numpy() for name, value in rows.items()})

    def put_rows(self, view: int, index: np.ndarray, rows: Mapping[str, np.ndarray]) -> int:
        """Commit rows as `rows.encode` gives them, part name -> [R, part width], as one shard."""
        index = np.asarray(index, np.int64)
        for part in self._parts:
            array = rows[part.name]
            assert array.shape == (len(index), part.width), (part.name, array.shape, len(index))
            if part.dtype.is_floating_point:
                bad = ~np.isfinite(array).all(1)
                if bad.any():
                    raise ValueError(_not_finite(part.name, str(part.dtype), view, index[bad]))
        arrays = {part.name: rows[part.name].astype(part.disk_dtype, copy=False) for part in self._parts}
        return write_shard(self._folder(view), self.hash, index, arrays)

    def check_writable(self) -> None:
        """Raise ValueError now where a later write could not work."""
        probe = scratch(self.path / "probe")
        try:
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise explain(self.path, error) from error

    def reader(self) -> Reader:
        """Return a reader of all views."""
        return Reader(self.path, self.table, self.fields)

    def info(self) -> dict[str, Any]:
        """Return the identity, and what every view holds and lacks, as plain values."""
        views = {}
        for view in self._view_folders():
            rows, table = self.present(view), self.table(view)
            files = list_files(self._folder(view))
            views[view] = {
                "rows": rows,
                "missing": self.num_images - rows,
                "complete": rows == self.num_images,
                "shards": len(table.shards),
                "bytes": sum(shard.num_bytes for shard in table.shards),
                "damaged": dict(table.damaged),
                "stray_files": len(files.temporary) + len(files.uncommitted),
            }
        return {
            "path": str(self.path),
            "identity": self.identity,
            "row_bytes": self.row_bytes,
            "views": views,
            "bytes": sum(view["bytes"] for view in views.values()),
        }

    def verify(self, *, drop: bool = False, progress: bool = False) -> list[Damage]:
        """Read every shard, compare its CRCs, and return what cannot be trusted.

        Args:
            drop: remove what was read whole and is wrong, so that the next build computes those rows again; a
                shard of which that cannot be told (no right to read it, another format, a failing disk) stays.
            progress: show a bar.
        """
        damage: list[Damage] = []
        for view in self._view_folders():
            files = list_files(self._folder(view))
            with ThreadPoolExecutor(4) as pool:
                reasons = pool.map(self._examined, files.records)
                hidden = None if progress else True
                bar = tqdm(reasons, f"view {view}", len(files.records), unit="shard", disable=hidden)
                for record, error in zip(files.records, bar):
                    if error is not None:
                        told = not isinstance(error, Untold)
                        damage.append(Damage(view, record.stem + DATA, str(error), told))
                        if drop and told:
                            record.unlink(missing_ok=True)
                            record.with_suffix(DATA).unlink(missing_ok=True)
            for path in files.uncommitted:
                damage.append(Damage(view, path.name, "no commit record: its writer is at work or dead"))
            self._tables.pop(view, None)
        return damage

    def examine(self, record: Path) -> str | None:
        """Read the shard of a commit record whole; return why it cannot be trusted, or None."""
        error = self._examined(record)
        return None if error is None else str(error)

    def _examined(self, record: Path) -> Damaged | None:
        try:
            load_shard(record, self.hash, self._parts).check()
        except Damaged as error:
            return error
        except OSError as error:
            return Untold(f"it cannot be read ({error.strerror})")
        return None

    def prune(self, views: Sequence[int] = (), *, stray_age_s: float = 3600.0) -> list[Path]:
        """Drop views, and files that no writer will commit any more; return what was removed.

        Args:
            views: to drop whole.
            stray_age_s: temporary and uncommitted files last written longer ago are taken for a dead writer's
                (a living one commits within seconds).
        """
        removed = []
        for view in self._view_folders():
            files = list_files(self._folder(view))
            old = time.time() - stray_age_s
            strays = [p for p in (*files.temporary, *files.uncommitted) if view in views or _older(p, old)]
            dropped = [p for r in files.records if view in views for p in (r, r.with_suffix(DATA))]
            for path in (*dropped, *strays):
                path.unlink(missing_ok=True)
                removed.append(path)
            if view in views:
                with contextlib.suppress(OSError):
                    self._folder(view).rmdir()
                self._tables.pop(view, None)
        for path in self.path.glob(f"*{TEMPORARY}"):
            if _older(path, time.time() - stray_age_s):
                path.unlink(missing_ok=True)
                removed.append(path)
        return removed


def _older(path: Path, than: float) -> bool:
    try:
        return os.stat(path).st_mtime <= than
    except FileNotFoundError:
        return False


def _not_finite(part: str, dtype: str, view: int, images: np.ndarray) -> str:
    some = ", ".join(str(image) for image in images[:_SHOWN])
    return (
        f"view {view}: the {part} of {len(images)} images ({some}{', ...' if len(images) > _SHOWN else ''})"
        f" are not finite as {dtype.removeprefix('torch.')}: store fp32 rows, or mend the teacher"
    )
