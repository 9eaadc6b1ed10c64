"""A cache goes elsewhere: into a tar or another folder, and back, with every row checked when it comes in."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from fastanc import files
from fastanc.cache.checksum import BYTES, checksums
from fastanc.cache.column import ROWS, SUMS, Column, explain
from fastanc.cache.identity import FORMAT, IDENTITY, folder_name
from fastanc.cache.store import Store, make_cache

Members = Generator[tuple[str, IO[bytes]], None, None]
_AT_ONCE_BYTES = 32 << 20
_NAME = re.compile(rf"view-(\d{{5,}})/([a-z]+)({SUMS}|{ROWS})".replace(".", r"\."))


class Imported(NamedTuple):
    """What came into a cache."""

    store: Store
    rows: int
    """New rows, counted a field."""
    wrong: int
    """Rows that did not fit their checksums and were left out."""


def export_cache(store: Store, path: str | Path) -> Path:
    """Write a cache into a tar (a path that ends in .tar) or, as `import_cache` does, into a folder of caches.

    Returns the tar, or the cache's folder inside the folder.

    Raises:
        ValueError: there is no room; the tar is there whole or not at all.
    """
    path = Path(path)
    if path.suffix != ".tar":
        return import_cache(store.path, path).store.path
    try:
        files.make_folder(path.parent)
        files.sweep(path.parent, path.name, older_than_s=files.HOUR_S)
        with files.whole(path) as part, tarfile.open(part, "w") as tar:
            for name in _names(store.path):
                tar.add(store.path / name, name)
    except OSError as error:
        raise explain(path.parent, error) from error
    return path


def import_cache(path: str | Path, cache_dir: str | Path) -> Imported:
    """Add the rows of an exported tar, or of a cache's folder, to the cache of that identity in a folder.

    A row that is there already is left alone, so an interrupted import goes on where it stopped; one that
    does not fit its checksum is left out.

    Raises:
        FileNotFoundError: there is no such tar or cache.
        ValueError: it is no cache (nothing is made then), the tar ends too early, or there is no room.
    """
    path = Path(path)
    try:
        with closing(_members(path)) as members:
            return _add(path, members, Path(cache_dir))
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{path} is not a whole tar: export it again") from error


def _add(path: Path, members: Members, cache_dir: Path) -> Imported:
    target, new, wrong = _target(path, members, cache_dir), 0, 0
    sums: dict[tuple[str, str], np.ndarray] = {}
    for name, file in members:
        match = _NAME.fullmatch(name)
        if not match or match[2] not in [field.name for field in target.fields]:
            raise ValueError(f"{path} is no exported cache: it holds {name}")
        view, field, kind = match.groups()
        if kind == SUMS:
            sums[view, field] = np.frombuffer(file.read(target.num_images * BYTES), "<u8")
            continue
        if (view, field) not in sums:
            raise ValueError(f"{path} is no exported cache: {name} comes without its checksums before it")
        column = next(c for c in target.columns(int(view)) if c.field.name == field)
        came, bad = _merge(file, sums.pop((view, field)), column)
        new, wrong = new + came, wrong + bad
    target.sync()
    return Imported(target, new, wrong)


def _target(path: Path, members: Members, cache_dir: Path) -> Store:
    """Return the cache that an archive's identity names, made where it is missing."""
    name, file = next(members, ("", None))
    if file is None or name != IDENTITY:
        raise ValueError(f"{path} is no exported cache: it does not begin with {IDENTITY}")
    try:
        facts: dict[str, Any] = json.loads(file.read())
        if facts.get("format") != FORMAT:
            raise ValueError(f"its format is {facts.get('format', 1)}, this version reads {FORMAT}")
        folder = cache_dir / folder_name(facts)
        Store(folder, facts)
    except (ValueError, AttributeError, LookupError, TypeError, RecursionError) as error:
        why = str(error) if "its format" in str(error) else f"its {IDENTITY} is not readable"
        raise ValueError(f"{path} is no exported cache: {why}") from error
    if folder.parent != cache_dir:  # a name may hold what a folder's must not
        raise ValueError(f"{path} is no exported cache: its {IDENTITY} names a folder elsewhere")
    if not (folder / IDENTITY).exists():
        make_cache(folder, facts)
    return Store.at(folder)


def _merge(file: IO[bytes], sums: np.ndarray, column: Column) -> tuple[int, int]:
    """Write the rows of a stream that are right and not there yet; return how many, and how many were wrong."""
    stride, new, wrong = column.field.stride, 0, 0
    step = max(1, _AT_ONCE_BYTES // stride)
    for first in range(0, len(sums), step):
        data = file.read(min(step, len(sums) - first) * stride)
        rows = np.frombuffer(data[: len(data) // stride * stride], np.uint8).reshape(-1, stride)
        index = np.arange(first, first + len(rows))
        rows = rows[:, : column.field.row_bytes]
        marked = sums[index] != 0
        fits = marked.copy()
        fits[marked] = checksums(rows[marked], index[marked], column.seed) == sums[index[marked]]
        wrong += int(np.count_nonzero(marked & ~fits))
        wanted = fits & ~column.has(index)
        if wanted.any():
            column.write_rows(index[wanted], rows[wanted])
            column.write_sums(index[wanted], rows[wanted])
            new += int(np.count_nonzero(wanted))
    wrong += int(np.count_nonzero(sums[first + len(rows) :])) if len(sums) else 0
    return new, wrong


def _names(path: Path) -> list[str]:
    """Return the files of a cache in a tar's order: the identity, then each column's checksums before its rows."""
    found = sorted(path.glob(f"view-*/*{SUMS}"))
    pairs = [(sums, sums.with_suffix(ROWS)) for sums in found if sums.with_suffix(ROWS).exists()]
    return [IDENTITY, *(file.relative_to(path).as_posix() for pair in pairs for file in pair)]


def _members(path: Path) -> Members:
    """Yield name and content of every file of a cache's folder or tar."""
    if path.is_dir():
        Store.at(path)
        for name in _names(path):
            with open(path / name, "rb") as opened:
                yield name, opened
        return
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}: name an exported tar or a cache's folder")
    with tarfile.open(path, "r:") as tar:
        for member in tar:  # to its end before anything is made, which reads the headers alone
            if not member.isfile() or (member.name != IDENTITY and not _NAME.fullmatch(member.name)):
                raise ValueError(f"{path} is no exported cache: it holds {member.name}")
        for member in tar:
            content = tar.extractfile(member)
            assert content is not None
            yield member.name, content
