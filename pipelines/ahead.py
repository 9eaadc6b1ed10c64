"""Work that is done a few steps early, on a thread of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def ahead(work: Callable[[int], T], steps: Iterable[int], depth: int) -> Generator[T, None, None]:
    """Yield work(step) of every step in order, done up to `depth` steps early on one background thread."""
    steps = iter(steps)
    with ThreadPoolExecutor(1, "ahead") as thread:
        waiting = deque(thread.submit(work, step) for step in islice(steps, depth))
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(thread.submit(work, step) for step in islice(steps, 1))
                yield result
        finally:
            for future in waiting:
                future.cancel()
