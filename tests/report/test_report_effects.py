"""Which rows of tables are shown, and tables that are hard to read."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from jaxseg.report import write_report
from jaxseg.report.sections.elsewhere import gain_words
from jaxseg.report.tables import Variant, of_variant, read_tables, variants_of
from jaxseg.reserved import MEAN, POOLED
from jaxseg.study import record
from jaxseg.study.score import comparisons
from jaxseg.study.score.power import variance
from jaxseg.study.score.units import sources_of
from jaxseg.text import MISSING, interval, number, signed
from jaxseg.types import UserError
from tests.report.page_numbers import read_words
from tests.report.tables_builder import write_claims, write_shown, write_workdir


def test_folds_are_shown_together_where_rows_for_that_exist():
    table = pd.DataFrame({"train_cases": [8, 8, 8, 0], "fold": [POOLED, 0, 1, 0], "mean": [1, 2, 3, 4]})
    small, whole = variants_of(table)
    assert (small, whole) == (Variant(8, POOLED), Variant(0, 0))
    assert of_variant(table, small)["mean"].tolist() == [1]
    assert of_variant(table[1:], small)["mean"].tolist() == [2, 3]
    assert of_variant(table, whole)["mean"].tolist() == [4]


def test_folds_that_rotate_over_seeds_have_their_mean_on_the_page(tmp_path: Path):
    """The page made with the study's own tables: the numbers of all folds together stand in it, and no dash."""
    arms = ("scratch", "transfer")
    workdir = write_workdir(tmp_path, arms=arms, seeds=8, folds=2)
    results = workdir / "results"
    for name in ("cases", "curves", "convergence"):
        table = pd.read_csv(results / f"{name}.csv")
        table = table[table["seed"] % 2 == table["fold"]]
        if name == "cases":
            table = table.assign(**{key: table[key] + table["fold"].astype(str) for key in ("case", "group")})
        table.to_csv(results / f"{name}.csv", index=False)
    cases = pd.read_csv(results / "cases.csv")
    summary = comparisons.summary(cases)
    made = comparisons.comparisons(cases, arms, confidence=0.95, rng=np.random.default_rng(0))
    summary.to_csv(results / "summary.csv", index=False)
    made.to_csv(results / "comparisons.csv", index=False)
    variance(cases).to_csv(results / "variance.csv", index=False)
    write_claims(write_shown(workdir))
    words = read_words(write_report(workdir))
    own = {"fold": POOLED, "label": MEAN, "metric": "dsc"}
    (row,) = made[(made[list(own)] == list(own.values())).all(axis=1)].to_dict("records")
    shown = signed(row["mean_diff"]), interval(row["ci_low"], row["ci_high"])
    told = [one.text for one in words if one.section == "accuracy"]
    assert any(text.startswith("transfer mean of labels " + " ".join(shown)) and " 8 12 new" in text for text in told)
    answer = next(one.text for one in words if one.section == "summary" and "undecided" in one.text)
    assert f"{shown[0]} DSC {shown[1]}" in answer
    for mean in summary[(summary[list(own)] == list(own.values())).all(axis=1)]["mean"]:
        assert any(number(mean) in text for text in told if "Mean DSC" in text)
    assert not [text for text in told if text.startswith(("scratch ", "transfer ")) and MISSING in text]
    assert any("over all folds" in one.text for one in words if "Variance of DSC" in one.text)


def test_seeds_that_share_a_source_network_are_said_to_count_as_one(tmp_path: Path):
    """In words below the scores, and as the note of the differences; not where each seed has a source of its own."""
    arms = ("scratch", "transfer")
    workdir = write_workdir(tmp_path, arms=arms, seeds=8, examples=0, n_cases=4, steps=60)
    shared = "Seeds of transfer that share a source network count as one here."
    assert shared not in [one.text for one in read_words(write_report(workdir))]
    study = json.loads((workdir / "study.json").read_text())
    for run in study["runs"]:
        if run["kind"] == "train" and run["arm"] == "transfer":
            run["source"]["seed"] = run["seed"] // 2
    (workdir / "study.json").write_text(json.dumps(study))
    sources, results = sources_of(record.read(workdir, any_format=True)), workdir / "results"
    cases = pd.read_csv(results / "cases.csv")
    comparisons.summary(cases, sources=sources).to_csv(results / "summary.csv", index=False)
    made = comparisons.comparisons(cases, arms, confidence=0.95, rng=np.random.default_rng(0), sources=sources)
    made.to_csv(results / "comparisons.csv", index=False)
    told = [one.text for one in read_words(write_report(workdir)) if one.section == "accuracy"]
    assert shared in told
    note = "seeds of transfer that share a source network count as one: 4 source networks (8 seeds)"
    assert any(text.startswith("Notes: ") and note in text for text in told)
    assert any("fewer than 8 source networks: no verdict" in text for text in told), "8 seeds, and no notice of too few"
    assert any("new source networks and groups" in text for text in told)


def test_notes_are_those_of_the_rows_that_are_shown(tmp_path: Path):
    """Eight seeds in two folds are four in each, and the rows of single folds are not on the page."""
    workdir = write_workdir(tmp_path, arms=("scratch", "transfer"), seeds=8, examples=0, n_cases=4, steps=60)
    results = workdir / "results"
    made = pd.read_csv(results / "comparisons.csv").assign(fold=-1, note="matched in order")
    few = made.assign(fold=0, note="fewer than 8 seeds: no verdict")
    pd.concat([made, few]).to_csv(results / "comparisons.csv", index=False)
    told = [one.text for one in read_words(write_report(workdir)) if one.section == "accuracy"]
    assert [text for text in told if text.startswith("Notes: ")] == ["Notes: matched in order."]


def test_names_that_look_like_missing_numbers_stay_names(tmp_path: Path):
    workdir = write_workdir(tmp_path, arms=("NA", "nan"), labels=("null", "007"), case_name="{:02d}")
    tables = read_tables(workdir)
    assert tables.cases is not None
    assert set(tables.cases["arm"]) == {"NA", "nan"}
    assert set(tables.cases["label"]) == {"null", "007"}
    assert tables.cases["case"].iloc[0] == "00"
    assert tables.cases["hd95"].isna().any()


def test_a_folder_that_is_no_workdir_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"No study\.json in .*workdir"):
        read_tables(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("study.json", b"{", "study.json is damaged: it cannot be read"),
        ("results/cases.csv", b"arm,seed\na,0\n", r"lacks the column\(s\) train_cases, case"),
        ("results/examples.npz", b"no archive", "examples.npz is damaged: it cannot be read"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, content: bytes, message: str):
    workdir = write_workdir(tmp_path, seeds=1)
    (workdir / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_tables(workdir)


def test_a_table_with_a_header_alone_counts_as_missing(tmp_path: Path):
    workdir = write_workdir(tmp_path, seeds=1)
    path = workdir / "results" / "curve_runs.csv"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    assert read_tables(workdir).curve_runs is None


def test_tables_without_a_fold_column_have_one_fold(tmp_path: Path):
    workdir = write_workdir(tmp_path, seeds=1)
    for name in ("cases", "summary"):
        path = workdir / "results" / f"{name}.csv"
        pd.read_csv(path).drop(columns="fold").to_csv(path, index=False)
    tables = read_tables(workdir)
    assert tables.cases is not None
    assert set(tables.cases["fold"]) == {0}


def test_two_patients_from_elsewhere_are_too_few_to_conclude_from():
    """With two, the interval misses more often than it says (`rules.MIN_GROUPS`), as for verdicts."""
    row = SimpleNamespace(mean_diff=0.03, ci_low=0.01, ci_high=0.05)
    assert gain_words("ward B", row) == "On ward B: +0.030 DSC [0.010, 0.050], it is ahead."
    few = gain_words("ward B", row, few=True)
    assert few == "On ward B: +0.030 DSC [0.010, 0.050], of too few patients to conclude from (fewer than 3)."
