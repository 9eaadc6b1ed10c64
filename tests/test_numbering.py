"""Every pair of containers for train and val: labels mean the same classes, with the same verdict on every run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from fastanc.parsing import parse
from fastanc.pipelines import catalogue
from fastanc.pipelines.catalogue import open_splits, register_dataset
from fastanc.pipelines.dataset import DataSet
from fastanc.pipelines.index.build import build_index, summary
from fastanc.pipelines.numbering import numbered_as
from fastanc.pipelines.order import Order
from fastanc.pipelines.own_sets import as_dataset
from fastanc.pipelines.source_options import SourceOptions
from fastanc.pipelines.viewing import Views
from fastanc.pipelines.views import CentreCrop, RandomResizedCrop
from fastanc.train import train as run_train
from fastanc.training import inputs
from support.images import encoded, jpeg, picture, put
from support.tars import tar_of_tars, write_tar
from support.tiny_run import LENETS, as_words

NAMES = ["ant", "bee", "cow", "dog"]
SIDE = 12


def pixels(label: int, k: int) -> bytes:
    """An image whose colour says its true class."""
    return jpeg([label, k], (30, 20))


def files_of(labels: list[int], named: list[str]) -> dict[str, bytes]:
    return {f"{named[label]}/{k}.jpg": pixels(label, k) for k, label in enumerate(labels)}


class _Items(torch.utils.data.Dataset):
    """A torch data set; `classes` as torchvision's have them."""

    def __init__(self, labels: list[int], classes: list[str] | None) -> None:
        self._labels = labels
        if classes:
            self.classes = classes

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        return np.full((20, 30 + i % 2, 3), i, np.uint8), self._labels[i]


def make(kind: str, folder: Path, labels: list[int]) -> Any:
    """A set of these classes in a container: what `register_dataset`'s function may return."""
    folder.mkdir(parents=True)
    files = files_of(labels, NAMES)
    if kind == "tree":
        return put(folder / "tree", files)
    if kind == "tar":
        return write_tar(folder / "t.tar", files)
    if kind == "tar of tars":
        return tar_of_tars(folder / "n.tar", files)
    if kind == "shards":
        members = [
            (f"{k}.{end}", d)
            for k, n in enumerate(labels)
            for end, d in (("jpg", pixels(n, k)), ("cls", b"%d" % n))
        ]
        return write_tar(folder / "w.tar", members)
    if kind in ("csv of names", "csv of numbers"):
        flat = put(folder / "flat", {f"{k}.jpg": pixels(label, k) for k, label in enumerate(labels)})
        words = NAMES if kind == "csv of names" else [str(k) for k in range(4)]
        (folder / "l.csv").write_text("".join(f"{k},{words[label]}\n" for k, label in enumerate(labels)))
        build_index(flat, SourceOptions(labels=folder / "l.csv"), progress=False)
        return flat
    if kind == "arrays":
        return np.zeros((len(labels), SIDE, SIDE, 3), np.uint8), np.array(labels)
    return _Items(labels, NAMES if kind == "torch set of names" else None)


KINDS = [
    "tree",
    "tar",
    "tar of tars",
    "shards",
    "csv of names",
    "csv of numbers",
    "arrays",
    "torch set of names",
    "torch set",
]
NAMED = {"tree", "tar", "tar of tars", "csv of names", "torch set of names"}


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(catalogue, "_REGISTERED", {})
    monkeypatch.setenv("FASTANC_CACHE", str(tmp_path / "cache"))


def opened(train: str, val: str, folder: Path, labels: list[int]) -> tuple[DataSet, DataSet]:
    """Both sets as a run sees them, registered; the training set has all four classes."""
    given = {
        "train": make(train, folder / "train", [0, 1, 2, 3] * 3),
        "val": make(val, folder / "val", labels),
    }
    register_dataset("pair")(lambda split, root: given[split])
    first = open_splits("pair")
    second = open_splits("pair")
    for one, other in zip(first, second):
        assert one.describe() == other.describe()
    return first


@pytest.mark.parametrize("train", KINDS)
@pytest.mark.parametrize("val", KINDS)
def test_a_val_set_that_lacks_a_class_keeps_the_others(train: str, val: str, tmp_path: Path) -> None:
    truth = [3, 1, 3, 0]  # no cow
    sets = opened(train, val, tmp_path, truth)
    if val in NAMED and train not in NAMED:  # names, and a training set that has none
        for _ in range(2):
            with pytest.raises(
                ValueError, match=r"the class 'ant', which is none of the 4 classes of pair .0, 1, 2"
            ):
                numbered_as(*sets)
        return
    for _ in range(2):
        found = numbered_as(*sets)
        assert found.classes == sets[0].classes
        assert found.labels is not None
        # trees and tars sort by class folder: what counts is how many of each there are, and which image is which
        assert sorted(found.labels.tolist()) == sorted(truth)
    if found is not sets[1]:
        picks = inputs.evaluation_picks(4, 4)
        rule = CentreCrop(SIDE, SIDE)
        (batch,) = found.on("cpu").batches(picks, rule)
        assert batch.labels is not None
        assert batch.labels.tolist() == found.labels[batch.index].tolist()
        (plain,) = sets[1].batches(picks, rule)
        assert torch.equal(batch.images, plain.images)
        part = found.subset(np.array([2, 0]))
        assert part.labels is not None
        assert part.labels.tolist() == found.labels[[2, 0]].tolist()


@pytest.mark.parametrize("val", ["tree", "tar of tars", "csv of names", "torch set of names"])
def test_a_class_more_is_named_on_every_run(val: str, tmp_path: Path) -> None:
    given = {
        "train": make("tree", tmp_path / "train", [0, 1, 2] * 3),
        "val": make(val, tmp_path / "val", [0, 3, 1]),
    }
    register_dataset("pair")(lambda split, root: given[split])
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"has images of the class 'dog', which is none of the 3 classes of pair"
        ):
            numbered_as(*open_splits("pair"))


@pytest.mark.parametrize("val", ["shards", "csv of numbers", "arrays", "torch set"])
def test_a_number_out_of_range_is_named(val: str, tmp_path: Path) -> None:
    given = {
        "train": make("tree", tmp_path / "train", [0, 1, 2] * 3),
        "val": make(val, tmp_path / "val", [0, 3, 1]),
    }
    register_dataset("pair")(lambda split, root: given[split])
    with pytest.raises(ValueError, match="images of the class '3', which is none of the 3 classes"):
        numbered_as(*open_splits("pair"))


def test_folders_called_by_numbers_are_names(tmp_path: Path) -> None:
    train = as_dataset(_Items([0, 1, 2, 3], NAMES), "named", in_memory=False, progress=False)
    tree = put(tmp_path / "tree", {"0/1.jpg": jpeg(1), "1/1.jpg": jpeg(2)})
    register_dataset("folders")(lambda split, root: tree)
    with pytest.raises(ValueError, match="the class '0', which is none of the 4 classes of named"):
        numbered_as(train, open_splits("folders")[0])


def test_leading_zeros_are_no_other_number() -> None:
    images = np.zeros((3, 8, 8, 3), np.uint8)
    train = as_dataset((images, np.arange(3)), "t", classes=["00", "01", "02"])
    val = as_dataset((images, np.array([2, 0, 2])), "v")
    found = numbered_as(train, val)
    assert found.labels is not None
    assert (found.classes, found.labels.tolist()) == (["00", "01", "02"], [2, 0, 2])


def test_a_run_counts_by_the_training_sets_classes(tmp_path: Path) -> None:
    root = put(tmp_path / "set" / "train", files_of([0, 1, 2, 3] * 3, NAMES)).parent
    put(root / "val", files_of([3, 1, 3], NAMES))
    train, val = open_splits(str(root))
    process = SimpleNamespace(
        device=torch.device("cpu"), process_index=0, num_processes=1, is_main_process=True
    )
    source = inputs.open_input(
        train=train, val=val, views=Views(RandomResizedCrop(8, 0)), eval_rule=CentreCrop(8, 8),
        batch=4, eval_batch=4, seed=0,
        accelerator=process,  # type: ignore[arg-type]
    )  # fmt: skip
    (batch,) = source.val_batches()
    assert batch.labels is not None
    assert batch.labels.tolist() == [1, 3, 3]
    said = inputs.data_notes(source)
    assert (
        said[0]
        == "training set: set, 12 images of 4 classes (3 images each: ant, bee, cow, dog), resized crops of 8 px"
    )
    assert (
        said[1]
        == "validation set: set, 3 images of 4 classes (ant 0, bee 1, cow 0, dog 2), 20 % of all images"
    )


def noted(train: list[int], val: list[int], classes: list[str] | None) -> list[str]:
    """What a run says of arrays with these labels, without the lines that count images."""
    sets = [
        as_dataset((np.zeros((len(labels), 8, 8, 3), np.uint8), np.array(labels)), name, classes=classes)
        for name, labels in (("here", train), ("there", val))
    ]
    rule = CentreCrop(8, 8)
    source = inputs.Input(*sets, Views(rule), rule, Order(len(train), 1), 1, torch.device("cpu"), 0, 1)  # type: ignore[arg-type]
    return inputs.data_notes(source)[2:]


def test_classes_of_no_and_of_one_image_are_said() -> None:
    names = ["ant", "bee", "cow", "dog", "eel"]
    assert noted([0, 0, 1, 3, 3], [0, 1, 3], names) == [
        "here: 2 of 5 classes have no image: cow, eel",
        "here: 1 of 5 classes has one image: bee",
        "validation set there: 2 of 5 classes have no image: cow, eel",
    ]
    assert noted([0, 0, 1, 1], [0, 1], None) == []
    assert noted([2] * 4, [2], names[:3]) == [
        "here: all images are of one class, cow: no label tells them apart",
        "here: 2 of 3 classes have no image: ant, bee",
        "validation set there: all images are of one class, cow: no label tells them apart",
        "validation set there: 2 of 3 classes have no image: ant, bee",
    ]


def test_a_file_of_one_class_is_said_when_it_is_indexed(tmp_path: Path) -> None:
    one = put(tmp_path / "set", files_of([0, 0, 0], NAMES))
    said = summary(build_index(one, progress=False))
    assert "all images are of one class, ant: no label tells them apart" in said
    assert "class" not in "".join(build_index(one, progress=False).remarks)


@pytest.mark.parametrize(
    ("method", "fits"), [("supervised", False), ("can", False), ("l2", True), ("anc", True)]
)
def test_one_class_is_refused_where_labels_teach(tmp_path: Path, method: str, fits: bool) -> None:
    """A cross entropy of one class is 0 whatever the student says; a distance of logits is not."""
    assert float(cross_entropy(torch.tensor([[3.0]]), torch.tensor([0]))) == 0
    put(tmp_path / "set", {f"photos/{k}.png": encoded(picture(k, (32, 32)), "PNG") for k in range(20)})
    words = {**LENETS, "data.name": str(tmp_path / "set"), "data.batch": "4", "data.crop": "padded"}
    words |= {"data.image_px": "32", "data.resize_px": "32", "run.max_steps": "1", "method.type": method}
    config = parse(as_words({**words, "run.out": str(tmp_path / "runs"), "run.name": "one"}))
    if fits:
        assert (run_train(config) / "metrics.jsonl").exists()
    else:
        with pytest.raises(
            ValueError, match=rf"has one class, photos, .* method\.type {method} needs: give images"
        ):
            run_train(config)
