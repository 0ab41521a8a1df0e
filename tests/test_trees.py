"""Parameter trees: rules by path, splitting and joining, and the run axis."""

import string

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseg import trees
from jaxseg.types import UserError

PARAMS = {
    "encoder": {"level_0": {"kernel": np.zeros((3, 3, 1, 2)), "bias": np.zeros(2)}, "level_1": {"bias": np.zeros(4)}},
    "head": {"kernel": np.zeros((2, 3))},
}

NAMES = st.text(string.ascii_lowercase, min_size=1, max_size=3)
LEAVES = st.integers(0, 99).map(np.asarray)
TREES = st.dictionaries(
    NAMES, st.recursive(LEAVES, lambda below: st.dictionaries(NAMES, below, min_size=1, max_size=3), max_leaves=8)
)


def same(one, other):
    return jax.tree.structure(one) == jax.tree.structure(other) and all(
        np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


def test_the_first_matching_rule_decides():
    labels = trees.label_params(PARAMS, [("level_0/bias", "a"), ("^encoder/", "b"), ("bias$|kernel$", "c")])
    assert trees.flatten(labels) == {
        "encoder/level_0/bias": "a",
        "encoder/level_0/kernel": "b",
        "encoder/level_1/bias": "b",
        "head/kernel": "c",
    }
    assert jax.tree.structure(labels) == jax.tree.structure(PARAMS)


def test_an_unmatched_parameter_is_named():
    with pytest.raises(UserError, match=r"'head/kernel' matches no rule; rules are '\^encoder/'"):
        trees.label_params(PARAMS, [("^encoder/", "a")])


@pytest.mark.parametrize("rules", [[("encodr", "a"), (".*", "b")], [(".*", "b"), ("encodr", "a")]])
def test_a_rule_that_matches_nothing_is_named_with_the_paths_there_are(rules):
    with pytest.raises(UserError, match=r"'encodr' decides no parameter.*encoder/level_0, encoder/level_1, head/kern"):
        trees.label_params(PARAMS, rules)


def test_a_rule_behind_one_that_takes_everything_is_dead():
    with pytest.raises(UserError, match=r"'\^head/' decides no parameter: .* earlier rules take all"):
        trees.label_params(PARAMS, [(".*", "a"), ("^head/", "b")])


def test_a_pattern_that_is_no_regular_expression_is_named():
    with pytest.raises(UserError, match=r"'enc\(' is not a regular expression"):
        trees.label_params(PARAMS, [("enc(", "a"), (".*", "b")])


@settings(max_examples=60, deadline=None)
@given(TREES, st.data())
def test_merge_is_the_inverse_of_partition(tree, data):
    labels = trees.unflatten({path: data.draw(st.sampled_from("xyz"), path) for path in trees.flatten(tree)})
    chosen, others = trees.partition(tree, labels, "x")
    marks = trees.flatten(labels)
    assert set(trees.flatten(chosen)) == {path for path, mark in marks.items() if mark == "x"}
    assert set(trees.flatten(others)) == {path for path, mark in marks.items() if mark != "x"}
    assert same(trees.merge(chosen, others), tree)
    assert same(trees.merge(others, {}, chosen), tree)


@settings(max_examples=60, deadline=None)
@given(TREES)
def test_unflatten_is_the_inverse_of_flatten(tree):
    assert same(trees.unflatten(trees.flatten(tree)), tree)


def test_merging_a_path_twice_is_refused():
    with pytest.raises(ValueError, match="'head/kernel' is in two"):
        trees.merge(PARAMS, {"head": {"kernel": np.zeros(1)}})


def test_map_with_path_sees_every_tree():
    got = trees.map_with_path(lambda path, a, b: (path, a, b), {"p": {"q": 1}}, {"p": {"q": 2}})
    assert got == {"p": {"q": ("p/q", 1, 2)}}


def test_count_of_arrays_and_of_shapes():
    assert trees.count(PARAMS) == 18 + 2 + 4 + 6
    assert trees.count(jax.eval_shape(lambda: PARAMS)) == 30
    assert trees.count({"scalar": np.zeros(())}) == 1
    assert trees.count({}) == 0


def test_stack_take_and_length_are_about_the_first_axis():
    runs = [{"w": jnp.full((2,), i, jnp.float32), "key": jax.random.key(i)} for i in range(3)]
    stacked = trees.stack(runs)
    assert stacked["w"].shape == (3, 2)
    assert trees.length(stacked) == 3
    for i, run in enumerate(runs):
        one = trees.take(stacked, i)
        np.testing.assert_array_equal(one["w"], run["w"])
        assert one["key"] == run["key"]
    np.testing.assert_array_equal(trees.take(stacked, np.array([2, 0]))["w"], [[2, 2], [0, 0]])
    np.testing.assert_array_equal(trees.take(stacked, slice(0, 2))["w"], [[0, 0], [1, 1]])
    with pytest.raises(ValueError, match=r"disagree on the size of the run axis: \[2, 3\]"):
        trees.length({"a": np.zeros(2), "b": np.zeros(3)})
