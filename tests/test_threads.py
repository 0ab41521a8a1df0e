"""Work that threads share is done as it would be by one."""

import concurrent.futures
import threading

import pytest

from jaxseg import threads


@pytest.fixture(params=[None, 3], ids=["alone", "shared"])
def pool(request):
    if request.param is None:
        yield None
    else:
        with concurrent.futures.ThreadPoolExecutor(request.param) as threads_of_it:
            yield threads_of_it


@pytest.mark.parametrize("count", [0, 1, 2, 7, 40])
def test_each_index_is_worked_on_once(pool, count):
    done = []
    threads.share(pool, done.append, count)
    assert sorted(done) == list(range(count))


def test_an_error_of_a_thread_is_raised(pool):
    def work(index):
        if index == 5:
            raise ValueError("five")

    with pytest.raises(ValueError, match="five"):
        threads.share(pool, work, 8)


@pytest.mark.parametrize("threaded", [False, True])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_results_come_in_order(threaded, count):
    found = list(threads.ahead(lambda item: item * item, range(count), threaded=threaded))
    assert found == [(item, item * item) for item in range(count)]


def test_the_next_item_is_worked_on_while_one_is_used():
    begun = [threading.Event() for _ in range(3)]
    results = threads.ahead(lambda item: begun[item].set(), range(3), threaded=True)
    next(results)
    assert begun[1].wait(timeout=60)
    assert not begun[2].is_set()
    results.close()


def test_an_error_ahead_is_raised_where_its_item_is_due():
    results = threads.ahead(lambda item: 1 // item, [1, 0, 1], threaded=True)
    assert next(results) == (1, 1)
    with pytest.raises(ZeroDivisionError):
        next(results)
