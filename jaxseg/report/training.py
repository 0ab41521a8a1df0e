"""The training section: learning curves, when the target was reached, and learning rates."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial

import pandas as pd

from jaxseg.report import figures
from jaxseg.report.blocks import Block, Chart, Finding, Fold, Missing, Section, Styles, described
from jaxseg.report.effects import baseline_of, main_variant, speeds, training_steps
from jaxseg.report.rates import rates_blocks
from jaxseg.report.tables import Tables, Variant, of_variant, variants_of
from jaxseg.report.text import count, listing, number, plural


def training_section(tables: Tables, styles: Styles) -> Section:
    """Show learning curves, when the target was reached, and which learning rates were taken."""
    return Section("training", "Training", tuple(_training(tables, styles)))


def _training(tables: Tables, styles: Styles) -> Iterator[Block]:
    if tables.convergence is not None:
        yield Finding("How fast does each arm learn?", _reached_words(tables.convergence, styles))
    logged = None if tables.curves is None else tables.curves.dropna(subset=["loss", "val_dsc"], how="all")
    if logged is None or logged.empty:
        yield Missing("There is no results/curves.csv with values in it: learning curves are left out.")
    else:
        variants = variants_of(logged)
        charts = tuple(
            _curves_chart(tables, logged, styles, variant, several=len(variants) > 1) for variant in variants
        )
        yield charts[-1]  # the largest training set
        others = charts[:-1]
        if others:
            yield Fold("Learning curves of the other training set sizes", others)
    if tables.convergence is None:
        yield Missing("There is no results/convergence.csv: steps to the target are left out.")
    else:
        yield _steps_chart(tables, tables.convergence, styles)
    yield from rates_blocks(tables, styles)


def _steps_chart(tables: Tables, convergence: pd.DataFrame, styles: Styles) -> Chart:
    return Chart(
        "steps_to_target",
        partial(figures.steps_to_target, convergence, styles, training_steps(tables)),
        _steps_alt(convergence, styles),
        "First step at which the median of three successive validation DSCs reaches the target: every run (dots) and "
        "the median over seeds (large mark). Open arrows: runs that had not reached it when training ended.",
        _speed_table(tables),
    )


def _reached_words(convergence: pd.DataFrame, styles: Styles) -> str:
    """How many runs reached the target and when, at the largest training set."""
    own = of_variant(convergence, main_variant(variants_of(convergence)))
    parts = []
    for arm in [arm for arm in styles if (own["arm"] == arm).any()][:4]:
        runs = own[own["arm"] == arm]
        # Runs that never reached it count as later than all that did.
        median = runs["step"].astype(float).where(~runs["censored"], float("inf")).median()
        when = f" (median step {count(median)})" if median < float("inf") else ""
        parts.append(f"{(~runs['censored']).sum()} of {plural(len(runs), 'run')} of {arm}{when}")
    return f"The target was reached by {listing(parts)}."


def _bins(curves: pd.DataFrame) -> int:
    """How many points a curve gets: sixty, fewer where so many runs would make the page heavy."""
    runs = len(curves[["arm", "train_cases", "fold", "seed"]].drop_duplicates())
    return max(12, min(60, 24_000 // runs))


def _curves_chart(tables: Tables, logged: pd.DataFrame, styles: Styles, variant: Variant, *, several: bool) -> Chart:
    heading = figures.titles([variant])[variant]
    curves = of_variant(logged, variant)
    target = None
    if tables.convergence is not None:
        targets = of_variant(tables.convergence, variant)["target_dsc"].dropna().unique()
        target = float(targets[0]) if len(targets) == 1 else None
    diverged = frozenset(
        (run["arm"], int(run["fold"]), int(run["seed"]))
        for run in tables.study.get("runs", ())
        if run.get("diverged_at") is not None and run.get("train_cases") == variant.train_cases
    )
    last = curves.dropna(subset=["val_dsc"]).sort_values("step").groupby(["arm", "fold", "seed"])["val_dsc"].last()
    ends = last.groupby(level="arm").mean()
    stem = f"learning_curves_n{variant.train_cases}" if several else "learning_curves"
    return Chart(
        stem,
        partial(
            figures.learning_curves,
            curves,
            styles,
            confidence=tables.confidence,
            baseline=baseline_of(tables),
            target_dsc=target,
            diverged=diverged,
            bins=_bins(logged),
        ),
        f"Training loss and validation DSC over training steps, trained on {heading}. "
        + described("Final validation DSC", [a for a in styles if a in ends.index], lambda a: f"{a} {number(ends[a])}"),
        f"Learning curves, trained on {heading}: mean over seeds (thick), its {100 * tables.confidence:g} % interval "
        "(band), every run (thin). Long curves are averaged in bins of steps."
        + (" The dotted line is the target that counts as converged." if target is not None else "")
        + (" Diverged runs are drawn but left out of mean and band." if diverged else ""),
    )


def _speed_table(tables: Tables) -> pd.DataFrame | None:
    """The ratios that the summary states, as numbers beside the figure."""
    baseline = baseline_of(tables)
    found = speeds(tables, baseline) if baseline is not None else []
    rows = [dataclasses.asdict(speed) for speed in found]
    for row in rows:
        variant = row.pop("variant")
        row |= {"train_cases": variant.train_cases, "fold": variant.fold}
    return pd.DataFrame(rows) if rows else None


def _steps_alt(convergence: pd.DataFrame, styles: Styles) -> str:
    reached = convergence.assign(reached=~convergence["censored"]).groupby("arm")["reached"].agg(["sum", "size"])
    known = [arm for arm in styles if arm in reached.index]
    return described(
        "Steps to the target",
        iter(known),
        lambda arm: f"{arm}: {reached.loc[arm, 'sum']} of {reached.loc[arm, 'size']} runs reached it",
    )
