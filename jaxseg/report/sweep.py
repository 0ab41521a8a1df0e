"""The page of a sweep: how its points went, and what each arm reaches at each of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from jaxseg.report.blocks import (
    Block,
    Cell,
    Chart,
    Missing,
    Notice,
    Prose,
    Section,
    Styles,
    Table,
    TableGroup,
    arm_name,
    described,
    sentence,
)
from jaxseg.report.charts.rows import Group, Row
from jaxseg.report.charts.style import arm_styles
from jaxseg.report.page import write_page
from jaxseg.report.sections.figures import difference_row, forest_plot
from jaxseg.report.sections.targets import targets_blocks
from jaxseg.report.shown import overall_dsc
from jaxseg.report.tables import read_table, rows_of
from jaxseg.study import files
from jaxseg.text import MINUS, MISSING, cases, count, interval, number, plural, signed
from jaxseg.types import UserError

_CHOOSING = (
    "These are scores on test cases. To choose a setting, compare the validation DSC beside them: the best of several "
    "test scores is too good by chance, and a study of its own at the chosen setting is the honest figure."
)


def write_sweep_report(folder: Path) -> Path:
    """Write `report.html` and its figures from a sweep's tables.

    Args:
        folder: The folder of a sweep, with sweep.json, results/points.csv, and results/*.csv of the points that are
            done.

    Returns:
        The page's path.

    Raises:
        UserError: There is no sweep in this folder.
    """
    made = files.read_json(folder / "sweep.json")
    if not made:
        raise UserError(f"no sweep.json in {folder}; give the folder that `python -m launch.sweep --workdir=...` wrote")
    points = files.read_table(folder / "results" / "points.csv", texts=made["fields"])
    tables = {name: read_table(folder / "results", name, ()) for name in ("summary", "comparisons", "training")}
    summary = tables["summary"]
    styles = arm_styles([] if summary is None else list(dict.fromkeys(summary["arm"])))
    short = {field: field.rpartition(".")[2] for field in made["fields"]}
    if len(set(short.values())) < len(short):
        short = {field: field for field in short}
    titles = {
        point["name"]: ", ".join(f"{short[field]} {value}" for field, value in point["overrides"].items())
        for point in made["points"]
    }
    sections = [Section("points", "Points", tuple(_points(points, made["fields"])))]
    if summary is not None:
        blocks = _scores(summary, tables["training"], styles, titles)
        sections.append(Section("scores", "Scores", tuple(blocks)))
    if tables["comparisons"] is not None:
        blocks = _differences(tables["comparisons"], styles, titles)
        sections.append(Section("differences", "Differences between arms", tuple(blocks)))
    over = read_table(folder / "results", "over_targets", ())
    together = [] if over is None else list(targets_blocks(over))
    if together:
        sections.append(Section("targets", "Over targets", tuple(together)))
    lead = sentence(
        "{points} of <b>{name}</b>, {done} done. Varied: {fields}.",
        points=plural(len(points), "point"),
        name=made["name"],
        done=count(int((points["state"] == "done").sum())),
        fields=", ".join(made["fields"]),
    )
    return write_page(folder, name=made["name"], kind="sweep", lead=lead, sections=sections)


def _points(points: pd.DataFrame, fields: Sequence[str]) -> list[Block]:
    rows = []
    for row in points.to_dict("records"):
        page = Markup('<a href="{}/report.html">report</a>').format(row["workdir"])
        time = number(row["seconds"] / 60, 1) if pd.notna(row["seconds"]) else MISSING
        cells = [Cell(str(row[field])) for field in fields]
        rows.append((*cells, Cell(row["state"]), Cell(time), Cell(page if row["state"] == "done" else "")))
    head = (*fields, "state", "minutes", "page")
    words = (*range(len(fields) + 1), len(fields) + 2)
    failed = [row for row in rows_of(points) if row.state == "failed"]
    notices = [Notice(sentence("{point} failed: {message}", point=row.point, message=row.message)) for row in failed]
    table = Table("Every point is a study with a page of its own.", head, (TableGroup("", tuple(rows)),), words)
    return [*notices, table]


def _overall(table: pd.DataFrame) -> pd.DataFrame:
    """DSC over labels at each point: of its folds together where it has several, which other points may not have."""
    return pd.concat([overall_dsc(own) for _, own in table.groupby("point", sort=False)])


def _title(row: Any, table: pd.DataFrame, titles: dict[str, str]) -> str:
    """What a row is about: its point, and its training set size where the point has several."""
    sizes = table.loc[table["point"] == row.point, "train_cases"].nunique()
    return f"{titles[row.point]}; {cases(row.train_cases)}" if sizes > 1 else titles[row.point]


def _scores(
    summary: pd.DataFrame, training: pd.DataFrame | None, styles: Styles, titles: dict[str, str]
) -> list[Block]:
    shown = _overall(summary)
    ended = [] if training is None else rows_of(training)
    validation = {(row.point, row.arm, row.train_cases): row.last_val_dsc for row in ended}
    groups: dict[str, list[tuple[Cell, ...]]] = {}
    for row in rows_of(shown):
        at_end = Cell(number(validation.get((row.point, row.arm, row.train_cases), float("nan"))))
        test = Cell(number(row.mean), interval(row.ci_low, row.ci_high))
        line = (Cell(arm_name(row.arm, styles)), test, at_end, Cell(count(row.n_seeds)))
        groups.setdefault(_title(row, shown, titles), []).append(line)
    head = ("arm", "test DSC", "validation DSC at the end", "seeds")
    caption = "Mean over labels, test cases and seeds, with its interval."
    return [
        Prose(_CHOOSING),
        Table(caption, head, tuple(TableGroup(title, tuple(rows)) for title, rows in groups.items())),
    ]


def _differences(comparisons: pd.DataFrame, styles: Styles, titles: dict[str, str]) -> list[Block]:
    shown = _overall(comparisons)
    if shown.empty:
        return [Missing("There is nothing to compare: the study has one arm.")]
    return [
        Chart(
            "sweep_differences",
            partial(_forest, shown, styles, titles),
            described(
                "Differences in mean DSC",
                rows_of(shown),
                lambda row: f"{titles[row.point]}: {row.arm_a} {MINUS} {row.arm_b} {signed(row.mean_diff)}",
            ),
            "Difference in mean DSC of two arms at each point, with its interval over seeds and patients.",
        )
    ]


def _forest(comparisons: pd.DataFrame, styles: Styles, titles: dict[str, str], *, width: float) -> Figure:
    """Paired differences, grouped by the pair of arms so that points stand under one another."""
    groups: dict[str, list[Row]] = {}
    for row in rows_of(comparisons):
        label = _title(row, comparisons, titles)
        shown = difference_row(label, styles[row.arm_a], row.mean_diff, row.ci_low, row.ci_high)
        groups.setdefault(f"{row.arm_a} {MINUS} {row.arm_b}", []).append(shown)
    named = [Group(title, tuple(rows)) for title, rows in groups.items()]
    return forest_plot(named, width=width, xlabel="Difference in DSC")
