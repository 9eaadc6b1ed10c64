"""Whether a source is still what was indexed.

An index holds what was there when it was made. So names, sizes and modification times are listed again whenever it is
opened: what was added, removed or replaced since is named, with the command that renews the index, and never taken
silently: a run that is continued must see the images it began with. Files whose times alone differ (a copied set) are
read again and compared by their CRC, and their new times are kept. A file that was replaced by one of the same size
and the same time is not seen.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import zlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from fastanc.pipelines.index.image_check import read_range
from fastanc.pipelines.index.sources import Fact, facts_of, list_source, stamp_of
from fastanc.pipelines.index.table import Index
from fastanc.pipelines.remote_path import RemotePath
from fastanc.pipelines.source_options import PLAIN, SourceOptions
from fastanc.pipelines.source_path import folder_of

_THREADS = 8
_PATIENCE_S = 2


def digests_of(paths: Iterable[Path], place: Callable[[Path], Path] = Path) -> list[list[str]]:
    """Return [absolute path, digest of its bytes] of text files; raises OSError.

    `place` says where a text lies on a disk, or will.
    """
    return [[os.path.abspath(place(path)), _digest_of(path)] for path in paths]


def _digest_of(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def asked_of(options: SourceOptions) -> dict[str, str]:
    """Return what was said of a source beside its path, ready for JSON; files as absolute paths."""
    said = {one.name: getattr(options, one.name) for one in fields(options)}
    return {
        name: os.path.abspath(value) if isinstance(value, Path) else value
        for name, value in said.items()
        if value is not None
    }


def base_of(source: Path, base: Path) -> str | None:
    """Return the folder that images' paths are relative to, where that does not follow from the source."""
    if isinstance(base, RemotePath):  # of a copy beside the index it follows
        return None
    return None if os.path.abspath(base) == os.path.abspath(folder_of(source)) else os.path.abspath(base)


def unchanged(index: Index, source: Path, path: Path, options: SourceOptions = PLAIN) -> Index:
    """Return the index `path` of a source that is as it was, with its files' new times where they alone differ.

    What was asked for when it was made stays in force where `options` do not say otherwise. Raises ValueError that
    names what was added, removed or replaced, or is asked for otherwise, and the command that makes the index anew.
    """
    _check_asked(index, source, options)
    _check_texts(index, source)
    facts, folders = facts_of(source, _options_then(index))
    stamp = stamp_of(facts, folders)
    if stamp == index.origin.stamp:
        return index
    then, now = _facts_then(index), {name: (length, time) for name, length, time in facts}
    said = _differences(then, now) + _folders(index.origin.folders, folders)
    touched = [name for name, (length, time) in now.items() if name in then and then[name] != (length, time)]
    if not said:
        said += _replaced(index, source, touched)
    if said:
        raise ValueError(
            f"{source}: {'; '.join(said)} since the set was indexed: run `{command(index, source)}`"
        )
    return _renewed(index, path, now, stamp)


def command(index: Index, source: Path, asked: Mapping[str, str] | None = None) -> str:
    """Return the command line that makes an index anew, as it was asked for or as it is now."""
    words = ["fastanc", "index", "--refresh", str(source)]
    for option, value in (index.origin.asked if asked is None else asked).items():
        words += [f"--{option}", value]
    return shlex.join(words)


def _options_then(index: Index) -> SourceOptions:
    asked = index.origin.asked
    return SourceOptions(
        **{name: value if name == "columns" else Path(value) for name, value in asked.items()}  # type: ignore[arg-type]
    )


def _check_asked(index: Index, source: Path, options: SourceOptions) -> None:
    """Raise ValueError where an option names something else than what the index was made with."""
    then, now = index.origin.asked, asked_of(options)
    for name, value in now.items():
        if name == "labels" and (index.labels is None or name not in then):
            continue  # new labels are taken where there were none, and a set's own stay
        if then.get(name) != value:
            was = f"with {then[name]}" if name in then else "without"
            raise ValueError(
                f"{source} was indexed {was} as its {name}, and {value} is asked for: run"
                f" `{command(index, source, {**then, **now})}`"
            )


def _check_texts(index: Index, source: Path) -> None:
    for path, digest in index.origin.texts:
        if (
            Path(path).is_file() and _digest_of(Path(path)) != digest
        ):  # one that is gone: what it said is in the index
            raise ValueError(
                f"{path} changed since {source} was indexed with its labels: run `{command(index, source)}`"
            )


def _facts_then(index: Index) -> dict[str, tuple[int, int]]:
    times = [] if index.mtimes is None else index.mtimes.tolist()
    if index.files is not None:
        return {name: (length, time) for (name, length), time in zip(index.files, times)}
    names = index.names()
    then = {name: (length, time) for name, length, time in zip(names, index.lengths.tolist(), times)}
    return then | {name: (length, time) for name, length, time in index.origin.left_out}


def _differences(then: dict[str, tuple[int, int]], now: dict[str, tuple[int, int]]) -> list[str]:
    """What was added, removed, or has another size, in words."""
    said = []
    resized = sorted(name for name in now if name in then and now[name][0] != then[name][0])
    if resized:
        first = resized[0]
        more = f" and {len(resized) - 1} more changed" if len(resized) > 1 else ""
        said.append(f"{first} changed from {then[first][0]} to {now[first][0]} bytes{more}")
    for names, one, many in (
        (sorted(now.keys() - then.keys()), "was added", "were added"),
        (sorted(then.keys() - now.keys()), "went missing", "went missing"),
    ):
        if names:
            said.append(
                f"{names[0]} {one}" if len(names) == 1 else f"{len(names)} files {many} (first {names[0]})"
            )
    return said


def _folders(then: list[str] | None, now: list[str] | None) -> list[str]:
    """Which class folders came or went, in words."""
    old, new = set(then or []), set(now or [])
    return [
        *(f"the class folder {name!r} was added" for name in sorted(new - old)[:1]),
        *(f"the class folder {name!r} went missing" for name in sorted(old - new)[:1]),
    ]


def _replaced(index: Index, source: Path, touched: list[str]) -> list[str]:
    """Which files with a new time hold other bytes, in words."""
    again, names = set(touched), index.names()
    if index.files is None:
        rows = [i for i, name in enumerate(names) if name in again]
    else:
        assert index.file_numbers is not None
        numbers = [k for k, (name, _) in enumerate(index.files) if name in again]
        rows = np.flatnonzero(np.isin(index.file_numbers, numbers)).tolist()
    found = [name for name, _, _ in index.origin.left_out if name in again]  # it may have been mended
    found += _moved(index, source) if index.files is not None else []

    def differs(i: int) -> bool:
        try:
            return zlib.crc32(read_range(*index.places([i])[0])) != int(index.crc32[i])
        except OSError:
            return True

    with ThreadPoolExecutor(_THREADS) as pool:
        reading = tqdm(
            pool.map(differs, rows), total=len(rows), unit="img", desc="compare", delay=_PATIENCE_S
        )
        found += [names[i] for i, other in zip(rows, reading) if other]
    if not found:
        return []
    what = "was replaced" if len(found) == 1 else f"and {len(found) - 1} more were replaced"
    return [f"{found[0]} {what} (of the same size)"]


def _moved(index: Index, source: Path) -> list[str]:
    """Return the images that are no longer where they were in their tars, or have another label there."""
    now = {c.name: c for c in list_source(source, _options_then(index)).candidates}
    own = index.labels is not None and "labels" not in index.origin.asked
    labels = [index.classes[k] for k in index.labels] if index.labels is not None and own else None

    def stays(i: int, name: str, offset: int, length: int) -> bool:
        other = now.get(name)
        if other is None or (other.offset, other.length) != (offset, length):
            return False
        return labels is None or str(other.label) == labels[i]

    places = zip(index.names(), index.places(range(len(index))))
    return [
        name for i, (name, (_, offset, length)) in enumerate(places) if not stays(i, name, offset, length)
    ]


def _renewed(index: Index, path: Path, now: dict[str, tuple[int, int]], stamp: str) -> Index:
    """Keep the new times, so that the next run need not read again."""
    names = index.names() if index.files is None else [name for name, _ in index.files]
    times = np.array([now[name][1] for name in names], np.int64)
    index = replace(index, mtimes=times, origin=replace(index.origin, stamp=stamp))
    with suppress(OSError):  # a folder that may only be read
        index.save(path)
    return index


def left_out(facts: list[Fact], kept: list[str]) -> list[list]:
    """Return the facts of those files of a tree that an index does not hold, ready for JSON."""
    names = set(kept)
    return [list(fact) for fact in facts if fact[0] not in names]
