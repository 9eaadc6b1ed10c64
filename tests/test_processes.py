"""What a run sets for its whole process, and the seeds of its steps."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from fastanc.parsing import parse
from fastanc.training.assemble import open_run
from fastanc.training.processes import make_accelerator, seed_step
from support.tiny_run import LENETS, as_words


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    search = torch.backends.cudnn.benchmark
    yield
    torch.backends.cudnn.benchmark = search
    torch.use_deterministic_algorithms(False)
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def set_now() -> tuple[bool, bool, str | None]:
    repeats = torch.are_deterministic_algorithms_enabled()
    return torch.backends.cudnn.benchmark, repeats, os.environ.get("CUBLAS_WORKSPACE_CONFIG")


def test_a_run_searches_for_kernels_unless_it_must_repeat_its_bits(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    for wanted, found in (("true", (False, True, ":4096:8")), ("false", (True, False, ":4096:8"))):
        options = {"run.deterministic": wanted, "run.out": str(tmp_path / wanted)}
        with open_run(parse(as_words({**LENETS, **options}))):
            assert set_now() == found


def test_a_workspace_that_a_user_has_chosen_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    make_accelerator(deterministic=True)
    assert set_now() == (False, True, ":16:8")


def test_processes_wait_longer_than_a_cache_is_closed() -> None:
    handler = make_accelerator().init_handler
    assert handler is not None
    assert handler.timeout == timedelta(hours=2)


@pytest.mark.parametrize(("seed", "step", "rank"), [(0, 0, 0), (3, 10**6, 7), (2**31 - 1, 10**7, 63)])
def test_a_step_draws_what_torch_draws_of_its_number(
    seed: int, step: int, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = (seed * 1_000_003 + step) * 8_191 + rank
    torch.manual_seed(number)
    wanted, on_cuda = torch.rand(5), list[int]()
    monkeypatch.setattr(torch.cuda, "manual_seed", on_cuda.append)
    seed_step(seed, step, rank)
    assert torch.equal(torch.rand(5), wanted)
    assert on_cuda == []  # nothing is asked of a device that nobody has
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    seed_step(seed, step, rank)
    assert on_cuda == [number]
