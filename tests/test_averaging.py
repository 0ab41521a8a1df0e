"""Late averages: what is averaged when, that training does not notice, and that a resumed job averages the same."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import averaging, checkpoint, loop, losses, seeds, train, trees
from jaxseg.models import make_model
from tests import training_parts
from tests.loop_parts import CHUNK, PLAN, RUNS, SETTINGS, TRAINING, make_fit, score, silent

AVERAGED = dataclasses.replace(SETTINGS, average=0.5)
WINDOWS = averaging.make_windows(AVERAGED.scored_at, AVERAGED.average)
LABELS = training_parts.labels_of()


def test_windows_end_where_networks_are_scored_and_never_overlap():
    assert AVERAGED.scored_at == (2, 6, 12), "multiples of log_every, and the last"
    assert WINDOWS == ((1, 2), (3, 6), (6, 12))
    for steps in range(1, 60):
        for every in (1, 2, 3, 5):
            settings = dataclasses.replace(SETTINGS, steps=steps, log_every=every)
            bounds = [edge for window in averaging.make_windows(settings.scored_at, 0.5) for edge in window]
            assert bounds == sorted(bounds), (steps, every)
            assert bounds[-1] == steps
            assert all(before < last for before, last in zip(bounds[::2], bounds[1::2], strict=True))


def test_the_mean_is_that_of_the_window_and_outside_of_it_the_weights_themselves():
    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.normal(size=(13, 5)), 0, dtype=np.float32)
    labels = {"a": "train", "b": "statistics", "c": "frozen"}

    def params(step):
        return {"a": jnp.asarray(walk[step]), "b": jnp.asarray(2 * walk[step]), "c": jnp.ones(3)}

    average = averaging.start_average(params(0), labels)
    assert set(average) == {"a", "b"}, "what is frozen needs no mean"
    for step in range(1, 13):
        count = averaging.num_averaged(jnp.int32(step), WINDOWS)
        average = averaging.update_average(average, params(step), count)
        before = next((before for before, last in WINDOWS if before < step <= last), step - 1)
        if step - before == 1:
            np.testing.assert_array_equal(average["a"], walk[step])
        np.testing.assert_allclose(average["a"], walk[before + 1 : step + 1].mean(0), rtol=1e-5)
        np.testing.assert_allclose(average["b"], 2 * walk[before + 1 : step + 1].mean(0), rtol=1e-5)


def _with_average(states):
    own = jax.tree.map(jnp.copy, states.params)  # a loop that takes its state in place needs buffers of its own
    return dataclasses.replace(states, average=averaging.start_average(own, LABELS))


def _fit(directory, **changes):
    network = make_model(TRAINING.model, classes=training_parts.CLASSES)
    loss = losses.make_loss(training_parts.LOSS)
    step = train.make_train_step(network, TRAINING.tx, loss, TRAINING.sample, LABELS, windows=WINDOWS)
    chunk = seeds.map_seeds(train.make_train_chunk(step), plan=PLAN, shared=(2, 3, 4, 5), donate=(0,))
    fields = {
        "like": jax.eval_shape(lambda: _with_average(training_parts.make_state(training_parts.MODEL, TRAINING.tx, 0))),
        "init": lambda: _with_average(TRAINING.states(range(4))),
        "chunk": chunk,
        "settings": AVERAGED,
        "scored_at": AVERAGED.scored_at,
    }
    return make_fit(directory, **(fields | changes))


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    """A job whose late weights are averaged, and the raw weights of every step."""
    directory = tmp_path_factory.mktemp("averaged")
    fit = _fit(directory)
    loop.fit(fit, silent)
    state, raw = seeds.put(TRAINING.states(range(4)), PLAN), []
    for step in range(12):
        state, _ = CHUNK(state, seeds.put(RUNS, PLAN), fit.cohort, {}, np.int32(step), np.int32(step + 1))
        raw.append(seeds.fetch(state.params, 4))
    return fit, raw


def test_a_job_scores_the_mean_and_trains_on_as_if_there_were_none(averaged):
    fit, raw = averaged
    folder = fit.directory / "checkpoints"
    assert checkpoint.saved_steps(folder) == (0, 2, 6, 8, 12), "every scored step is kept"
    for before, last in WINDOWS:
        mean = jax.tree.map(lambda *leaves: np.mean(leaves, 0), *raw[before:last])
        found = checkpoint.read_params(folder, last, range(4))
        jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6), found, mean)
        with checkpoint.open_manager(folder, keep=2) as manager:
            state = checkpoint.restore(manager, last, fit.like)
        assert training_parts.bits(state.params) == training_parts.bits(raw[last - 1]), "the weights that trained"
    lines = {row["step"]: row["val_dsc"] for row in training_parts.metric_lines(fit.directory)}
    np.testing.assert_allclose(lines[6], score(checkpoint.read_params(folder, 6, range(4)), {}))
    assert lines[2] is not None, "a scored step is validated, whatever eval_every says"
    assert training_parts.bits(checkpoint.read_params(folder, 8, range(4))) != training_parts.bits(raw[7])


def test_a_mean_that_was_interrupted_goes_on_to_the_same_bits(averaged, tmp_path):
    fit, _ = averaged

    class CrashError(Exception):
        pass

    def crash(now, done, total, note="", runs=()):
        if (now, done) == ("training", 10):
            raise CrashError

    again = dataclasses.replace(fit, directory=tmp_path)
    with pytest.raises(CrashError):
        loop.fit(again, crash)
    assert checkpoint.saved_steps(tmp_path / "checkpoints")[-1] == 8, "in the middle of the last window"
    loop.fit(again, silent)
    places = fit.directory, tmp_path
    whole, resumed = (checkpoint.read_params(place / "checkpoints", 12, range(4)) for place in places)
    assert training_parts.bits(whole) == training_parts.bits(resumed)


def test_scored_params_are_the_parameters_where_nothing_is_averaged():
    state = training_parts.make_state(training_parts.MODEL, TRAINING.tx, 0)
    assert averaging.scored_params(state) is state.params
    moved = dataclasses.replace(state, average={"head": jax.tree.map(jnp.zeros_like, state.params["head"])})
    found = trees.flatten(averaging.scored_params(moved))
    assert all(np.any(leaf) != path.startswith("head/") for path, leaf in found.items())
