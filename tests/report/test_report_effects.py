"""Which rows of tables are shown, and tables that are hard to read."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from jaxseg.report.tables import Variant, of_variant, read_tables, variants_of
from jaxseg.reserved import POOLED
from jaxseg.types import UserError
from tests.report.tables_builder import write_workdir


def test_folds_are_shown_together_where_rows_for_that_exist():
    table = pd.DataFrame({"train_cases": [8, 8, 8, 0], "fold": [POOLED, 0, 1, 0], "mean": [1, 2, 3, 4]})
    small, whole = variants_of(table)
    assert (small, whole) == (Variant(8, POOLED), Variant(0, 0))
    assert of_variant(table, small)["mean"].tolist() == [1]
    assert of_variant(table[1:], small)["mean"].tolist() == [2, 3]
    assert of_variant(table, whole)["mean"].tolist() == [4]


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
