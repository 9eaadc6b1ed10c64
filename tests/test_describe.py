"""What every set and rule says of itself, word for word: caches are found by it, so it must never change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torchvision

from fastanc.pipelines.arrays import ArraySet
from fastanc.pipelines.dataset import DataSet
from fastanc.pipelines.index.table import Index, make_index
from fastanc.pipelines.jpeg import dali
from fastanc.pipelines.jpeg.jpeg_set import JpegSet
from fastanc.pipelines.jpeg.options import JpegOptions
from fastanc.pipelines.own_sets import as_dataset
from support.decoders import needs_dali

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
FINGERPRINT = "aae73a066f05e0bcde06f2ca9bb3aef8"
IMAGES = np.arange(5 * 4 * 4 * 3).astype(np.uint8).reshape(5, 4, 4, 3)


def jpegs() -> JpegSet:
    """A set of three images that are nowhere: to be described none is read."""
    index: Index = make_index(
        source=Path("set"),
        names=["a/0.jpg", "a/1.jpg", "b/0.jpg"],
        sizes=np.array([(40, 30), (30, 40), (9, 9)]),
        labels=np.array([0, 0, 1]),
        classes=["a", "b"],
        crc32=np.array([1, 2, 3]),
        lengths=np.array([10, 20, 30]),
        offsets=None,
        file_numbers=None,
        files=None,
        notes=["", "", ""],
    )
    return JpegSet("toy", index, MEAN, STD)


def arrays(labels: np.ndarray | None) -> ArraySet:
    return ArraySet("toy", IMAGES, labels, ["a", "b"] if labels is not None else [], MEAN, STD)


@needs_dali
@pytest.mark.parametrize(
    ("device", "decode", "facts"),
    [
        ("cpu", "auto", {"decoder": "cpu", "resize": "torch uint8 bilinear"}),
        ("cuda", "cpu", {"decoder": "cpu", "resize": "dali gpu triangular"}),
        ("cuda", "mixed", {"decoder": "mixed", "hw_decoder_load": 0.65, "resize": "dali gpu triangular"}),
        ("cuda:1", "mixed_roi", {"decoder": "mixed_roi", "hw_decoder_load": 0.65, "resize": "dali gpu triangular"}),
    ],
)  # fmt: skip
def test_a_jpeg_set_describes_itself_in_the_words_of_older_caches(
    device: str, decode: str, facts: dict[str, object]
) -> None:
    always = {"set": "toy", "fingerprint": FINGERPRINT, "antialias": True, "dali": dali.version()}
    data = jpegs().on(device, JpegOptions(decode=decode, threads=3, prefetch=5))
    assert data.describe() == always | facts
    part = data.subset(np.array([0, 2]))
    assert part.describe() == always | facts | {"fingerprint": "525204542a032a23872b141439010d7b"}
    assert (part.device, part.options) == (data.device, data.options)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_without_dali_a_jpeg_set_is_one_and_the_same_on_every_device(device: str) -> None:
    data = jpegs().on(device, JpegOptions(decode="torchvision", hw_decoder_load=0.0))
    assert data.describe() == {
        "set": "toy",
        "fingerprint": FINGERPRINT,
        "decoder": "torchvision",
        "resize": "torch uint8 bilinear",
        "antialias": True,
        "torchvision": torchvision.__version__.split("+")[0],
        "decoded": 2140127472,  # of libjpeg-turbo
    }
    assert data.subset(np.array([0, 2])).options == data.options


def test_an_array_set_describes_itself_in_the_words_of_older_caches() -> None:
    data = arrays(np.arange(5) % 2)
    fingerprints = {
        data: "73880c6cf427f33bccbe2aec2550f6336d991ff3981d0a74d489901488b3eaf2",
        data.on("cuda", JpegOptions()): "73880c6cf427f33bccbe2aec2550f6336d991ff3981d0a74d489901488b3eaf2",
        data.subset(np.array([0, 3])): "70181c8c39e37d90af9babe809fef9933e8da740e089603c1587884f8c339f0c",
        arrays(None): "690e55c3dfbcf2df1b930529af7dcb3fe1c6b8c6e174811b89f21b17dedc1f15",
    }
    for found, fingerprint in fingerprints.items():
        assert found.describe() == {
            "set": "toy",
            "fingerprint": fingerprint,
            "decoder": "none",
            "resize": "none",
        }


def items() -> list[tuple[np.ndarray, int]]:
    """Images of two sizes, so that they are not kept as arrays."""
    return [(image[: 4 - i % 2], i % 2) for i, image in enumerate(IMAGES)]


def test_a_users_own_set_describes_itself_so_that_its_cache_is_found() -> None:
    data = as_dataset(items(), "toy", progress=False)
    always = {"set": "toy", "decoder": "the user's", "resize": "torch uint8 bilinear", "antialias": True}
    assert data.on("cuda").describe() == data.describe()
    assert data.describe() == always | {"fingerprint": "46935f0cc74687835950799a7dc1c5bb"}
    assert data.subset(np.array([0, 3])).describe() == always | {
        "fingerprint": "0318b3ae9a4d936a7cc1b0bbd9addee0"
    }
    unlabelled = as_dataset([image for image, _ in items()], "toy", progress=False)
    assert unlabelled.describe() == always | {"fingerprint": "ca808bd32044250d55a74934406d7041"}


KINDS = [jpegs(), arrays(np.arange(5) % 2), arrays(None), as_dataset(items(), "toy", progress=False)]


@pytest.mark.parametrize("data", KINDS, ids=lambda data: type(data).__name__)
def test_every_kind_of_set_has_one_face(data: DataSet) -> None:
    assert isinstance(data, DataSet)
    assert isinstance(data.on("cpu"), DataSet)
    part = data.subset(np.array([2, 0]))
    assert isinstance(part, DataSet)
    assert part.num_images == 2
    assert (part.sizes(np.arange(2)) == data.sizes(np.array([2, 0]))).all()
    if data.labels is not None and part.labels is not None:
        assert (part.labels == data.labels[[2, 0]]).all()
    assert (part.labels is None) == (data.labels is None)
    assert (part.classes, part.channels, part.mean, part.std) == (data.classes, 3, data.mean, data.std)
