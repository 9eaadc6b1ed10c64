"""The decode plan of a set on a GPU: measured once, then remembered in a file beside the set's index.

Pixels depend on the plan, and so does the identity of a teacher's cache: a race at every start would let noise
decide whether a cache of many hours is found again. What was measured holds for one kind of GPU, versions of the
decoders, threads and size of images; anything else is measured anew. The file is derived: it may be removed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fastanc.files import make_folder, write_text
from fastanc.pipelines.jpeg import dali
from fastanc.pipelines.jpeg.bytes import Indexed
from fastanc.pipelines.jpeg.options import PLANS, JpegOptions, cores_per_process
from fastanc.pipelines.jpeg.probe import Probed, probe
from fastanc.pipelines.places import beside

_FORMAT = 1
_WORTH = 1.1
"""A plan must be so much faster than `cpu` to be taken: no noise, and `cpu` decodes alike on every GPU."""
_CODECS = ("nvidia-nvimgcodec-cu13", "nvidia-nvimgcodec-cu12")


class Decision(NamedTuple):
    """A decode plan, and in words where it comes from."""

    plan: str
    source: str


class _Damage(Exception):
    """A file of plans that cannot be read."""


def plan_path(source: Path) -> Path | None:
    """Return where the plans of a set made from this folder or tar are remembered; None where that can be nowhere."""
    with suppress(ValueError):
        return beside(source, ".decode.json")
    return None


def decide(
    index: Indexed, device: torch.device | str, options: JpegOptions, memory: Path | None = None
) -> Decision:
    """Return the plan that is remembered for this set and device, or measure and remember it.

    Raises RuntimeError with every plan's failure when none works.
    """
    key = _key(index, device, options)
    try:
        known = _recalled(memory, key)
    except _Damage:
        print(f"{memory} is not readable: the decode plan is measured anew", flush=True)
        known = None
    if known:
        return Decision(known, f"remembered in {memory}, which may be removed")
    print(f"decode plan: {', '.join(PLANS)} are measured on {key['gpu']}", flush=True)
    probed = [probe(index, device, replace(options, decode=plan)) for plan in PLANS]
    found = ", ".join(map(str, probed))
    plan = _fastest(probed)
    if plan is None:
        raise RuntimeError(f"no decode plan works on {device}: {found}")
    earlier = None if memory is None else _remember(memory, {"key": key, "plan": plan, "measured": found})
    if earlier is not None:
        return Decision(earlier, f"remembered in {memory} by another run just now")
    return Decision(plan, f"measured just now: {found}")


def _fastest(probed: Sequence[Probed]) -> str | None:
    """Return the plan to take; None where none works."""
    rates = {result.plan: result.images_per_s for result in probed if result.images_per_s is not None}
    if not rates:
        return None
    best = max(rates, key=rates.__getitem__)
    return best if rates[best] > _WORTH * rates.get("cpu", 0.0) else "cpu"


def _key(index: Indexed, device: torch.device | str, options: JpegOptions) -> dict[str, Any]:
    """What a measurement holds for."""
    side = np.sqrt(np.median(np.prod(index.sizes, 1, dtype=np.float64)))
    return {
        "image_px": int(2 ** np.round(np.log2(side))),
        "gpu": torch.cuda.get_device_name(device),
        "dali": dali.version(),
        "nvimgcodec": _codec_version(),
        "threads": options.threads or cores_per_process(),
        "hw_decoder_load": options.hw_decoder_load,
    }


def _codec_version() -> str:
    for name in _CODECS:
        with suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return "unknown"


def _recalled(memory: Path | None, key: dict[str, Any]) -> str | None:
    found = [] if memory is None else _read(memory)
    return next((entry["plan"] for entry in found if entry["key"] == key), None)


def _read(memory: Path) -> list[dict[str, Any]]:
    """The remembered plans, [] where there are none; raises _Damage."""
    try:
        content = json.loads(memory.read_bytes())
        if content["format"] != _FORMAT:
            return []
        if not all(entry["plan"] in PLANS and isinstance(entry["key"], dict) for entry in content["plans"]):
            raise _Damage
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _Damage from error
    return list(content["plans"])


def _remember(memory: Path, entry: dict[str, Any]) -> str | None:
    """Write a plan down; return the one that another run wrote down in the meantime, which then counts."""
    try:
        known = _read(memory)
    except _Damage:
        known = []
    earlier = next((other["plan"] for other in known if other["key"] == entry["key"]), None)
    if earlier is not None:
        return str(earlier)
    try:
        make_folder(memory.parent)
        write_text(memory, json.dumps({"format": _FORMAT, "plans": [*known, entry]}, indent=1) + "\n")
    except OSError as error:
        print(
            f"{memory} cannot be written ({error.strerror}), so the decode plan is measured at every start: set"
            f" --data.decode {entry['plan']}",
            flush=True,
        )
    return None
