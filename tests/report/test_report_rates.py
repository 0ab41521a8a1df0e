"""Which learning rates were tried and taken stands on the page, and where that choice says little."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from jaxseg.report import write_report
from jaxseg.report.blocks import Finding, Prose, Table
from jaxseg.report.charts.style import arm_styles
from jaxseg.report.sections import rates
from jaxseg.report.tables import Tables, read_tables
from tests.report.tables_builder import NASTY, write_shown, write_workdir

GRID = (3e-4, 1e-3, 3e-3)


def tables_with(
    folder: Path, scores: dict[tuple[str, int, int], tuple[float, ...]], joint: bool = False, **options: object
) -> Tables:
    """The tables of a study with these scores by (arm, train_cases, fold), one a rate; NaN: all diverged."""
    workdir = write_workdir(folder, **options)  # type: ignore[arg-type]
    best = max(range(len(GRID)), key=lambda place: sum(own[place] for own in scores.values()))
    rows = [
        {
            "arm": arm, "train_cases": size, "fold": fold, "lr": rate, "val_dsc": 0.0 if score != score else score,
            "n_seeds": 2, "n_diverged": 2 * (score != score), "joint": joint,
            "chosen": rate == GRID[best] if joint else score == max(own),
        }
        for (arm, size, fold), own in scores.items()
        for rate, score in zip(GRID, own, strict=True)
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(workdir / "results" / "rates.csv", index=False)
    return read_tables(write_shown(workdir))


def shown(tables: Tables) -> list:
    return list(rates.rates_blocks(tables, arm_styles(tables.arms)))


SCORES = {
    ("scratch", 8, 0): (0.5, 0.7, 0.6),
    ("scratch", 0, 0): (0.6, 0.7, 0.8),
    ("transfer", 0, 0): (0.775, 0.7, 0.771),
    ("frozen_random_encoder", 0, 0): (0.5, 0.6, float("nan")),
}


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    return tables_with(tmp_path, SCORES, sizes=(8, 0))


def test_each_arm_s_rate_is_named_and_all_scores_are_in_the_table(tables: Tables):
    finding, close, table = shown(tables)
    assert isinstance(finding, Finding)
    assert "2 seeds of their own: scratch 0.003, transfer 0.0003 and frozen_random_encoder 0.001." in finding.found
    assert isinstance(close, Prose)
    assert close.text.endswith("for transfer (0.003).")
    assert isinstance(table, Table)
    assert table.head == ("Arm", "0.0003", "0.001", "0.003")
    few, everything = table.groups
    assert (few.title, everything.title) == ("Trained on 8 cases", "Trained on all cases")
    assert [cell.text for cell in few.rows[0][1:]] == ["0.500", "<b>0.700</b>", "0.600"]
    assert [cell.text for cell in everything.rows[1][1:]] == ["<b>0.775</b>", "0.700", "0.771"]
    assert everything.rows[2][3].small == "2 of 2 diverged"


def test_a_choice_at_the_end_of_the_grid_is_told(tables: Tables):
    (notice,) = rates.end_of_grid(tables)
    assert "for scratch (0.003) and transfer (0.0003)." in notice.text


def test_choices_inside_the_grid_need_no_notice(tmp_path: Path):
    inside = tables_with(tmp_path, {("scratch", 0, 0): (0.6, 0.8, 0.7), ("transfer", 0, 0): (0.6, 0.8, 0.7)})
    assert not list(rates.end_of_grid(inside))
    assert not any(isinstance(block, Prose) for block in shown(inside))


def test_a_shared_rate_that_chance_may_have_chosen_is_told_with_its_error(tmp_path: Path):
    throws = {
        ("scratch", 0, 0): (0.1, 0.2, 0.1),
        ("transfer", 0, 0): (0.1, 0.2, 0.5),
        ("pooled", 0, 0): (0.1, 0.2, 0.4),
    }
    _, told, _ = shown(tables_with(tmp_path / "thrown", throws, joint=True))
    assert "The trials do not tell 0.003 from 0.001" in told.text
    assert "ahead by 0.133 DSC on average over 3 pairs of trials, with a standard error of 0.120." in told.text
    _, table = shown(
        tables_with(tmp_path / "sure", {("a", 0, 0): (0, 0.2, 0.5), ("b", 0, 0): (0, 0.1, 0.39)}, joint=True)
    )
    assert isinstance(table, Table)


def test_folds_have_rates_of_their_own_and_are_named_once(tmp_path: Path):
    scores = {("scratch", 0, fold): (0.6, 0.7, 0.8 - 0.15 * (fold == 2)) for fold in range(3)}
    tables = tables_with(tmp_path, scores, folds=3)
    finding, table = shown(tables)
    assert finding.found.endswith("scratch 0.003 and scratch 0.001.")
    assert [str(row[0].text).rsplit(">", 1)[-1] for row in table.groups[0].rows] == [
        f", fold {fold}" for fold in range(3)
    ]
    (notice,) = rates.end_of_grid(tables)
    assert notice.text.count("scratch") == 1


def test_without_trials_nothing_is_said(tmp_path: Path):
    plain = read_tables(write_workdir(tmp_path))
    assert not shown(plain)
    assert not list(rates.end_of_grid(plain))


def test_the_page_has_the_table_and_the_notice_and_escapes_names(tmp_path: Path):
    scores = {(arm, 0, 0): (0.6, 0.7, 0.8) for arm in NASTY}
    tables_with(tmp_path, scores, arms=NASTY)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Which learning rate does each arm train with?" in page
    assert "is the smallest or largest that was tried" in page
    assert "<script>alert" not in page
    assert "&lt;b&gt;0.800" not in page  # the choice is bold, not spelt out
