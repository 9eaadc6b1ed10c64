"""Sets without a val split, sets of a user's own function: which images each split holds, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10, ImageFolder

from fastanc.parsing import parse
from fastanc.pipelines import catalogue
from fastanc.pipelines.arrays import ArraySet
from fastanc.pipelines.catalogue import describe_names, open_dataset, register_dataset
from fastanc.pipelines.dataset import DataSet
from fastanc.pipelines.index.build import build_index, open_index
from fastanc.pipelines.jpeg.jpeg_set import JpegSet
from fastanc.pipelines.order import Picks, held_out, share_of
from fastanc.pipelines.own_sets import as_dataset
from fastanc.pipelines.source_options import SourceOptions
from fastanc.pipelines.torch_set import TorchSet
from fastanc.pipelines.views import CentreCrop
from support.images import class_folders, flat_folder, jpeg, put
from support.tars import tar_of_tree, write_tar


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Start every test without registered names and with an empty cache."""
    monkeypatch.setattr(catalogue, "_REGISTERED", {})
    monkeypatch.setenv("FASTANC_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FASTANC_DATA", raising=False)


def names(data: DataSet) -> list[str]:
    assert isinstance(data, JpegSet)
    return [data.index.name(i) for i in range(data.num_images)]


def counts(data: DataSet) -> list[int]:
    assert data.labels is not None
    return np.bincount(data.labels, minlength=data.num_classes).tolist()


def pixels(data: DataSet, numbers: np.ndarray) -> torch.Tensor:
    (batch,) = data.batches([Picks(numbers, np.zeros_like(numbers))], CentreCrop(24, 28))
    return batch.images


def test_a_folder_without_splits_is_parted(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "photos", a=20, b=10, c=2, d=1)
    train, val = (open_dataset(str(root), split, val_share=0.1) for split in ("train", "val"))
    assert (counts(val), counts(train)) == ([2, 1, 1, 0], [18, 9, 1, 1])
    whole = open_index(root)
    assert sorted(names(train) + names(val)) == sorted(whole.name(i) for i in range(len(whole)))
    assert (train.name, val.name, train.classes) == ("photos", "photos", val.classes)
    held = held_out(whole.labels, len(whole), 0.1)
    everything = JpegSet("whole", whole, (), ())
    assert torch.equal(pixels(val, np.arange(4)), pixels(everything, held))
    kept = np.setdiff1d(np.arange(len(whole)), held)
    assert torch.equal(pixels(train, np.arange(29)), pixels(everything, kept))
    prints = {data.describe()["fingerprint"] for data in (train, val, everything)}
    assert len(prints) == 3


def test_what_is_held_out_is_the_same_in_every_run_and_apart_from_the_share(tmp_path: Path) -> None:
    root = str(class_folders(tmp_path / "photos", a=40, b=40))
    val, train = open_dataset(root, "val"), open_dataset(root, "train")
    assert (counts(val), counts(train)) == ([2, 2], [38, 38])
    assert open_dataset(root, "val").describe() == val.describe()
    assert open_dataset(root, "val", share=0.5).num_images == 2
    part = open_dataset(root, "train", share=0.25)
    assert counts(part) == [10, 10]
    assert set(names(part)) < set(names(train))
    expected = share_of(train.labels, train.num_images, 0.25)
    assert names(part) == [names(train)[i] for i in expected]
    larger = open_dataset(root, "val", val_share=0.3)
    assert set(names(val)) < set(names(larger))


def test_a_tar_and_a_train_folder_alone_are_parted_alike(tmp_path: Path) -> None:
    tree = class_folders(tmp_path / "set" / "train", a=12, b=8)
    bare = tar_of_tree(tree, tmp_path / "all.tar")
    (tmp_path / "tars").mkdir()
    tar_of_tree(tree, tmp_path / "tars" / "train.tar")
    found = {}
    for source in (tmp_path / "set", tree, bare, tmp_path / "tars"):
        for split in ("train", "val"):
            data = open_dataset(str(source), split, val_share=0.2)
            found.setdefault(split, []).append(data.describe()["fingerprint"])
            assert counts(data) == ([9, 6] if split == "train" else [3, 2])
    assert len(set(found["train"])) == len(set(found["val"])) == 1


def test_a_val_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    root = tmp_path / "set"
    class_folders(root / "train", a=9, b=9)
    class_folders(root / "valid", a=3, b=1)
    train, val = (open_dataset(str(root), split) for split in ("train", "val"))
    assert (counts(train), counts(val)) == ([9, 9], [3, 1])


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("Train", "Val"),
        ("TRAIN", "VAL"),
        ("Training", "validation"),
        ("train", "Valid"),
        ("tRaIn", "VALIDATION"),
        ("train_images", "val_images"),
    ],
)
def test_splits_are_known_in_any_case(tmp_path: Path, train: str, val: str) -> None:
    class_folders(tmp_path / "set" / train, a=9, b=9)
    class_folders(tmp_path / "set" / val, a=3, b=1)
    sets = [open_dataset(str(tmp_path / "set"), split) for split in ("train", "val")]
    assert [counts(data) for data in sets] == [[9, 9], [3, 1]]
    assert [data.index.source.name for data in sets if isinstance(data, JpegSet)] == [train, val]
    (tmp_path / "tars").mkdir()
    for split in (train, val):
        tar_of_tree(tmp_path / "set" / split, tmp_path / "tars" / f"{split}.Tar")
    assert [counts(open_dataset(str(tmp_path / "tars"), split)) for split in ("train", "val")] == [
        [9, 9],
        [3, 1],
    ]


def test_two_names_of_one_split_and_splits_of_a_tar_are_refused(tmp_path: Path) -> None:
    for name in ("Train", "train", "VAL"):
        class_folders(tmp_path / "set" / name, a=2, b=2)
    with pytest.raises(ValueError, match="set holds Train and train: keep one of them"):
        open_dataset(str(tmp_path / "set"), "train")
    tar_of_tree(tmp_path / "set", tmp_path / "all.tar")
    with pytest.raises(ValueError, match=r"all\.tar holds Train and train: keep one of them"):
        open_dataset(str(tmp_path / "all.tar"), "train")
    flat = put(
        tmp_path / "flat", {f"{split}/{k}.jpg": jpeg(k) for split in ("Train", "Test") for k in range(2)}
    )
    with pytest.raises(ValueError, match="flat holds the splits Test, Train: give or index each"):
        build_index(flat, progress=False)


def test_a_test_folder_is_no_class_and_no_val_split_and_is_said(tmp_path: Path) -> None:
    class_folders(tmp_path / "set" / "Training", a=20, b=20)
    class_folders(tmp_path / "set" / "Testing", a=3, b=3)
    train = open_dataset(str(tmp_path / "set"), "train")
    assert counts(train) == [19, 19]
    assert isinstance(train, JpegSet)
    assert train.remarks == [
        f"Testing is not used; validation images are held out of {tmp_path / 'set' / 'Training'}"
    ]
    class_folders(tmp_path / "set" / "Val", a=3, b=3)
    train = open_dataset(str(tmp_path / "set"), "train")
    assert isinstance(train, JpegSet)
    assert (counts(train), train.remarks) == ([20, 20], [])


def test_a_split_in_an_archive_is_named(tmp_path: Path) -> None:
    put(
        tmp_path,
        {"one/train.7z": b"7z\xbc\xaf\x27\x1c" + bytes(600), "two/Val.tar.gz": b"\x1f\x8b" + bytes(600)},
    )
    class_folders(tmp_path / "one" / "val", a=3, b=3)
    with pytest.raises(
        FileNotFoundError, match=r"no train/ or train\.tar: train\.7z is a 7z archive, unpack it"
    ):
        open_dataset(str(tmp_path / "one"), "train")
    class_folders(tmp_path / "two" / "train", a=3, b=3)
    put(tmp_path / "two", {"val.txt": b"words", "train.csv": b"words"})
    train = open_dataset(str(tmp_path / "two"), "train")
    assert isinstance(train, JpegSet)
    (said,) = train.remarks
    assert said.startswith("Val.tar.gz is compressed (gzip), `fastanc pack ")
    assert said.endswith(f"; validation images are held out of {tmp_path / 'two' / 'train'}")


@pytest.mark.parametrize("wrapper", ["photos", "photos/photos", "a/b/c"])
@pytest.mark.parametrize("inside", ["classes", "splits", "tars"])
def test_a_folder_in_which_all_lies_is_opened_and_said(tmp_path: Path, wrapper: str, inside: str) -> None:
    inner = tmp_path / "set" / wrapper
    if inside == "classes":
        class_folders(inner, a=20, b=20)
    else:
        class_folders((inner if inside == "splits" else tmp_path) / "train", a=19, b=19)
        class_folders((inner if inside == "splits" else tmp_path) / "val", a=1, b=1)
    if inside == "tars":
        inner.mkdir(parents=True)
        for split in ("train", "val"):
            tar_of_tree(tmp_path / split, inner / f"{split}.tar")
    put(tmp_path / "set", {"README.txt": b"words", "__MACOSX/photos/._a": b"x", ".git/a/x.jpg": jpeg()})
    train, val = (open_dataset(str(tmp_path / "set"), split) for split in ("train", "val"))
    assert (train.name, train.classes, counts(train), counts(val)) == ("set", ["a", "b"], [19, 19], [1, 1])
    assert isinstance(train, JpegSet)
    assert f"read from {inner}, the only folder in {tmp_path / 'set'}" in train.remarks


def test_one_folder_of_images_is_one_class_and_never_looked_into(tmp_path: Path) -> None:
    for name in ("set/photos", "deep/photos/images"):
        flat_folder(tmp_path / name, 20)
        assert open_dataset(str(tmp_path / name.partition("/")[0]), "train").classes == ["photos"]
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop" / "again").symlink_to(".")
    with pytest.raises(ValueError, match="holds no images"):
        open_dataset(str(tmp_path / "loop"), "train")


def test_class_folders_one_level_too_deep_are_refused_by_the_inner_folders_name(tmp_path: Path) -> None:
    class_folders(tmp_path / "set" / "train" / "photos", a=2, b=2)
    with pytest.raises(ValueError, match=r"train holds one folder, photos, .*: give .*set/train/photos"):
        open_dataset(str(tmp_path / "set"), "train")
    tree = class_folders(tmp_path / "beside" / "photos", a=2, b=2).parent
    put(tree, {"preview.jpg": jpeg()})
    with pytest.raises(ValueError, match=r"beside holds one folder, photos, .*: give .*beside/photos"):
        open_dataset(str(tree), "train")
    (tmp_path / "labels.csv").write_text("a/0,x\na/1,y\nb/0,x\nb/1,y\npreview,y\n")
    assert build_index(tree, SourceOptions(labels=tmp_path / "labels.csv"), progress=False).classes == [
        "x",
        "y",
    ]


def test_a_val_folder_with_other_programs_folders_is_still_flat(tmp_path: Path) -> None:
    class_folders(tmp_path / "set" / "train", a=3, b=3)
    flat_folder(tmp_path / "set" / "val", 2)
    put(tmp_path / "set", {"val/.ipynb_checkpoints/x.jpg": jpeg(), "val.txt": b"000.jpg b\n001.jpg a\n"})
    val = open_dataset(str(tmp_path / "set"), "val")
    assert val.labels is not None
    assert val.labels.tolist() == [1, 0]


def test_a_known_set_is_never_parted(tmp_path: Path) -> None:
    class_folders(tmp_path / "imagenet" / "train", n01440764=5, n02102040=5)
    assert open_dataset("imagenet", "train", tmp_path).num_images == 10
    with pytest.raises(FileNotFoundError, match="imagenet was not found: looked for val/"):
        open_dataset("imagenet", "val", tmp_path)


def test_unlabelled_images_are_parted_too(tmp_path: Path) -> None:
    root = str(flat_folder(tmp_path / "photos", 30))
    train, val = (open_dataset(root, split, val_share=0.1) for split in ("train", "val"))
    for data, count in ((train, 27), (val, 3)):
        assert (data.num_images, data.labels, data.classes, data.num_classes) == (count, None, [], 0)
    assert not set(names(train)) & set(names(val))
    one = str(flat_folder(tmp_path / "one", 1))
    with pytest.raises(ValueError, match="one has no val split: a single image cannot be parted"):
        open_dataset(one, "train")


def test_an_object_of_a_users_own_holds_both_splits() -> None:
    images, labels = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), np.uint8), np.arange(60) % 3
    held = held_out(labels, 60, 0.1)
    for value in ((images, labels), as_dataset((images, labels))):
        train, val = (open_dataset(value, split, val_share=0.1) for split in ("train", "val"))
        assert isinstance(train, ArraySet)
        assert isinstance(val, ArraySet)
        assert np.array_equal(val.images, images[held])
        assert np.array_equal(train.images, np.delete(images, held, 0))
        assert counts(val) == [2, 2, 2]
    with pytest.raises(ValueError, match="the data set is a int: give a DataSet"):
        open_dataset(3, "train")


# ---- a function of a user's own


def test_a_function_gives_any_kind_of_set(tmp_path: Path) -> None:
    tree = class_folders(tmp_path / "tree", a=6, b=6)
    images, labels = np.zeros((12, 8, 8, 3), np.uint8), np.arange(12) % 2
    asked: list[tuple[str, Path]] = []
    kinds: dict[str, tuple[Any, type]] = {
        "own": (as_dataset((images, labels), "other"), ArraySet),
        "pair": ((images, labels), ArraySet),
        "images": (torch.from_numpy(images), ArraySet),
        "torch": (ImageFolder(str(tree)), TorchSet),
        "path": (tree, JpegSet),
        "text": (str(tree), JpegSet),
    }
    for name, (value, kind) in kinds.items():

        @register_dataset(name)
        def make(split: str, root: Path, value: Any = value) -> Any:
            """Twelve pictures."""
            asked.append((split, root))
            return value

        data = open_dataset(name, "train", tmp_path / "given")
        assert isinstance(data, kind)
        assert data.name == ("other" if name == "own" else name)
        # one path for both splits holds both; of an object its function says that there is a val split
        assert data.num_images == (10 if kind is JpegSet else 12)
        assert f"{name:14}Twelve pictures." in describe_names().splitlines()
    assert {root for _, root in asked} == {tmp_path / "given"}
    assert {split for split, _ in asked} == {"train", "val"}
    open_dataset("pair", "val")
    assert asked[-1] == ("val", tmp_path / "cache" / "data")


def test_a_function_without_a_val_split_has_one_held_out(tmp_path: Path) -> None:
    tree = class_folders(tmp_path / "tree", a=10, b=10)

    @register_dataset("mine")
    def mine(split: str, root: Path) -> Any:
        return ImageFolder(str(tree)) if split == "train" else None

    train, val = (open_dataset("mine", split, val_share=0.2) for split in ("train", "val"))
    assert (counts(train), counts(val)) == ([8, 8], [2, 2])
    assert counts(open_dataset("mine", "train", share=0.25, val_share=0.2)) == [2, 2]
    everything = as_dataset(ImageFolder(str(tree)), progress=False)
    held = held_out(everything.labels, 20, 0.2)
    assert torch.equal(pixels(val, np.arange(4)), pixels(everything, held))


def test_a_function_may_give_a_path_for_each_split(tmp_path: Path) -> None:
    train, val = class_folders(tmp_path / "one", a=10, b=10), class_folders(tmp_path / "two", a=3, b=2)
    both = tmp_path / "both"
    class_folders(both / "train", a=4, b=4)
    class_folders(both / "val", a=1, b=1)
    given: dict[str, Any] = {"train": train, "val": val}

    @register_dataset("mine")
    def mine(split: str, root: Path) -> Any:
        return given[split]

    def found() -> list[list[int]]:
        return [counts(open_dataset("mine", split, val_share=0.2)) for split in ("train", "val")]

    assert found() == [[10, 10], [3, 2]]
    given["val"] = train
    assert found() == [[8, 8], [2, 2]]
    given["val"] = None
    assert found() == [[8, 8], [2, 2]]
    given["train"] = given["val"] = str(both)
    assert found() == [[4, 4], [1, 1]]
    given["train"], given["val"] = tmp_path / "half", val
    class_folders(tmp_path / "half" / "train", a=5, b=5)
    assert found() == [[5, 5], [3, 2]]
    given["val"] = (np.zeros((4, 8, 8, 3), np.uint8), np.array([0, 1, 1, 1]))
    assert found() == [[5, 5], [1, 3]]
    given["train"], given["val"] = given["val"], val
    assert found() == [[1, 3], [3, 2]]
    given["train"] = tmp_path / "none"
    with pytest.raises(
        FileNotFoundError, match="none does not exist: give a data set's path, or one of digits"
    ):
        open_dataset("mine", "train")


def test_wrong_functions_and_names_are_one_sentence() -> None:
    def wrong(split: str, root: Path) -> Any:
        return {"train": 3}

    register_dataset("wrong")(wrong)
    for split in ("train", "val"):
        with pytest.raises(
            ValueError, match=f"data set 'wrong': its function gave a dict for {split}: return a Data"
        ):
            open_dataset("wrong", split)

    def nothing(split: str, root: Path) -> Any:
        return None

    register_dataset("nothing")(nothing)
    with pytest.raises(ValueError, match="data set 'nothing': its function gave a NoneType for train"):
        open_dataset("nothing", "val")
    for name in ("digits", "cifar10", "imagenet", "wrong"):
        with pytest.raises(ValueError, match=f"the data set name '{name}' is taken"):
            register_dataset(name)(nothing)
    assert register_dataset("wrong")(wrong) is wrong  # a cell of a notebook is run again
    with pytest.raises(TypeError, match="write @register_dataset"):
        register_dataset(wrong)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError,
        match=r"data set 'wrogn' is unknown: did you mean wrong\? use digits, .*wrong, nothing, or the path",
    ):
        open_dataset("wrogn", "train")


PLUGIN = '''
"""CIFAR-10's test images as torchvision reads them."""
from torchvision.datasets import CIFAR10
from fastanc.pipelines.catalogue import register_dataset

@register_dataset("few")
def few(split, root):
    return CIFAR10(root, train=False) if split == "train" else None
'''


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "my_data.py"
    path.write_text(PLUGIN)
    return path


def test_a_plugin_registers_its_set(plugin: Path, data_root: Path, tmp_path: Path) -> None:
    config = parse(["--plugin", str(plugin), "--data.name", "few", "--data.val_share", "0.1"])
    train = open_dataset(config.data.name, "train", data_root, val_share=config.data.val_share)
    assert isinstance(train, ArraySet)
    raw = CIFAR10(data_root, train=False)
    held = held_out(np.array(raw.targets), 10_000, 0.1)
    assert np.array_equal(train.images, np.delete(raw.data, held, 0))
    assert counts(train) == [900] * 10
    assert train.classes[0] == "airplane"
    taken = tmp_path / "taken.py"
    taken.write_text(PLUGIN.replace("few", "digits"))
    with pytest.raises(
        ValueError, match=r"taken\.py cannot be imported .ValueError: the data set name 'digits'"
    ):
        parse(["--plugin", str(taken)])


@pytest.mark.parametrize("share", ["0", "1", "-0.5"])
def test_an_impossible_share_is_refused(share: str) -> None:
    with pytest.raises(
        ValueError, match=r"data\.val_share is '.*': it takes a number, above 0, up to less than 1"
    ):
        parse(["--data.val_share", share])


def test_a_folder_of_images_beside_the_splits_is_said(tmp_path: Path) -> None:
    home = tmp_path / "set"
    for split in ("train", "val"):
        class_folders(home / split, a=4, b=4)
    class_folders(home / "train (1)", a=3)
    class_folders(home / "c", x=2)
    class_folders(home / "test", a=2)
    (home / "notes" / "deep").mkdir(parents=True)
    (home / "notes" / "read.txt").write_text("no image")
    remarks = open_dataset(str(home), "train").remarks
    assert [r for r in remarks if "not used" in r] == [
        f"c, train (1) in {home} hold images and are not used: no split is called so"
    ]
    shutil.rmtree(home / "c")
    shutil.rmtree(home / "train (1)")
    assert not [r for r in open_dataset(str(home), "train").remarks if "not used" in r]


def test_shards_are_of_the_split_that_their_names_say(tmp_path: Path) -> None:
    """timm/imagenet-1k-wds: imagenet1k-train-{0000..1023}.tar and -validation-{00..63}.tar in one folder."""
    shards = tmp_path / "shards"
    shards.mkdir()
    for split, digits, count in (("train", 4, 2), ("validation", 2, 1)):
        for k in range(count):
            files = {f"{split}{k}{n}.jpg": jpeg([k, n]) for n in range(6)}
            labels = {f"{split}{k}{n}.cls": str(n % 3).encode() for n in range(6)}
            write_tar(shards / f"imagenet1k-{split}-{k:0{digits}d}.tar", {**files, **labels})
    train, val = (open_dataset(str(shards), split) for split in ("train", "val"))
    assert (counts(train), counts(val)) == ([4, 4, 4], [2, 2, 2])
    with pytest.raises(
        ValueError, match=r"shards of the splits imagenet1k-train-\*\.tar, imagenet1k-validation-\*"
    ):
        build_index(shards, progress=False)
    whole = open_dataset(str(shards / "imagenet1k-train-*.tar"), "train", val_share=0.5)
    assert whole.num_images == 6
