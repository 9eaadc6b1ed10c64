"""Mixed pictures: weights and boxes as the papers draw them, pixels by a loop over images, labels by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastanc.pipelines.mixing import KINDS, Mixing, beta_table, mixed, soft_labels
from fastanc.pipelines.pairing import Pairing

PX = 32


def mixing(kind: str, n: int = 20_000, alpha: float = 1.0, share: float = 1.0, px: int = PX) -> Mixing:
    return Mixing(kind, Pairing(n, 3), alpha, share, out_px=px)


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.8, 1.0, 2.5, 16.0])
def test_weights_are_drawn_from_a_beta_distribution(alpha: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    edges = (np.arange(128) + 0.5) / 128
    # A table's entry is rounded to 2^-32.
    assert np.abs(beta_table(alpha) / 2.0**32 - stats.beta.cdf(edges, alpha, alpha)).max() < 2.0**-31


def test_a_uniform_weight_by_hand() -> None:
    assert beta_table(1.0).tolist() == [(2 * k + 1) << 24 for k in range(128)]


def test_the_share_the_kinds_and_the_weights_of_many_pairs() -> None:
    drawn = mixing("both", share=0.6).draw(np.arange(20_000), np.zeros(20_000, np.int64))
    blends, cuts = drawn.weight < 128, drawn.boxes[:, 2] > drawn.boxes[:, 0]
    assert not (blends & cuts).any()
    # 10,000 pairs; a weight rounds to 1 with chance 1/256, and a box around one pixel's corner is empty now and then.
    assert abs(blends.mean() - 0.3 * 255 / 256) < 5 * math.sqrt(0.3 * 0.7 / 10_000)
    assert abs(cuts.mean() - 0.3) < 0.01 + 5 * math.sqrt(0.3 * 0.7 / 10_000)
    assert abs(drawn.own[blends].mean() - 0.5) < 5 * math.sqrt(1 / 12 / 3000) + 1 / 256
    none = mixing("both", share=0.0).draw(np.arange(100), np.zeros(100, np.int64))
    assert (none.own == 1).all()
    assert (none.weight == 128).all()
    assert not none.boxes.any()


@pytest.mark.parametrize("kind", KINDS)
def test_both_of_a_pair_have_one_draw_and_every_view_another(kind: str) -> None:
    rule, index = mixing(kind, 1000), np.arange(1000)
    drawn = rule.draw(index, np.full(1000, 2))
    assert (drawn.weight == drawn.weight[drawn.partner]).all()
    assert (drawn.boxes == drawn.boxes[drawn.partner]).all()
    other = rule.draw(index, np.full(1000, 3))
    assert ((drawn.weight != other.weight) | (drawn.boxes != other.boxes).any(1)).mean() > 0.9
    some = index[::7]
    alone = rule.draw(some, np.full(len(some), 2))
    for part, whole in zip(alone, drawn):
        assert (part == whole[some]).all()


def test_a_box_has_the_area_of_the_weight_where_it_lies_inside() -> None:
    """CutMix eq. 2: sides sqrt(1 - w) of the picture's; the label's weight is 1 minus the area that is left."""
    drawn = mixing("cutmix", px=224).draw(np.arange(20_000), np.zeros(20_000, np.int64))
    left, top, right, bottom = drawn.boxes.T
    assert 0 <= drawn.boxes.min() <= drawn.boxes.max() <= 224
    assert np.allclose(drawn.own, 1 - (right - left) * (bottom - top) / 224**2, atol=1e-7)
    inside = (left > 0) & (top > 0) & (right < 224) & (bottom < 224)
    assert (right - left == bottom - top)[inside].all()
    assert (((right - left) % 2) == 0)[inside].all()
    # Of a box that lies inside, the side is 2 floor(112 sqrt(1 - w)): uniform w gives areas up to a uniform one.
    assert 0.5 < drawn.own.mean() < 0.72


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("px", "channels"), [(32, 3), (9, 1)])
def test_pixels_are_those_of_a_loop(
    monkeypatch: pytest.MonkeyPatch, kind: str, px: int, channels: int, compiled: bool
) -> None:
    if not compiled:  # as where Numba is not installed
        monkeypatch.setattr("fastanc.pipelines.mixing.loops_for", lambda device: None)
    rule, n = mixing(kind, 131, 0.4, 0.9, px), 131
    images = np.random.default_rng(0).integers(0, 256, (n, px, px, channels), np.uint8)
    drawn = rule.draw(np.arange(n), np.full(n, 5))
    expected = images.copy()
    for i in range(n):
        j, w = int(drawn.partner[i]), int(drawn.weight[i])
        for place in np.ndindex(px, px, channels):
            expected[i][place] = math.floor(
                (w * int(images[i][place]) + (128 - w) * int(images[j][place])) / 128 + 0.5
            )
        left, top, right, bottom = drawn.boxes[i]
        expected[i, top:bottom, left:right] = images[j, top:bottom, left:right]
    partner = torch.from_numpy(drawn.partner)
    whole = torch.from_numpy(images)
    assert (mixed(whole, partner, drawn, slice(0, n)).numpy() == expected).all()
    parts = [mixed(whole, partner, drawn, slice(k, min(k + 100, n))) for k in range(0, n, 100)]
    assert (torch.cat(parts).numpy() == expected).all()
    assert (whole.numpy() == images).all()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_gives_the_same_bits(kind: str) -> None:
    rule, n = mixing(kind, 64, px=224), 64
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, 224, 224, 3), np.uint8))
    drawn = rule.draw(np.arange(n), np.zeros(n, np.int64))
    partner = torch.from_numpy(drawn.partner)
    on_gpu = mixed(images.cuda(), partner.cuda(), drawn, slice(0, n))
    assert torch.equal(on_gpu.cpu(), mixed(images, partner, drawn, slice(0, n)))


def test_labels_by_hand() -> None:
    labels, partner, own = torch.tensor([0, 2]), torch.tensor([1, 0]), torch.tensor([0.75, 1.0])
    assert soft_labels(labels, 3, partner, own).tolist() == [[0.75, 0, 0.25], [0, 0, 1]]
    smooth = soft_labels(labels, 4, partner, own, 0.2)
    assert torch.allclose(
        smooth, torch.tensor([[0.65, 0.05, 0.25, 0.05], [0.05, 0.05, 0.85, 0.05]]), atol=1e-7
    )
    assert torch.allclose(soft_labels(labels, 3, None, None, 0.3).sum(1), torch.ones(2))


def test_what_cannot_be_mixed_is_refused() -> None:
    with pytest.raises(ValueError, match="'blend' is not known: choose one of mixup"):
        mixing("blend")
    with pytest.raises(ValueError, match="alpha 0.0 of the mixing"):
        mixing("mixup", alpha=0.0)
