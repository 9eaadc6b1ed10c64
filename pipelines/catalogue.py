"""Names of data sets, where each is looked for, and how it is obtained."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastanc.pipelines import digits, small_sets
from fastanc.pipelines.arrays import ArraySet
from fastanc.pipelines.dataset import DataSet
from fastanc.pipelines.index.build import Index, index_path, open_index
from fastanc.pipelines.index.workers import locked
from fastanc.pipelines.order import share_of
from fastanc.pipelines.places import cache_dir

if TYPE_CHECKING:
    from fastanc.pipelines.jpeg.jpeg_set import JpegSet

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")
SPLITS = ("train", "val")

_VAL_LABELS = (  # label files of ILSVRC2012_img_val, as labels.py reads them
    "imagenet_2012_validation_synset_labels.txt",
    "LOC_val_solution.csv",
    "val.txt",
    "valprep.sh",
    "ILSVRC2012_validation_ground_truth.txt",
)
_SYNSETS = "synsets.tsv"


@dataclass(frozen=True)
class _Known:
    """A set that is kept as arrays."""

    about: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    find: Callable[[Path], Path | None]
    """Folder to search -> what `read` wants, or None."""
    read: Callable[[Path, str], small_sets.Arrays]
    holds: str
    """What is looked for, in words."""
    download: tuple[str, list[dict[str, str]]]
    """torchvision's class, and the arguments of each call that it takes to get every file."""


def _having(marker: str) -> Callable[[Path], Path | None]:
    return lambda root: root if (root / marker).exists() else None


def _torchvision_set(kind: str, folder: Path, **arguments: str) -> None:
    """Let torchvision download a set into a folder."""
    import torchvision

    getattr(torchvision.datasets, kind)(folder, download=True, **arguments)


_ARRAYS = {
    "cifar10": _Known(
        "CIFAR-10: 50,000 + 10,000 photos of 32 px, 10 classes",
        (0.4914, 0.4822, 0.4465),
        (0.2470, 0.2435, 0.2616),
        _having("cifar-10-batches-py"),
        lambda root, split: small_sets.read_cifar(root, split, hundred=False),
        "the folder cifar-10-batches-py",
        ("CIFAR10", [{}]),
    ),
    "cifar100": _Known(
        "CIFAR-100: 50,000 + 10,000 photos of 32 px, 100 classes",
        (0.5071, 0.4865, 0.4409),
        (0.2673, 0.2564, 0.2762),
        _having("cifar-100-python"),
        lambda root, split: small_sets.read_cifar(root, split, hundred=True),
        "the folder cifar-100-python",
        ("CIFAR100", [{}]),
    ),
    "svhn": _Known(
        "SVHN: 73,257 + 26,032 house numbers of 32 px, 10 classes",
        (0.4377, 0.4438, 0.4728),
        (0.1980, 0.2010, 0.1970),
        _having("train_32x32.mat"),
        small_sets.read_svhn,
        "train_32x32.mat and test_32x32.mat",
        ("SVHN", [{"split": "train"}, {"split": "test"}]),
    ),
    "fashion_mnist": _Known(
        "Fashion-MNIST: 60,000 + 10,000 grey pictures of 28 px, 10 classes",
        (0.2860,),
        (0.3530,),
        small_sets.fashion_folder,
        small_sets.read_fashion,
        "train-images-idx3-ubyte.gz and its three siblings",
        ("FashionMNIST", [{}]),
    ),
}
_IMAGENETTE = (
    "imagenette-224-mini",
    "imagenette2-320",
    "imagenette2-160",
    "imagenette2",
    "imagenette",
    "",
)
_IMAGENET = ("imagenet", "ILSVRC2012", "imagenet-1k", "")
_TREES = {
    "imagenette": (
        "Imagenette: photos of ten ImageNet classes, train/ and val/ of JPEGs",
        _IMAGENETTE,
    ),
    "imagenet": (
        "ImageNet-1k: train/ and val/, train.tar, or ILSVRC2012_img_*.tar",
        _IMAGENET,
    ),
}
_DIGITS = (
    "digits: scikit-learn's 1,797 handwritten digits, written as JPEGs of 32 px at first use, 10 classes"
)


def describe_names() -> str:
    """Return one line for every name that `open_dataset` knows."""
    lines = {"digits": _DIGITS.partition(": ")[2]}
    lines |= {name: known.about for name, known in _ARRAYS.items()}
    lines |= {name: about for name, (about, _) in _TREES.items()}
    lines["PATH"] = "a folder with train/ and val/ (or train.tar and val.tar), or one folder or tar of images"
    return "\n".join(f"{name:14}{about}" for name, about in lines.items())


def open_dataset(name: str, split: str, root: str | Path | None = None, share: float = 1.0) -> DataSet:
    """Return a data set by name or path; `split` is "train" or "val", `share` the part of its images to take.

    A given `root` is the only place looked in; without it FASTANC_DATA, the cache folder, what the system's
    packages installed, and at last torchvision's download. Raises ValueError for an unknown name or split,
    FileNotFoundError where the set is nowhere.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown: use train or val")
    roots = _roots(root)
    if name in _ARRAYS:
        arrays = _open_arrays(name, split, roots, may_download=root is None)
        return arrays if share == 1 else arrays.subset(share_of(arrays.labels, arrays.num_images, share))
    if name == "digits":
        return _jpeg_set(name, open_index(digits.digits_tar(split)), share, digits.MEAN, digits.STD)
    if name in _TREES:
        folder = _find_tree(name, split, roots, may_download=root is None)
    elif os.sep in name or Path(name).exists():
        folder = Path(name).expanduser()
        if not folder.exists():
            raise FileNotFoundError(f"{folder} does not exist: give a data set's path, or one of {_names()}")
    else:
        raise ValueError(
            f"data set {name!r} is unknown: use {_names()}, or the path of a folder or tar of images"
        )
    index = _open_split(folder, split)
    return _jpeg_set(name if name in _TREES else folder.name, index, share, IMAGENET_MEAN, IMAGENET_STD)


def _names() -> str:
    return ", ".join(["digits", *_ARRAYS, *_TREES])


def _roots(root: str | Path | None) -> list[Path]:
    if root is not None:
        return [Path(root).expanduser()]
    given = os.environ.get("FASTANC_DATA")
    return [*([Path(given).expanduser()] if given else []), cache_dir() / "data"]


def _jpeg_set(
    name: str, index: Index, share: float, mean: tuple[float, ...], std: tuple[float, ...]
) -> JpegSet:
    from fastanc.pipelines.jpeg.jpeg_set import (
        JpegSet,  # DALI takes seconds to import, and array sets do without
    )

    if share < 1:
        index = index.subset(share_of(index.labels, len(index), share))
    return JpegSet(name, index, mean, std)


def _open_arrays(name: str, split: str, roots: list[Path], may_download: bool) -> ArraySet:
    known = _ARRAYS[name]
    if name == "fashion_mnist" and may_download:
        roots = [*roots, DEBIAN_FASHION]
    place = next((found for folder in roots if (found := known.find(folder))), None)
    if place is None and may_download:
        place = known.find(_download(name, known.download, roots))
    if place is None:
        raise _nowhere(name, known.holds, roots)
    images, labels, classes = known.read(place, split)
    return ArraySet(name, images, labels, classes, known.mean, known.std)


def _nowhere(name: str, holds: str, roots: list[Path], tried: str = "") -> FileNotFoundError:
    looked = ", ".join(map(str, roots))
    return FileNotFoundError(
        f"{name} was not found: looked for {holds} in {looked}{tried}; "
        "give its folder with --data.root or FASTANC_DATA"
    )


def _download(name: str, fetch: tuple[str, list[dict[str, str]]], roots: list[Path]) -> Path:
    """Let torchvision fetch a set into the cache folder, whole or not at all; return that folder."""
    folder = cache_dir() / "data"
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{name}.part"
    with locked(folder / f"{name}.lock"):
        try:
            part.mkdir(exist_ok=True)
            for arguments in fetch[1]:
                _torchvision_set(fetch[0], part, **arguments)
        except (OSError, RuntimeError) as error:
            holds = _ARRAYS[name].holds if name in _ARRAYS else "train/ and val/"
            raise _nowhere(name, holds, roots, f", and torchvision could not download it ({error})") from None
        for child in sorted(part.iterdir()):
            if not (folder / child.name).exists():
                os.replace(child, folder / child.name)
        shutil.rmtree(part)
    return folder


# ---- trees and tars of JPEGs


def _split_source(folder: Path, split: str) -> Path | None:
    """Return a split's folder or tar inside `folder`."""
    names = ["train"] if split == "train" else ["val", "valid", "validation"]
    names += [f"{name}.tar" for name in names] + [f"ILSVRC2012_img_{split}.tar"]
    return next((folder / name for name in names if (folder / name).exists()), None)


def _find_tree(name: str, split: str, roots: list[Path], may_download: bool) -> Path:
    folders = _TREES[name][1]

    def find(places: list[Path]) -> Path | None:
        choices = (root / folder for root in places for folder in folders)
        return next((choice for choice in choices if _split_source(choice, split)), None)

    found = find(roots)
    if found is None and may_download and name == "imagenette":
        fetch = ("Imagenette", [{"split": "train", "size": "320px"}])
        found = find([_download(name, fetch, roots)])
    if found is None:
        raise _nowhere(name, f"{split}/, {split}.tar or ILSVRC2012_img_{split}.tar", roots)
    return found


def _open_split(folder: Path, split: str) -> Index:
    """Return the index of a split, built at first use, with the classes of its train split."""
    source = _split_source(folder, split) if folder.is_dir() else None
    if source is None:
        if split == "val" or (folder.is_dir() and _split_source(folder, "val")):
            raise FileNotFoundError(f"{folder} has no {split}/ or {split}.tar: put one there")
        source = folder  # a bare folder or tar of images is its own train split
    labels = _val_labels(folder, source) if split == "val" else None
    index = open_index(
        source, labels=labels, synsets=folder / _SYNSETS if (folder / _SYNSETS).exists() else None
    )
    if split == "val":
        _check_against_train(source, index, _split_source(folder, "train"))
    return index


def _check_against_train(source: Path, index: Index, train: Path | None) -> None:
    """Raise ValueError where a val split has other classes than its train split, if that is indexed."""
    if train is None or not index_path(train).exists():
        return
    classes = Index.load(index_path(train)).classes
    if classes and index.labels is None:
        raise ValueError(
            f"{source} has no labels but {train} has: put one of {', '.join(_VAL_LABELS)} beside it "
            f"and remove {index_path(source)}"
        )
    if classes != index.classes:
        odd = sorted(set(classes) ^ set(index.classes))
        raise ValueError(
            f"{source} has {len(index.classes)} classes but {train} has {len(classes)} (difference: "
            f"{odd[0] if odd else 'the order'}): give both the same class folders"
        )


def _val_labels(folder: Path, source: Path) -> Path | None:
    """Return the label file of a val set without class folders, if there is one."""
    if source.is_dir():
        flat = not any(entry.is_dir() for entry in os.scandir(source))
    else:
        flat = source.name == "ILSVRC2012_img_val.tar"
    return next((folder / name for name in _VAL_LABELS if (folder / name).exists()), None) if flat else None
