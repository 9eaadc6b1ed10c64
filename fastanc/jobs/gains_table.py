"""The numbers of `gains.profile_run` as a table, for a terminal and for a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

_ROWS: dict[str, tuple[str, Callable[[float], str]]] = {
    "parameters": ("parameters", lambda value: f"{value:,.0f}"),
    "macs": ("multiply-accumulates of an image", lambda value: f"{value:,.0f}"),
    "bytes": ("weights, MB", lambda value: f"{value / 1e6:,.2f}"),
    "latency_s": ("latency of {} image{}, ms", lambda value: f"{1e3 * value:,.2f}"),
    "images_per_s": ("images/s in batches of {}", lambda value: f"{value:,.0f}"),
    "peak_bytes": ("peak memory at {} images, MB", lambda value: f"{value / 1e6:,.0f}"),
}


def describe(found: Mapping[str, Any]) -> str:
    """Return the numbers of `profile_run` as an aligned table."""
    networks = found["networks"]
    teacher, student = networks.get("teacher"), networks["student"]
    where, threads = found["device"], found["threads"]
    if threads is not None:
        where += f", {threads} thread{'s' if threads > 1 else ''}"
    head = ["", *([] if teacher is None else [f"teacher {teacher['name']}"]), f"student {student['name']}"]
    lines = [[*head, *([] if teacher is None else ["ratio"])]]
    for key, batch in _keys(found):
        title, shown = _ROWS[key]
        values = [one[key] if batch is None else one[key][batch] for one in (teacher, student) if one]
        size = batch or str(found["batches"][-1])
        row = [title.format(size, "" if size == "1" else "s")]
        row += ["–" if value is None else shown(value) for value in values]
        if teacher is not None:
            row.append(_ratio(key, *values))
        lines.append(row)
    widths = [max(map(len, column)) for column in zip(*lines)]
    texts = [
        "  ".join(
            text.ljust(width) if k == 0 else text.rjust(width)
            for k, (text, width) in enumerate(zip(line, widths))
        )
        for line in lines
    ]
    return "\n".join([f"{where}, {found['precision']}, channels_last, medians", *texts])


def _keys(found: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    latencies: list[tuple[str, str | None]] = [("latency_s", str(batch)) for batch in found["batches"]]
    return [
        ("parameters", None),
        ("macs", None),
        ("bytes", None),
        *latencies,
        ("images_per_s", None),
        ("peak_bytes", None),
    ]


def _ratio(key: str, teacher: float | None, student: float | None) -> str:
    """How many times smaller or faster the student is."""
    if not teacher or not student:
        return "–"
    return f"{student / teacher if key == 'images_per_s' else teacher / student:.2f}"
