"""Cases are worked on side by side only as far as their memory allows, and come in order."""

import threading
import time

import pytest

from jaxseg.data.prepared import parallel
from jaxseg.data.prepared.parallel import Cost


class Memory:
    """Work that takes memory, and the most that was taken at once."""

    def __init__(self, sizes):
        self.sizes, self.now, self.most, self.lock, self.together = sizes, 0, 0, threading.Lock(), 0
        self.working = 0

    def work(self, item):
        with self.lock:
            self.now += self.sizes[item]
            self.working += 1
            self.most, self.together = max(self.most, self.now), max(self.together, self.working)
        time.sleep(0.01)
        with self.lock:
            self.working -= 1
        return item

    def run(self, *, workers, budget):
        taken = []
        costs = parallel.in_order(
            self.work,
            range(len(self.sizes)),
            cost_of=lambda item: Cost(self.sizes[item], self.sizes[item]),
            workers=workers,
            budget=budget,
        )
        for item, future in costs:
            taken.append(future.result())
            with self.lock:
                self.now -= self.sizes[item]
        assert taken == list(range(len(self.sizes)))


def test_small_cases_use_all_workers_and_come_in_order():
    memory = Memory([1] * 40)
    memory.run(workers=4, budget=1000)
    assert memory.together == 4


def test_large_cases_stay_within_the_budget():
    memory = Memory([30, 10, 40, 50, 10, 20, 60, 10] * 3)
    memory.run(workers=8, budget=100)
    assert 60 < memory.most <= 100


def test_a_case_larger_than_the_budget_is_worked_on_alone():
    memory = Memory([10, 500, 10, 10])
    memory.run(workers=4, budget=100)
    assert memory.most == 500


def test_a_slow_caller_has_few_cases_begun():
    begun = []
    made = parallel.in_order(begun.append, range(100), cost_of=lambda item: Cost(1, 1), workers=16, budget=1000)
    for item, _ in made:
        time.sleep(0.02)
        assert len(begun) <= item + 16


def test_a_finished_case_leaves_room_for_another():
    """At work two cases fill the memory; of the second one, which is finished and waits, hardly anything is left."""
    begun = []

    def work(item):
        begun.append(item)
        time.sleep(0.05)

    made = parallel.in_order(work, range(6), cost_of=lambda item: Cost(60, 1), workers=4, budget=150)
    assert next(made)[0] == 0
    time.sleep(0.2)
    assert begun == [0, 1]
    assert next(made)[0] == 1
    time.sleep(0.2)
    assert begun == [0, 1, 2, 3]


def test_a_case_that_runs_out_of_memory_is_tried_again_when_the_others_are_done():
    alone = threading.Lock()
    tries = []

    def work(item):
        if item != 1:
            with alone:
                time.sleep(0.05)
            return item
        tries.append(alone.locked())
        if alone.locked() or len(tries) == 1:
            raise MemoryError("too little")
        return item

    made = parallel.in_order(work, range(4), cost_of=lambda item: Cost(1, 1), workers=4, budget=100)
    assert [future.result() for _, future in made] == [0, 1, 2, 3]
    assert len(tries) == 2
    assert not tries[-1]


def test_one_that_never_fits_says_so_and_the_others_are_done():
    def work(item):
        if item == 1:
            raise MemoryError("too little")
        return item

    made = parallel.in_order(work, range(3), cost_of=lambda item: Cost(1, 1), workers=2, budget=100)
    found = {item: future.exception() for item, future in made}
    assert [type(error) for error in found.values()] == [type(None), MemoryError, type(None)]


def test_what_is_not_begun_is_not_begun_after_an_interruption():
    begun = []

    def work(item):
        begun.append(item)
        return item

    made = parallel.in_order(work, range(100), cost_of=lambda item: Cost(1, 1), workers=1, budget=100)
    next(made)
    made.close()
    assert len(begun) <= 3
    with pytest.raises(StopIteration):
        next(made)
