"""The order of examples: a bijection of every length, stable, and a pure function of position."""

import numpy as np
import pytest

from clip_jax.data.order import locate, permute

SIZES = (1, 2, 3, 4, 5, 7, 16, 17, 1000, 65536, 65537, 262145)


@pytest.mark.parametrize("size", SIZES)
def test_every_record_once(size):
    for seed, epoch in ((0, 0), (3, 5)):
        order = permute(np.arange(size), size, seed, epoch)
        assert np.array_equal(np.sort(order), np.arange(size))


def test_blocks_and_single_positions_agree():
    whole = permute(np.arange(1000), 1000, 9, 2)
    assert [int(permute(np.array(i), 1000, 9, 2)) for i in range(0, 1000, 37)] == list(whole[::37])


def test_orders_of_seeds_and_epochs_differ():
    orders = {tuple(permute(np.arange(50), 50, s, e)) for s in range(5) for e in range(5)}
    assert len(orders) == 25


def test_neighbours_are_not_correlated():
    order = permute(np.arange(200_000), 200_000, 1, 0)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.01
    assert abs(np.corrcoef(order, np.arange(200_000))[0, 1]) < 0.01


def test_places_spread_evenly():
    order = permute(np.arange(250_000), 250_000, 7, 1)
    counts, _, _ = np.histogram2d(np.arange(250_000), order, bins=50)
    assert abs(((counts - 100) ** 2 / 100).mean() - 1) < 0.1


def test_locate_walks_the_epochs():
    record, epoch = locate(np.arange(35), 10, seed=4)
    assert list(epoch) == [0] * 10 + [1] * 10 + [2] * 10 + [3] * 5
    for e in range(3):
        assert sorted(record[epoch == e]) == list(range(10))
    assert not np.array_equal(record[:10], record[10:20])


def test_locate_is_a_function_of_the_position():
    record, _ = locate(np.arange(100), 30, seed=1)
    later, _ = locate(np.arange(40, 100), 30, seed=1)
    assert np.array_equal(record[40:], later)


def test_huge_sets_and_positions():
    size = 400_000_000_000
    record, epoch = locate(np.array([0, size - 1, size, 5 * size + 3]), size, seed=2)
    assert list(epoch) == [0, 0, 1, 5]
    assert ((record >= 0) & (record < size)).all()


def test_the_order_is_kept_between_releases():
    """A change here makes every run of every user see other data after an upgrade."""
    assert permute(np.arange(12), 12, 0, 0).tolist() == [11, 5, 6, 0, 2, 8, 1, 9, 7, 4, 3, 10]
    assert permute(np.arange(5), 10**12, 7, 3).tolist() == [
        978073384653,
        494384329376,
        74915043508,
        630846284179,
        50499805566,
    ]
