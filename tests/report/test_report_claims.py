"""The table of claims: each verdict in words and a sign, controls apart."""

from __future__ import annotations

import dataclasses
import re

import pytest

from jaxseg.report.blocks import Finding, Fold, Missing, Table
from jaxseg.report.charts.style import arm_styles
from jaxseg.report.sections.claims import claims_blocks
from jaxseg.report.tables import Tables, read_tables
from jaxseg.study.claims.sentences import page_table
from tests.report.analysis_builder import claims_table
from tests.report.tables_builder import write_workdir
from tests.report.test_report_analyses import _flat, _texts


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    return read_tables(write_workdir(tmp_path_factory.mktemp("judged"), sizes=(8, 0), examples=0, n_cases=4, steps=60))


def _judged(tables: Tables) -> Tables:
    claims = claims_table(seeds=8)
    return dataclasses.replace(tables, claims=claims, page=page_table({"claims": claims}))


def test_a_claim_shows_its_verdict_in_words_and_a_sign(tables: Tables):
    judged = _judged(tables)
    blocks = list(_flat(claims_blocks(judged, arm_styles(judged.arms))))
    finding, table = blocks[:2]
    assert isinstance(finding, Finding)
    assert finding.found == "Of 5 claims: 3 supported, 1 contradicted, 1 undecided."
    assert isinstance(table, Table)
    rows = [[cell.text for cell in row] for row in table.groups[0].rows]
    assert [re.sub("<[^>]*>", "", verdict) for _, verdict, _, _ in rows] == [
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
    assert controls.title == "The same on placebos and controls: 0 of 1 comparison supported"
    assert "placebo: only its seeds differ from scratch" in _texts(_flat([controls]))
    assert "placebo" not in _texts(blocks[:2])
    assert "3.30 [2.00, 5.50]" in _texts(_flat([sizes]))


def test_without_claims_the_summary_says_so(tables: Tables):
    (missing,) = claims_blocks(dataclasses.replace(tables, claims=None), arm_styles(tables.arms))
    assert isinstance(missing, Missing)
    assert "verdicts on the paper's claims are left out" in missing.text
