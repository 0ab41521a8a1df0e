"""Verdicts on simulated studies whose truth is known."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import jaxseg
from jaxseg.reserved import MEAN, POOLED
from jaxseg.study import claims, files
from jaxseg.study.claims.evidence import gather
from jaxseg.study.claims.findings import CONTRADICTED, SUPPORTED, UNDECIDED
from jaxseg.study.claims.judging import judge_claim
from jaxseg.study.claims.rules import DELTA, RULES
from jaxseg.study.claims.study_tables import read_record
from jaxseg.study.claims.table import COLUMNS
from jaxseg.study.score.comparisons import comparisons
from simulated import designs as settings
from simulated import tables as sim
from simulated.designs import SETTINGS, SHARES
from simulated.settings import EXPECTED, FALSE
from tests.study.whole_study import changed, reasons, rng, verdict

# ------------------------------------------------------------------------------------------------------- error rates


def share(setting, verdict, draws):
    return settings.verdicts(setting, draws).count(verdict) / draws


def name_of(setting):
    return f"{setting.claim}-{setting.truth}-{setting.name}".replace(" ", "_")


@pytest.mark.parametrize("setting", [s for s in SETTINGS if s.truth in EXPECTED], ids=name_of)
def test_a_clear_truth_is_found_and_never_turned(setting):
    found = settings.verdicts(setting, 3)
    # Settings with a power of a third, which the table of docs/claims.md shows, may find nothing in three studies.
    wrong = CONTRADICTED if EXPECTED[setting.truth] == SUPPORTED else SUPPORTED
    assert wrong not in found


def test_true_claims_are_mostly_found():
    clear = [setting for setting in SETTINGS if setting.truth in EXPECTED]
    found = [share(setting, EXPECTED[setting.truth], 2) for setting in clear]
    assert np.mean(found) >= 0.75


def test_false_claims_are_hardly_ever_supported():
    # Few draws of every setting: together enough to notice a rule that errs in a tenth of the studies.
    false = [setting for setting in SETTINGS if setting.truth == FALSE]
    wrong = {name_of(setting): share(setting, SUPPORTED, 5) for setting in false}
    assert np.mean(list(wrong.values())) <= 0.06
    assert max(wrong.values()) <= 2 / 5, wrong
    assert {setting.claim for setting in false} == set(RULES)


@pytest.mark.slow
@pytest.mark.parametrize("setting", [s for s in SETTINGS if s.truth == FALSE], ids=name_of)
def test_false_claims_are_supported_in_one_of_twenty(setting):
    draws = 200
    assert share(setting, SUPPORTED, draws) <= 0.05 + 2 * (0.05 * 0.95 / draws) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("one", SHARES, ids=lambda one: one.name.replace(" ", "_"))
def test_intervals_cover_and_equals_differ_as_often_as_they_should(one):
    draws = 300
    found = settings.share(one, draws)
    allowed = 2 * (0.05 * 0.95 / draws) ** 0.5
    assert one.low - allowed <= found <= one.high + allowed


# ------------------------------------------------------------------------------------------------------------ the table


@pytest.fixture(scope="module")
def table(study):
    return claims.claims(study)


def test_one_verdict_a_claim_with_its_quantities(table):
    assert tuple(table.columns) == COLUMNS
    judged = {claim: verdict(table, claim) for claim in RULES if claim != "C3"}
    true = {"C1", "C2", "C4", "C4b", "C5", "C6", "C7", "C8", "C9", "C10", "C11"}
    assert {claim for claim, one in judged.items() if one["verdict"] == SUPPORTED} == true
    of_claims = table[table["role"] == "claim"]
    assert of_claims["value"].notna().all()
    limits = of_claims.dropna(subset=["ci_low"])
    assert ((limits["ci_low"] <= limits["value"]) & (limits["value"] <= limits["ci_high"])).all()
    # Two fine-tunings of a source network count as one; scratch alone has all its seeds.
    assert set(limits["n_seeds"]) == {8, 16}
    assert set(limits.loc[limits["claim"].isin(["C2", "C4", "C4b", "C7"]) & (limits["n_groups"] > 0), "n_groups"]) == {
        12
    }
    assert (table["rule_version"] == 2).all()
    assert not table["exploratory"].any()


def test_what_a_study_lacks_is_no_row_of_verdicts(table):
    lacking = table[table["role"] == "lacking"]
    assert lacking["claim"].tolist() == ["C3"]
    assert lacking["needs"].item().startswith("needs several studies")
    assert (lacking["verdict"] == "").all()


def test_grades_are_those_of_the_intervals(table):
    graded = table[(table["grade"] != "") & (table["role"] == "claim") & table["quantity"].str.startswith("gain")]
    for row in graded.itertuples():
        expected = "material gain" if row.ci_low > 0.01 else "gain" if row.ci_low > 0 else "no material difference"
        assert row.grade == expected
    assert (graded["projected_low"] <= graded["ci_low"]).all()
    assert (graded["projected_high"] >= graded["ci_high"]).all()


def test_rows_survive_a_file(table, tmp_path):
    files.write_table(tmp_path / "claims.csv", table)
    back = pd.read_csv(tmp_path / "claims.csv")
    assert back.shape == table.shape
    sizes = back[back["claim"] == "C4"].query("role == 'claim'")["train_cases"]
    assert sizes.isna().tolist() == [True, False, True]  # a slope spans the sizes
    assert sizes.iloc[1] == 8


def test_placebo_is_beside_every_comparison(table):
    control = table[(table["role"] == "control") & (table["arm"] == "scratch_b")]
    assert set(control["claim"]) == {"C1", "C2", "C4", "C4b", "C9"}  # it has no source network
    assert verdict(table[table["arm"] == "scratch_b"], "C4b", "control")["verdict"] == SUPPORTED
    assert "as a placebo should be" in verdict(table[table["arm"] == "scratch_b"], "C4b", "control")["reason"]
    for claim in ("C1", "C2", "C9"):
        assert verdict(table[table["arm"] == "scratch_b"], claim, "control")["verdict"] != SUPPORTED, claim
    (by_chance,) = control[(control["claim"] == "C4") & (control["key"] == "smallest")]["ci_high"]
    assert by_chance < DELTA, "one in forty such draws gains, as this one does by 0.002 DSC, and none by what matters"


def test_a_placebo_that_earns_support_is_named(study):
    cases = study.tables["cases"]
    better = cases["dsc"] + 0.08 * ((cases["arm"] == "scratch_b") & (cases["train_cases"] == 8))
    found = claims.claims(study._replace(tables={"cases": cases.assign(dsc=better)}))
    row = verdict(found[found["arm"] == "scratch_b"], "C2", "control")
    assert row["verdict"] == SUPPORTED
    assert "supported by chance or by a flaw" in row["reason"]


def test_no_encoder_stands_in_for_the_frozen_one(table):
    row = verdict(table[table["arm"] == "pooled_encoder"], "C7", "control")
    assert row["verdict"] == CONTRADICTED
    assert row["reason"].startswith("control: averages of the image")


def test_other_sizes_have_quantities_and_no_verdict(table):
    rows = table[(table["role"] == "other size") & (table["claim"] == "C1")]
    assert rows["train_cases"].unique().tolist() == [8, 16, 32, 48]
    assert (rows["verdict"] == "").all()
    assert verdict(table, "C1")["train_cases"] == 0


def test_answer_in_words(table):
    rows = table[table["role"] == "answer"]
    assert (rows["claim"] == "answer").all()
    reason = rows["reason"].iloc[0]
    assert reason.startswith("Transfer on hippo, 64 training cases, 8 source networks (16 seeds): +0.001 DSC [")
    assert re.search(r"no material difference; 1\.\d+ times fewer steps \[", reason)
    assert "times more steps [" in reason  # 1,500 steps of pretraining cost more than transfer saves
    assert re.search(r"Scratch still gains 0\.00\d DSC a doubling of its 3,000 steps\.$", reason)
    by = rows.set_index("quantity")
    for name in ("gain, 64 training cases", "times fewer steps"):
        assert f"{by.loc[name, 'value']:.3g}"[:4] in reason
    assert by.loc["gain, 64 training cases", "grade"] == "no material difference"


def test_a_tiny_study_has_its_table(tiny_study):
    study = jaxseg.load(tiny_study)
    found = study.table("claims")
    assert set(found.loc[found["role"] == "claim", "verdict"]) <= {UNDECIDED, "void"}
    assert (found["rule_version"] == 2).all()
    record = read_record(study.record)
    assert record.arms["transfer"].pretrain_steps == study.settings.arms[1].pretrain.steps
    assert record.arms["scratch"].pretrain_steps == 0
    assert record.arms["scratch"].schedule == "cosine"
    assert not record.arms["transfer"].one_source
    assert record.arms["transfer"].sources == {seed: seed for seed in record.arms["transfer"].sources}
    assert not record.arms["transfer"].one_draw


def test_one_source_and_one_draw_are_read_from_the_runs(tiny_study):
    saved = jaxseg.load(tiny_study).record
    same = [
        dataclasses.replace(run, train_cases=4, source=run.source and run.source._replace(seed=0)) for run in saved.runs
    ]
    record = read_record(dataclasses.replace(saved, runs=tuple(same)))
    assert record.arms["transfer"].one_source
    assert record.arms["transfer"].one_draw  # the study varies init and order alone
    own = [dataclasses.replace(run, subset_id=index) for index, run in enumerate(same)]
    assert not read_record(dataclasses.replace(saved, runs=tuple(own))).arms["transfer"].one_draw


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
            assert (a.value, a.low, a.high) == pytest.approx((b.value, b.low, b.high), nan_ok=True)


def test_folds_are_tested_together():
    levels = {"scratch": {0: 0.8}, "transfer": {0: 0.83}}
    study = sim.study(sim.record(*levels), cases=sim.cases(rng(0), levels, folds=3, groups=5))
    found = judge_claim("C4b", gather(study)).quantities[0]
    assert (found.n_seeds, found.n_groups, found.folds) == (8, 15, 1)
    assert set(claims.claims(study).dropna(subset=["value"])["fold"]) == {-1}


def test_folds_that_rotate_are_intervals_of_their_own():
    levels = {"scratch": {0: 0.8}, "transfer": {0: 0.83}}
    cases = sim.cases(rng(0), levels, folds=4, groups=5, seeds=16, rotate=True)
    found = judge_claim("C4b", gather(sim.study(sim.record(*levels), cases=cases)))
    gain = found.quantities[0]
    assert (gain.n_seeds, gain.n_groups, gain.folds) == (16, 20, 4)
    by_fold = cases.groupby(["arm", "fold"])["dsc"].mean().unstack("arm")
    assert gain.value == pytest.approx((by_fold["transfer"] - by_fold["scratch"]).mean())
    # The tables that a reader sees say the same.
    table = comparisons(cases, ("scratch", "transfer"), confidence=gain.confidence, rng=rng(0), metrics=("dsc",))
    (row,) = table[(table["fold"] == POOLED) & (table["label"] == MEAN)].to_dict("records")
    shown = [row[name] for name in ("mean_diff", "ci_low", "ci_high", "n_seeds", "n_groups")]
    assert shown == [gain.value, gain.low, gain.high, gain.n_seeds, gain.n_groups]
    fewer = cases[cases["seed"] < 12]
    found = judge_claim("C4b", gather(sim.study(sim.record(*levels), cases=fewer)))
    assert "needs at least 4 seeds in each fold, has 3" in found.reason


def test_layers_without_enough_voxels_are_left_out(study):
    similarity = study.tables["similarity"]
    gone = similarity["layer"] == "decoder/level_1"
    found = reasons(changed(study, "similarity", value=similarity["value"].mask(gone)))
    assert found["C11"].verdict == SUPPORTED
    most = similarity["layer"] != "encoder/level_0"
    found = reasons(changed(study, "similarity", value=similarity["value"].mask(most)))
    assert found["C9"].verdict == "void"
    assert "only 1 of 5 layers can be used" in found["C9"].reason


def test_a_deep_level_that_was_not_measured_contradicts_nothing(study):
    """What all deep levels would have to show is not known of one that has too few voxels for its channels."""
    rows = study.tables["similarity"]
    layers = rows["layer"].replace({"decoder/level_0": "encoder/level_3"})
    of_arm = (rows["comparison"] == "to_source") & (rows["layer"] == "encoder/level_2")
    unlike = rows["value"].mask(of_arm, 0.4 + 0.001 * (rows["seed_a"] % 5))  # that of networks that share nothing
    known = reasons(changed(study, "similarity", value=unlike))
    assert (known["C11"].verdict, known["C11b"].verdict) == ("contradicted", "contradicted")
    found = reasons(changed(study, "similarity", layer=layers, value=unlike.where(layers != "encoder/level_3")))
    for claim in ("C11", "C11b"):
        assert found[claim].verdict == UNDECIDED
        assert "encoder/level_3: not measured" in found[claim].reason
        (deep,) = [one for one in found[claim].quantities if one.key.endswith("encoder/level_2")]
        assert deep.confidence == pytest.approx(0.975), "levels share the confidence, measured or not"


def test_with_fewer_than_four_cases_similarities_are_read_and_no_verdict_is_given(study):
    similarity = study.tables["similarity"]
    of_cases = similarity[similarity["index"] == "cka_cases"]
    others = similarity[similarity["index"] != "cka_cases"]
    few = pd.concat([of_cases.assign(value=float("nan")), of_cases.assign(index="cka_debiased"), others])
    found = reasons(study._replace(tables=study.tables | {"similarity": few}))
    for claim in ("C9", "C10", "C11", "C11b"):
        assert found[claim].verdict == "undecided", claim
        assert "needs at least 4 analysed test cases: cka_debiased takes" in found[claim].reason
        assert np.isfinite([one.value for one in found[claim].quantities]).any()


def test_the_guide_lists_every_claim():
    guide = (Path(__file__).parents[2] / "docs" / "claims.md").read_text().splitlines()
    for claim, rule in RULES.items():
        line = next(line for line in guide if line.startswith(f"| {claim} "))
        assert rule.statement in line
