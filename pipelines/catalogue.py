"""Names of data sets, where each is looked for, and how it is obtained."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fastanc.pipelines import digits, small_sets
from fastanc.pipelines.arrays import ArraySet
from fastanc.pipelines.dataset import DataSet
from fastanc.pipelines.fetch import Calls, download, nowhere, roots_of
from fastanc.pipelines.index.build import Index, open_index
from fastanc.pipelines.names import KNOWN, check_local, is_path, missing, unknown
from fastanc.pipelines.order import share_of
from fastanc.pipelines.own_sets import IMAGENET_MEAN, IMAGENET_STD, KINDS, as_dataset, is_own
from fastanc.pipelines.source_options import PLAIN, SourceOptions
from fastanc.pipelines.source_path import is_there
from fastanc.pipelines.splits import (
    SPLITS,
    chosen_of,
    open_split,
    part_of,
    source_of,
    split_source,
    unwrapped,
)
from fastanc.registry import is_same, remember

DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")


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
    download: Calls


def _having(marker: str) -> Callable[[Path], Path | None]:
    return lambda root: root if (root / marker).exists() else None


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
_IMAGENET = tuple(
    os.path.join(name, inside)
    for name in ("imagenet", "ILSVRC2012", "imagenet-1k", "")
    for inside in ("", "ILSVRC/Data/CLS-LOC")  # as Kaggle hands it out
)
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


_REGISTERED: dict[str, Callable[[str, Path], Any]] = {}
Maker = TypeVar("Maker", bound=Callable[[str, Path], Any])


def register_dataset(name: str) -> Callable[[Maker], Maker]:
    """Return a decorator that makes a user's function a data set, which `--data.name NAME` finds.

    The function takes the split, "train" or "val", and the folder to look in (data.root, else FASTANC_DATA, else
    fastanc's cache folder). It returns a DataSet, a torch data set, uint8 images or a pair (images, labels)
    (`own_sets.as_dataset`), or a path; for "val" it may return None: a share of "train" is held out then. In a file
    that `run.plugin` names::

        @register_dataset("flowers")
        def flowers(split, root):
            return torchvision.datasets.Flowers102(root, split)

    Raises ValueError for a name that is taken.
    """
    if not isinstance(name, str):
        raise TypeError('a data set is registered under a name: write @register_dataset("NAME")')

    def register(make: Maker) -> Maker:
        other = _REGISTERED.get(name)
        again = other is not None and is_same(other, make)
        if not again and name in _known():
            raise ValueError(f"the data set name {name!r} is taken: register yours under another")
        _REGISTERED[name] = make
        remember(make)
        return make

    return register


def _known() -> list[str]:
    return [*KNOWN, *_REGISTERED]


def describe_names() -> str:
    """Return one line for every name that `open_dataset` knows."""
    lines = {"digits": _DIGITS.partition(": ")[2]}
    lines |= {name: known.about for name, known in _ARRAYS.items()}
    lines |= {name: about for name, (about, _) in _TREES.items()}
    for name, make in _REGISTERED.items():
        lines[name] = (make.__doc__ or f"registered by {make.__module__}").strip().splitlines()[0]
    lines["PATH"] = (
        "a folder with train/ and val/ (or .tar, .zip, train-*.parquet ...), or one folder or file of images"
    )
    return "\n".join(f"{name:14}{about}" for name, about in lines.items())


def open_dataset(
    name: Any,
    split: str,
    root: str | Path | None = None,
    share: float = 1.0,
    val_share: float = 0.05,
    options: SourceOptions = PLAIN,
) -> DataSet:
    """Return a split of a data set, bound to the CPU.

    A given `root` is the only place looked in; without it FASTANC_DATA, the cache folder, what the system's
    packages installed, and at last torchvision's download. Raises ValueError for an unknown name or split,
    FileNotFoundError where the set is nowhere.

    Args:
        name: a name (`describe_names`), a path, or a user's own object that holds both splits (`as_dataset`).
        split: "train" or "val".
        root: folder to look in.
        share: part of the split's images to take, as many of every class.
        val_share: part of the images that is held out for "val" where a set that is no known one has no such split.
        options: how a path is read.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown: use train or val")
    data, both = _open(name, split, root, options)
    return _share_of(part_of(data, split, val_share) if both else data, share)


def open_splits(
    name: Any,
    root: str | Path | None = None,
    share: float = 1.0,
    val_share: float = 0.05,
    options: SourceOptions = PLAIN,
    val_name: str | Path | None = None,
) -> tuple[DataSet, DataSet]:
    """Return train and val as `open_dataset` does; a set that holds both is opened, listed and read once.

    `val_name` is another set to validate on: its val split, or all of it where it has none. Nothing is held out then.
    """
    if val_name is not None:
        train, val = open_whole(name, "train", root, options), open_whole(val_name, "val", root, options)
        return _share_of(train, share), val
    train, both = _open(name, "train", root, options)
    val = part_of(train, "val", val_share) if both else _open(name, "val", root, options)[0]
    return _share_of(part_of(train, "train", val_share) if both else train, share), val


def open_whole(
    name: Any, split: str, root: str | Path | None = None, options: SourceOptions = PLAIN
) -> DataSet:
    """Return a split of a set, or all of it where it has no splits, as the other one lies elsewhere."""
    return _open(name, split, root, options, alone=True)[0]


def _share_of(data: DataSet, share: float) -> DataSet:
    return data if share == 1 else data.subset(share_of(data.labels, data.num_images, share))


def _open(
    name: Any, split: str, root: str | Path | None, options: SourceOptions = PLAIN, alone: bool = False
) -> tuple[DataSet, bool]:
    """A split, or a set that holds both, and whether it does; `alone` says that nothing is to be held out of it."""
    is_no_path = not isinstance(name, (str, Path)) or (name in _known() and name not in _TREES)
    if is_no_path and (idle := options.said(split)):
        raise ValueError(f"data.{idle[0]} does nothing with {name}, which is no path: leave it out")
    if not isinstance(name, (str, Path)):
        return as_dataset(name), True
    if name in _REGISTERED:
        return _open_registered(str(name), split, roots_of(root)[0])
    if name in _ARRAYS:
        return _open_arrays(str(name), split, roots_of(root), may_download=root is None), False
    if name == "digits":
        index = open_index(digits.digits_tar(split), renew=True)
        return _jpeg_set("digits", index, digits.MEAN, digits.STD), False
    if name in _TREES:
        folder, source = _find_tree(str(name), split, roots_of(root), may_download=root is None)
        return _jpeg_set(str(name), open_split(folder, source, split, (), options)), False
    check_local(name)
    folder = Path(name).expanduser()
    if is_path(str(name)):
        name = Path(os.path.abspath(folder)).name
        return _open_path(name, folder, split, alone, options)
    raise unknown(str(name), list(_REGISTERED))


def _open_registered(name: str, split: str, root: Path) -> tuple[DataSet, bool]:
    """A split of a user's function; of a path it may hold both splits or only one."""
    make = _REGISTERED[name]
    val = make("val", root)
    wants_train = split == "train" or val is None or isinstance(val, (str, Path))
    train = make("train", root) if wants_train else None
    value = train if split == "train" or val is None else val
    if isinstance(value, (str, Path)):
        alone = val is not None and str(val) != str(train)
        check_local(value)
        return _open_path(name, Path(value).expanduser(), split, alone)
    if not is_own(value):
        kind, asked = type(value).__name__, "train" if val is None else split
        raise ValueError(
            f"data set {name!r}: its function gave a {kind} for {asked}: return {KINDS}, or a path"
        )
    return as_dataset(value, name), val is None


def _open_path(
    name: str, folder: Path, split: str, alone: bool = False, options: SourceOptions = PLAIN
) -> tuple[DataSet, bool]:
    """A folder or file; `alone` says that nothing is to be held out of it, the other split lies elsewhere."""
    if not is_there(folder):
        raise missing(folder, list(_REGISTERED))
    inner = unwrapped(folder)
    source, both = source_of(inner, split)
    said = chosen_of(folder, inner, source, both and not alone)
    index = open_split(inner, source, "train" if both and not alone else split, said, options)
    return _jpeg_set(name, index), both and not alone


def _jpeg_set(
    name: str,
    index: Index,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> DataSet:
    from fastanc.pipelines.jpeg.jpeg_set import JpegSet  # which imports torchvision; array sets do without
    from fastanc.pipelines.jpeg.plan import plan_path

    return JpegSet(name, index, mean, std, checked=True, memory=plan_path(index.source))


def _open_arrays(name: str, split: str, roots: list[Path], may_download: bool) -> ArraySet:
    known = _ARRAYS[name]
    if name == "fashion_mnist" and may_download:
        roots = [*roots, DEBIAN_FASHION]
    place = next((found for folder in roots if (found := known.find(folder))), None)
    if place is None and may_download:
        place = known.find(download(name, known.download, known.holds, roots))
    if place is None:
        raise nowhere(name, known.holds, roots)
    images, labels, classes = known.read(place, split)
    return ArraySet(name, images, labels, classes, known.mean, known.std)


def _find_tree(name: str, split: str, roots: list[Path], may_download: bool) -> tuple[Path, Path]:
    """The folder of a known tree, and what holds the split inside it."""

    def find(places: list[Path]) -> tuple[Path, Path] | None:
        choices = (root / folder for root in places for folder in _TREES[name][1])
        return next(((choice, found) for choice in choices if (found := split_source(choice, split))), None)

    found = find(roots)
    if found is None and may_download and name == "imagenette":
        calls = ("Imagenette", [{"split": "train", "size": "320px"}])
        found = find([download(name, calls, "train/ and val/", roots)])
    if found is None:
        raise nowhere(name, f"{split}/, {split}.tar or ILSVRC2012_img_{split}.tar", roots)
    return found
