"""What a dry run says of a study's claims and intervals, against what the study then finds."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from configs import default
from jaxseg.analysis.variance_components import expected_half_width
from jaxseg.report import write_report
from jaxseg.study import claims, files
from jaxseg.study.claims import ahead, pilot
from jaxseg.study.claims.dsc import gain
from jaxseg.study.claims.evidence import Pair, gather
from jaxseg.study.claims.findings import Finding, Measured
from jaxseg.study.claims.judging import judged_evidence, measure_claim
from jaxseg.study.claims.rules import RULES
from jaxseg.study.plan.planned import PlannedStudy
from jaxseg.study.run import STAGES, run_stages
from jaxseg.types import UserError
from tests.tiny_study import changed, set_widths, silent, tiny_config


def nested():
    """Two runs to a source network, three rates, and a look after half of the steps."""
    made = changed(num_seeds=4, analysis__half=True)
    made.pretrain.runs_per_source = 2
    made.arms = default.pick_arms("scratch", "transfer", "frozen_random_encoder", "pooled_encoder", "prior")
    for name, rate in (("low", 3e-4), ("high", 3e-3)):
        made.arms[f"scratch_{name}"] = default.arm("random", "none")
        with made.arms[f"scratch_{name}"].unlocked():
            made.arms[f"scratch_{name}"].optim = {"lr": rate}
    return made


def by_size():
    """Five training set sizes, folds that rotate, networks compared at the largest size alone."""
    made = changed(num_seeds=4, target__train_cases=(1, 2, 3, 4, 0), analysis__sizes="largest")
    made.vary, made.target.folds = "init,order,subset,fold", 2
    made.arms = default.pick_arms("scratch", "transfer", "scratch_b")
    return made


def planned(config, workdir) -> PlannedStudy:
    return run_stages(config, workdir, stages=[], progress=silent)


@pytest.fixture(scope="module", params=[nested, by_size], ids=lambda make: make.__name__)
def before_and_after(request, tmp_path_factory):
    """What was foreseen of a study, its evidence as planned, and its workdir after it ran."""
    workdir, config = tmp_path_factory.mktemp(request.param.__name__), request.param()
    ready = planned(config, workdir)
    foreseen, evidence = ahead.prospects(ready), judged_evidence(ahead.planned_tables(ready))
    run_stages(config, workdir, stages=[stage for stage in STAGES if stage != "report"], progress=silent)
    return foreseen, evidence, workdir


def test_what_a_study_will_lack_is_what_it_then_lacks(before_and_after):
    foreseen, _, workdir = before_and_after
    table = files.read_table(workdir / "results" / "claims.csv")
    lacking = table[table["role"] == "lacking"].set_index("claim")["needs"].to_dict()
    # What results make void (layers that say nothing) is not foreseen: the values are not those of the study.
    void = set(table["claim"][table["verdict"] == "void"])
    assert {one.claim: one.needs for one in foreseen if one.lacks and one.claim not in void} == lacking
    assert 0 < len(lacking) < len(RULES)


def test_networks_are_compared_at_the_sizes_that_are_asked_for(before_and_after):
    _, evidence, workdir = before_and_after
    sizes = {
        name: set(files.read_table(workdir / "results" / f"{name}.csv")["train_cases"]) for name in ("pairs", "cases")
    }
    assert sizes["pairs"] == {0}
    assert sizes["cases"] == set(evidence.scores)
    assert write_report(workdir).stat().st_size > 0


def said(found: Measured | Finding) -> tuple[str, ...]:
    return (found.reason,) if isinstance(found, Finding) else found.doubts


def test_what_will_forbid_a_verdict_forbids_it_then(before_and_after):
    _, evidence, workdir = before_and_after
    after = judged_evidence(claims.read_study(workdir))
    found = {claim: (measure_claim(claim, evidence), measure_claim(claim, after)) for claim in RULES}
    judged = {claim: pair for claim, pair in found.items() if not isinstance(pair[1], Finding) or pair[1].lacks}
    assert {claim: said(ours) for claim, (ours, _) in judged.items()} == {
        claim: said(theirs) for claim, (_, theirs) in judged.items()
    }
    assert len(judged) > 6


def test_quantities_rest_on_as_many_seeds_and_groups_as_foreseen(before_and_after):
    _, evidence, workdir = before_and_after
    after = judged_evidence(claims.read_study(workdir))
    ours, theirs = (gain(one, Pair())[0] for one in (evidence, after))
    assert (ours.n_seeds, ours.n_groups, ours.folds) == (theirs.n_seeds, theirs.n_groups, theirs.folds)


# ------------------------------------------------------------------------------------------------- what can be decided


def able(**more):
    """A study that can decide most claims, at a size that leaves cases to pretrain `self_transfer` on."""
    made = changed(num_seeds=8, train__steps=100, train__eval_every=2, target__test_cases=4, **more)
    made.target.data, made.target.patch = "synthetic:blobs?n=24&shape=32x32", (32, 32)
    made.target.train_cases = (6,)
    made.source.data, made.source.patch = "synthetic:blobs?n=9&shape=32x32&seed=1", (32, 32)
    set_widths(made, 2, 4, 8)
    made.analysis.half = True
    made.arms = default.pick_arms(
        *("scratch", "transfer", "self_transfer", "frozen_random_encoder", "pooled_encoder", "prior"), config=made
    )
    return made


def prospects(config, tmp_path):
    return {one.claim: one for one in ahead.prospects(planned(config, tmp_path / "study"))}


def test_a_study_that_holds_all_can_decide_either_way(tmp_path):
    found = prospects(able(), tmp_path)
    can = {"C1", "C6", "C7", "C8", "C9", "C11", "C11b"}
    assert {claim for claim, one in found.items() if one.decidable} == can
    assert all(found[claim].supported and found[claim].contradicted and not found[claim].needs for claim in can)


GRID = {"optim.lr_grid": (1e-3, 3e-3), "optim.lr_seeds": (90,)}


def test_networks_are_compared_within_folds_that_rotate(tmp_path):
    made = able()
    made.target.folds, made.vary = 2, "init,order,subset,fold"
    found = prospects(made, tmp_path)
    assert all(found[claim].supported and found[claim].contradicted for claim in ("C9", "C11", "C11b"))


def test_filters_are_seen_at_three_rates_whichever_is_chosen(tmp_path):
    made = able()
    made.arms.update(default.pick_arms("scratch_slow", "scratch_fast"))
    made.update_from_flattened_dict(GRID)
    found = prospects(made, tmp_path)["C5"]
    assert found.supported
    assert found.contradicted


@pytest.mark.parametrize(
    ("change", "claim", "supported", "contradicted", "needs"),
    [
        ({"num_seeds": 4}, "C8", False, False, "needs at least 8 seeds, has 4"),
        ({"target.test_cases": 2}, "C8", False, False, "needs at least 3 test groups, has 2"),
        ({"analysis.half": False}, "C6", False, True, "growth not known: needs analysis.half"),
        ({"train.eval_every": 100}, "C7", True, True, ""),
        ({"train.eval_every": 10}, "C1", False, False, "needs at least every 2"),
        ({"looks": (12, 24)}, "C8", False, False, "the first look is at 12 seeds, has 8"),
        ({"looks": (8, 16)}, "C9", False, True, "more seeds: with 8 p is never below 0.0078"),
        ({"pretrain.share": "one"}, "C9", False, False, "one source"),
        (GRID | {"optim.lr_choice": "per_arm"}, "C8", False, False, "lr_choice = 'joint'"),
        (GRID, "C8", True, True, ""),
        ({"target.train_cases": (6, 8)}, "C4b", False, False, "needs all 18 training cases"),
    ],
    ids=lambda value: "".join(value) if isinstance(value, dict) else None,
)
def test_what_each_setting_takes_away(change, claim, supported, contradicted, needs, tmp_path):
    made = able()
    made.update_from_flattened_dict(change)
    found = prospects(made, tmp_path)[claim]
    assert (found.supported, found.contradicted) == (supported, contradicted)
    assert needs in found.needs


def test_an_absence_needs_the_positive_control(tmp_path):
    made = able()
    del made.arms["self_transfer"]
    found = prospects(made, tmp_path)["C1"]
    assert found.supported
    assert ahead.NO_CONTROL in found.needs


def test_the_text_names_every_claim_once(tmp_path):
    text = ahead.describe(tuple(prospects(tiny_config(), tmp_path).values()))
    assert text.startswith("this study can decide none of the claims\nit cannot decide\n  C1 ")
    assert [line.split()[0] for line in text.splitlines()[2:]] == list(RULES)


# -------------------------------------------------------------------------------------------------------- with a pilot


def test_widths_are_those_of_the_pilots_spread_and_the_plans_numbers(tiny_study, tmp_path):
    ready = planned(changed(num_seeds=12, target__test_cases=4), tmp_path / "study")
    pair, widths = pilot.expected_widths(ready, tiny_study)
    assert pair == Pair()
    assert [width.seeds for width in widths] == [8, 12, 16, 32]
    spread = gain(gather(claims.read_study(tiny_study)), Pair())[0].spread
    assert [width.half for width in widths] == [expected_half_width(spread, width.seeds, 4) for width in widths]
    halves = [width.half for width in widths]
    assert halves == sorted(halves, reverse=True)
    np.testing.assert_allclose([w.material_gain - w.gain for w in widths], 0.01)
    assert "+-" in pilot.describe(pair, widths)


def test_folds_that_rotate_count_with_their_groups(tiny_study, tmp_path):
    made = changed(num_seeds=8, vary="init,order,fold", target__folds=2)
    _, widths = pilot.expected_widths(planned(made, tmp_path / "study"), tiny_study)
    assert [width.groups for width in widths] == [4, 4, 4]
    assert [width.seeds for width in widths] == [8, 16, 32]


def test_pilots_that_cannot_say_are_refused(tiny_study, tmp_path):
    ready = planned(tiny_config(), tmp_path / "study")
    one, table = tmp_path / "one", claims.read_study(tiny_study).tables["cases"]
    (one / "results").mkdir(parents=True)
    shutil.copy(tiny_study / "study.json", one)
    files.write_table(one / "results" / "cases.csv", table[table["seed"] == 0])
    with pytest.raises(UserError, match="has 1 seeds and 2 test groups"):
        pilot.expected_widths(ready, one)
    without = planned(changed(arms=default.pick_arms("scratch", "transfer_encoder")), tmp_path / "other")
    with pytest.raises(UserError, match="has no arm transfer_encoder"):
        pilot.expected_widths(without, tiny_study)
    sized = planned(changed(target__train_cases=(3,)), tmp_path / "sized")
    with pytest.raises(UserError, match="no scores of transfer and scratch at a training set size"):
        pilot.expected_widths(sized, tiny_study)
