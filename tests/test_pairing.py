"""Who is mixed with whom: an involution, one and the same for any batch and any number of processes."""

from __future__ import annotations

import numpy as np
import pytest

from fastanc.pipelines.order import Order
from fastanc.pipelines.pairing import Pairing

SIZES = (2, 3, 4, 5, 10, 127, 128, 129, 50_000)


def all_of(n: int, view: int) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(n), np.full(n, view)


def assert_pairs(pairing: Pairing, view: int) -> None:
    index, views = all_of(pairing.n, view)
    partner = pairing.partners(index, views)
    assert (pairing.partners(partner, views) == index).all()
    assert (partner == index).sum() == pairing.n % 2
    places = pairing.places(index, views)
    assert (np.sort(places) == index).all()
    assert (pairing.images(places, views) == index).all()
    assert (places // 2 == pairing.places(partner, views) // 2).all()


@pytest.mark.parametrize("n", SIZES)
def test_partners_are_an_involution(n: int) -> None:
    for seed in (0, 7):
        for view in (0, 1, 29):
            assert_pairs(Pairing(n, seed), view)


@pytest.mark.slow
def test_partners_of_imagenet_are_an_involution() -> None:
    assert_pairs(Pairing(1_281_167, 0), 3)


def test_pairs_are_the_same_for_ever() -> None:
    for n, seed, view, views_per_image, places, images in (
        (10, 0, 0, 1, [3, 9, 7, 2], [7, 2, 3, 1]),
        (1000, 3, 5, 1, [217, 684, 679, 120], [13, 50, 495, 291]),
        (1_281_167, 7, 29, 2, [237096, 1239568, 872589, 780857], [385867, 121467, 41705, 1101765]),
        (
            *(2**32 - 5, 1, 2, 1, [1886120964, 1300907153, 2199988991, 4030410390]),
            [1601199472, 3091716622, 1762563107, 1264933193],
        ),
    ):
        pairing, some, views = Pairing(n, seed, views_per_image), np.array([0, 1, 5, 9]), np.full(4, view)
        assert pairing.places(some, views).tolist() == places
        assert pairing.images(some, views).tolist() == images


def test_pairs_are_drawn_anew_in_every_view_and_for_every_seed() -> None:
    n, (index, _) = 10_000, all_of(10_000, 0)
    drawn = [
        Pairing(n, seed).partners(index, np.full(n, view)) for seed, view in ((0, 0), (0, 1), (1, 0), (1, 1))
    ]
    for k, one in enumerate(drawn):
        for other in drawn[:k]:
            assert (one == other).sum() < 12  # Poisson of mean 1: more in one of 10^10 cases
        # The mean of |i - j| / n of uniform i, j is 1/3, its deviation sqrt(1/18 / 5000 pairs) = 0.0033.
        assert abs(np.abs(one - index).mean() / n - 1 / 3) < 5 * 0.0034
        halves = np.histogram2d(index, one, bins=4)[0]  # 625 expected in each of 16 cells
        assert np.abs(halves - 625).max() < 6 * 25 * np.sqrt(2)


def test_no_pair_depends_on_what_is_asked_for_with_it() -> None:
    pairing, (index, view) = Pairing(1001, 3), all_of(1001, 4)
    together = pairing.partners(index, view)
    for one in (0, 17, 1000):
        assert pairing.partners(np.array([one]), np.array([4]))[0] == together[one]
    mixed_views = np.arange(1001) % 3
    apart = pairing.partners(index, mixed_views)
    for number in range(3):
        mine = mixed_views == number
        assert (apart[mine] == pairing.partners(index, np.full(1001, number))[mine]).all()


def test_views_of_one_decode_have_one_partner() -> None:
    pairing, index = Pairing(100, 0, views_per_image=2), np.arange(100)
    partners = [pairing.partners(index, np.full(100, view)) for view in range(4)]
    assert (partners[0] == partners[1]).all()
    assert (partners[2] == partners[3]).all()
    assert (partners[0] != partners[2]).any()


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("views_per_image", [1, 2])
def test_an_order_of_pairs(world: int, views_per_image: int) -> None:
    n, batch = 151, 48
    pairing = Pairing(n, 5, views_per_image)
    orders = [Order(n, batch, rank, world, 1, 4, views_per_image, pairing) for rank in range(world)]
    steps = orders[0].steps_per_epoch
    assert steps == 75 // (batch // views_per_image // 2)
    for epoch in range(3):
        seen = []
        for step in range(epoch * steps, (epoch + 1) * steps):
            parts = [order(step) for order in orders]
            for picks in parts:
                partner = pairing.partners(picks.index, picks.view)
                own = set(zip(picks.index.tolist(), picks.view.tolist()))
                assert all(pair in own for pair in zip(partner.tolist(), picks.view.tolist()))
                assert (partner != picks.index).all()
            alone = Order(n, batch, 0, 1, 1, 4, views_per_image, pairing)(step)
            assert (np.concatenate([picks.index for picks in parts]) == alone.index).all()
            assert (np.concatenate([picks.view for picks in parts]) == alone.view).all()
            seen += alone.index[::views_per_image].tolist()
        assert len(set(seen)) == len(seen) == steps * batch // views_per_image


def test_every_image_but_the_lonely_one_is_in_an_epoch() -> None:
    pairing = Pairing(9, 0)
    order = Order(9, 2, pairing=pairing)
    for epoch in range(3):
        seen = [i for step in range(4) for i in order(4 * epoch + step).index.tolist()]
        lonely = [i for i in range(9) if pairing.partners(np.array([i]), np.array([epoch]))[0] == i]
        assert sorted(seen + lonely) == list(range(9))


def test_a_batch_that_would_part_a_pair_is_refused() -> None:
    with pytest.raises(ValueError, match="pairs of mixed images: use a multiple of 4"):
        Order(100, 18, 0, 2, pairing=Pairing(100, 0))
    with pytest.raises(ValueError, match="data.views 3 of mixed images must be a multiple"):
        Order(100, 8, views=3, views_per_image=2, pairing=Pairing(100, 0, 2))
