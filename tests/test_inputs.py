"""The input of a run: sets bound to a device by one plan, and what does not fit refused in words."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fastanc.jobs.cache import JOBS
from fastanc.parsing import parse
from fastanc.pipelines.arrays import ArraySet
from fastanc.pipelines.dataset import DataSet
from fastanc.pipelines.index.build import build_index
from fastanc.pipelines.jpeg import jpeg_set
from fastanc.pipelines.jpeg.jpeg_set import JpegSet
from fastanc.pipelines.jpeg.options import JpegOptions
from fastanc.pipelines.jpeg.plan import Decision
from fastanc.pipelines.latents import LatentSet
from fastanc.pipelines.own_sets import as_dataset
from fastanc.pipelines.viewing import Views
from fastanc.pipelines.views import CentreCrop, PadCrop, RandomResizedCrop
from fastanc.training import inputs
from fastanc.training.assemble_input import open_input
from support.decoders import CPU_PLAN
from support.images import class_folders
from support.machine import Machine

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def process(rank: int = 0, world: int = 1, device: str = "cpu") -> Any:
    """What `open_input` asks of an accelerator."""
    return SimpleNamespace(
        device=torch.device(device),
        process_index=rank,
        num_processes=world,
        is_main_process=rank == 0,
    )


def arrays(n: int = 24, classes: int = 3) -> ArraySet:
    images = np.random.default_rng(n).integers(0, 256, (n, 8, 8, 3), np.uint8)
    return ArraySet("toy", images, np.arange(n) % classes, [str(k) for k in range(classes)], MEAN, STD)


@pytest.fixture
def jpegs(tmp_path: Path) -> JpegSet:
    tree = class_folders(tmp_path / "set", **dict.fromkeys("012", 4))
    return JpegSet("photos", build_index(tree, workers=1, progress=False), MEAN, STD)


def opened(train: DataSet, val: DataSet, accelerator: Any, **others: Any) -> inputs.Input:
    rule = PadCrop(8, 0) if isinstance(train, ArraySet) else RandomResizedCrop(8, 0)
    rules = {"views": Views(rule), "eval_rule": CentreCrop(8, 8)}
    return inputs.open_input(
        train=train, val=val, batch=6, eval_batch=4, seed=0, accelerator=accelerator, **rules, **others
    )


def test_an_input_is_its_sets_in_their_order(jpegs: JpegSet) -> None:
    for data in (arrays(), jpegs):
        source = opened(data, data, process(), num_views=2)
        seen = list(source.batches(1, 4))
        assert [batch.step for batch in seen] == [1, 2, 3]
        assert all((batch.index == source.order(batch.step).index).all() for batch in seen)
        picked = list(source.picked(5, 1, np.arange(7)))
        assert [batch.index.tolist() for batch in picked] == [[0, 1, 2, 3, 4], [5, 6]]
        assert all((batch.view == 1).all() for batch in picked)
        judged = [i for batch in source.val_batches() for i in batch.index.tolist()]
        assert judged == list(range(data.num_images))


def test_several_views_of_an_image_are_for_training_alone(jpegs: JpegSet) -> None:
    source = opened(jpegs, jpegs, process(), views_per_image=3)
    (batch,) = source.batches(0, 1)
    assert (batch.index.reshape(2, 3) == batch.index[::3, None]).all()
    assert [len(b.index) for b in source.picked(4, 0, np.arange(8))] == [4, 4]
    assert sum(len(b.index) for b in source.val_batches()) == 12


def test_one_process_probes_for_all_and_once(jpegs: JpegSet, monkeypatch: pytest.MonkeyPatch) -> None:
    probed: list[int] = []
    sent: list[Any] = []

    def decide(index: object, device: torch.device, options: JpegOptions, memory: object) -> Decision:
        probed.append(options.threads or 0)
        return Decision("mixed", "measured just now")

    def broadcast(values: list[Any]) -> list[Any]:
        """The main process sends, the others get what it sent."""
        if accelerator.is_main_process:
            sent.append(copy.copy(values[0]))
            return values
        return [sent.pop(0)]

    Machine(monkeypatch)
    monkeypatch.setattr(jpeg_set, "decide", decide)
    monkeypatch.setattr(inputs, "broadcast_object_list", broadcast)
    plans = []
    for rank in range(2):
        accelerator = process(rank, 2, "cuda")
        source = opened(jpegs, jpegs, accelerator, options=JpegOptions(threads=3))
        plans += [source.train.options, source.val.options]
        note = inputs.input_note(source)
        assert note is not None
        why = "" if rank else " (measured just now)"
        assert note.startswith(f"input: decode plan mixed{why}, 3 threads on")
    assert plans == [JpegOptions(decode="mixed", threads=3)] * 4
    assert probed == [3]


def test_a_users_own_set_leaves_the_plan_to_the_other(
    jpegs: JpegSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    Machine(monkeypatch)
    monkeypatch.setattr(jpeg_set, "decide", lambda *_: Decision("mixed_roi", "remembered"))
    items = [(np.zeros((20, 30 + i, 3), np.uint8), i % 3) for i in range(12)]
    own = as_dataset(items, "own", progress=False)
    source = opened(own, jpegs, process(0, 1, "cuda"), options=JpegOptions(threads=2))
    assert source.val.options == JpegOptions(decode="mixed_roi", threads=2)
    assert source.train.options == JpegOptions(threads=2)
    note = inputs.input_note(source)
    assert note is not None
    decoders = "the data set's own decoder and, for the validation set, decode plan mixed_roi (remembered)"
    assert note.startswith(f"input: {decoders}, 2 threads on")


def test_arrays_have_no_plan_to_agree_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "broadcast_object_list", None)
    source = opened(arrays(), arrays(), process())
    assert source.train.options is None
    assert inputs.input_note(source) is None


def test_a_validation_set_of_other_classes_is_refused() -> None:
    with pytest.raises(
        ValueError,
        match="validation set toy has images of the class '3', which is none of the 3 classes of toy",
    ):
        opened(arrays(), arrays(classes=5), process())
    named = arrays()
    named.classes = ["0", "two", "1"]
    with pytest.raises(ValueError, match="the class 'two', which is none of the 3 classes of toy .0, 1, 2."):
        opened(arrays(), named, process())
    assert opened(arrays(classes=5), arrays(), process()).val.num_classes == 5
    unlabelled = ArraySet("toy", arrays().images, None, [], MEAN, STD)
    assert opened(unlabelled, arrays(classes=5), process()).val.num_images == 24


def test_a_configuration_becomes_plain_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    monkeypatch.setenv("FASTANC_CACHE", str(tmp_path))
    words = ["--data.batch", "24", "--data.views", "4", "--data.views_per_image", "2", "--run.seed", "7"]
    words += [
        "--data.threads",
        "1",
        "--data.prefetch",
        "3",
        "--data.min_scale",
        "0.5",
        "--data.view_seed",
        "5",
    ]
    source = open_input(parse([*words, "--data.share", "0.5"]), process(0, 2))
    assert source.rule == RandomResizedCrop(32, 5, scale=(0.5, 1.0), flip=False)
    assert source.eval_rule == CentreCrop(32, 32)
    order = source.order
    assert (order.batch, order.seed, order.views, order.views_per_image) == (24, 7, 4, 2)
    assert (order.rank, order.world, order.n) == (0, 2, source.train.num_images)
    assert source.train.options == source.val.options == JpegOptions(decode=CPU_PLAN, threads=1, prefetch=3)
    assert not isinstance(source.train, LatentSet)
    for field in ("--data.min_scale", "--data.views_per_image"):  # which are of images
        at = words.index(field)
        del words[at : at + 2]
    free = open_input(parse([*words, "--method.type", "datafree", "--method.latent_dim", "9"]), process())
    assert isinstance(free.train, LatentSet)
    assert (free.train.latent_dim, free.train.num_images) == (9, 50 * 24)
    assert (free.order.views, free.order.views_per_image, free.order.steps_per_epoch) == (None, 1, 50)


def test_no_cache_is_built_of_latent_vectors() -> None:
    words = ["--method.type", "datafree", "--teacher.weights", "random"]
    with pytest.raises(
        ValueError, match="method.type datafree trains on latent vectors, which no cache holds"
    ):
        JOBS["build"](SimpleNamespace(fields=words, students=1))  # type: ignore[arg-type]
