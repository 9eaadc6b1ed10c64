"""Where a run's time goes, and the one line that says what bounds it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path

from fastanc.pipelines.jpeg.options import cores_per_process

_FASTER_TEACHER = {
    "off": "keep the teacher's rows for later epochs and students (--teacher.cache fill)",
    "fill": "a faster teacher (bf16, compiled): its rows are being kept, later epochs and students only read them",
    "read": "put the cache on faster storage, or keep it in memory (--teacher.memory_gib)",
}


def bottleneck(rates: Mapping[str, float], teacher_cache: str = "off") -> str:
    """Return one line: what bounds the run, the shares measured, and what would lift it.

    Args:
        rates: `images_per_s`; `data_share` and `teacher_share`, the parts of the wall time (0..1) spent
            waiting for the batch and for the teacher; `cpu_share`, the part of this process's cores that was
            busy; `cores`, their number; `read_bytes_per_s`, what came from storage and not from the page cache.
        teacher_cache: off, fill or read.
    """
    data, teacher = rates["data_share"], rates["teacher_share"]
    compute = max(0.0, 1.0 - data - teacher)
    read_mb = rates["read_bytes_per_s"] / 1e6
    if max(data, teacher) < 0.05:
        bound, lift = "compute", "a larger batch per process, bf16 and a compiled student, or more processes"
    elif teacher >= data:
        bound, lift = "teacher", _FASTER_TEACHER[teacher_cache]
    elif rates["cpu_share"] < 0.75 and read_mb >= 20:
        bound, lift = "storage", "put the set on a local disk or in memory, or pack it smaller"
    else:
        cores = rates["cores"]
        wanted = math.ceil(cores / max(compute, 0.01))
        bound = "decode"
        lift = (
            f"give each process about {wanted} cores in place of {cores:.0f}, pack the set smaller,"
            " or decode on the GPU"
        )
    images_per_s = rates["images_per_s"]
    line = (
        f"bound by {bound}: compute {compute:.0%}, waiting for data {data:.0%}, "
        f"for the teacher {teacher:.0%} at {images_per_s:,.0f} images/s; "
        f"cores {rates['cpu_share']:.0%} busy, {read_mb:,.0f} MB/s from storage"
    )
    if bound != "compute":
        line += f"; without the wait up to {images_per_s / max(compute, 0.01):,.0f} images/s"
    return f"{line}. What would lift it: {lift}."


class Clock:
    """Wall, waiting and processor time between two marks; time spent in a pause does not count."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin anew."""
        self.steps, self.data_s, self.teacher_s, self.off_s = 0, 0.0, 0.0, 0.0
        self._wall, self._cpu, self._read = time.perf_counter(), time.process_time(), _bytes_read()

    def rates(self, images_per_step: int) -> dict[str, float]:
        """Return `bottleneck`'s rates since the beginning, for steps of so many images."""
        seconds = max(time.perf_counter() - self._wall - self.off_s, 1e-9)
        cores = cores_per_process()
        return {
            "images_per_s": images_per_step * self.steps / seconds,
            "data_share": min(self.data_s / seconds, 1.0),
            "teacher_share": min(self.teacher_s / seconds, 1.0),
            "cores": cores,
            "cpu_share": min((time.process_time() - self._cpu) / (seconds * cores), 1.0),
            "read_bytes_per_s": (_bytes_read() - self._read) / seconds,
        }


def _bytes_read() -> int:
    """Bytes this process made the storage deliver; 0 where the system does not say (not Linux, forbidden)."""
    try:
        fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    except OSError:
        return 0
    return int(fields["read_bytes"])
