"""The training section: learning curves, when the target was reached, and learning rates."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import pandas as pd

from jaxseg.report.blocks import (
    Block,
    Cell,
    Chart,
    Finding,
    Fold,
    Missing,
    Section,
    Styles,
    Table,
    TableGroup,
    arm_name,
    described,
)
from jaxseg.report.sections import figures
from jaxseg.report.sections.rates import rates_blocks
from jaxseg.report.shown import baseline_of, drawn_runs, drawn_words, main_size
from jaxseg.report.tables import Tables, Variant, of_variant, rows_of, variants_of
from jaxseg.text import MISSING, cases, count, interval, listing, number, plural


def training_section(tables: Tables, styles: Styles) -> Section:
    """Show learning curves, when the target was reached, and which learning rates were taken."""
    return Section("training", "Training", tuple(_training(tables, styles)))


def _training(tables: Tables, styles: Styles) -> Iterator[Block]:
    if tables.convergence is not None and tables.training is not None:
        yield Finding("How fast does each arm learn?", _reached_words(tables.training, styles))
    if tables.curve_runs is None or tables.curve_means is None:
        yield Missing("There is no results/curve_runs.csv with rows in it: learning curves are left out.")
    else:
        variants = variants_of(tables.curve_runs)
        drawn = (drawn_runs(tables.curve_runs), tables.curve_means)
        charts = tuple(_curves_chart(tables, drawn, styles, variant, several=len(variants) > 1) for variant in variants)
        yield charts[-1]  # the largest training set
        others = charts[:-1]
        if others:
            yield Fold("Learning curves of the other training set sizes", others)
    if tables.convergence is None:
        yield Missing("There is no results/convergence.csv with rows in it: steps to the target are left out.")
    elif tables.training is None:
        yield Missing("There is no results/training.csv: steps to the target are left out.")
    else:
        yield _steps_chart(tables, tables.convergence, tables.training, styles)
        if tables.speed is None:
            yield Missing("There is no results/speed.csv with rows in it: how much sooner an arm is there is left out.")
    if tables.budget_means is not None:
        yield _budget_table(tables, tables.budget_means, styles)
    yield from rates_blocks(tables, styles)


def _budget_table(tables: Tables, means: pd.DataFrame, styles: Styles) -> Table:
    """What each arm reaches with a part of its steps: in test DSC where that was scored, else in validation DSC."""
    metric = "dsc" if (means["metric"] == "dsc").any() else "val_dsc"
    size = main_size(means)
    own = means[(means["metric"] == metric) & (means["train_cases"] == size)]
    # Arms of other lengths have them at slightly other shares, as steps are those of a log row: they are told by rank.
    own = own.assign(rank=own.groupby("arm")["share"].rank(method="dense", ascending=False).astype(int))
    ranks = sorted(own["rank"].unique(), reverse=True)
    found = {(row.arm, row.rank): row for row in rows_of(own)}
    rows = tuple(
        (Cell(arm_name(arm, styles)), *(_budget_cell(found.get((arm, rank))) for rank in ranks))
        for arm in styles
        if (own["arm"] == arm).any()
    )
    what = "Mean DSC on the test cases" if metric == "dsc" else "Validation DSC"
    several = f", trained on {cases(size)}" if means["train_cases"].nunique() > 1 else ""
    shares = (100 * own.loc[own["rank"] == rank, "share"].median() for rank in ranks)
    head = ("Arm", *("all steps" if share == 100 else f"{share:.0f} % of the steps" for share in shares))
    caption = (
        f"{what} with a part of the steps{several}: mean over runs with {100 * tables.confidence:g} % intervals. A "
        "difference between arms that shrinks from left to right is one of speed."
    )
    return Table(caption, head, (TableGroup("", rows),))


def _budget_cell(row: Any) -> Cell:
    return Cell(MISSING) if row is None else Cell(number(row.value), interval(row.ci_low, row.ci_high))


def _steps_chart(tables: Tables, convergence: pd.DataFrame, training: pd.DataFrame, styles: Styles) -> Chart:
    fraction = tables.settings.analysis.target_fraction
    target = "" if fraction is None else f", {fraction:g} of what {baseline_of(tables) or 'the first arm'} reaches"
    return Chart(
        "steps_to_target",
        partial(figures.steps_to_target, drawn_runs(convergence), training, styles, tables.study.steps),
        described(
            "Steps to the target",
            [row for arm in styles for row in rows_of(training[training["arm"] == arm])],
            lambda row: f"{row.arm}, {cases(row.train_cases)}: {row.n_reached} of {row.n_runs} runs reached it",
        ),
        f"First step at which the median of three successive validation DSCs reaches the target{target}: every run "
        "(dots) and the median over runs (large mark). Open arrows: runs that had not reached it when training ended."
        + drawn_words(convergence, "convergence"),
    )


def _reached_words(training: pd.DataFrame, styles: Styles) -> str:
    """How many runs reached the target and when, at the largest training set."""
    own = {row.arm: row for row in rows_of(training[training["train_cases"] == main_size(training)])}
    parts = []
    for row in [own[arm] for arm in styles if arm in own][:4]:
        when = f" (median step {count(row.median_step)})" if math.isfinite(row.median_step) else ""
        parts.append(f"{count(row.n_reached)} of {plural(int(row.n_runs), 'run')} of {row.arm}{when}")
    return f"The target was reached by {listing(parts)}." if parts else "No run was validated while it trained."


def _curves_chart(
    tables: Tables,
    drawn: tuple[pd.DataFrame, pd.DataFrame],
    styles: Styles,
    variant: Variant,
    *,
    several: bool,
) -> Chart:
    heading = figures.titles([variant])[variant]
    runs, means = (table[table["train_cases"] == variant.train_cases] for table in drawn)
    target = None
    if tables.convergence is not None:
        targets = of_variant(tables.convergence, variant)["target_dsc"].dropna().unique()
        target = float(targets[0]) if len(targets) == 1 else None
    diverged = any(run.train_cases == variant.train_cases for run in tables.study.diverged)
    ended = [] if tables.training is None else rows_of(of_variant(tables.training, variant))
    ends = {row.arm: row.last_val_dsc for row in ended if math.isfinite(row.last_val_dsc)}
    stem = f"learning_curves_n{variant.train_cases}" if several else "learning_curves"
    return Chart(
        stem,
        partial(
            figures.learning_curves,
            runs,
            means,
            styles,
            baseline=baseline_of(tables),
            target_dsc=target,
        ),
        f"Training loss and validation DSC over training steps, trained on {heading}. "
        + described("Final validation DSC", [a for a in styles if a in ends], lambda a: f"{a} {number(ends[a])}"),
        f"Learning curves, trained on {heading}: mean over seeds (thick), its {100 * tables.confidence:g} % interval "
        "(band), every run (thin). Long curves are averaged in bins of steps."
        + ("" if tables.curve_runs is None else drawn_words(tables.curve_runs, "curve_runs"))
        + (" The dotted line is the target that counts as converged." if target is not None else "")
        + (" Diverged runs are drawn but left out of mean and band." if diverged else ""),
    )
