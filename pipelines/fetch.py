"""Where sets are looked for, and how torchvision downloads one that is nowhere."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from fastanc.pipelines.index.workers import locked
from fastanc.pipelines.places import cache_dir

Calls = tuple[str, list[dict[str, str]]]
"""torchvision's class, and the arguments of each call that it takes to get every file."""


def roots_of(root: str | Path | None) -> list[Path]:
    """Return the folders that are looked in: the given one alone, or FASTANC_DATA and the cache folder.

    Raises ValueError where a file is given.
    """
    if root is not None:
        folder = Path(root).expanduser()
        if folder.is_file():
            raise ValueError(
                f"data.root {folder} is a file: name the folder to look in, or give it as data.name"
            )
        return [folder]
    given = os.environ.get("FASTANC_DATA")
    return [*([Path(given).expanduser()] if given else []), cache_dir() / "data"]


def nowhere(name: str, holds: str, roots: list[Path], tried: str = "") -> FileNotFoundError:
    """Return the error that says what of a set was looked for, and where."""
    looked = ", ".join(map(str, roots))
    return FileNotFoundError(
        f"{name} was not found: looked for {holds} in {looked}{tried}; "
        "give its folder with --data.root or FASTANC_DATA"
    )


def download(name: str, calls: Calls, holds: str, roots: list[Path]) -> Path:
    """Let torchvision fetch a set into the cache folder, whole or not at all; return that folder.

    Raises FileNotFoundError that says what is missing, `holds` in `roots`, where it cannot.
    """
    folder = cache_dir() / "data"
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{name}.part"
    with locked(folder / f"{name}.lock"):
        try:
            part.mkdir(exist_ok=True)
            for arguments in calls[1]:
                _torchvision_set(calls[0], part, **arguments)
        except (OSError, RuntimeError) as error:
            raise nowhere(name, holds, roots, f", and torchvision could not download it ({error})") from None
        for child in sorted(part.iterdir()):
            if not (folder / child.name).exists():
                os.replace(child, folder / child.name)
        shutil.rmtree(part)
    return folder


def _torchvision_set(kind: str, folder: Path, **arguments: str) -> None:
    """Let torchvision download a set into a folder."""
    import torchvision

    getattr(torchvision.datasets, kind)(folder, download=True, **arguments)
