"""What bounds a run is told by the time that the training thread stood still, not by its own work."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from fastanc.pipelines import waiting as clock
from fastanc.pipelines.ahead import ahead
from fastanc.pipelines.waiting import waited_s, waiting


class Time:
    """A clock that moves when it is told to."""

    now, reads = 0.0, 0

    def __init__(self) -> None:
        self.waited_for = threading.Semaphore(0)

    def perf_counter(self) -> float:
        now, self.reads = self.now, self.reads + 1
        if self.reads % 2:  # a wait begins
            self.waited_for.release()
        return now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    made = Time()
    monkeypatch.setattr(clock, "time", made)
    return made


def test_a_slow_source_is_waited_for_and_a_slow_hand_over_is_not(time: Time) -> None:
    def slow_source(step: int) -> int:
        time.waited_for.acquire()
        time.now += 10
        return step

    def handed_over() -> Iterator[int]:
        for item in ahead(slow_source, range(3), 1):
            time.now += 5  # the training thread's own work
            yield item

    before, batches = waited_s(), handed_over()
    for _ in range(3):
        next(batches)
    assert waited_s() - before == 30
    assert time.now == 45


def test_a_wait_inside_of_another_counts_once(time: Time) -> None:
    before = waited_s()
    with waiting():
        time.now += 1
        with waiting():
            time.now += 2
        time.now += 4
    time.now += 8
    with suppress(KeyError), waiting():
        time.now += 16
        raise KeyError
    assert waited_s() - before == 23


def test_another_thread_s_waits_are_its_own(time: Time) -> None:
    def work() -> None:
        with waiting():
            time.now += 3

    before = waited_s()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert waited_s() == before
