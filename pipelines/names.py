"""The names of data sets, to be judged without importing what reads them."""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from fastanc.pipelines.remote_path import RemotePath, path_of
from fastanc.pipelines.source_path import is_there
from fastanc.quoting import shown

KNOWN = ("digits", "cifar10", "cifar100", "svhn", "fashion_mnist", "imagenette", "imagenet")


def is_path(name: str) -> bool:
    """Tell whether a name that is no set's is meant as the path of one."""
    return os.sep in name or name.startswith("~") or os.path.lexists(name)


def check_name(name: str, *, may_be_registered: bool = False) -> None:
    """Raise ValueError for a name that no set has, FileNotFoundError for a path where nothing lies."""
    if name in KNOWN:
        return
    check_local(name)
    if is_path(name):
        folder = Path(name).expanduser()
        if not is_there(folder):
            raise missing(folder)
    elif not may_be_registered:
        raise unknown(name)


def check_local(name: str | Path) -> None:
    """Raise ValueError for a URL, with what makes a local copy."""
    source = path_of(name)
    if isinstance(source, RemotePath):
        stem = source.name.partition(".")[0].replace("*", "all").strip("-_") or "set"
        raise ValueError(
            f"{source} lies in a store, and training reads local disks, since a step waits for every image of its"
            f" batch: run `{shlex.join(['fastanc', 'pack', str(source), f'{stem}.tar'])}`, and give that tar"
        )


def missing(folder: Path, registered: Sequence[str] = ()) -> FileNotFoundError:
    """Return the error for a path where nothing lies."""
    known = ", ".join([*KNOWN, *registered])
    link = f" is a link to {os.readlink(folder)}, which" if folder.is_symlink() else ""
    return FileNotFoundError(f"{folder}{link} does not exist: give a data set's path, or one of {known}")


def unknown(name: str, registered: Sequence[str] = ()) -> ValueError:
    """Return the error for a name that no set has."""
    known = [*KNOWN, *registered]
    close = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {close[0]}? " if close else ""
    return ValueError(
        f"data set {shown(name)} is unknown: {hint}use {', '.join(known)}, or the path of a folder or file of images"
        f" (there is none of that name in {Path.cwd()})"
    )
