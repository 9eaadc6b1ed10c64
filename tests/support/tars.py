"""Tars by the standard library's tarfile, which knows nothing of ours."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

Files = Mapping[str, bytes] | Iterable[tuple[str, bytes]]


def tar_bytes(files: Files, form: int = tarfile.GNU_FORMAT, **header: object) -> bytes:
    """Return a tar of files by their names; pairs may repeat a name."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, **header) as tar:  # type: ignore[call-overload]
        for name, data in files.items() if isinstance(files, Mapping) else files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def write_tar(path: Path, files: Files, form: int = tarfile.GNU_FORMAT, **header: object) -> Path:
    """Write `tar_bytes` to a path and return the path."""
    path.write_bytes(tar_bytes(files, form, **header))
    return path


def tar_of_tars(path: Path, files: Mapping[str, bytes]) -> Path:
    """Write one tar a class into a tar, as ILSVRC2012_img_train.tar is, of files named class/name."""
    classes: dict[str, dict[str, bytes]] = {}
    for name, data in files.items():
        folder, file = name.split("/")
        classes.setdefault(folder, {})[file] = data
    return write_tar(path, {f"{folder}.tar": tar_bytes(inner) for folder, inner in classes.items()})


def tar_of_tree(tree: Path, path: Path, form: int = tarfile.DEFAULT_FORMAT) -> Path:
    """Write a folder with its folders, names and times into a tar and return the tar's path."""
    with tarfile.open(path, "w", format=form) as tar:
        tar.add(tree, arcname=".")
    return path


def contents(path: Path) -> dict[str, bytes]:
    """Return the files of a tar by their names."""
    with tarfile.open(path) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
