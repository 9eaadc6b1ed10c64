"""Memory of DALI's that a stream may still read, kept until the stream has passed its readers.

DALI may write to a tensor's memory again as soon as the tensor dies, whatever torch's stream has yet to read of it.
So each is held until the stream has passed all work that was queued while the caller had it, and whoever ends, for
whatever reason, waits for all of them first: the caller's last kernels are still queued then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol


class Passing(Protocol):
    """A place in a stream's queue, such as a torch.cuda.Event that was recorded."""

    def query(self) -> bool: ...  # noqa: D102
    def synchronize(self) -> None: ...  # noqa: D102


class Held:
    """What was lent to a caller, until the stream has passed the work on it; leaving the block waits for all.

    Work that a caller queues on it after it gave it back is the caller's own business. `mark` returns the place that
    the stream's queue has reached.
    """

    def __init__(self, mark: Callable[[], Passing]) -> None:
        self._mark = mark
        self._held: deque[tuple[object, Passing]] = deque()

    @contextmanager
    def lent(self, memory: object) -> Iterator[None]:
        """Hold some memory from the block's end on, until the stream has passed all that the block queued."""
        try:
            yield
        finally:
            self._held.append((memory, self._mark()))
            while self._held and self._held[0][1].query():
                self._held.popleft()

    def __enter__(self) -> Held:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for _, passing in self._held:
            passing.synchronize()
        self._held.clear()
