"""What a study tells of its target: the same from what it wrote down as from its tables, and enough to pool."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from jaxseg import manifest
from jaxseg.report.charts.style import WIDE_INCHES, to_svg
from jaxseg.report.sections.targets import claim_forest
from jaxseg.study import claims, files
from jaxseg.study.claims import needs, over_targets, told
from jaxseg.study.claims.evidence import gather
from jaxseg.study.claims.findings import Measured, Quantity
from jaxseg.study.claims.judging import JUDGES, measure_claim
from jaxseg.study.claims.pooling import average
from jaxseg.types import UserError
from tests.study.whole_study import changed

POOLED = ("value", "low", "high", "df", "confidence", "fall", "rise", "n_seeds", "n_groups")
"""Fields of a quantity that pooling reads as numbers."""


@pytest.fixture(scope="module")
def full(study: claims.StudyTables) -> claims.TargetStudy:
    """What a study tells from its tables; two of its cases are of one patient."""
    return claims.tell(changed(study, "cases", group=study.tables["cases"]["group"].replace("f0g1", "f0g0")))


@pytest.fixture(scope="module")
def folder(study: claims.StudyTables, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is left of the study where its tables are not at hand; its record has no arms."""
    folder = tmp_path_factory.mktemp("told")
    (folder / "results").mkdir()
    task = {"name": "hippo", "labels": ["a"], "channels": 1, "normalization": ["zscore"]}
    task |= {"cases": {"train": 64, "val": 1, "test": 12}}
    record = {"name": "told", "rule_version": 2, "runs": [], "arms": {}, "source": None, "target": task}
    files.write_json(folder / "study.json", record)
    own = changed(study, "cases", group=study.tables["cases"]["group"].replace("f0g1", "f0g0"))
    files.write_table(folder / "results" / "claims.csv", claims.claims(own))
    files.write_table(folder / "results" / "test_groups.csv", told.group_table(own))
    return folder


def numbers(found: told.Told) -> list[list[float]]:
    return [[getattr(q, name) for name in POOLED] for q in found.quantities]


def test_what_a_study_wrote_down_is_what_its_tables_say(full: claims.TargetStudy, folder: Path) -> None:
    read = claims.read_target_study(folder)
    assert read.patients == full.patients
    assert len(full.patients) == 11
    assert list(read.claims) == list(full.claims) == list(JUDGES)
    assert list(read.tasks) == list(full.tasks) == [8, 16, 32, 48, 0]
    pairs = [*zip(read.claims.values(), full.claims.values(), strict=True)]
    for ours, theirs in [*pairs, *zip(read.tasks.values(), full.tasks.values(), strict=True)]:
        np.testing.assert_allclose(
            numbers(ours), numbers(theirs), rtol=1e-12, atol=1e-13
        )  # a fall is a difference of limits
        for name in ("name", "key", "scale", "log", "thresholds"):
            assert [getattr(q, name) for q in ours.quantities] == [getattr(q, name) for q in theirs.quantities]
        assert ours._replace(quantities=()) == theirs._replace(quantities=())
    assert sum(bool(one.quantities) for one in full.claims.values()) >= 11


def test_verdicts_and_plots_over_targets_need_no_tables(full: claims.TargetStudy, folder: Path) -> None:
    def of_five(one: claims.TargetStudy) -> dict[str, claims.TargetStudy]:
        records = {f"s{i}": full.record._replace(target=f"t{i}") for i in range(5)}
        return {name: one._replace(record=record, patients=frozenset()) for name, record in records.items()}

    from_tables, from_claims = of_five(full), of_five(claims.read_target_study(folder))
    verdicts = claims.over_studies(from_claims)
    pd.testing.assert_frame_equal(verdicts, claims.over_studies(from_tables), rtol=1e-9)
    assert {"supported", "contradicted"} <= set(verdicts["verdict"])
    rows = claims.target_table(from_claims), claims.target_table(from_tables)
    pd.testing.assert_frame_equal(*rows, rtol=1e-9)
    for claim, names in (("C1", {"ratio": "steps"}), ("C2", {}), ("C8", {"nearly": "a", "used": "b"})):
        ours, theirs = (to_svg(claim_forest(table, claim, names, width=WIDE_INCHES)) for table in rows)
        assert ours == theirs
        assert "t4" in ours


@pytest.mark.parametrize("claim", ["C10", "C11b"])
def test_a_level_that_targets_share_widens_intervals_as_the_tables_would(study, full, claim: str) -> None:
    shared = measure_claim(claim, dataclasses.replace(gather(study), level=0.05 / 3))
    assert isinstance(shared, Measured)
    for ours, theirs in zip(full.claims[claim].quantities, shared.quantities, strict=True):
        one = average([ours], theirs.confidence)
        assert (one.low, one.high) == pytest.approx((theirs.low, theirs.high))


def test_over_targets_claims_have_the_rules_that_one_study_has(study: claims.StudyTables) -> None:
    evidence = gather(study)
    for claim, rule in over_targets.RULE_OF.items():
        measured = measure_claim(claim, evidence)
        assert isinstance(measured, Measured), claim
        assert measured.rule.__qualname__ == rule.__qualname__
        keys = [q.key for q in measured.quantities]
        assert over_targets.shown_keys(claim, keys) == tuple(k for k in keys if k in (measured.shown or keys))


def test_controls_that_were_not_found_keep_c6_from_support_over_targets(full: claims.TargetStudy) -> None:
    def verdict(*unsupported: str) -> str:
        one = full.claims["C6"]
        studies = {
            f"s{i}": full._replace(
                record=full.record._replace(target=f"t{i}"),
                patients=frozenset(),
                claims={**full.claims, "C6": one._replace(unsupported=why)},
            )
            for i, why in enumerate(unsupported)
        }
        return over_targets.judge_over(studies)["C6"].finding.verdict

    assert verdict("", "", "", "") == "supported"
    assert verdict("", "", "no control found", "") == "undecided"


def test_claims_of_an_earlier_version_are_made_anew_or_refused(study, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "old", ignore=shutil.ignore_patterns(manifest.NAME))
    table = files.read_table(folder / "results" / "claims.csv")
    old = table[table["role"] != told.TARGET].drop(columns=["key", "df"])
    old.to_csv(tmp_path / "old" / "results" / "claims.csv", index=False)
    with pytest.raises(UserError, match=r"written by an earlier version.*publish it again"):
        claims.read_target_study(tmp_path / "old")
    study.tables["cases"].to_csv(tmp_path / "old" / "results" / "cases.csv", index=False)
    found = claims.read_target_study(tmp_path / "old")
    assert found.claims["C4b"].left_out == "no arm transfer"
    assert len(found.patients) == 0


def test_the_targets_that_would_decide_a_mean_are_counted() -> None:
    mean = Quantity("gain, mean", 0.02, -0.01, 0.05, df=3, confidence=0.95, thresholds=(0.0,))
    error = 0.03 / stats.t.ppf(0.975, 3) * 2  # of one target
    count = next(k for k in range(5, 99) if stats.t.ppf(0.975, k - 1) * error / math.sqrt(k) <= 0.02)
    assert needs.targets_needed((mean,)) == f"about {count - 4} more targets, if gain, mean stays"
    near = dataclasses.replace(mean, value=1e-4)
    assert needs.targets_needed((near,)).startswith("no realistic number of targets")
    assert needs.targets_needed((dataclasses.replace(mean, low=0.01),)) == ""
