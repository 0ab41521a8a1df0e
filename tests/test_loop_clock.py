"""The times of compiled calls that a job's log has."""

import time

import jax

from jaxseg import loop
from tests import test_loop, training_parts

CALL = 0.05


def test_a_call_that_holds_the_host_until_it_is_done_has_its_own_time(tmp_path):
    # As a loop of steps does on a GPU, where the host decides whether there is another step.
    def chunk(*args):
        time.sleep(CALL)
        return jax.block_until_ready(test_loop.CHUNK(*args))

    begun = time.perf_counter()
    loop.fit(test_loop.make_fit(tmp_path, chunk=chunk), test_loop.silent)
    took = time.perf_counter() - begun
    rows = [row for row in training_parts.metric_lines(tmp_path) if row["step_seconds"] is not None]
    seconds = [2 * row["step_seconds"] for row in rows]  # of the two steps of a call
    assert len(seconds) == 5
    assert min(seconds) >= CALL
    assert sum(seconds) <= took
