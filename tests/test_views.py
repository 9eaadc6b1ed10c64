from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as tv

from fastanc.pipelines import draws, views

SHAPES = [(500, 375), (600, 64), (50, 50)]


def boxes_of(rule: views.ViewRule, size: tuple[int, int], n: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    return rule.boxes(np.arange(n), np.zeros(n, np.int64), np.full((n, 2), size))


def farthest(a: np.ndarray, b: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance of two samples of one size, over its 0.1 % critical value."""
    grid = np.sort(np.concatenate([a, b]))
    shares = [np.searchsorted(np.sort(s), grid, side="right") / len(s) for s in (a, b)]
    return float(np.abs(shares[0] - shares[1]).max() / (1.95 * np.sqrt(2 / len(a))))


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0A4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_words(counter: tuple, key: int, words: tuple) -> None:
    # Random123's kat_vectors file, philox4x32 with 10 rounds
    found = draws.philox(np.array(counter, np.uint64)[:, None], key)
    assert tuple(found[:, 0].tolist()) == words


@pytest.mark.parametrize("size", SHAPES)
def test_random_resized_crop_draws_as_torchvision_does(size: tuple[int, int]) -> None:
    ours, _ = boxes_of(views.RandomResizedCrop(224, seed=3), size)
    blank = torch.empty(3, size[1], size[0])
    theirs = np.array(
        [RandomResizedCrop.get_params(blank, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(len(ours))]
    )[:, [1, 0, 3, 2]]
    for column in range(4):
        assert farthest(ours[:, column], theirs[:, column]) < 1
    assert farthest(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]) < 1
    other, _ = boxes_of(views.RandomResizedCrop(224, seed=3, scale=(0.02, 1.0)), (500, 375))
    plain, _ = boxes_of(views.RandomResizedCrop(224, seed=3), (500, 375))
    assert farthest(other[:, 2] * other[:, 3], plain[:, 2] * plain[:, 3]) > 1  # the measure can tell


def test_boxes_lie_in_images_of_any_shape() -> None:
    sizes = np.array([(1, 1), (1, 1000), (20000, 10), (7, 3), (224, 224)] * 200)
    index = np.arange(len(sizes))
    for rule in (views.RandomResizedCrop(224, seed=0), views.CentreCrop(224, 256)):
        boxes, flips = rule.boxes(index, index % 7, sizes)
        assert boxes.dtype == np.int32
        assert flips.dtype == np.uint8
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] >= 1).all()
        assert (boxes[:, :2] + boxes[:, 2:] <= sizes).all()


@pytest.mark.parametrize("rule", [views.RandomResizedCrop(224, seed=9), views.PadCrop(32, seed=9)])
def test_a_view_does_not_depend_on_its_neighbours(rule: views.ViewRule) -> None:
    rng = np.random.default_rng(0)
    index, view = rng.integers(0, 2**40, 300), rng.integers(0, 90, 300)
    sizes = rng.integers(20, 700, (300, 2))
    boxes, flips = rule.boxes(index, view, sizes)
    for rows in (rng.permutation(300), [17], np.arange(0, 300, 7)):
        some, some_flips = rule.boxes(index[rows], view[rows], sizes[rows])
        assert (some == boxes[rows]).all()
        assert (some_flips == flips[rows]).all()
    again, _ = rule.boxes(index, view + 1, sizes)
    assert (again != boxes).any(1).mean() > 0.9


def test_boxes_are_the_same_bits_for_ever() -> None:
    sizes = np.stack([np.arange(5000) % 613 + 20, np.arange(5000) % 389 + 20], 1)
    assert views.boxes_crc(views.RandomResizedCrop(224, seed=42), sizes, view=7) == 1800249554
    wide = views.RandomResizedCrop(224, seed=42, ratio=(0.3, 2.9))
    assert views.boxes_crc(wide, sizes, view=7) == 927224753
    assert views.boxes_crc(views.PadCrop(32, seed=42), sizes, view=7) == 2774670265


def test_boxes_crc_tells_seed_view_and_flip_apart() -> None:
    sizes = np.full((100, 2), 300)
    rules = [views.RandomResizedCrop(224, seed=1), views.RandomResizedCrop(224, seed=2)]
    rules.append(views.RandomResizedCrop(224, seed=1, flip=False))
    crcs = {views.boxes_crc(rule, sizes, view) for rule in rules for view in (0, 1)}
    assert len(crcs) == 6


def test_flips_are_even_and_can_be_switched_off() -> None:
    for kind in (views.RandomResizedCrop, views.PadCrop):
        boxes, flips = boxes_of(kind(32, seed=0), (32, 32))
        assert 0.46 < flips.mean() < 0.54
        unflipped, none = boxes_of(kind(32, seed=0, flip=False), (32, 32))
        assert not none.any()
        assert (unflipped == boxes).all()
    assert not boxes_of(views.CentreCrop(32, 32), (32, 32))[1].any()


def test_pad_crop_covers_every_window_evenly() -> None:
    boxes, _ = boxes_of(views.PadCrop(32, seed=5, pad=4), (32, 32), n=81 * 100)
    cells = np.bincount(boxes[:, 0] * 9 + boxes[:, 1], minlength=81)
    assert len(cells) == 81
    assert ((cells - 100) ** 2 / 100).sum() < 125  # chi-squared of 80 degrees at 0.1 %
    assert (boxes[:, 2:] == 32).all()


@pytest.mark.parametrize("size", [(500, 375), (333, 500), (256, 256), (300, 301), (1024, 200), (225, 224)])
def test_centre_crop_sees_what_torchvision_sees(size: tuple[int, int]) -> None:
    # the images' values are their own coordinates, so a difference is a shift in stored pixels
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    image = torch.from_numpy(np.stack([x, y])).double()
    theirs = tv.center_crop(tv.resize(image, [256], InterpolationMode.BILINEAR, antialias=True), [224])
    (box,), _ = boxes_of(views.CentreCrop(224, 256), size, n=1)
    left, top, w, h = box.tolist()
    ours = tv.resize(image[:, top : top + h, left : left + w], [224, 224], antialias=True)
    assert (ours - theirs).abs().max() <= 1.0
    assert (ours - theirs).abs().mean() <= 0.5


def test_centre_crop_in_two_moves_and_strips_in_one() -> None:
    rule = views.CentreCrop(224, 256)
    taken, kept = rule.exactly(np.array([(500, 375), (300, 301), (100, 800), (100, 801)]))
    assert taken[:3].tolist() == [[0, 0, 500, 375], [0, 0, 300, 301], [0, 0, 100, 800]]
    # torchvision resizes 500 x 375 to 341 x 256 and crops from round(58.5), round(16.0)
    assert kept.tolist() == [[58, 16, 341, 256], [16, 16, 256, 256], [16, 912, 256, 2048], [0, 0, 224, 224]]
    assert taken[3].tolist() == boxes_of(rule, (100, 801), n=1)[0][0].tolist()


def test_rules_describe_every_knob_and_refuse_wrong_ones() -> None:
    rule = views.RandomResizedCrop(160, seed=4, scale=(0.25, 1.0))
    assert rule.describe() == {
        "rule": "RandomResizedCrop",
        "out_px": 160,
        "seed": 4,
        "scale": [0.25, 1.0],
        "ratio": [3 / 4, 4 / 3],
        "flip": True,
    }
    assert views.PadCrop(28, seed=3, pad=2, flip=False).describe() == {
        "rule": "PadCrop",
        "out_px": 28,
        "seed": 3,
        "pad": 2,
        "flip": False,
        "fill": "zeros",  # no longer a knob, but part of what older caches are named by
    }
    assert views.CentreCrop(224, 256).describe() == {"rule": "CentreCrop", "out_px": 224, "resize_px": 256}
    for wrong in (
        lambda: views.RandomResizedCrop(224, seed=0, scale=(0.0, 1.0)),
        lambda: views.RandomResizedCrop(224, seed=0, ratio=(2.0, 1.0)),
        lambda: views.CentreCrop(224, 200),
    ):
        with pytest.raises(ValueError, match="must be"):
            wrong()
