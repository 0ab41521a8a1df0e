"""The table of claims: each verdict in words and a sign, controls apart."""

from __future__ import annotations

import dataclasses
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from jaxseg.report.blocks import Finding, Fold, Missing, Notice, Prose, Table
from jaxseg.report.charts.style import arm_styles
from jaxseg.report.sections import summary
from jaxseg.report.sections.claims import claims_blocks
from jaxseg.report.sections.controls import control_words
from jaxseg.report.tables import Tables, read_tables
from jaxseg.study.claims.sentences import page_table
from tests.report.analysis_builder import claims_table
from tests.report.tables_builder import write_workdir
from tests.report.test_report_analyses import _flat, _texts


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    return read_tables(write_workdir(tmp_path_factory.mktemp("judged"), sizes=(8, 0), examples=0, n_cases=4, steps=60))


def test_limits_at_the_level_of_a_look_are_not_called_those_of_95_percent():
    row = {"arm": "transfer", "baseline": "scratch", "value": 0.02, "ci_low": 0.01, "ci_high": 0.03}
    figure = summary._gain(SimpleNamespace(**row, confidence=0.9946))
    assert figure.interval == "99.46 % interval 0.010 to 0.030"


@pytest.mark.parametrize(
    ("confidence", "words"),
    [
        (0.9946, "at 8 seeds, 99.46 % limits<"),
        (0.9508, "at 8 seeds, 95.08 % limits<"),
        *[(same, "at 8 seeds<") for same in (0.95, np.nan)],
    ],
)
def test_a_verdict_says_the_level_of_its_look(tables: Tables, confidence: float, words: str):
    judged = _with(tables, look=8.0, confidence=confidence)
    table = next(block for block in claims_blocks(judged, arm_styles(judged.arms)) if isinstance(block, Table))
    assert words in table.groups[0].rows[0][1].text


def test_a_reason_does_not_repeat_the_numbers_that_stand_beside_it(tables: Tables):
    numbers = "steps, scratch / transfer 2.13 [1.60, 2.90]"
    judged = _with(tables, reason=f"this checkpoint: {numbers}; low above 1")
    table = next(block for block in claims_blocks(judged, arm_styles(judged.arms)) if isinstance(block, Table))
    assert "this checkpoint: low above 1<" in table.groups[0].rows[0][3].text


def test_a_published_study_without_page_csv_is_not_said_to_have_no_claims(tables: Tables):
    judged = dataclasses.replace(_judged(tables), page=None)
    assert "can speak of none" not in _blocks_text(judged)


def _judged(tables: Tables) -> Tables:
    claims = claims_table(seeds=8)
    return dataclasses.replace(tables, claims=claims, page=page_table({"claims": claims}))


def test_a_claim_shows_its_verdict_in_words_and_a_sign(tables: Tables):
    judged = _judged(tables)
    blocks = list(_flat(claims_blocks(judged, arm_styles(judged.arms))))
    finding, controls, table = blocks[:3]
    assert isinstance(finding, Finding)
    assert isinstance(controls, Prose)
    assert finding.found == "Of 5 claims that this study can speak of: 3 supported, 1 contradicted, 1 undecided."
    assert isinstance(table, Table)
    rows = [[cell.text for cell in row] for row in table.groups[0].rows]
    assert [re.sub("<[^>]*>", " ", verdict).split()[0] for _, verdict, _, _ in rows] == [
        *("supported", "undecided", "contradicted", "supported", "supported"),
    ]
    signs = [re.findall('path d="([^"]*)"', verdict)[0] for _, verdict, _, _ in rows]
    assert len(set(signs)) == 3
    assert "steps, scratch / transfer <b>2.13</b> <small>[1.60, 2.90]</small>" in rows[0][2]
    assert "gain at full size <b>0.0210</b> <small>[0.0130, 0.0290]</small>" in rows[2][2]
    assert "and 1 more" in rows[4][2]


def test_controls_stand_apart_and_are_named_as_such(tables: Tables):
    judged = _judged(tables)
    blocks = list(claims_blocks(judged, arm_styles(judged.arms)))
    controls, sizes = (block for block in blocks if isinstance(block, Fold))
    assert controls.title == "The same on placebos and controls"
    assert "placebo: only its seeds differ from scratch" in _texts(_flat([controls]))
    assert "placebo: only" not in _texts(blocks[:3])
    assert "3.30 [2.00, 5.50]" in _texts(_flat([sizes]))


def _with(tables: Tables, *rows: dict[str, object], **changed: object) -> Tables:
    """The made-up claims with other values in all their rows, and with rows more that are like their first."""
    claims = claims_table(seeds=8).assign(**changed)
    more = pd.DataFrame([{**claims.iloc[0].to_dict(), **row} for row in rows])
    claims = pd.concat([claims, more], ignore_index=True)
    return dataclasses.replace(tables, claims=claims, page=page_table({"claims": claims}))


def _prose(tables: Tables) -> str:
    blocks = [block for block in claims_blocks(tables, arm_styles(tables.arms)) if isinstance(block, Prose | Notice)]
    return "\n".join(re.sub("<[^>]*>", "", block.text) for block in blocks)


def test_claims_that_the_study_lacks_arms_for_are_one_line(tables: Tables):
    lacking = {"role": "lacking", "verdict": "", "reason": "no arm prior", "quantity": "", "value": np.nan}
    judged = _with(
        tables,
        {**lacking, "claim": "C7", "needs": "no arm prior"},
        {**lacking, "claim": "C3", "needs": "needs several studies"},
    )
    assert "Not asked here: C7 (no arm prior) and C3 (needs several studies)." in _prose(judged)
    table = next(block for block in claims_blocks(judged, arm_styles(judged.arms)) if isinstance(block, Table))
    assert not [row for row in table.groups[0].rows if "C7" in row[0].text or "C3" in row[0].text]


def test_a_verdict_says_its_look_its_tag_and_what_would_decide_it(tables: Tables):
    judged = _with(tables, look=16.0, tag="at 500 steps, +0.020 a doubling", needs="about 20 seeds", grade="gain")
    table = next(block for block in claims_blocks(judged, arm_styles(judged.arms)) if isinstance(block, Table))
    _, verdict, measured, why = (cell.text for cell in table.groups[0].rows[0])
    assert "at 16 seeds" in verdict
    assert "at 500 steps, +0.020 a doubling" in verdict
    assert "<b>To decide it:</b> about 20 seeds." in why
    assert measured.endswith("gain</span></span>")


def test_projected_limits_stand_beside_those_of_today_where_they_are_others(tables: Tables):
    judged = _with(tables, projected_low=1.1, projected_high=3.4)
    table = next(block for block in claims_blocks(judged, arm_styles(judged.arms)) if isinstance(block, Table))
    assert "one doubling on: [1.10, 3.40]" in table.groups[0].rows[0][2].text
    assert "one doubling on" not in str(_blocks_text(_judged(tables)))


def _blocks_text(tables: Tables) -> str:
    return _texts(_flat(claims_blocks(tables, arm_styles(tables.arms))))


def test_exploratory_findings_are_marked_with_the_reason(tables: Tables):
    older = _with(tables, exploratory=True)
    assert "begun under version 1 of the rules and is judged by version 2" in _prose(older)
    assert '<span class="badge">exploratory</span>' in str(list(claims_blocks(older, arm_styles(older.arms))))
    asked = dataclasses.replace(tables.study, rule_version=2, exploratory="data chosen after a look at it")
    assert "Exploratory: data chosen after a look at it." in _prose(dataclasses.replace(older, study=asked))
    assert "xploratory" not in _blocks_text(_judged(tables))


def test_seeds_added_later_without_declared_looks_are_marked_and_folded_away(tables: Tables):
    later = _with(tables, {"role": "all seeds", "verdict": "", "n_seeds": 16, "value": 2.71})
    (fold,) = [b for b in claims_blocks(later, arm_styles(later.arms)) if isinstance(b, Fold) and "later" in b.title]
    (table,) = fold.blocks
    assert isinstance(table, Table)
    assert "all 16 seeds: exploratory" in table.caption
    assert "exploratory" in table.groups[0].rows[0][0].text
    assert table.groups[0].rows[0][2].text == "2.71"


@pytest.mark.parametrize(
    ("arm", "verdicts", "words"),
    [
        ("scratch_b", {"C1": "undecided"}, "The placebo scratch_b: quiet (C1 undecided)."),
        ("scratch_b", {"C1": "undecided", "C4b": "supported"}, "scratch_b: quiet (C1 undecided, C4b supported)."),
        ("scratch_b", {"C1": "undecided", "C4b": "contradicted"}, "scratch_b: not quiet, C4b contradicted ("),
        ("scratch_b", {"C1": "supported"}, "The placebo scratch_b: not quiet, C1 supported (C1 supported)."),
        ("pooled_encoder", {"C7": "undecided"}, ""),
    ],
)
def test_placebos_are_quiet_or_not(arm: str, verdicts: dict[str, str], words: str):
    fixed = {"arm": arm, "reason": "", "quantity": ""}
    rows = pd.DataFrame([{**fixed, "claim": claim, "verdict": verdict} for claim, verdict in verdicts.items()])
    assert words in re.sub("<[^>]*>", "", control_words(rows))
    assert bool(control_words(rows)) == bool(words)


@pytest.mark.parametrize(
    ("claim", "key", "ci_low", "n_seeds", "found"),
    [
        ("C1", "against", 1.02, 8, "found"),  # enough for verdicts that rest on an absence, and not for the claim
        ("C1", "against", 0.99, 8, "not found"),
        ("C1", "turned", 1.5, 8, "not found"),
        ("C1", "against", 1.02, 4, "not found"),
        ("C4", "smallest", 0.001, 8, "found"),
        ("C4", "slope", 0.001, 8, "not found"),
        ("C4b", "gain", 0.001, 8, "found"),
        ("C4b", "gain", float("nan"), 8, "not found"),
    ],
)
def test_a_positive_control_is_found_by_what_verdicts_ask_of_it(
    claim: str, key: str, ci_low: float, n_seeds: int, found: str
):
    row = {"arm": "self_transfer", "claim": claim, "verdict": "undecided", "key": key, "quantity": "gain, 8 cases"}
    rows = pd.DataFrame([row | {"ci_low": ci_low, "n_seeds": n_seeds}])
    for reason, told in (
        ("positive control; gain, 8 cases 0.02 [0.01, 0.03]; meets neither", found),
        ("positive control; needs at least 3 test groups, has 2", "not found"),  # a doubt forbids the rule
    ):
        words = re.sub("<[^>]*>", "", control_words(rows.assign(reason=reason)))
        assert words == f"The positive control self_transfer: {told} ({claim} undecided)."


def test_what_makes_the_gain_is_a_sentence(tables: Tables):
    graded = {"role": "graded", "claim": "mean_var", "statement": "what features add", "verdict": "", "reason": ""}
    number = {"quantity": "transfer - mean_var", "value": 0.004, "ci_low": -0.02, "ci_high": 0.03}
    judged = _with(tables, {**graded, **number, "grade": "undecided", "needs": "about 40 seeds"})
    words = "What features add: transfer - mean_var +0.004 DSC [\N{MINUS SIGN}0.020, 0.030], undecided."
    assert f"{words} To decide it: about 40 seeds." in _prose(judged)


def test_without_claims_the_summary_says_so(tables: Tables):
    (missing,) = claims_blocks(dataclasses.replace(tables, claims=None), arm_styles(tables.arms))
    assert isinstance(missing, Missing)
    assert "verdicts on the paper's claims are left out" in missing.text
