"""Order, bound and errors of work that threads do ahead."""

import threading
import time

import pytest

from clip_jax.inference.ahead import ahead


def test_order_is_that_of_the_items():
    def slow(i):
        time.sleep(0.002 * (i % 3))
        return i * i

    assert list(ahead(slow, range(40), window=7)) == [i * i for i in range(40)]
    assert list(ahead(slow, [], window=7)) == []


def test_never_further_than_the_window():
    drawn = []

    def items():
        for i in range(100):
            drawn.append(i)
            yield i

    results = ahead(lambda i: i, items(), window=5)
    for i in range(10):
        assert next(results) == i
        assert len(drawn) <= i + 5
    results.close()
    assert len(drawn) <= 15


def test_an_error_comes_at_its_item():
    def fails(i):
        if i == 3:
            raise KeyError(i)
        return i

    results, got = ahead(fails, range(9), window=9), []
    with pytest.raises(KeyError):
        for x in results:
            got.append(x)
    assert got == [0, 1, 2]


def test_threads_end_with_it():
    before = threading.active_count()
    results = ahead(lambda i: i, range(1000), window=50)
    next(results)
    results.close()
    assert threading.active_count() == before
