"""A job of four small networks for the tests of the host's loop."""

import jax
import numpy as np

from jaxseg import loop, seeds, train
from jaxseg.data.patches import residence
from jaxseg.settings import TrainSettings
from tests import training_parts

TRAINING = training_parts.Training()
PLAN = training_parts.plan_of("loop")
CHUNK = seeds.map_seeds(train.make_train_chunk(TRAINING.step), plan=PLAN, shared=(2, 3, 4, 5), donate=(0,))
SETTINGS = TrainSettings(steps=12, batch=2, log_every=2, eval_every=4, save_every=4)
RUNS = training_parts.run_inputs(4)


def silent(what, done, total, note="", runs=()):
    pass


def score(params, frozen):
    """Stands for validation: some number of each run's weights."""
    assert frozen == {}
    return np.abs(np.tanh(np.asarray(params["head"]["kernel"]).sum((1, 2))))


def feed_of(runs, most=2):
    """The same inputs for every call; calls of at most so many steps."""
    placed = seeds.put(runs, PLAN)
    return lambda start: ((end, placed) for end in residence.call_ends(start, 12, 2, most))


def make_fit(directory, **changes):
    """A job of four runs on the small network."""
    names = tuple(f"{arm}/n0_fold0/seed_{seed}" for arm in ("scratch", "transfer") for seed in (0, 1))
    fields = {
        "directory": directory,
        "plan": PLAN,
        "names": names,
        "rows": (0, 1, 2, 3),
        "like": jax.eval_shape(lambda: training_parts.make_state(training_parts.MODEL, TRAINING.tx, 0)),
        "init": lambda: TRAINING.states(range(4)),
        "shared": dict,
        "chunk": CHUNK,
        "observe": None,
        "feed": feed_of(RUNS),
        "cohort": seeds.replicate(TRAINING.cohort, PLAN),
        "validate": score,
        "settings": SETTINGS,
        "scored_at": (),
        "validate_from": 0,
        "keep": 2,
        "meta": {"runs": list(names)},
    }
    return loop.Fit(**(fields | changes))
