"""A job whose runs are random walks, for tests of several processes: all of the loop, and nothing to compile for long.

python -m tests.launch.walk FOLDER RUNS PORT PROCESSES INDEX
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg import hosts, loop, seeds, trees
from jaxseg.settings import TrainSettings
from jaxseg.streams import stream_key
from jaxseg.types import TrainState

SETTINGS = TrainSettings(steps=60, batch=1, log_every=2, eval_every=4, save_every=10)


def chunk(state, runs, cohort, frozen, start, stop):
    """Steps of one run's walk."""

    def step(i, state):
        noise = jax.random.normal(jax.random.fold_in(state.key, i), (3,))
        return state.replace(step=state.step + 1, params={"w": state.params["w"] + noise})

    state = jax.lax.fori_loop(start, stop, step, state)
    return state, {"loss": jnp.square(state.params["w"]).sum(), "steps_alive": stop - start}


def state_of(run: int) -> TrainState:
    """The start of a run."""
    params = {"w": jnp.full(3, float(run))}
    return TrainState(jnp.int32(0), params, {}, stream_key(np.uint32(run), "order"), jnp.asarray(True))


def job(folder: Path, num_runs: int) -> loop.Fit:
    """This host's part of the job."""
    share = hosts.share(num_runs, devices=jax.local_device_count(), index=hosts.index(), count=hosts.count())
    plan = seeds.make_plan(len(share.rows), strategy="loop")
    own = seeds.put(jnp.asarray(share.rows), plan)
    every = SETTINGS.log_every
    return loop.Fit(
        directory=folder,
        plan=plan,
        names=tuple(f"walk/n0_fold0/seed_{run}" for run in range(num_runs)),
        rows=share.rows,
        like=jax.eval_shape(lambda: state_of(0)),
        init=lambda: trees.stack([state_of(run) for run in share.rows]),
        shared=dict,
        chunk=seeds.map_seeds(chunk, plan=plan, shared=(2, 3, 4, 5)),
        observe=None,
        feed=lambda start: ((end, own) for end in range(start + every, SETTINGS.steps + 1, every)),
        cohort=seeds.replicate({}, plan),
        validate=lambda params, frozen: seeds.fetch(params["w"], len(share.rows))[:, 0].astype(np.float64),
        settings=SETTINGS,
        scored_at=(),
        validate_from=0,
        keep=2,
        meta={"runs": list(range(num_runs))},
    )


def main() -> None:
    """Trains to the end; exit status 0 done, 3 a host was lost, 143 stopped by a notice."""
    folder, num_runs, port, processes, index = sys.argv[1], *map(int, sys.argv[2:])
    jax.distributed.initialize(f"localhost:{port}", processes, index, heartbeat_timeout_seconds=10)

    def progress(what, done, total, note="", runs=()):
        sys.stdout.write(f"{what} {done}\n")
        sys.stdout.flush()
        if what == "training" and hosts.is_first():
            sys.stdin.readline()  # goes on when it is told to

    try:
        loop.fit(job(Path(folder), num_runs), progress)
        hosts.barrier("end")
    except hosts.LostHostError as error:
        leave(error, 3)
    except loop.Interrupted as stop:
        leave(stop, 128 + stop.signum)


def leave(why: BaseException, status: int) -> None:
    """Ends at once: an orderly end would wait for the others."""
    sys.stderr.write(f"{why}\n")
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
