"""Names of data sets: where they are found, what they hold, and the one sentence where they are not."""

from __future__ import annotations

import gzip
import io
import pickle
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastanc.pipelines import catalogue as datasets
from fastanc.pipelines import fetch
from fastanc.pipelines.arrays import ArraySet
from fastanc.pipelines.catalogue import describe_names, open_dataset
from fastanc.pipelines.digits import MEAN, STD, digits_tar
from fastanc.pipelines.index.build import open_index
from fastanc.pipelines.order import Picks, share_of
from fastanc.pipelines.views import CentreCrop
from support.images import class_folders, jpeg
from support.tars import tar_of_tree, write_tar


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start with empty caches, no environment, no system packages and no network."""

    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setenv("FASTANC_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FASTANC_DATA", raising=False)
    monkeypatch.setattr(datasets, "DEBIAN_FASHION", tmp_path / "debian")
    monkeypatch.setattr(fetch, "_torchvision_set", offline)


# ---- array sets


def test_cifar10_is_what_the_pickles_hold(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = open_dataset("cifar10", "val", data_root)
    assert isinstance(found, ArraySet)
    with open(data_root / "cifar-10-batches-py" / "test_batch", "rb") as file:
        raw = pickle.load(file, encoding="bytes")
    assert np.array_equal(found.images, raw[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    assert found.labels is not None
    assert found.labels.tolist() == raw[b"labels"]
    assert found.classes[:3] == ["airplane", "automobile", "bird"]
    monkeypatch.setenv("FASTANC_DATA", str(data_root))
    train = open_dataset("cifar10", "train")
    assert isinstance(train, ArraySet)
    assert train.images.shape == (50_000, 32, 32, 3)
    assert np.allclose(train.images.mean((0, 1, 2)) / 255, train.mean, atol=1e-4)
    assert np.allclose(train.images[::5].std((0, 1, 2)) / 255, train.std, atol=2e-3)


def test_a_damaged_cifar_is_never_unpickled(tmp_path: Path) -> None:
    folder = tmp_path / "root" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    trap = b"cos\nsystem\n(S'touch " + str(tmp_path / "trap").encode() + b"'\ntR."
    for name in ("batches.meta", "test_batch", *(f"data_batch_{k}" for k in range(1, 6))):
        (folder / name).write_bytes(trap)
    with pytest.raises(ValueError, match=r"cifar10 in .*root are incomplete or damaged"):
        open_dataset("cifar10", "val", tmp_path / "root")
    assert not (tmp_path / "trap").exists()


def _idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def fashion(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    arrays = {}
    (tmp_path / "debian").mkdir()
    for part, n in (("train", 30), ("t10k", 20)):
        arrays[f"{part}-images-idx3-ubyte"] = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        arrays[f"{part}-labels-idx1-ubyte"] = rng.integers(0, 10, n, dtype=np.uint8)
    for name, array in arrays.items():
        (tmp_path / "debian" / f"{name}.gz").write_bytes(gzip.compress(_idx(array)))
    return tmp_path / "debian", arrays


def test_fashion_mnist_from_the_debian_folder(fashion: tuple[Path, dict[str, np.ndarray]]) -> None:
    for split, part in (("train", "train"), ("val", "t10k")):
        found = open_dataset("fashion_mnist", split)
        assert isinstance(found, ArraySet)
        assert np.array_equal(found.images[..., 0], fashion[1][f"{part}-images-idx3-ubyte"])
        assert found.labels is not None
        assert np.array_equal(found.labels, fashion[1][f"{part}-labels-idx1-ubyte"])
        assert (found.channels, found.num_classes, found.classes[9]) == (1, 10, "Ankle boot")


def test_fashion_mnist_unpacked_is_what_torchvision_reads(
    tmp_path: Path, fashion: tuple[Path, dict[str, np.ndarray]]
) -> None:
    from torchvision.datasets import FashionMNIST

    raw = tmp_path / "root" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name, array in fashion[1].items():
        (raw / name).write_bytes(_idx(array))
    found, theirs = (
        open_dataset("fashion_mnist", "val", tmp_path / "root"),
        FashionMNIST(tmp_path / "root", False),
    )
    assert isinstance(found, ArraySet)
    assert np.array_equal(found.images[..., 0], theirs.data.numpy())
    assert found.classes == theirs.classes


def test_damaged_fashion_mnist_is_named(fashion: tuple[Path, dict[str, np.ndarray]]) -> None:
    path = fashion[0] / "t10k-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for data in (
        whole[: len(whole) // 2],
        gzip.compress(_idx(fashion[1]["t10k-images-idx3-ubyte"])[:-5]),
        b"",
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte\.gz is not a whole idx file"):
            open_dataset("fashion_mnist", "val")
    path.unlink()
    with pytest.raises(FileNotFoundError, match="needs all four files"):
        open_dataset("fashion_mnist", "val")


def test_svhn_has_its_digits_as_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    import torchvision

    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 12), dtype=np.uint8)
    for part in ("train", "test"):
        scipy_io.savemat(tmp_path / f"{part}_32x32.mat", {"X": pixels, "y": np.arange(12)[:, None] % 10 + 1})
    monkeypatch.setattr(torchvision.datasets.SVHN, "_check_integrity", lambda _: True)
    found = open_dataset("svhn", "val", tmp_path)
    assert isinstance(found, ArraySet)
    assert np.array_equal(found.images, pixels.transpose(3, 0, 1, 2))
    assert found.labels is not None
    assert found.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]


def test_a_set_that_is_nowhere_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTANC_DATA", str(tmp_path / "data"))
    for name in ("cifar10", "cifar100", "svhn", "fashion_mnist", "imagenette", "imagenet"):
        with pytest.raises(FileNotFoundError, match=f"{name} was not found: looked for ") as caught:
            open_dataset(name, "train")
        text = str(caught.value)
        assert str(tmp_path / "data") in text
        assert str(tmp_path / "cache" / "data") in text
        assert "--data.root or FASTANC_DATA" in text
        assert ("no network" in text) == (name != "imagenet")  # torchvision does not offer it
        with pytest.raises(FileNotFoundError, match="was not found") as caught:
            open_dataset(name, "train", tmp_path / "given")
        assert str(tmp_path / "data") not in str(caught.value)


def test_a_download_arrives_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched(kind: str, folder: Path, **arguments: object) -> None:
        assert (kind, arguments) == ("Imagenette", {"split": "train", "size": "320px"})
        assert not (tmp_path / "cache" / "data" / "imagenette2-320").exists()
        for split in ("train", "val"):
            class_folders(folder / "imagenette2-320" / split, a=3, b=3)

    monkeypatch.setattr(fetch, "_torchvision_set", fetched)
    found = open_dataset("imagenette", "train")
    assert (found.name, found.num_images, found.classes) == ("imagenette", 6, ["a", "b"])
    monkeypatch.setattr(fetch, "_torchvision_set", None)
    assert open_dataset("imagenette", "val").num_images == 6
    left = sorted(path.name for path in (tmp_path / "cache" / "data").iterdir())
    assert left == ["imagenette2-320"]


# ---- JPEG sets


def test_imagenette_tree(data_root: Path, tmp_path: Path) -> None:
    shutil.copytree(data_root / "imagenette-224-mini", tmp_path / "root" / "imagenette-224-mini")
    train, val = (open_dataset("imagenette", split, tmp_path / "root") for split in ("train", "val"))
    assert (train.num_images, val.num_images, train.num_classes) == (240, 120, 10)
    assert train.classes == val.classes
    assert train.labels is not None
    assert np.bincount(train.labels).tolist() == [24] * 10
    assert train.mean == (0.485, 0.456, 0.406)


def test_a_path_with_trees_or_tars(tmp_path: Path) -> None:
    for split in ("train", "val"):
        tar_of_tree(class_folders(tmp_path / "tree" / split, a=3, b=3), tmp_path / f"{split}.tar")
    (tmp_path / "tars").mkdir()
    for split in ("train", "val"):
        shutil.move(tmp_path / f"{split}.tar", tmp_path / "tars")
    for split in ("train", "val"):
        one, other = open_dataset(str(tmp_path / "tree"), split), open_dataset(str(tmp_path / "tars"), split)
        assert one.describe()["fingerprint"] == other.describe()["fingerprint"]
    (tmp_path / "tars" / "train.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"tars has no train/ or train\.tar: put one there"):
        open_dataset(str(tmp_path / "tars"), "train")


def test_a_share_is_the_same_images_of_the_whole_set(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    whole, part = open_dataset("digits", "train"), open_dataset("digits", "train", share=0.1)
    kept = share_of(whole.labels, whole.num_images, 0.1)
    assert [part.index.name(i) for i in range(len(kept))] == [whole.index.name(i) for i in kept.tolist()]
    assert part.labels.tolist() == whole.labels[kept].tolist()
    assert part.describe()["fingerprint"] != whole.describe()["fingerprint"]
    everything = CentreCrop(32, 32)
    (got,) = part.batches([Picks(np.arange(9), np.zeros(9, np.int64))], everything)
    (expected,) = whole.batches([Picks(kept[:9], np.zeros(9, np.int64))], everything)
    assert (got.images == expected.images).all()


def test_imagenet_as_it_is_downloaded(tmp_path: Path) -> None:
    classes = ["n01440764", "n02102040"]
    tree = class_folders(tmp_path / "tree", **dict.fromkeys(classes, 3))
    root = tmp_path / "root"
    root.mkdir()
    inner = {f"{c}.tar": tar_of_tree(tree / c, tmp_path / "one.tar").read_bytes() for c in classes}
    write_tar(root / "ILSVRC2012_img_train.tar", inner)
    write_tar(root / "ILSVRC2012_img_val.tar", {f"ILSVRC2012_val_{k:08d}.JPEG": jpeg() for k in (1, 2, 3)})
    train = open_dataset("imagenet", "train", root)
    assert (train.num_images, train.classes) == (6, classes)
    with pytest.raises(ValueError, match="has no labels but") as caught:
        open_dataset("imagenet", "val", root)
    assert "imagenet_2012_validation_synset_labels.txt" in str(caught.value)
    (root / "imagenet_2012_validation_synset_labels.txt").write_text("n02102040\nn01440764\nn02102040\n")
    val = open_dataset("imagenet", "val", root)
    assert val.labels is not None
    assert val.labels.tolist() == [1, 0, 1]


def test_wrong_names_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"data set 'cifar11' is unknown: did you mean cifar10\? use digits, cifar10"
    ):
        open_dataset("cifar11", "train")
    with pytest.raises(ValueError, match="split 'test' is unknown: use train or val"):
        open_dataset("cifar10", "test")
    with pytest.raises(FileNotFoundError, match="no/where does not exist"):
        open_dataset("no/where", "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no images"):
        open_dataset(str(tmp_path / "empty"), "train")
    for name in ("digits", "cifar10", "svhn", "fashion_mnist", "imagenette", "imagenet"):
        assert name in describe_names()


# ---- digits


def test_digits_are_scikit_learns(tmp_path: Path) -> None:
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    images, labels = load_digits(return_X_y=True)
    total = 0
    for split, count in (("train", 1437), ("val", 360)):
        index = open_index(digits_tar(split))
        assert len(index) == count
        assert index.classes == [str(k) for k in range(10)]
        assert index.labels is not None
        assert np.bincount(index.labels).min() >= count / 10 * 0.7
        pixels = []
        for i, (path, offset, length) in enumerate(index.places(range(count))):
            number = int(Path(index.name(i)).stem)
            total += number
            assert (number % 5 == 0) == (split == "val")
            assert index.labels[i] == labels[number]
            with open(path, "rb") as file:
                file.seek(offset)
                pixels.append(np.asarray(Image.open(io.BytesIO(file.read(length)))))
            small = pixels[-1].reshape(8, 4, 8, 4).mean((1, 3)) / 255 * 16
            assert np.corrcoef(small.ravel(), images[number])[0, 1] > 0.95
        if split == "train":
            assert np.allclose([np.mean(pixels) / 255, np.std(pixels) / 255], [MEAN[0], STD[0]], atol=1e-3)
    assert total == 1797 * 1796 // 2
    first = digits_tar("val").read_bytes()
    shutil.rmtree(tmp_path / "cache")
    assert digits_tar("val").read_bytes() == first
    assert (tmp_path / "cache" / "digits" / "val.tar").exists()


def test_digits_without_scikit_learn_name_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install scikit-learn"):
        open_dataset("digits", "train")
