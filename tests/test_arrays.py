from __future__ import annotations

import numpy as np
import pytest
import torch

from fastanc.pipelines.arrays import ArraySet
from fastanc.pipelines.order import Order, evaluation_picks
from fastanc.pipelines.views import CentreCrop, PadCrop, RandomResizedCrop


def make(channels: int, side: int = 12, n: int = 20, nchw: bool = True) -> tuple[ArraySet, np.ndarray]:
    images = np.random.default_rng(channels).integers(0, 256, (n, side, side, channels), np.uint8)
    given = images.transpose(0, 3, 1, 2) if nchw else images
    labels = np.arange(n) % 3
    mean, std = (0.5,) * channels, (0.25,) * channels
    return ArraySet("toy", given, labels, ["a", "b", "c"], mean, std), images


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("nchw", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_pad_crop_is_what_a_plain_loop_cuts(channels: int, nchw: bool, device: str) -> None:
    data, images = make(channels, nchw=nchw)
    rule = PadCrop(12, seed=1, pad=3)
    order = Order(20, 7, seed=2)
    for batch in data.on(device).batches(order, rule, start=3, stop=9):
        boxes, flips = rule.boxes(batch.index, batch.view, data.sizes(batch.index))
        for k, i in enumerate(batch.index):
            padded = np.pad(images[i], ((3, 3), (3, 3), (0, 0)))
            x, y, w, h = boxes[k]
            expected = padded[y : y + h, x : x + w]
            expected = expected[:, ::-1] if flips[k] else expected
            assert (batch.images[k].permute(1, 2, 0).cpu().numpy() == expected).all()
        assert batch.images.dtype == torch.uint8
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert (batch.index == order(batch.step).index).all()
        assert (batch.labels.cpu().numpy() == batch.index % 3).all()
    assert batch.step == 8


def test_evaluation_gives_the_images_themselves() -> None:
    data, images = make(3)
    seen = 0
    for batch in data.batches(evaluation_picks(20, 8), CentreCrop(12, 12)):
        assert (batch.images.permute(0, 2, 3, 1).numpy() == images[batch.index]).all()
        seen += len(batch.index)
    assert seen == 20
    small = next(data.batches(evaluation_picks(20, 8), CentreCrop(8, 12)))
    assert (small.images.permute(0, 2, 3, 1).numpy() == images[:8, 2:10, 2:10]).all()


def test_a_subset_is_those_images_renumbered() -> None:
    data, images = make(3)
    numbers = np.array([1, 5, 19])
    part = data.subset(numbers)
    (batch,) = part.batches(evaluation_picks(3, 8), CentreCrop(12, 12))
    assert (batch.images.permute(0, 2, 3, 1).numpy() == images[numbers]).all()
    assert batch.labels.tolist() == (numbers % 3).tolist()
    assert (part.num_images, part.num_classes) == (3, data.num_classes)
    assert part.fingerprint != data.fingerprint


def test_a_set_without_labels_has_batches_without_labels() -> None:
    _, images = make(1)
    data = ArraySet("toy", images, None, [], (0.5,), (0.5,))
    assert data.num_classes == 0
    assert next(data.batches(Order(20, 4), PadCrop(12, seed=0))).labels is None


def test_the_fingerprint_sees_pixels_and_labels() -> None:
    data, images = make(3)
    changed = images.copy()
    changed[19, 11, 11, 2] ^= 1
    others = [
        ArraySet("toy", changed, data.labels, data.classes, data.mean, data.std),
        ArraySet("toy", images, data.labels[::-1], data.classes, data.mean, data.std),
    ]
    same = ArraySet("toy", images, data.labels, data.classes, data.mean, data.std)
    assert same.describe() == data.describe()
    assert len({data.fingerprint, *(other.fingerprint for other in others)}) == 3


def test_wrong_layouts_and_rules_are_refused_in_words() -> None:
    data, images = make(3)
    for wrong in (images.astype(np.float32), images[:, :, :8], images[..., :2]):
        with pytest.raises(ValueError, match="toy: images must be"):
            ArraySet("toy", wrong, None, [], (), ())
    for rule in (RandomResizedCrop(12, seed=0), PadCrop(16, seed=0), CentreCrop(12, 16)):
        with pytest.raises(ValueError, match="toy is kept as 12 px arrays"):
            data.batches(Order(20, 4), rule)
