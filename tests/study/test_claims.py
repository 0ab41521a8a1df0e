"""Verdicts on simulated studies whose truth is known."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import jaxseg
from jaxseg.study import claims, files
from jaxseg.study.claims.evidence import gather
from jaxseg.study.claims.findings import INCONCLUSIVE, SUPPORTED
from jaxseg.study.claims.rules import RULES
from jaxseg.study.claims.study_tables import StudyTables, read_record
from jaxseg.study.claims.table import COLUMNS, judge_claim
from simulated import settings
from simulated import tables as sim
from simulated.settings import EXPECTED, FALSE, SETTINGS
from tests.study.whole_study import reasons, rng, verdict

# ------------------------------------------------------------------------------------------------------- error rates


def share(setting, verdict, draws):
    return settings.verdicts(setting, draws).count(verdict) / draws


def name_of(setting):
    return f"{setting.claim}-{setting.truth}-{setting.name}".replace(" ", "_")


@pytest.mark.parametrize("setting", [s for s in SETTINGS if s.truth in EXPECTED], ids=name_of)
def test_a_clear_truth_is_found(setting):
    assert share(setting, EXPECTED[setting.truth], 3) >= 2 / 3


def test_false_claims_are_hardly_ever_supported():
    # Few draws of every setting: together enough to notice a rule that errs in a tenth of the studies.
    false = [setting for setting in SETTINGS if setting.truth == FALSE]
    wrong = {name_of(setting): share(setting, SUPPORTED, 6) for setting in false}
    assert np.mean(list(wrong.values())) <= 0.05
    assert max(wrong.values()) <= 1 / 3, wrong
    assert {setting.claim for setting in false} == set(RULES)


@pytest.mark.slow
@pytest.mark.parametrize("setting", [s for s in SETTINGS if s.truth == FALSE], ids=name_of)
def test_false_claims_are_supported_in_one_of_twenty(setting):
    draws = 200
    assert share(setting, SUPPORTED, draws) <= 0.05 + 2 * (0.05 * 0.95 / draws) ** 0.5


@pytest.fixture(scope="module")
def table(study):
    return claims.claims(study)


def test_one_verdict_a_claim_with_its_quantities(table):
    assert tuple(table.columns) == COLUMNS
    found = {claim: verdict(table, claim)["verdict"] for claim in RULES}
    true = ("C1", "C2", "C4", "C4b", "C5", "C6", "C7", "C8", "C9", "C10", "C11")
    assert {claim for claim, one in found.items() if one == SUPPORTED} == set(true)
    assert found["C3"] == INCONCLUSIVE
    of_claims = table[(table["role"] == "claim") & (table["claim"] != "C3")]
    assert of_claims["value"].notna().all()
    limits = of_claims.dropna(subset=["ci_low"])
    assert ((limits["ci_low"] <= limits["value"]) & (limits["value"] <= limits["ci_high"])).all()
    assert (limits["n_seeds"] == 8).all()
    assert set(limits.loc[limits["claim"].isin(["C2", "C4", "C4b", "C7"]), "n_groups"]) == {12}
    assert "low above 1.1" in verdict(table, "C1")["reason"]


def test_rows_survive_a_file(table, tmp_path):
    files.write_table(tmp_path / "claims.csv", table)
    back = pd.read_csv(tmp_path / "claims.csv")
    assert back.shape == table.shape
    sizes = back[back["claim"] == "C4"].query("role == 'claim'")["train_cases"]
    assert sizes.isna().tolist() == [True, False]  # a slope spans the sizes
    assert sizes.iloc[1] == 8


def test_placebo_is_beside_every_comparison(table):
    control = table[(table["role"] == "control") & (table["arm"] == "scratch_b")]
    assert set(control["claim"]) == {"C1", "C2", "C4", "C4b", "C9", "C10"}  # it has no source network
    assert (control.loc[control["claim"] == "C9", "n_seeds"] == 8).all()  # matched in order: they share no seed
    assert verdict(table[table["arm"] == "scratch_b"], "C4b", "control")["verdict"] == SUPPORTED
    assert "as a placebo should be" in verdict(table[table["arm"] == "scratch_b"], "C4b", "control")["reason"]
    for claim in ("C1", "C2", "C4", "C9"):
        assert verdict(table[table["arm"] == "scratch_b"], claim, "control")["verdict"] != SUPPORTED, claim


def test_a_placebo_that_earns_support_is_named(study):
    cases = study.tables["cases"]
    better = cases["dsc"] + 0.05 * ((cases["arm"] == "scratch_b") & (cases["train_cases"] == 8))
    found = claims.claims(study._replace(tables={"cases": cases.assign(dsc=better)}))
    row = verdict(found[found["arm"] == "scratch_b"], "C2", "control")
    assert row["verdict"] == SUPPORTED
    assert "supported by chance or by a flaw" in row["reason"]


def test_no_encoder_stands_in_for_the_frozen_one(study):
    cases = study.tables["cases"]
    pooled = cases[cases["arm"] == "frozen_random_encoder"].assign(arm="pooled_encoder")
    curves = study.tables["curves"]
    record = study.record._replace(arms={**study.record.arms, "pooled_encoder": sim.arm()})
    more = {
        "cases": pd.concat([cases, pooled]),
        "curves": pd.concat([curves, curves[curves["arm"] == "frozen_random_encoder"].assign(arm="pooled_encoder")]),
    }
    found = claims.claims(StudyTables(record, more))
    row = verdict(found[found["arm"] == "pooled_encoder"], "C7", "control")
    assert row["verdict"] == SUPPORTED
    assert row["reason"].startswith("control: averages of the image")


def test_other_sizes_have_quantities_and_no_verdict(study):
    small = sim.curves(rng(1), {"scratch": 1.0, "transfer": 2.0}).assign(train_cases=8)
    tables = {**study.tables, "curves": pd.concat([study.tables["curves"], small])}
    found = claims.claims(study._replace(tables=tables))
    rows = found[(found["role"] == "other size") & (found["claim"] == "C1")]
    assert rows["train_cases"].unique().tolist() == [8]
    assert rows["value"].iloc[0] == pytest.approx(2, rel=0.15)
    assert (rows["verdict"] == "").all()
    assert verdict(found, "C1")["train_cases"] == 0


def test_answer_in_words(table):
    reason = table.loc[table["role"] == "answer", "reason"].item()
    assert reason.startswith("transfer on hippo, 64 training cases, 8 seeds: ")
    assert "DSC [" in reason
    assert "times fewer steps [" in reason
    assert "times more steps [" in reason  # 500 steps of pretraining cost more than transfer saves
    assert reason.endswith("with pretraining counted")


def test_a_tiny_study_has_its_table(tiny_study):
    study = jaxseg.load(tiny_study)
    found = study.table("claims")
    assert set(found.loc[found["role"] == "claim", "verdict"]) == {INCONCLUSIVE}
    assert (found["rule_version"] == 1).all()
    record = read_record(study.record)
    assert record.arms["transfer"].pretrain_steps == study.settings.arms[1].pretrain.steps
    assert record.arms["scratch"].pretrain_steps == 0
    assert record.arms["scratch"].schedule == "cosine"
    assert not record.arms["transfer"].one_source
    assert not record.one_draw


def test_one_source_and_one_draw_are_read_from_the_runs(tiny_study):
    saved = jaxseg.load(tiny_study).record
    same = [
        dataclasses.replace(run, train_cases=4, source=run.source and run.source._replace(seed=0)) for run in saved.runs
    ]
    record = read_record(dataclasses.replace(saved, runs=tuple(same)))
    assert record.arms["transfer"].one_source
    assert record.one_draw  # the study varies init and order alone
    own = [dataclasses.replace(run, subset_id=index) for index, run in enumerate(same)]
    assert not read_record(dataclasses.replace(saved, runs=tuple(own))).one_draw


# -------------------------------------------------------------------------------------------- tables in other orders


def test_rows_may_come_in_any_order(study):
    shuffled = {
        name: rows.sample(frac=1, random_state=0) for name, rows in study.tables.items() if name != "similarity"
    }
    similarity = study.tables["similarity"]
    turned = similarity["comparison"] == "across_arms"
    swapped = {f"{a}_{x}": similarity[f"{a}_{y}"] for a in ("arm", "seed", "step") for x, y in ("ab", "ba")}
    shuffled["similarity"] = pd.concat([similarity[~turned], similarity.assign(**swapped)[turned]])
    before, after = reasons(study), reasons(study._replace(tables=shuffled))
    for claim in RULES:
        assert after[claim].verdict == before[claim].verdict
        for a, b in zip(after[claim].quantities, before[claim].quantities, strict=True):
            assert a[1:4] == pytest.approx(b[1:4], nan_ok=True)


def test_folds_are_tested_together():
    levels = {"scratch": {0: 0.8}, "transfer": {0: 0.83}}
    study = sim.study(sim.record(*levels), cases=sim.cases(rng(0), levels, folds=3, groups=5))
    found = judge_claim("C4b", gather(study)).quantities[0]
    assert (found.n_seeds, found.n_groups) == (8, 15)
    assert set(claims.claims(study).dropna(subset=["value"])["fold"]) == {-1}


def test_layers_without_enough_voxels_are_left_out(study):
    similarity = study.tables["similarity"]
    gone = similarity["layer"] == "decoder/level_1"
    found = reasons(study._replace(tables={"similarity": similarity.assign(value=similarity["value"].mask(gone))}))
    assert found["C11"].verdict == SUPPORTED
    assert "decoder/level_1" not in " ".join(q.name for q in found["C11"].quantities)
    most = similarity["layer"] != "encoder/level_0"
    found = reasons(study._replace(tables={"similarity": similarity.assign(value=similarity["value"].mask(most))}))
    assert "only 1 of 5 layers can be used" in found["C9"].reason


def test_the_guide_lists_every_claim():
    guide = (Path(__file__).parents[2] / "docs" / "claims.md").read_text().splitlines()
    for claim, rule in RULES.items():
        line = next(line for line in guide if line.startswith(f"| {claim} "))
        assert rule.statement in line
