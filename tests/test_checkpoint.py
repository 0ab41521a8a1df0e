"""Checkpoints: the same bits back, other devices, one run without the others, retention, mistakes."""

import dataclasses
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import checkpoint, optim, seeds, stored, trees
from jaxseg.manifest import DamagedError
from jaxseg.types import UserError
from tests import training_parts

TX = optim.make_optimizer(training_parts.OPTIM, training_parts.labels_of(freeze="encoder"), training_parts.STEPS)
LIKE = jax.eval_shape(lambda: training_parts.make_state(training_parts.MODEL, TX, 0))


def states_of(count):
    """Stacked states in which every leaf has numbers of its own, -0 and NaN among them."""
    rng = np.random.default_rng(0)

    def fill(leaf):
        if leaf.dtype != np.float32:
            return leaf
        values = rng.normal(size=leaf.shape).astype(np.float32)
        values.flat[0], values.flat[-1] = np.nan, -0.0
        return jnp.asarray(values)

    state = trees.stack([training_parts.make_state(training_parts.MODEL, TX, seed) for seed in range(count)])
    return dataclasses.replace(
        state,
        params=jax.tree.map(fill, state.params),
        opt_state=jax.tree.map(fill, state.opt_state),
        step=jnp.arange(count, dtype=jnp.int32),
        alive=jnp.arange(count) != 1,
    )


def raw(state):
    return training_parts.bits(dataclasses.replace(state, key=jax.random.key_data(state.key)))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory with steps 0 and 4 of three runs, as saved."""
    directory = tmp_path_factory.mktemp("job") / "checkpoints"
    states = {0: states_of(3), 4: changed(states_of(3))}
    with checkpoint.open_manager(directory, keep=2) as manager:
        for step, state in states.items():
            checkpoint.save(manager, step, state, {"runs": ["a", "b", "c"]})
    return directory, states


def changed(state):
    return dataclasses.replace(state, params=jax.tree.map(lambda leaf: leaf + 1, state.params))


def test_every_damaged_step_has_a_place_whatever_was_removed_there(saved, tmp_path):
    directory = tmp_path / "job" / "checkpoints"
    shutil.copytree(saved[0], directory)
    places = [checkpoint.set_aside(directory, step) for step in (0, 4)]
    shutil.rmtree(places[0])
    shutil.copytree(saved[0] / "4", directory / "4")
    again = checkpoint.set_aside(directory, 4)
    assert places[1].name == "4_0"
    assert again.name == "4_1"


def test_networks_are_told_by_their_parameters_alone(saved, tmp_path):
    directory, states = saved
    marks = checkpoint.networks_of(directory, (0, 2, 4))
    assert sorted(marks) == ["0", "4"]
    later = {0: dataclasses.replace(states[0], step=states[0].step + 1), 4: states[0]}
    with checkpoint.open_manager(tmp_path / "checkpoints", keep=2) as manager:
        for step, state in later.items():
            checkpoint.save(manager, step, state, {"runs": ["a", "b", "c"]})
    assert set(checkpoint.networks_of(tmp_path / "checkpoints", (0, 4)).values()) == {marks["0"]} != {marks["4"]}


def test_a_state_comes_back_bit_for_bit(saved):
    directory, states = saved
    with checkpoint.open_manager(directory, keep=2) as manager:
        assert manager.latest_step() == 4
        for step, state in states.items():
            restored = checkpoint.restore(manager, step, LIKE)
            assert jax.tree.structure(restored) == jax.tree.structure(state)
            assert raw(restored) == raw(state)
            assert restored.key.dtype == state.key.dtype
            np.testing.assert_array_equal(
                jax.random.uniform(restored.key[1], (3,)), jax.random.uniform(state.key[1], (3,))
            )


def test_a_state_is_continued_on_another_number_of_devices(saved, tmp_path):
    _, states = saved
    four, two = training_parts.plan_of(devices=4), training_parts.plan_of(devices=2)
    with checkpoint.open_manager(tmp_path, keep=1) as manager:
        checkpoint.save(manager, 0, seeds.put(states[4], four), {})  # four runs, of which one is padding
    with checkpoint.open_manager(tmp_path, keep=1) as manager:
        restored = checkpoint.restore(manager, 0, LIKE)
    assert trees.length(restored.params) == 4
    placed = seeds.put(trees.take(restored, slice(0, 3)), two)
    assert trees.length(placed.params) == 4
    assert training_parts.bits(seeds.fetch(placed, 3)) == raw(states[4])


def test_one_run_is_read_without_the_others(saved):
    directory, states = saved
    for step in (0, 4):
        for run in (0, 2):
            got = checkpoint.read_seed(directory, step, run)
            assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(got))
            assert training_parts.bits(got) == training_parts.bits(trees.take(states[step].params, run))
            assert jax.tree.structure(got) == jax.tree.structure(LIKE.params)
    some = checkpoint.read_params(directory, 4, [2, 0])
    assert training_parts.bits(some) == training_parts.bits(trees.take(states[4].params, np.array([2, 0])))


def test_every_run_has_chunks_of_its_own(saved):
    directory, _ = saved
    for array in stored.open_arrays(directory, 4).values():
        assert array.chunk_layout.read_chunk.shape == (1, *array.shape[1:])


SHARED = {"encoder": {"kernel": np.arange(600, dtype=np.float32).reshape(20, 30)}}
LOG = {"loss": np.linspace(0, 1, 40).reshape(2, 20), "step": np.arange(20)}


@pytest.fixture
def with_shared(tmp_path):
    """A directory whose step 2 has every kind of item."""
    with checkpoint.open_manager(tmp_path, keep=1) as manager:
        checkpoint.save(manager, 2, states_of(2), {"runs": ["a", "b"], "made_with": {"version": 1.5}}, SHARED, LOG)
    return tmp_path


def test_what_all_runs_share_and_what_was_measured_come_back(with_shared):
    np.testing.assert_array_equal(
        checkpoint.read_shared(with_shared, 2)["encoder"]["kernel"], SHARED["encoder"]["kernel"]
    )
    found = checkpoint.read_log(with_shared, 2)
    assert found.keys() == LOG.keys()
    for name, array in LOG.items():
        np.testing.assert_array_equal(found[name], array)


def test_no_reader_hands_out_what_was_not_saved(with_shared):
    """Bits flipped in every file of a checkpoint: each reader gives what was saved, or says that it is damaged."""
    readers = (
        lambda: checkpoint.read_meta(with_shared, 2),
        lambda: training_parts.bits(checkpoint.read_own_params(with_shared, 2, [0, 1])),
        lambda: training_parts.bits(checkpoint.read_shared(with_shared, 2)),
        lambda: training_parts.bits(checkpoint.read_log(with_shared, 2)),
    )
    good = [read() for read in readers]
    rng = np.random.default_rng(0)
    refused = 0
    for path in sorted(path for path in (with_shared / "2").rglob("*") if path.is_file()):
        content = path.read_bytes()
        for _ in range(12):
            changed = bytearray(content)
            changed[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
            path.write_bytes(changed)
            for read, expected in zip(readers, good, strict=True):
                try:
                    assert read() == expected, path
                except DamagedError:
                    refused += 1
        path.write_bytes(content)
    assert refused > 50
    assert [read() for read in readers] == good


def test_step_0_and_the_last_steps_are_kept(tmp_path):
    state = states_of(1)
    with checkpoint.open_manager(tmp_path, keep=2) as manager:
        for step in (0, 2, 4, 6, 8):
            checkpoint.save(manager, step, state, {})
    assert checkpoint.saved_steps(tmp_path) == (0, 6, 8)
    assert checkpoint.saved_steps(tmp_path / "nothing") == ()


def test_saving_a_step_again_keeps_the_first(tmp_path):
    state = states_of(1)
    with checkpoint.open_manager(tmp_path, keep=1) as manager:
        checkpoint.save(manager, 0, state, {})
        checkpoint.save(manager, 0, changed(state), {})
    assert training_parts.bits(checkpoint.read_seed(tmp_path, 0, 0)) == training_parts.bits(trees.take(state.params, 0))


def test_a_missing_step_names_the_saved_ones(saved):
    directory, _ = saved
    with pytest.raises(UserError, match=r"no checkpoint of step 3 in .*; saved steps: 0, 4"):
        checkpoint.read_seed(directory, 3, 0)
    with (
        checkpoint.open_manager(directory, keep=2) as manager,
        pytest.raises(UserError, match=r"no checkpoint of step 3 in .*; saved steps: 0, 4"),
    ):
        checkpoint.restore(manager, 3, LIKE)


def start_of(*, freeze="encoder", **changes):
    """Shapes of a state whose network or trained part may differ from the saved one's."""
    model = dataclasses.replace(training_parts.MODEL, **changes)
    tx = optim.make_optimizer(training_parts.OPTIM, training_parts.labels_of(model, freeze), training_parts.STEPS)
    return jax.eval_shape(lambda: training_parts.make_state(model, tx, 0))


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"freeze": "none"}, r"mu/encoder/level_0/conv_0/bias is absent there and \(3, 2\) here"),
        ({"freeze": "all_but_head"}, r"mu/decoder/level_0/conv_0/bias is \(3, 2\) there and absent here"),
        ({"widths": (2, 4)}, r"kernel is \(3, 3, 3, 5, 2\) there and \(3, 3, 3, 6, 2\) here"),
        ({"widths": (3, 3)}, r"level_0/conv_0/bias is \(3, 2\) there and \(3, 3\) here"),
        ({"widths": (2, 3, 3)}, r"level_1/conv_0/bias is absent there and \(3, 3\) here"),
    ],
    ids=["trained-more", "trained-less", "wider", "wider-first", "deeper"],
)
def test_a_state_of_another_study_is_refused(saved, changes, difference):
    directory, _ = saved
    with checkpoint.open_manager(directory, keep=2) as manager, pytest.raises(UserError) as caught:
        checkpoint.restore(manager, 4, start_of(**changes))
    text = str(caught.value)
    assert re.search(r"checkpoints/4 does not hold what this study trains .*; use another workdir", text)
    assert re.search(difference, text)
