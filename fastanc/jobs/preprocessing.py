"""How a run's validation shows images to its student, as a file that others read (preprocess.json)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastanc.jobs.native import Native
from fastanc.models.taps import Tapped
from fastanc.parsing import data_group
from fastanc.training.folder import CLASSES

RECORD = "preprocess.json"
"""Written last: it says that an export is whole, and which files belong to it."""

_BY = "fastanc export"
_USUAL = ("student.onnx", "student.pt2", "model.safetensors")


def resize_of(run: Path, student: Tapped) -> int | None:
    """Return what a run's validation scales the shorter side to, pixels; None where no configuration says it."""
    try:
        data = data_group(run / "config.yaml")
    except (OSError, ValueError):
        return None
    return data.resize_px if data.image_px == student.image_px else None


def preprocessing_of(
    student: Tapped, resize_px: int, files: Sequence[str], native: Native | None, named: bool
) -> dict[str, Any]:
    """Return what a program has to know to show images to the student as its validation does."""
    programs = [file for file in files if file.endswith((".onnx", ".pt2"))]
    if native is not None and "model.safetensors" in files:
        programs.append("model.safetensors")
    return {
        "written_by": _BY,
        "image_px": student.image_px,
        "resize_px": resize_px,
        "resize": "the shorter side to resize_px, the other one in proportion, rounded down",
        "interpolation": "bilinear",
        "antialias": True,
        "crop": "the middle square of image_px",
        "channels": "RGB" if student.in_channels == 3 else "L",
        "layout": "[B, C, S, S]",
        "value_range": [0.0, 1.0],
        "exif_orientation": False,
        "mean": list(student.mean),
        "std": list(student.std),
        "normalised_inside": [file for file in programs if file != "model.safetensors"],
        "gives": "features" if student.headless else "logits",
        "classes": student.num_classes,
        "class_names": CLASSES if named else None,
        "programs": programs,
        "first": [file for file in _USUAL if file in programs],
        "network": None if native is None else native._asdict(),
    }


def class_names_of(run: Path, student: Tapped) -> list[str]:
    """Return the names of a run's classes; none where it knew none, or of an earlier version that kept none."""
    try:
        text = (run / CLASSES).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return []
    names = text.removesuffix("\n").split("\n")
    return names if len(names) == student.num_classes else []


def is_ours(path: Path) -> bool:
    """Tell whether a file is one that an export wrote, or began to."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(said, dict) and said.get("written_by") == _BY


def unfinished() -> str:
    """Return the record of an export whose other files are being written."""
    return json.dumps({"written_by": _BY, "unfinished": True})
