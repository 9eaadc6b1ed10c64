"""Paths that name more or less than one file: a folder inside of an archive, or the shards of one name.

`photos.zip/train` is what lies in the folder train of an archive, `data/train-*.parquet` all files of these names. No
such path is there for the operating system, so whether it exists and where its files lie is asked here.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from fastanc.pipelines.anywhere import lexists, listdir
from fastanc.pipelines.remote_path import RemotePath, parents_of


def parted(source: Path) -> tuple[Path, str]:
    """Return the archive and the folder inside of it that a path names; the path itself and "" for any other."""
    if not lexists(source):
        for above in parents_of(source):
            if above.is_file():
                return above, source.relative_to(above).as_posix()
            if above.exists():
                break
    return source, ""


def shards(source: Path) -> list[str] | None:
    """Return the sorted names of the files that a pattern such as `train-*.parquet` names; None for no pattern."""
    is_folder = isinstance(source, RemotePath) or source.parent.is_dir()
    if "*" not in source.name or lexists(source) or not is_folder:
        return None
    pattern = re.compile(".*".join(map(re.escape, source.name.split("*"))), re.DOTALL)
    names = listdir(source.parent)
    return sorted(name for name in names if pattern.fullmatch(name) and not name.startswith("."))


def is_there(source: Path) -> bool:
    """Tell whether anything lies where a path says; of an archive only the file is looked at."""
    return source.exists() or bool(shards(source)) or bool(parted(source)[1])


def folder_of(source: Path) -> Path:
    """Return the folder that the files of a source lie in: itself, or that of its archive, list or shards."""
    file, _ = parted(source)
    return file if file.is_dir() else file.parent


def file_name(source: Path) -> tuple[Path, str]:
    """Return a folder that exists and a name in it, by which what belongs to a source may be called."""
    file, inside = parted(source)
    name = f"{file.name}.{inside.replace('/', '.')}" if inside else file.name
    return Path.cwd() if isinstance(file, RemotePath) else file.parent, name.replace("*", "all")


def local_place(source: Path) -> Path:
    """Return a source's own path; of one in a store, that of the copy that training will read.

    It is looked for under its own name in the working folder, beside its index.
    """
    if not isinstance(source, RemotePath):
        return source
    file, inside = parted(source)
    return Path.cwd() / file.name / inside


def local_copy(source: Path, path: Path) -> Path:
    """Return where a file beside a source lies on a disk, or will lie once it is copied with the source."""
    if not isinstance(path, RemotePath):
        return path
    folder = source if source.is_dir() else parted(source)[0].parent
    return Path.cwd() / (folder.name if source.is_dir() else "") / os.path.relpath(path, folder)
