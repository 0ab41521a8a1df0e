"""Tables of lesions: which cases each metric is taken over, and that arms are compared as everywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jaxseg.metrics import LesionCounts, lesion_scores
from jaxseg.reserved import MEAN
from jaxseg.streams import host_rng
from jaxseg.study.run import run_stages
from jaxseg.study.score import comparisons, detection
from jaxseg.types import UserError
from tests.tiny_study import changed, silent

COUNTS = {
    "scratch": [(1, 1, 2, 1), (2, 0, 2, 0), (0, 0, 1, 1)],
    "transfer": [(2, 0, 2, 0), (2, 0, 3, 1), (0, 0, 0, 0)],
}
"""Found, missed, predicted and spurious lesions of each arm in three cases, of which the last has none."""


@pytest.fixture
def cases() -> pd.DataFrame:
    rows = []
    for arm, of_cases in COUNTS.items():
        for seed in range(4):
            for case, counts in enumerate(of_cases):
                more = LesionCounts(*counts)._replace(spurious=counts[3] + (seed % 2 and arm == "scratch"))
                status = "ok" if counts[0] + counts[1] else "spurious" if counts[2] else "both_empty"
                identity = {"arm": arm, "seed": seed, "train_cases": 0, "fold": 0, "case": f"c{case}"}
                row = identity | {"group": f"c{case}", "region": False}
                rows.append({**row, "label": "tumour", "status": status, **lesion_scores(more)})
                rows.append({**row, "label": "organ", "status": "ok"})
    return pd.DataFrame(rows)


def test_means_are_over_cases_with_lesions_and_spurious_ones_over_all(cases: pd.DataFrame) -> None:
    table = detection.summary(cases, ("tumour",), confidence=0.95)
    assert set(table["label"]) == {"tumour", MEAN}
    scratch, transfer = (table[(table["arm"] == arm) & (table["label"] == "tumour")] for arm in COUNTS)
    of = dict(zip(scratch["metric"], scratch["mean"], strict=True))
    assert of["lesions_found"] == 1.5
    assert of["lesion_sensitivity"] == 0.75
    assert of["lesions_spurious"] == pytest.approx(2 / 3 + 0.5)
    assert dict(zip(scratch["metric"], scratch["n_cases"], strict=True)) == dict.fromkeys(detection.OF_LESIONS, 2) | {
        "lesions_spurious": 3
    }
    assert dict(zip(transfer["metric"], transfer["mean"], strict=True))["lesion_precision"] == pytest.approx(5 / 6)


def test_differences_are_those_of_the_usual_estimators(cases: pd.DataFrame) -> None:
    arms = tuple(COUNTS)
    table = detection.differences(cases, ("tumour",), arms, confidence=0.95, rng=host_rng(0))
    own = cases[cases["label"] == "tumour"]
    usual = comparisons.comparisons(own, arms, confidence=0.95, rng=host_rng(0), metrics=("lesion_f1",))
    for column in ("mean_diff", "ci_low", "ci_high", "n_seeds", "n_groups"):
        np.testing.assert_allclose(table.loc[table["metric"] == "lesion_f1", column], usual[column])
    spurious = table[(table["metric"] == "lesions_spurious") & (table["label"] == "tumour")].iloc[0]
    assert (spurious["mean_diff"], spurious["n_cases"]) == (pytest.approx(1 / 3 - 2 / 3 - 0.5), 3)
    assert detection.differences(cases[:0], ("tumour",), arms, confidence=0.95, rng=host_rng(0)).empty


def test_mistakes_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"evaluate\.lesion_overlap = 0\.5; allowed: 0\.1 without evaluate\.lesions"):
        run_stages(changed(evaluate__lesion_overlap=0.5), tmp_path / "a", stages=[], progress=silent)
    with pytest.raises(UserError, match=r"evaluate\.lesions names the label 'blob 1'.* 'blobs 1'"):
        run_stages(changed(evaluate__lesions="blob 1"), tmp_path / "b", stages=[], progress=silent)
