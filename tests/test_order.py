from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from fastanc.pipelines.draws import ORDER
from fastanc.pipelines.order import KEYED, TABLE, Order, evaluation_picks, held_out, share_of
from fastanc.pipelines.permutation import ROUNDS, keys, permuted


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
    old, new = Order(1000, 8, seed=0, permutation=TABLE), Order(1000, 8, seed=0)
    assert old(0).index.tolist() == [998, 162, 670, 664, 185, 322, 431, 318]
    assert old(10**6).index.tolist() == [10, 270, 639, 705, 762, 807, 146, 339]
    assert new(0).index.tolist() == [303, 618, 85, 388, 350, 728, 119, 531]
    assert new(10**6).index.tolist() == [595, 602, 352, 566, 865, 139, 46, 267]
    assert Order(5, 5, seed=9)(3).index.tolist() == [0, 3, 1, 2, 4]
    assert Order(400_000_000, 4, seed=1)(10**9).index.tolist() == [391720353, 346933123, 175827903, 186103115]


def deviations(counts: np.ndarray, expected: float) -> float:
    """How many standard deviations the chi-squared of these counts lies from its mean."""
    freedom = counts.size - 1
    return float(((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)


@pytest.mark.parametrize("permutation", [KEYED, TABLE])
@pytest.mark.parametrize("n", [3, 5, 10, 64, 67])
def test_permutations_are_even(n: int, permutation: str) -> None:
    """The places of images 0 and 1, each alone and as a pair, over 1200 epochs."""
    order, epochs = Order(n, n, seed=0, permutation=permutation), 1200
    places = np.array([np.argsort(order(epoch).index)[:2] for epoch in range(epochs)])
    for image in range(2):
        assert deviations(np.bincount(places[:, image], minlength=n), epochs / n) < 5
    together = np.histogram2d(*places.T, bins=n, range=[[0, n], [0, n]])[0]
    assert (np.diag(together) == 0).all()
    assert deviations(together[~np.eye(n, dtype=bool)], epochs / (n * (n - 1))) < 5


def test_successive_epochs_and_seeds_and_processes_know_nothing_of_each_other() -> None:
    n = 20_011
    drawn = [Order(n, n, seed=seed)(epoch).index for seed, epoch in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1))]
    for k, one in enumerate(drawn):
        assert (np.sort(one) == np.arange(n)).all()
        # Neighbours: of n |differences| of uniform numbers the mean is n / 3, its deviation 0.24 n / sqrt(n).
        assert abs(np.abs(np.diff(one)).mean() / n - 1 / 3) < 5 * 0.24 / np.sqrt(n)
        assert abs(np.corrcoef(one, np.arange(n))[0, 1]) < 5 / np.sqrt(n)
        for other in drawn[:k]:
            assert (one == other).sum() < 12  # Poisson of mean 1: more in one of 10^10 cases
            assert abs(np.corrcoef(one, other)[0, 1]) < 5 / np.sqrt(n)
            cells = np.histogram2d(one, other, bins=16)[0]
            assert abs(deviations(cells, n / 256)) < 5


@pytest.mark.parametrize(("n", "batch", "world"), [(103, 12, 2), (10_007, 96, 3), (9001, 4500, 1)])
def test_what_is_computed_together_changes_no_step(n: int, batch: int, world: int) -> None:
    """Every step against the permutation written out anew, place by place."""
    keyed = keys(5, 1, ORDER, ROUNDS)
    for rank in range(world):
        order = Order(n, batch, rank, world, seed=5)
        mine = batch // world
        for k in range(order.steps_per_epoch):
            first = (k * world + rank) * mine
            expected = [int(permuted(np.array([first + j]), n, keyed)[0]) for j in (0, mine // 2, mine - 1)]
            found = order(order.steps_per_epoch + k).index
            assert found[[0, mine // 2, mine - 1]].tolist() == expected


def test_an_order_of_hundreds_of_millions_is_had_at_any_step_in_no_memory() -> None:
    order = Order(400_000_000, 256, seed=3)
    tracemalloc.start()
    seen = np.concatenate([order(step).index for step in (0, 1, order.steps_per_epoch - 1, 10**9)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**21
    assert 0 <= seen.min() < 5_000_000
    assert 395_000_000 < seen.max() < 400_000_000


@pytest.mark.slow
def test_an_epoch_of_imagenet_is_a_permutation() -> None:
    order = Order(1_281_167, 1024, seed=0)
    seen = np.concatenate([order(step).index for step in range(order.steps_per_epoch)])
    assert len(np.unique(seen)) == len(seen) == 1251 * 1024
    assert (seen.min(), seen.max()) >= (0, 0)
    assert seen.max() < 1_281_167


def test_an_order_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="order of the images 'sorted' is none that this version knows"):
        Order(10, 2, permutation="sorted")


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
