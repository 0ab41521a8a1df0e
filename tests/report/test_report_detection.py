"""The sentence that says which lesions are found, where a metric has no value."""

import math

import pandas as pd

from jaxseg.report.sections.detection import _finding

NAMES = ("lesion_sensitivity", "lesion_precision", "lesion_f1", "lesions_found", "lesions_missed", "lesions_spurious")


def table(**arms: dict[str, float]) -> pd.DataFrame:
    """Rows of detection.csv: metrics of each arm, NaN where they are not given."""
    fixed = {"train_cases": 0, "fold": 0, "label": "tumour", "ci_low": math.nan, "ci_high": math.nan}
    return pd.DataFrame(
        [
            {**fixed, "arm": arm, "metric": name, "mean": values.get(name, math.nan)}
            for arm, values in arms.items()
            for name in NAMES
        ]
    )


def test_an_arm_that_finds_nothing_is_told_of() -> None:
    found = {"lesion_sensitivity": 0.5, "lesion_precision": 0.4, "lesions_spurious": 1.5}
    nothing = {"lesion_sensitivity": 0.0, "lesions_spurious": 0.0}
    text = _finding(table(scratch=nothing, transfer=found), "tumour").found
    assert text == (
        "scratch finds 0.00 of them, with 0.0 spurious parts per case and transfer finds 0.50 of them, with 1.5 "
        "spurious parts per case."
    )


def test_where_no_case_holds_a_lesion_none_is_known() -> None:
    rows = table(scratch={"lesions_spurious": 1.0})
    assert _finding(rows, "tumour").found == "None is known."
    assert _finding(rows[rows["mean"].notna()], "tumour").found == "None is known."
