"""Work that is done a few steps early, on a thread of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from fastanc.pipelines.waiting import waiting

T = TypeVar("T")


def ahead(work: Callable[[int], T], steps: Iterable[int], depth: int) -> Generator[T, None, None]:
    """Yield work(step) of every step in order, done up to `depth` steps early on one background thread."""
    steps = iter(steps)
    with ThreadPoolExecutor(1, "ahead") as thread:
        begun = deque(thread.submit(work, step) for step in islice(steps, depth))
        try:
            while begun:
                with waiting():
                    result = begun.popleft().result()
                begun.extend(thread.submit(work, step) for step in islice(steps, 1))
                yield result
        finally:
            for future in begun:
                future.cancel()
