"""A teacher's cache decides the decode plan of whoever fills or reads it; the GPU is made up, nothing is decoded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fastanc.config import Config
from fastanc.parsing import parse
from fastanc.pipelines.dataset import DataSet
from fastanc.pipelines.jpeg import dali
from fastanc.pipelines.jpeg.plan import plan_path
from fastanc.pipelines.own_sets import as_dataset
from fastanc.teacher.answers import open_store
from fastanc.teacher.frozen import FrozenTeacher
from fastanc.training import assemble_input
from fastanc.training.assemble_input import cache_choice, open_input
from fastanc.training.assemble_networks import open_teacher
from fastanc.training.inputs import Input, input_note
from support.images import class_folders
from support.machine import Machine


class Runs:
    """Starts of runs on one folder of images and one folder of caches."""

    def __init__(self, folder: Path, machine: Machine) -> None:
        self.tree, self.machine = class_folders(folder / "set", one=9, two=9), machine
        self.caches = folder / "cache"
        self.teachers_opened = 0

    def config(self, **words: str) -> Config:
        said = {
            "data.name": str(self.tree),
            "data.image_px": "32",
            "data.resize_px": "32",
            "data.batch": "4",
            "teacher.name": "lenet5",
            "teacher.weights": "random",
            "teacher.cache_dir": str(self.caches),
        } | words
        return parse([word for key, value in said.items() for word in (f"--{key}", value)])

    def teacher_of(self, config: Config) -> Callable[[DataSet], FrozenTeacher]:
        def teacher(images: DataSet) -> FrozenTeacher:
            self.teachers_opened += 1
            return open_teacher(config, images)

        return teacher

    def start(self, rank: int = 0, cached: bool = True, device: str = "cuda", **words: str) -> Input:
        """Open the input of a run that remembers no plan."""
        memory = plan_path(self.tree)
        assert memory is not None
        memory.unlink(missing_ok=True)
        process: Any = SimpleNamespace(
            device=torch.device(device), process_index=rank, num_processes=rank + 1, is_main_process=rank == 0
        )
        config = self.config(**words)
        return open_input(config, process, teacher=self.teacher_of(config) if cached else None)

    def fill(self, source: Input, rows: int = 0, **words: str) -> Path:
        """Make the cache of this input, with some rows of view 0."""
        config = self.config(**words)
        teacher = open_teacher(config, source.train)
        store = open_store(teacher, source.train, source.views, cache_choice(config), create=True)
        if rows:
            (field,) = store.fields
            store.put(0, np.arange(rows), {field.name: torch.ones(rows, field.width)})
        return store.path


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    return Runs(tmp_path, Machine(monkeypatch))


def test_a_cache_s_plan_is_kept_whatever_a_race_would_say(runs: Runs) -> None:
    runs.machine.race(1000, 5000)
    first = runs.start()
    assert first.train.options.decode == first.val.options.decode == "mixed"
    assert first.plan_source.startswith("measured just now")
    assert runs.teachers_opened == 0  # there is no cache that could be its own
    path = runs.fill(first)
    runs.machine.race(1000, 900)
    second = runs.start()
    assert second.train.options == second.val.options == first.train.options
    assert second.plan_source == f"that of the cache {path}"
    note = input_note(second)
    assert note is not None
    assert note.startswith(f"input: decode plan mixed (that of the cache {path}), ")
    assert runs.machine.measured == 3
    assert runs.fill(second) == path


@pytest.mark.parametrize(
    "words",
    [{"teacher.precision": "bf16"}, {"data.view_seed": "3"}, {"data.share": "0.5"}, {"teacher.rows": "fp32"}],
    ids=str,
)
def test_another_teacher_s_or_view_s_cache_decides_nothing(runs: Runs, words: dict[str, str]) -> None:
    runs.machine.race(1000, 5000)
    runs.fill(runs.start())
    runs.machine.race(1000, 900)
    source = runs.start(**words)
    assert source.train.options.decode == "cpu"
    assert source.plan_source.startswith("measured just now")


def test_of_two_plans_caches_the_fuller_one_decides(runs: Runs) -> None:
    for plan, rows in (("cpu", 3), ("mixed", 5), ("mixed_roi", 0)):
        runs.fill(runs.start(**{"data.decode": plan}), rows)
    assert runs.start().train.options.decode == "mixed"
    assert runs.machine.measured == 0


def test_a_given_plan_counts_and_says_what_it_contradicts(runs: Runs) -> None:
    path = runs.fill(runs.start(**{"data.decode": "mixed"}))
    assert runs.start(**{"data.decode": "mixed"}).plan_source == "given"
    source = runs.start(**{"data.decode": "cpu"})
    assert source.train.options.decode == "cpu"
    assert source.plan_source.startswith(f"given, though the cache {path} was made with mixed")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_cache_of_a_machine_without_dali_is_found_by_one_with_it(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    runs.machine.race(1000, 5000)
    with monkeypatch.context() as without:
        without.setattr(dali, "problem", lambda: "DALI is not installed")
        first = runs.start(device="cpu")
        path = runs.fill(first, 5)
    assert first.plan_source.startswith("DALI is not installed")
    second = runs.start(device=device)
    assert second.train.options.decode == second.val.options.decode == "torchvision"
    assert second.plan_source == f"that of the cache {path}"
    assert runs.fill(second) == path
    assert (
        runs.start(device=device, cached=False).train.options.decode
        == {"cpu": "cpu", "cuda": "mixed"}[device]
    )


def test_a_users_own_items_have_no_plan_that_a_cache_could_decide(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [(np.full((20, 30 + i, 3), i, np.uint8), i % 2) for i in range(9)]
    own = as_dataset(items, "set", progress=False)
    monkeypatch.setattr(assemble_input, "open_sets", lambda *_: (own, own))
    path = runs.fill(runs.start(), 5)
    source = runs.start()
    assert (source.train.options.decode, source.plan_source) == ("auto", "")
    assert runs.fill(source) == path


def test_a_damaged_cache_decides_nothing(runs: Runs) -> None:
    runs.machine.race(1000, 5000)
    path = runs.fill(runs.start(**{"data.decode": "cpu"}))
    (path / "identity.json").write_text("{")
    assert runs.start().train.options.decode == "mixed"


def test_with_a_cache_the_jpeg_unit_has_no_share(runs: Runs) -> None:
    runs.machine.race(1000, 5000)
    cached = runs.start()
    assert cached.train.options.hw_decoder_load == cached.val.options.hw_decoder_load == 0
    assert cached.train.describe()["hw_decoder_load"] == 0
    alone = runs.start(cached=False)
    assert alone.train.options.hw_decoder_load > 0
    assert alone.train.describe() != cached.train.describe()


def test_a_cache_that_the_jpeg_unit_helped_with_is_another_one(runs: Runs) -> None:
    runs.machine.race(1000, 5000)
    runs.fill(runs.start(cached=False))
    runs.machine.race(1000, 900)
    assert runs.start().train.options.decode == "cpu"


def test_only_the_main_process_looks(runs: Runs) -> None:
    runs.fill(runs.start(**{"data.decode": "mixed"}))
    opened = runs.teachers_opened
    runs.start(rank=1, **{"data.decode": "mixed"})
    assert runs.teachers_opened == opened
