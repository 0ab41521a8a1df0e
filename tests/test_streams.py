"""Random streams: functions of an id and a name, whatever is mapped beside them."""

import itertools

import jax
import numpy as np
import pytest

from jaxseg import transfer, trees
from jaxseg.streams import STREAMS, fold_in_name, host_rng, jit_draws, stream_id, stream_key
from tests import training_parts


def data(key):
    return np.asarray(jax.random.key_data(key))


def test_streams_and_ids_all_have_keys_of_their_own():
    keys = [
        tuple(data(stream_key(i, stream)).tolist()) for i, stream in itertools.product((0, 1, 2, 2**32 - 1), STREAMS)
    ]
    assert len(set(keys)) == len(keys)
    names = ["sample", "dropout", "place", "turn", "affine", *STREAMS]
    folded = {tuple(data(fold_in_name(jax.random.key(0), name)).tolist()) for name in names}
    assert len(folded) == len(names)


def test_keys_do_not_change_between_versions():
    # A stored study is continued with the numbers it was begun with: these are part of the format.
    assert data(stream_key(0, "init")).tolist() == [3209995767, 1208496529]
    assert data(stream_key(5, "order")).tolist() == [467469983, 1405699527]


def test_a_name_folds_in_the_same_number_everywhere():
    # crc32("check") by the polynomial's table, without the sign bit: no hash of Python's own, which is salted.
    crc = 0xFFFFFFFF
    for byte in b"check":
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0xEDB88320 if crc & 1 else 0)
    expected = jax.random.fold_in(jax.random.key(3), (crc ^ 0xFFFFFFFF) & 0x7FFFFFFF)
    np.testing.assert_array_equal(data(fold_in_name(jax.random.key(3), "check")), data(expected))


def test_a_seed_draws_the_same_numbers_alone_and_among_eight():
    def draw(seed):
        return jax.random.normal(stream_key(seed, "order"), (16,))

    mapped = jax.jit(jax.vmap(draw))
    eight = mapped(np.arange(8, dtype=np.uint32))
    for seed in (0, 5):
        alone = draw(np.uint32(seed))
        np.testing.assert_array_equal(mapped(np.array([seed], np.uint32))[0], eight[seed])
        np.testing.assert_array_equal(alone, eight[seed])
    np.testing.assert_array_equal(mapped(np.array([5, 3], np.uint32))[0], eight[5])


def test_the_generator_does_not_follow_jax_s_default():
    before = data(stream_key(1, "init"))
    with jax.default_prng_impl("rbg"):
        key = stream_key(1, "init")
    assert jax.random.key_impl(key) == jax.random.key_impl(jax.random.key(0, impl="threefry2x32"))
    np.testing.assert_array_equal(data(key), before)


def test_streams_are_uncorrelated_over_ids_and_names():
    count, length = 24, 2000
    draws = np.concatenate(
        [
            jax.jit(jax.vmap(lambda i, stream=stream: jax.random.normal(stream_key(i, stream), (length,))))(
                np.arange(count)
            )
            for stream in STREAMS
        ]
    )
    pairs = np.corrcoef(draws)[np.triu_indices(len(draws), 1)] * np.sqrt(length)
    # Correlations of independent draws are about normal: 2556 pairs stay within 4.9 sd but once in 400 times.
    assert np.abs(pairs).max() < 4.9
    assert abs(pairs.mean()) < 5 / np.sqrt(len(pairs))
    assert pairs.std() == pytest.approx(1, abs=0.07)
    assert abs(draws.mean()) < 5 / np.sqrt(draws.size)


def test_only_varied_streams_follow_the_seed():
    ids = {stream: stream_id(7, stream, vary=("init", "subset"), base_seed=3) for stream in STREAMS}
    assert ids == {"init": 7, "order": 3, "subset": 7}
    assert {stream_id(7, stream, vary=(), base_seed=3) for stream in STREAMS} == {3}
    with pytest.raises(ValueError, match="unknown stream 'ordr'"):
        stream_id(0, "ordr", vary=(), base_seed=0)


def test_draws_on_the_host_do_not_change_between_versions():
    # Splits, subsets and synthetic cases of stored studies were drawn with these.
    assert host_rng(3, "subset").integers(1000, size=4).tolist() == [944, 329, 365, 202]
    assert host_rng("case_0", 1).integers(1000, size=4).tolist() == [918, 695, 854, 776]


def test_draws_on_the_host_differ_by_every_word():
    words = [(0,), (1,), (0, "subset"), (0, "order"), (0, "subset", 1), ("subset", 0)]
    assert len({host_rng(*each).integers(2**62) for each in words}) == len(words)


@pytest.mark.parametrize("kind", ["random", "mean_var"])
def test_starts_that_are_compiled_faster_have_the_same_bits(kind):
    start, source = transfer.make_start(transfer.transfer_rules(kind)), training_parts.random_params()

    def draw(seed):
        def of(path, leaf):
            key = fold_in_name(stream_key(seed, "init"), path)
            return 0.3 * jax.random.truncated_normal(key, -2.0, 2.0, leaf.shape)

        params = trees.map_with_path(of, source)
        return params if kind == "random" else start(params, source, stream_key(seed, "init"))

    fast, usual = jit_draws(draw), jax.jit(draw)
    for seed in range(20):
        for a, b in zip(jax.tree.leaves(fast(seed)), jax.tree.leaves(usual(seed)), strict=True):
            np.testing.assert_array_equal(a, b)
