"""Memory that DALI lends is given back when the stream has passed its readers, and at every end of a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fastanc.pipelines.index.build import build_index
from fastanc.pipelines.jpeg.held import Held
from fastanc.pipelines.jpeg.options import JpegOptions
from fastanc.pipelines.order import Order
from fastanc.pipelines.views import RandomResizedCrop
from support.images import flat_folder


class Stream:
    """A queue of numbered kernels: what was queued, and how much of it is done."""

    def __init__(self) -> None:
        self.queued = self.done = 0

    def mark(self) -> Mark:
        return Mark(self)


class Mark:
    """torch.cuda.Event, as far as it is used."""

    def __init__(self, stream: Stream) -> None:
        self.stream, self.at = stream, stream.queued

    def query(self) -> bool:
        return self.stream.done >= self.at

    def synchronize(self) -> None:
        self.stream.done = max(self.stream.done, self.at)


class Memory:
    """Says how far the stream was when it died."""

    def __init__(self, stream: Stream, died: list[int]) -> None:
        self.stream, self.died = stream, died

    def __del__(self) -> None:
        self.died.append(self.stream.done)


def lender(stream: Stream, died: list[int], steps: int) -> Iterator[int]:
    with Held(stream.mark) as held:
        for step in range(steps):
            with held.lent(Memory(stream, died)):
                yield step


def test_memory_dies_when_the_stream_has_passed_its_readers() -> None:
    stream, died = Stream(), list[int]()
    batches = lender(stream, died, 9)
    for step in batches:
        assert len(died) == max(0, step - 2)  # what the device has passed is not kept
        stream.queued += 10
        stream.done = max(0, 10 * (step - 1))  # it is two steps behind
        if step == 5:
            break
    assert all(done >= 10 * (step + 1) for step, done in enumerate(died))
    del batches


@pytest.mark.parametrize("end", ["natural", "closed", "thrown", "dropped"])
def test_nothing_dies_before_its_readers_are_through(end: str) -> None:
    stream, died = Stream(), list[int]()
    batches: Any = lender(stream, died, 3)
    for _ in batches:
        stream.queued += 10  # the device stands still
        if stream.queued == 30 and end != "natural":
            break
    assert end == "natural" or died == []
    if end == "closed":
        batches.close()
    elif end == "thrown":
        with pytest.raises(KeyError):
            batches.throw(KeyError("the step failed"))
    del batches
    assert died == [30, 30, 30]


@pytest.mark.parametrize("ends_early", [False, True])
def test_the_decoder_waits_for_the_batch_in_its_caller_s_hands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends_early: bool
) -> None:
    decoding = pytest.importorskip("fastanc.pipelines.jpeg.decoder", reason="DALI is not installed")
    index = build_index(flat_folder(tmp_path / "set", 8), workers=1, progress=False)
    stream, rule = Stream(), RandomResizedCrop(16, seed=0)
    options, order = JpegOptions(decode="cpu", threads=1), Order(8, 2)
    run = decoding.Run(
        index, order, rule, range(3), largest=2, views=1, device=torch.device("cpu"), options=options
    )
    run._device = torch.device("cuda")
    run._pipeline = decoding._graph(
        run._source, options, rule, views=1, batch_size=2, num_threads=1, device_id=None
    )
    marks: list[Mark] = []

    class Event(Mark):
        def __init__(self) -> None:
            super().__init__(stream)
            marks.append(self)

        def record(self, _: object) -> None:
            self.at = stream.queued

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: None)
    batches = run.batches()
    for batch in batches:
        assert batch.images.shape == (2, 3, 16, 16)
        stream.queued += 10
        if ends_early and batch.step == 1:
            batches.close()
    steps = 2 if ends_early else 3
    assert [mark.at for mark in marks] == [10 * (step + 1) for step in range(steps)]
    assert stream.done == 10 * steps
