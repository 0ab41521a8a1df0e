"""The seeds of an arm as one network: its probabilities, its scores, and differences between such networks."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import jaxseg
from jaxseg import manifest, metrics
from jaxseg.study import files
from jaxseg.study.run import run_stages
from jaxseg.study.score import ensemble_tables
from jaxseg.study.score.stage import ENSEMBLE
from tests.tiny_study import changed, silent, tiny_config

KEY = ["test_set", "arm", "case", "label"]


def of(workdir: Path) -> pd.DataFrame:
    return files.read_table(workdir / "results" / "ensemble_cases.csv").set_index(KEY).sort_index()


def test_an_ensemble_takes_the_mean_of_its_seeds_probabilities(tiny_study: Path) -> None:
    found, study = of(tiny_study), jaxseg.load(tiny_study)
    assert set(found["n_members"]) == {2}
    assert len(found) == 3 * 2 * 2, "arms x test cases x labels"
    for name in study.cases("test"):
        case = study.case(name)
        for arm in study.arms:
            mean = study.arm(arm).predict(case.image, probabilities=True).mean(0)
            for index, label in enumerate(study.record.target.labels, start=1):
                dsc = metrics.dsc(mean.argmax(-1) == index, case.label == index)
                assert found.loc[("internal", arm, name, label), "dsc"] == pytest.approx(float(dsc)), (arm, name)
    single = study.table("cases").set_index(["arm", "case", "label"])["dsc"]
    assert any(value not in single.loc[key[1:]].to_numpy() for key, value in found["dsc"].items())


def test_networks_that_were_scored_without_it_predict_again_for_it(tiny_study: Path, tmp_path: Path) -> None:
    """What is made from checkpoints afterwards is what is made beside the scores of the seeds; it can be left out."""
    workdir = tmp_path / "study"
    shutil.copytree(tiny_study, workdir)
    for path in list(workdir.glob(f"train/*/*/{ENSEMBLE}.csv")):
        manifest.remove(path)
    run_stages(tiny_config(), workdir, stages=("evaluate",), progress=silent)
    assert list(workdir.glob("train/ensembles_*.csv"))
    pd.testing.assert_frame_equal(of(workdir), of(tiny_study))
    run_stages(changed(evaluate__ensemble=False), workdir, stages=("evaluate", "analyze"), progress=silent)
    assert not list((workdir / "results").glob("ensemble_*"))


def test_intervals_are_over_groups(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rows = [
        {
            **{"arm": arm, "train_cases": 0, "fold": 0, "n_members": members, "case": f"c{case}"},
            **{"group": f"g{case // 2}", "label": "blob", "status": "ok", "unit": "mm", "dsc": rng.uniform()},
            **dict.fromkeys(("hd95", "assd", "nsd"), 1.0),
        }
        for arm, members in (("scratch", 3), ("transfer", 4))
        for case in range(8)
    ]
    cases = pd.DataFrame(rows)
    groups = cases.groupby(["arm", "group"])["dsc"].mean().unstack("group")
    test = stats.ttest_1samp(groups.loc["transfer"] - groups.loc["scratch"], 0)
    limits = test.confidence_interval(0.9)
    table = ensemble_tables.comparisons(cases, ["scratch", "transfer"], test_set="internal", confidence=0.9)
    row = table[(table["metric"] == "dsc") & (table["label"] == "mean")].iloc[0]
    assert tuple(row[["ci_low", "ci_high"]]) == pytest.approx((limits.low, limits.high))
    assert tuple(row[["n_members_a", "n_members_b", "n_groups", "n_cases"]]) == (4, 3, 4, 8)
    summary = ensemble_tables.summary(cases, test_set="internal", confidence=0.9)
    row = summary[(summary["metric"] == "dsc") & (summary["arm"] == "scratch")].iloc[0]
    assert row["mean"] == pytest.approx(groups.loc["scratch"].mean())
    assert row["sd"] == pytest.approx(groups.loc["scratch"].std())
