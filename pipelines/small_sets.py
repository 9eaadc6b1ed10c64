"""Reading the small sets' own files: CIFAR's checked pickles, SVHN's .mat, Fashion-MNIST's idx."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
FASHION_FOLDERS = ("FashionMNIST/raw", "fashion-mnist", "fashion_mnist", "")


class Arrays(NamedTuple):
    """A small set in memory."""

    images: np.ndarray
    """[N, H, W, C] uint8."""
    labels: np.ndarray
    """[N] int64."""
    classes: list[str]


def _checked(load: Callable[[], object], name: str, root: Path) -> object:
    """Return what torchvision loads after it has compared the md5 of every file."""
    try:
        return load()
    except RuntimeError:
        raise ValueError(
            f"the files of {name} in {root} are incomplete or damaged (wrong md5): remove and get them again"
        ) from None


def read_cifar(root: Path, split: str, hundred: bool) -> Arrays:
    """Read CIFAR-10 or -100 (python version) in `root`; md5s are checked before unpickling."""
    import torchvision

    kind = torchvision.datasets.CIFAR100 if hundred else torchvision.datasets.CIFAR10
    name = "cifar100" if hundred else "cifar10"
    data = _checked(lambda: kind(root, train=split == "train", download=False), name, root)
    return Arrays(data.data, np.array(data.targets, np.int64), list(data.classes))  # type: ignore[attr-defined]


def read_svhn(root: Path, split: str) -> Arrays:
    """Read SVHN's cropped digits (train_32x32.mat or test_32x32.mat), with the class of digit 0 as 0."""
    import torchvision

    try:
        import scipy.io  # noqa: F401
    except ModuleNotFoundError:
        raise ModuleNotFoundError("svhn's .mat files need scipy: pip install scipy") from None
    part = "train" if split == "train" else "test"
    data = _checked(lambda: torchvision.datasets.SVHN(root, split=part, download=False), "svhn", root)
    images = np.ascontiguousarray(data.data.transpose(0, 2, 3, 1))  # type: ignore[attr-defined]
    return Arrays(images, data.labels.astype(np.int64), [str(k) for k in range(10)])  # type: ignore[attr-defined]


def fashion_folder(root: Path) -> Path | None:
    """Return the folder inside `root` that holds Fashion-MNIST's idx files, plain or .gz; None without."""
    for folder in FASHION_FOLDERS:
        if _idx_path(root / folder, "train-images-idx3-ubyte"):
            return root / folder
    return None


def read_fashion(folder: Path, split: str) -> Arrays:
    """Read Fashion-MNIST from its idx files, plain or .gz."""
    part = "train" if split == "train" else "t10k"
    images, labels = (_read_idx(folder, f"{part}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
    if len(images) != len(labels):
        raise ValueError(
            f"{folder}: {len(images)} images but {len(labels)} labels in {part}, get the files again"
        )
    return Arrays(images[..., None], labels.astype(np.int64), list(FASHION_CLASSES))


def _idx_path(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _read_idx(folder: Path, name: str) -> np.ndarray:
    """Return an idx file's uint8 array: magic 00 00 08 RANK, RANK big-endian sizes, data."""
    path = _idx_path(folder, name)
    if path is None:
        raise FileNotFoundError(f"{folder} has no {name} or {name}.gz: Fashion-MNIST needs all four files")
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        rank = struct.unpack(">HBB", data[:4])[2]
        shape = struct.unpack(f">{rank}I", data[4 : 4 + 4 * rank])
        if data[:3] != b"\0\0\x08":
            raise ValueError
        # A copy: torch wants memory that could be written to.
        return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape).copy()
    except (ValueError, OverflowError, struct.error, zlib.error, EOFError, OSError):
        raise ValueError(f"{path} is not a whole idx file: get it again") from None
