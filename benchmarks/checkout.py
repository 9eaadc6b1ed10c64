"""A plain checkout, without an installation, finds `fastanc.pipelines` too.

pyproject maps pipelines/ to fastanc.pipelines, which only an installation does: on a borrowed machine a link, which
git ignores, does it for this process and all that it starts.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def make_importable(root: Path = ROOT) -> bool:
    """Link pipelines/ into fastanc/ unless this checkout's is found already; return whether a link was made.

    Raises ValueError where the checkout cannot be written.
    """
    if _finds(root / "pipelines"):
        return False
    link = root / "fastanc" / "pipelines"
    try:
        link.unlink(missing_ok=True)  # a link that leads nowhere
        link.symlink_to(os.path.join("..", "pipelines"))
    except FileExistsError:
        pass  # another process was faster
    except OSError as error:
        raise ValueError(
            f"{link} cannot be made ({error.strerror}): install fastanc by `pip install -e .`, or make the"
            " checkout writable"
        ) from error
    importlib.invalidate_caches()
    return True


def _finds(pipelines: Path) -> bool:
    """Tell whether fastanc.pipelines is this folder, not that of another checkout whose installation is in reach."""
    spec = importlib.util.find_spec("fastanc.pipelines")
    return bool(spec and spec.origin) and Path(spec.origin).resolve().parent == pipelines.resolve()
