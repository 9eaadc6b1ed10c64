"""A cache goes elsewhere: into a tar or another folder, and back, with every shard checked on the way."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Generator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import IO

from fastanc import files
from fastanc.cache.identity import IDENTITY, folder_name
from fastanc.cache.shards import DATA, RECORD, explain, make_folder, write_file
from fastanc.cache.store import Store

Members = Generator[tuple[str, IO[bytes]], None, None]
_CHUNK = 8 << 20
_NAME = re.compile(r"view-\d{5}/shard-[0-9]+-[0-9a-f]+\.(bin|json)")


def export_cache(store: Store, path: str | Path) -> Path:
    """Write the committed shards into a tar (a path that ends in .tar) or, as `import_cache` does, a folder.

    Returns the tar, or the cache's folder inside the folder.

    Raises:
        ValueError: a shard is damaged, or there is no room; the tar is there whole or not at all.
    """
    path = Path(path)
    if path.suffix != ".tar":
        return import_cache(store.path, path).path
    try:
        files.make_folder(path.parent)
        files.sweep(path.parent, path.name, older_than_s=files.HOUR_S)
        with files.whole(path) as part, tarfile.open(part, "w") as tar:
            tar.add(store.path / IDENTITY, IDENTITY)
            for record in sorted(store.path.glob(f"view-*/*{RECORD}")):
                _refuse(record, store.examine(record))
                for file in (record.with_suffix(DATA), record):
                    tar.add(file, f"{file.parent.name}/{file.name}")
    except OSError as error:
        raise explain(path.parent, error) from error
    return path


def import_cache(path: str | Path, cache_dir: str | Path) -> Store:
    """Add the shards of an exported tar, or of a cache's folder, to the cache of that identity in a folder.

    Shards that are there already are left alone, so an interrupted import goes on where it stopped.

    Raises:
        FileNotFoundError: there is no such tar or cache.
        ValueError: it is no cache (nothing is made of it), a shard came damaged (it is not kept), or no room.
    """
    path = Path(path)
    try:
        with closing(_members(path)) as members:
            return _add(path, members, Path(cache_dir))
    except tarfile.TarError as error:
        raise ValueError(f"{path} is not a whole tar: export it again") from error


def _add(path: Path, members: Members, cache_dir: Path) -> Store:
    name, file = next(members, ("", io.BytesIO()))
    if name != IDENTITY:
        raise ValueError(f"{path} is no exported cache: it does not begin with {IDENTITY}")
    identity = file.read()
    try:
        facts = json.loads(identity)
        target = cache_dir / folder_name(facts)
        Store(target, facts, 1)
    except (ValueError, AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"{path} is no exported cache: its {IDENTITY} is not readable") from error
    if target.parent != cache_dir:  # a name may hold what a folder's must not
        raise ValueError(f"{path} is no exported cache: its {IDENTITY} names a folder elsewhere")
    make_folder(target)
    if not (target / IDENTITY).exists():
        write_file(target / IDENTITY, [identity])
    for name, file in members:
        if (target / name).exists():
            continue
        make_folder((target / name).parent)
        write_file(target / name, iter(partial(file.read, _CHUNK), b""))
        if name.endswith(RECORD) and (reason := Store.at(target).examine(target / name)):
            (target / name).unlink()
            (target / name).with_suffix(DATA).unlink(missing_ok=True)
            _refuse(path / name, reason)
    return Store.at(target)


def _refuse(record: Path, reason: str | None) -> None:
    if reason:
        raise ValueError(
            f"shard {record.with_suffix(DATA)} is damaged, {reason}: run `fastanc cache verify --drop`, then"
            " `fastanc cache build`"
        )


def _members(path: Path) -> Members:
    """Yield name and content of every file: the identity first, a shard's data before its record."""
    if path.is_dir():
        Store.at(path)
        records = sorted(path.glob(f"view-*/*{RECORD}"))
        for file in (path / IDENTITY, *(f for r in records for f in (r.with_suffix(DATA), r))):
            with open(file, "rb") as opened:
                yield file.relative_to(path).as_posix(), opened
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
