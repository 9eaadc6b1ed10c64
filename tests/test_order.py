from __future__ import annotations

import numpy as np
import pytest

from fastanc.pipelines.order import Order, evaluation_picks, held_out, share_of


@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_image_is_seen_once_an_epoch(world: int) -> None:
    orders = [Order(103, 12, rank, world, seed=5) for rank in range(world)]
    assert orders[0].steps_per_epoch == 8
    for epoch in range(3):
        steps = range(8 * epoch, 8 * epoch + 8)
        seen = np.concatenate([order(step).index for step in steps for order in orders])
        assert len(np.unique(seen)) == len(seen) == 96  # the remainder, 7 images, is dropped
        assert seen.min() >= 0
        assert seen.max() < 103
        assert all((order(step).view == epoch).all() for step in steps for order in orders)
        assert {order.epoch(step) for step in steps for order in orders} == {epoch}


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_the_batch_of_one(world: int) -> None:
    one = Order(1000, 64, seed=1)
    for step in (0, 14, 15, 4000):
        shares = [Order(1000, 64, rank, world, seed=1)(step) for rank in range(world)]
        assert (np.concatenate([share.index for share in shares]) == one(step).index).all()
        assert all(share.index.dtype == share.view.dtype == np.int64 for share in shares)


def test_a_step_is_a_function_of_its_number_alone() -> None:
    order = Order(500, 32, seed=3)
    forward = [order(step).index.copy() for step in range(60)]
    for step in (59, 3, 17, 44, 0):
        assert (Order(500, 32, seed=3)(step).index == forward[step]).all()
    assert (forward[0] != forward[15]).any()  # another epoch, another order
    assert (forward[0] != Order(500, 32, seed=4)(0).index).any()


def test_orders_are_the_same_for_ever() -> None:
    assert Order(1000, 8, seed=0)(0).index.tolist() == [998, 162, 670, 664, 185, 322, 431, 318]
    assert Order(1000, 8, seed=0)(10**6).index.tolist() == [10, 270, 639, 705, 762, 807, 146, 339]


def test_permutations_are_even() -> None:
    # the place of image 0, of 10 images, over 4000 epochs: chi-squared of 9 degrees at 0.1 %
    order = Order(10, 10, seed=0)
    places = [int(np.flatnonzero(order(epoch).index == 0)[0]) for epoch in range(4000)]
    counts = np.bincount(places, minlength=10)
    assert ((counts - 400) ** 2 / 400).sum() < 28


def test_views_repeat_after_so_many_epochs() -> None:
    order = Order(100, 50, views=3)
    assert [int(order(step).view[0]) for step in range(0, 14, 2)] == [0, 1, 2, 0, 1, 2, 0]


def test_views_of_an_image_are_neighbours() -> None:
    orders = [Order(40, 24, rank, 2, views_per_image=3, views=4) for rank in range(2)]
    assert orders[0].steps_per_epoch == 5
    seen = set()
    for step in range(5, 10):
        for order in orders:
            picks = order(step)
            assert len(picks.index) == 12
            assert (picks.index.reshape(4, 3) == picks.index[::3, None]).all()
            assert (picks.view.reshape(4, 3) == [3, 0, 1]).all()  # epoch 1 continues with view 3 of 4
            seen |= set(picks.index.tolist())
    assert seen == set(range(40))


def test_a_share_has_as_many_of_every_class_and_grows() -> None:
    labels = np.repeat([2, 0, 1], [10, 20, 30])
    np.random.default_rng(0).shuffle(labels)
    small, large = share_of(labels, 60, 0.25), share_of(labels, 60, 0.5)
    assert np.bincount(labels[small]).tolist() == [5, 8, 3]  # rounded up
    assert np.bincount(labels[large]).tolist() == [10, 15, 5]
    assert set(small) < set(large)
    assert (np.diff(small) > 0).all()
    assert len(share_of(None, 60, 0.1)) == 6
    assert share_of(labels, 60, 1.0).tolist() == list(range(60))


def test_what_is_held_out_is_of_every_class_and_leaves_one_of_each() -> None:
    labels = np.repeat([2, 0, 1, 4], [10, 20, 1, 2])  # class 3 has no image
    np.random.default_rng(0).shuffle(labels)
    small, large = held_out(labels, 33, 0.05), held_out(labels, 33, 0.5)
    assert np.bincount(labels[small], minlength=5).tolist() == [1, 0, 1, 0, 1]
    assert np.bincount(labels[large], minlength=5).tolist() == [10, 0, 5, 0, 1]
    assert np.bincount(labels[held_out(labels, 33, 0.999)], minlength=5).tolist() == [19, 0, 9, 0, 1]
    assert set(small) < set(large)
    assert (np.diff(large) > 0).all()
    assert len(held_out(None, 60, 0.1)) == 6
    assert len(held_out(np.arange(9), 9, 0.1)) == 1  # one image a class: one of all
    assert len(held_out(None, 2, 0.01)) == len(held_out(None, 2, 0.99)) == 1
    for n in (0, 1):
        with pytest.raises(ValueError, match="a single image cannot be parted"):
            held_out(None, n, 0.5)


def test_draws_of_shares_are_the_same_for_ever_and_independent() -> None:
    assert share_of(np.arange(60) % 3, 60, 0.1).tolist() == [7, 11, 15, 18, 53, 55]
    assert held_out(np.arange(60) % 3, 60, 0.1).tolist() == [23, 40, 45, 47, 49, 57]
    both = np.intersect1d(share_of(None, 100_000, 0.1), held_out(None, 100_000, 0.1))
    assert abs(len(both) - 1000) < 5 * 30  # a tenth of a tenth


def test_wrong_batches_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match="batch 10 cannot be divided among 4 processes .* multiple of 4"):
        Order(100, 10, world=4)
    with pytest.raises(ValueError, match="batch 128 needs 128 images but the set has 100"):
        Order(100, 128)
    with pytest.raises(ValueError, match="views 2 must be at least views_per_image 3"):
        Order(100, 12, views=2, views_per_image=3)


def test_evaluation_sees_every_image_exactly_once() -> None:
    for n in (0, 1, 3, 16, 37):
        for batch in (1, 5, 16, 64):
            for world in (1, 2, 3, 7):
                parts = [evaluation_picks(n, batch, rank, world) for rank in range(world)]
                seen = [i for part in parts for picks in part for i in picks.index.tolist()]
                assert sorted(seen) == list(range(n))
                assert all(0 < len(p.index) <= max(1, batch // world) for part in parts for p in part)
                assert not any(picks.view.any() for part in parts for picks in part)
    assert [len(evaluation_picks(1, 8, rank, 2)) for rank in range(2)] == [0, 1]
