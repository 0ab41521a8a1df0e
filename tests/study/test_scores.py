"""Arrays from rows of cases.csv: the same cases for every arm, averages in one order."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from jaxseg.study.score import scores
from jaxseg.types import UserError


def table(rows, **columns):
    """Rows of (arm, seed, case, group, label, dsc[, status]) as cases.csv."""
    names = ["arm", "seed", "case", "group", "label", "dsc", "status"]
    made = pd.DataFrame([(*row, "ok")[:7] for row in rows], columns=names)
    return made.assign(**{"train_cases": 4, "fold": 0, "hd95": made["dsc"] * 10} | columns)


def read(cases, metrics=("dsc",)):
    return {(s.train_cases, s.fold, s.label): s for s in scores.read_scores(cases, metrics)}


def test_group_means_by_hand():
    values = np.array([[1.0, 3.0, 5.0], [np.nan, 3.0, np.nan], [np.inf, 1.0, 2.0]])
    got = scores.group_means(values, np.array([0, 0, 1]))
    np.testing.assert_array_equal(got, [[2, 5], [3, np.nan], [np.inf, 2]])
    assert scores.group_means(np.zeros((3, 0)), np.zeros(0, int)).shape == (3, 0)


def test_labels_within_a_case_then_cases_within_a_group():
    found = read(
        table(
            [
                ("s", 0, "c1", "g2", "a", 0.2),
                ("s", 0, "c1", "g2", "b", 0.6),
                ("s", 0, "c2", "g1", "a", 0.5),
                ("s", 0, "c2", "g1", "b", math.nan, "both_empty"),
                ("s", 0, "c3", "g2", "a", 0.0, "missed"),
                ("s", 0, "c3", "g2", "b", 0.0, "spurious"),
            ]
        )
    )
    of_a, of_b, mean = (found[4, 0, label] for label in ("a", "b", scores.MEAN))
    # Groups come in order of their names: c2 of g1 first, then c1 and c3 of g2.
    np.testing.assert_array_equal(of_a.of("s", "dsc"), [[0.5, 0.2, 0.0]])
    assert of_a.groups.tolist() == [0, 1, 1]
    np.testing.assert_array_equal(of_b.of("s", "dsc"), [[0.6]])
    assert of_b.groups.tolist() == [0]
    np.testing.assert_allclose(mean.of("s", "dsc"), [[0.5, 0.4, 0.0]])
    np.testing.assert_allclose(scores.group_means(mean.of("s", "dsc"), mean.groups), [[0.5, 0.2]])
    assert of_a.counts["s"] == (1, 0, 0)
    assert of_b.counts["s"] == (0, 1, 2)
    assert mean.counts["s"] == (1, 1, 2)


def test_equals_pandas_averages():
    """The same averages by groupby, on a random table with absent labels and unequal groups."""
    rng = np.random.default_rng(0)
    rows = [
        (arm, seed, f"c{case}", f"g{case % 3}", label, rng.random(), "both_empty" if absent else "ok")
        for case, label in itertools.product(range(8), "xyz")
        for absent in [rng.random() < 0.3]
        for arm, seed in itertools.product(("s", "t"), range(4))
    ]
    cases = table(rows)
    held = cases[cases["status"] == "ok"]
    keys = ["arm", "seed", "group"]
    by_case = held.groupby([*keys, "case"])["dsc"].mean()
    found = read(cases)
    for label, expected in [
        (scores.MEAN, by_case),
        *((x, held[held["label"] == x].set_index([*keys, "case"])["dsc"]) for x in "xyz"),
    ]:
        wide = expected.groupby(level=keys).mean().unstack("group")
        got = found[4, 0, label]
        for arm in "st":
            np.testing.assert_allclose(scores.group_means(got.of(arm, "dsc"), got.groups), wide.loc[arm])


def test_a_label_without_a_value_takes_its_case_out_of_the_mean():
    found = read(
        table(
            [
                ("s", 0, "c", "g", "a", 0.5),
                ("s", 0, "c", "g", "b", math.nan, "missed"),
                ("s", 1, "c", "g", "a", 0.5),
                ("s", 1, "c", "g", "b", 0.1),
            ]
        )
    )[4, 0, scores.MEAN]
    np.testing.assert_allclose(found.of("s", "dsc"), [[math.nan], [0.3]])


def test_folds_together_come_first_and_hold_every_case():
    rows = [
        ("s", seed, f"c{fold}{i}", f"g{fold}{i}", "a", seed + fold / 10 + i / 100)
        for fold in (0, 1)
        for seed in (0, 1, 2)
        for i in (0, 1)
    ]
    cases = table(rows, fold=[fold for fold in (0, 1) for _ in range(6)])
    cases = cases[(cases["seed"] != 2) | (cases["fold"] == 0)]  # seed 2 diverged in fold 1
    found = read(cases)
    assert list(found)[:2] == [(4, scores.POOLED, "a"), (4, scores.POOLED, scores.MEAN)]
    pooled = found[4, scores.POOLED, "a"]
    assert pooled.seeds["s"].tolist() == [0, 1]
    np.testing.assert_allclose(pooled.of("s", "dsc"), [[0, 0.01, 0.1, 0.11], [1, 1.01, 1.1, 1.11]])
    assert found[4, 0, "a"].seeds["s"].tolist() == [0, 1, 2]
    assert found[4, 1, "a"].seeds["s"].tolist() == [0, 1]


def rotating():
    """Seed s is tested on fold s mod 2 alone; fold 1 has one group more, and arm t lost its runs of fold 1."""
    rows = [
        (arm, seed, f"c{seed % 2}{i}", f"g{seed % 2}{i}", "a", seed / 10 + i / 100)
        for arm, seed in itertools.product("st", range(4))
        for i in range(2 + seed % 2)
        if arm == "s" or seed % 2 == 0
    ]
    return table(rows, fold=[row[1] % 2 for row in rows])


def test_folds_that_rotate_over_seeds_are_blocks_of_all_together():
    cases = rotating()
    assert scores.folds_rotate(cases)
    assert not scores.folds_rotate(cases[cases["fold"] == 0])
    found = read(cases)
    assert list(found)[:2] == [(4, scores.POOLED, "a"), (4, scores.POOLED, scores.MEAN)]
    pooled = found[4, scores.POOLED, "a"]
    assert pooled.seeds["s"].tolist() == [0, 1, 2, 3]
    assert pooled.groups.tolist() == [0, 1, 2, 3, 4]
    nothing = [math.nan] * 3
    np.testing.assert_allclose(pooled.of("s", "dsc")[0], [0, 0.01, *nothing])
    np.testing.assert_allclose(pooled.of("s", "dsc")[3], [*nothing[1:], 0.3, 0.31, 0.32])
    for label, fold in itertools.product(("a", scores.MEAN), (0, 1)):
        block, alone = found[4, scores.POOLED, label].blocks[fold], found[4, fold, label]
        np.testing.assert_array_equal(block.of("s", "dsc"), alone.of("s", "dsc"))
        np.testing.assert_array_equal(block.seeds["s"], alone.seeds["s"])
        assert alone.blocks == (alone,)
    assert pooled.blocks[1].of("t", "dsc").shape == (0, 3), "the arm is there, without a run"
    assert len(list(scores.read_scores(cases, ("dsc",), folds="together"))) == 2


def test_one_case_in_several_folds_counts_once_a_fold():
    rows = [("s", 0, "c", "g", "a", 0.25), ("s", 0, "c", "g", "a", 0.75)]
    pooled = read(table(rows, fold=[0, 1]))[4, scores.POOLED, "a"]
    np.testing.assert_array_equal(pooled.of("s", "dsc"), [[0.25, 0.75]])
    assert pooled.groups.tolist() == [0, 0]


def test_metrics_without_a_value_and_missing_columns():
    cases = table([("s", 0, "c", "g", "a", 0.5)], nsd=math.nan)
    assert next(iter(scores.read_scores(cases, ("dsc", "nsd", "hd95")))).metrics == ("dsc", "hd95")
    with pytest.raises(UserError, match=r"cases.csv lacks the columns group, assd"):
        list(scores.read_scores(cases.drop(columns="group"), ("dsc", "assd")))


def _arms(values_a, values_b, seeds_a=None, seeds_b=None):
    rows = []
    for arm, values, seeds in (("a", values_a, seeds_a), ("b", values_b, seeds_b)):
        for seed, line in zip(seeds or range(len(values)), values, strict=True):
            rows += [(arm, seed, f"c{i}", f"g{i // 2}", "x", v) for i, v in enumerate(line)]
    return read(table(rows))[4, 0, "x"]


def test_contrast_pairs_seeds_and_weighs_arms():
    found = _arms(
        [[1.0, 3.0, 5.0], [2.0, 2.0, 8.0]], [[7.0, 7.0, 7.0], [1.0, 1.0, 1.0], [0.0, 1.0, 2.0]], [5, 3], [4, 3, 5]
    )
    got = scores.contrast(found, {"a": 1.0, "b": -0.5}, "dsc")
    assert got.seeds.tolist() == [3, 5]
    # Seed 3 of b is (1, 1 | 1), of a (2, 2 | 8); seed 5 of b is (0, 1 | 2), of a (1, 3 | 5).
    np.testing.assert_allclose(got.d, [[1.5, 7.5], [1.75, 4.0]])
    assert (got.paired, got.num_cases, got.left_out) == (True, 3, 0)


def test_contrast_of_arms_without_a_common_seed_matches_in_order():
    found = _arms([[1.0], [2.0], [3.0]], [[10.0], [20.0]], [0, 1, 2], [101, 100])
    got = scores.contrast(found, {"a": 1.0, "b": -1.0}, "dsc")
    assert not got.paired
    assert got.seeds.tolist() == [100, 101]
    np.testing.assert_allclose(got.d, [[1.0 - 20.0], [2.0 - 10.0]])


def test_contrast_leaves_incomplete_cases_out_of_both_arms():
    found = _arms([[1.0, 3.0, 5.0], [2.0, 2.0, 8.0]], [[0.0, 0.0, math.nan], [0.0, math.nan, 0.0]])
    got = scores.contrast(found, {"a": 1.0, "b": -1.0}, "dsc")
    np.testing.assert_allclose(got.d, [[1.0], [2.0]])
    assert (got.num_cases, got.left_out) == (1, 2)
