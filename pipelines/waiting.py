"""How long a thread stood still: for another thread's result, a disk, a queue; its own work does not count."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class _Thread(threading.local):
    seconds = 0.0
    inside = False


_thread = _Thread()


@contextmanager
def waiting() -> Iterator[None]:
    """Count the block as time in which this thread waits; a block inside of another counts once."""
    if _thread.inside:
        yield
        return
    _thread.inside, began = True, time.perf_counter()
    try:
        yield
    finally:
        _thread.inside = False
        _thread.seconds += time.perf_counter() - began


def waited_s() -> float:
    """Return the seconds that this thread has waited so far."""
    return _thread.seconds
