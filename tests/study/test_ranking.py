"""Rankings of starts: planted truths, nothing where there is nothing, and what is no start."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from jaxseg.analysis.simultaneous import joint_level
from jaxseg.study import claims
from jaxseg.study.claims.answer import answer_pair
from jaxseg.study.claims.dsc import gain
from jaxseg.study.claims.evidence import Pair, gather
from jaxseg.study.claims.findings import UNDECIDED
from jaxseg.study.claims.ranking import COLUMNS, START, rank, ranking_table, roles_of, sentence
from jaxseg.study.claims.rules import of_checkpoint
from jaxseg.study.claims.study_tables import read_record
from jaxseg.study.record import Counts, Pretraining, RecordedArm, RecordedRun, RecordedTask, StudyRecord
from jaxseg.text import signed
from jaxseg.types import RunKey
from simulated import tables as sim
from simulated.designs import STARTS, starts_study
from tests.study.whole_study import rng


def ranked(*gains, draw=0, **more):
    evidence = gather(starts_study(rng(draw), *gains, **more))
    found = rank(evidence)
    return found, sentence(evidence, found), evidence


# -------------------------------------------------------------------------------------------------------- the sentence


def test_a_start_that_gains_is_named():
    found, text, _ = ranked(0.0, 0.03, 0.0, 0.0)
    assert (found.better, found.may_be_best) == (["transfer_b"], ["transfer_b"])
    assert f"start from transfer_b: {signed(found.joint['transfer_b', 'scratch'].value)} DSC [" in text
    assert "better than each of the other 3 starts" in text


def test_no_start_is_named_before_the_first_look():
    study = starts_study(rng(0), 0.0, 0.03, 0.0, 0.0)
    early = study._replace(record=study.record._replace(looks=(64, 128)))
    table = claims.claims(early)
    reasons = set(table[table["role"] == "ranking"]["reason"])
    seeds = claims.judging.number_of_seeds(study)
    why = f"the first look is at 64 seeds, has {seeds}"
    assert reasons == {f"Which start to take is not judged yet: {why}."}
    assert set(table[table["role"] == "ranking"]["grade"]) == {UNDECIDED}
    ranking = ranking_table(claims.judging.judged_evidence(early), 0, claims.judging.before_looks(early))
    starts = ranking[ranking["role"] == START]
    assert not starts["better"].any()
    assert starts["may_be_best"].all()
    assert set(starts["rank_low"]) == {1}
    assert set(starts["rank_high"]) == {len(starts)}
    assert set(starts["grade"]) == {UNDECIDED}


def test_starts_that_cannot_be_told_apart_are_named_together():
    found, text, _ = ranked(0.03, 0.0305, 0.0, 0.0)
    assert {*found.may_be_best} == {*found.better} == {"transfer_a", "transfer_b"}
    assert "it cannot be told apart from transfer_" in text
    assert "2 of the 4 starts are worse" in text


def test_where_nothing_gains_no_start_is_named():
    found, text, _ = ranked(0.0, 0.0, 0.0, 0.0)
    assert found.better == []
    assert {*found.may_be_best} == {*STARTS}
    assert "none of 4 starts is better than scratch by 0.01 DSC: the best, transfer_" in text
    _, unsure, _ = ranked(0.0, 0.0, 0.0, 0.0, groups=4, spread=(0.02, 0.02, 0.02))
    assert "none of 4 starts is shown to be better than scratch" in unsure


def test_a_placebo_that_is_better_takes_the_sentence_back():
    study = starts_study(rng(), 0.03, 0.0)
    cases = study.tables["cases"]
    raised = cases.assign(dsc=cases["dsc"] + 0.03 * (cases["arm"] == "scratch_b"))
    evidence = gather(study._replace(tables={"cases": raised}))
    text = sentence(evidence, rank(evidence))
    assert "but scratch_b, a placebo, is ranked above scratch too, by chance or by a flaw" in text


def test_what_a_checkpoint_may_have_seen_is_said_with_the_ranking():
    study = starts_study(rng(), 0.03, 0.0)
    seen = of_checkpoint("images of mice")
    arms = {**study.record.arms, "transfer_b": study.record.arms["transfer_b"]._replace(seen=seen)}
    evidence = gather(study._replace(record=study.record._replace(arms=arms)))
    assert sentence(evidence, rank(evidence)).endswith(f" transfer_b: {seen}.")
    table = ranking_table(evidence, 0).set_index("arm")["seen"]
    assert (table["transfer_b"], table["transfer_a"]) == (seen, "")


@pytest.mark.parametrize(
    ("more", "why"),
    [({"seeds": 4}, "needs at least 8 seeds, has 4"), ({"groups": 2}, "needs at least 3 test groups, has 2")],
)
def test_too_little_data_decides_nothing(more, why):
    found, text, _ = ranked(0.1, 0.0, **more)
    assert f"undecided: {why}" in text
    assert (found.better, {*found.may_be_best}) == ([], {"transfer_a", "transfer_b"})


# ----------------------------------------------------------------------------------------------------------- the table


def test_the_table_holds_the_gains_of_claims_and_ranks_the_placebo_as_nothing():
    _, text, evidence = ranked(0.0, 0.03, 0.015, 0.0)
    table = ranking_table(evidence, 0).set_index("arm")
    assert tuple(table.reset_index().columns) == COLUMNS
    assert table.index[0] == "transfer_b"
    assert table["rank"].tolist() == [1, 2, 3, 4, 5, 6]
    assert table["gain"].drop("scratch").is_monotonic_decreasing
    at_look = ranking_table(dataclasses.replace(evidence, level=0.0054), 0)
    assert (set(table["confidence"]), set(at_look["confidence"])) == ({0.95}, {1 - 0.0054})
    for arm in ("transfer_a", "scratch_b"):
        own, _ = gain(evidence, Pair(arm))
        assert tuple(table.loc[arm, ["gain", "ci_low", "ci_high"]]) == (own.value, own.low, own.high)
        assert table.loc[arm, "joint_low"] < own.low < own.high < table.loc[arm, "joint_high"]
    assert table.loc["transfer_b", ["rank_low", "rank_high"]].tolist() == [1, 1]
    placebo = table.loc["scratch_b"]
    assert (placebo["role"], placebo["better"], placebo["may_be_best"]) == ("placebo", False, False)
    assert pd.isna(placebo["rank_low"])
    to_best = table.loc["transfer_c", ["to_best", "to_best_low", "to_best_high"]].astype(float)
    assert to_best["to_best_high"] < 0
    gains = table["gain"].astype(float)
    assert to_best["to_best"] == pytest.approx(gains["transfer_c"] - gains["transfer_b"])
    assert table.loc["transfer_c", ["source", "pretrain_steps"]].tolist() == ["set c", 500]
    rows = claims.claims(claims.StudyTables(evidence.record, {"cases": evidence.tables["cases"]}))
    own_rows = rows[rows["role"] == "ranking"].set_index("arm")
    assert set(own_rows["reason"]) == {text}
    assert own_rows["value"].to_dict() == table["gain"][table["role"] == START].to_dict()


def test_a_lost_run_leaves_the_others_their_ranking():
    study = starts_study(rng(), 0.03, 0.0, 0.0)
    cases = study.tables["cases"]
    fewer = cases[(cases["arm"] != "transfer_c") | (cases["seed"] > 0)]
    whole, lost = (rank(gather(study._replace(tables={"cases": one}))) for one in (cases, fewer))
    one = lost.joint["transfer_a", "scratch"]
    assert one.value == whole.joint["transfer_a", "scratch"].value
    assert one.confidence == pytest.approx(1 - 0.05 / 3)  # an equal share: no correlation is known
    assert one.confidence > whole.joint["transfer_a", "scratch"].confidence


def test_starts_that_lost_different_seeds_share_the_level_equally():
    """Rows of equal number that are other seeds do not vary together, and limits must not be drawn as if they did."""
    study = starts_study(rng(), 0.03, 0.0, seeds=9)
    cases = study.tables["cases"]

    def level(lost: dict[str, int]) -> float:
        kept = cases[[lost.get(arm) != seed for arm, seed in zip(cases["arm"], cases["seed"], strict=True)]]
        found = rank(gather(study._replace(tables={"cases": kept})))
        return found.joint["transfer_a", "scratch"].confidence

    own = {"transfer_a": 3, "transfer_b": 5}
    assert level(own) == pytest.approx(1 - 0.05 / 2)
    assert level(dict.fromkeys(own, 3)) < level(own)


def test_a_start_is_not_told_apart_from_others_alone():
    """The first of the ranking may be unproven beside a proven one; it is named once."""
    found, _, evidence = ranked(0.05, 0.02)
    joint = dict(found.joint)
    limits = {
        ("transfer_a", "scratch"): (-0.01, 0.11),
        ("transfer_b", "scratch"): (0.01, 0.03),
        ("transfer_a", "transfer_b"): (0.001, 0.059),
        ("transfer_b", "transfer_a"): (-0.059, -0.001),
    }
    for pair, (low, high) in limits.items():
        joint[pair] = dataclasses.replace(joint[pair], value=(low + high) / 2, low=low, high=high)
    found = found._replace(joint=joint)
    assert (found.better, found.may_be_best) == (["transfer_b"], ["transfer_a"])
    text = sentence(evidence, found)
    assert "start from transfer_a: +0.050 DSC" in text
    assert "told apart" not in text
    assert "it is better than the other start; that it gains is seen by way of transfer_b, which is better than" in text


def test_folds_that_rotate_are_ranked_too():
    more = {"folds": 3, "rotate": True, "groups": 14, "first_seed": {"scratch_b": 999}}
    found, _, _ = ranked(0.03, 0.0, 0.0, seeds=12, **more)
    assert found.better == ["transfer_a"]
    one = found.joint["transfer_a", "scratch"]
    assert (one.n_seeds, one.n_groups) == (12, 42)


# ------------------------------------------------------------------------------------------------------ what is ranked


def test_a_study_of_one_start_has_no_ranking(study):
    assert rank(gather(study)) is None
    assert ranking_table(gather(study), 0).empty
    one = starts_study(rng(), 0.03)
    assert "ranking" not in set(claims.claims(one)["role"])


def test_only_different_starts_are_ranked():
    arm = sim.arm(init="pretrained", start="source", like="all")
    arms = {
        "transfer": arm,
        "transfer_nested": arm._replace(sources={0: 0, 1: 0}),
        "transfer_frozen": arm._replace(freeze="encoder"),
        "first_1": arm._replace(init="pretrained:encoder/level_0"),
        "self_transfer": arm._replace(start="source_2"),
    }
    assert roles_of(sim.record("scratch", **arms)) == {}
    slow = arm._replace(like="all slowly")
    roles = roles_of(sim.record("scratch", **arms, transfer_slow_encoder=slow))
    assert roles == {"scratch": "baseline", "transfer": START, "self_transfer": "control",
                     "transfer_slow_encoder": START}  # fmt: skip
    lower = arm._replace(rates={0: (1e-4,)})
    assert roles_of(sim.record("scratch", **arms, transfer_low_rate=lower))["transfer_low_rate"] == START


def test_the_answer_of_a_study_is_not_about_its_positive_control():
    arm = sim.arm(init="pretrained", start="source", pretrain_steps=9)
    arms = {"scratch_b": sim.arm(), "self_transfer": arm, "transfer_hearts": arm._replace(start="source_2")}
    assert answer_pair(sim.record("scratch", **arms)) == Pair("transfer_hearts", "scratch")
    del arms["transfer_hearts"]
    assert answer_pair(sim.record("scratch", **arms)) == Pair("self_transfer", "scratch")


def test_networks_from_elsewhere_are_not_taken_for_the_study_s_own():
    """Both are called `source` in keys of runs; the steps, seconds and data of one must not be said of the other."""
    task = RecordedTask(name="t", labels=("a",), channels=1, normalization=("zscore",), cases=Counts(8, 2, 2))
    run = RecordedRun(arm="own", train_cases=0, fold=0, seed=0, kind="train", directory="d", index=0, steps=9,
                      source=RunKey("source", 0, 0, 0))  # fmt: skip
    trained = dataclasses.replace(run, arm="source", kind="pretrain", directory="p", steps=5, source=None, seconds=1.5)
    runs = (
        run,
        dataclasses.replace(run, arm="given", index=1),
        dataclasses.replace(run, arm="other", index=2),
        trained,
    )
    arms = {
        "own": RecordedArm(kind="network", init="pretrained", pretrain=Pretraining(5, "per_seed", ""), source="s"),
        "given": RecordedArm(kind="network", init="pretrained", pretrain=Pretraining(None, "one", "there")),
        "other": RecordedArm(kind="network", init="pretrained", pretrain=Pretraining(None, "one", "elsewhere")),
    }
    found = read_record(StudyRecord(name="x", source=task, target=task, arms=arms, runs=runs)).arms
    assert [found[name].pretrain_steps for name in arms] == [5, None, None]
    assert found["own"].pretrain_seconds == 1.5
    assert np.isnan(found["given"].pretrain_seconds)
    assert found["own"].source == "s"
    assert len({one.start for one in found.values()}) == 3


# ------------------------------------------------------------------------------------------------------ the joint level


@pytest.mark.parametrize("shared", [0.0, 1.0])
def test_the_level_of_one_interval_follows_the_correlation(shared):
    """Independent contrasts share the level as Sidak has it; of one and the same contrast there is nothing to share."""
    draw = np.random.default_rng(0)
    own, common = draw.normal(size=(5, 400, 40)), draw.normal(size=(1, 400, 40))
    blocks = [np.sqrt(1 - shared) * own + np.sqrt(shared) * common]
    found = joint_level(blocks, [1e6] * 5, level=0.05, rng=np.random.default_rng(1))
    expected = 0.05 if shared else 1 - 0.95 ** (1 / 5)
    assert found == pytest.approx(expected, rel=0.1)
