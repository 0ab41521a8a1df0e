"""The accuracy section: scores by arm, label and train size, single runs, paired differences."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pandas as pd

from jaxseg.analysis.statistics import MIN_SEEDS
from jaxseg.report.blocks import (
    Block,
    Cell,
    Chart,
    Finding,
    Fold,
    Heading,
    Missing,
    Prose,
    Section,
    Styles,
    Table,
    TableGroup,
    arm_name,
    described,
)
from jaxseg.report.sections import figures
from jaxseg.report.sections.detection import detection_blocks
from jaxseg.report.sections.ensembles import ensemble_blocks
from jaxseg.report.sections.ranking import ranking_blocks
from jaxseg.report.shown import (
    baseline_of,
    drawn_runs,
    drawn_words,
    main_variant,
    overall_dsc,
    seeds_per_arm,
    shared_words,
)
from jaxseg.report.tables import Tables, of_several_sizes, of_variant, rows_of, variants_of
from jaxseg.reserved import MEAN
from jaxseg.study.claims.rules import DELTA
from jaxseg.text import MISSING, cases, count, interval, listing, number, p_value, plain, signed

_MANY_LABELS = 4

_NAMES = {"dsc": "DSC", "hd95": "HD95", "assd": "ASSD", "nsd": "NSD"}
_SHARES = frozenset({"dsc", "nsd"})
"""Metrics between 0 and 1, the higher the better; the others are distances in the task's unit."""


def accuracy_section(tables: Tables, styles: Styles) -> Section:
    """Show DSC per arm, label and train size, single runs, and paired differences."""
    return Section("accuracy", "Accuracy on the test cases", tuple(_accuracy(tables, styles)))


def _accuracy(tables: Tables, styles: Styles) -> Iterator[Block]:
    sure, unit = f"{100 * tables.confidence:g} %", tables.study.target.unit
    yield from _scores(tables, styles, unit, sure)
    yield from ranking_blocks(tables, styles)
    yield from _differences(tables, styles, unit, sure)
    yield from ensemble_blocks(tables, styles)
    yield from detection_blocks(tables, styles)


def _scores(tables: Tables, styles: Styles, unit: str, sure: str) -> Iterator[Block]:
    """Scores of the arms, over all labels, by label, and by number of training cases."""
    if tables.summary is None:
        yield Missing("There is no results/summary.csv: scores of the arms are left out.")
    else:
        overall = overall_dsc(tables.summary)
        if not overall.empty:
            yield _scores_finding(overall)
        yield Prose(
            "The Dice similarity coefficient (DSC) is twice the overlap of prediction and reference over their total "
            "size: 1 is perfect, 0 is no overlap. A structure that a network misses altogether counts as 0."
        )
        if not overall.empty:
            runs = overall[:0] if tables.seed_scores is None else overall_dsc(tables.seed_scores)
            yield Chart(
                "scores",
                partial(figures.scores, overall, drawn_runs(runs), styles),
                described("Mean DSC", rows_of(overall), lambda r: f"{r.arm} {number(r.mean)}"),
                f"DSC of each arm: mean and {sure} interval over seeds (large mark, line)"
                + (", every seed below it (dots)." if len(runs) else ".")
                + drawn_words(runs, "seed_scores"),
            )
        labels = set(tables.summary["label"]) - {MEAN}
        by_label = _score_table(tables.summary, "dsc", styles, f"DSC by label: mean over seeds and {sure} interval.")
        if len(labels) > _MANY_LABELS:
            yield _score_table(overall, "dsc", styles, f"DSC, mean of labels: mean over seeds and {sure} interval.")
            yield Fold("DSC by label", (by_label,))
        else:
            yield by_label
        if shared := shared_words(tables.study):
            yield Prose(shared)
        sized = of_several_sizes(overall, "arm")
        if len(sized):
            yield Chart(
                "train_size",
                partial(figures.by_size, sized, styles, baseline=baseline_of(tables)),
                described("DSC by number of training cases", rows_of(sized), _size_words),
                f"DSC against the number of training cases: mean and {sure} interval over seeds.",
            )
        for metric, name in _NAMES.items():
            own = tables.summary[tables.summary["metric"] == metric]
            if metric != "dsc" and own["mean"].notna().any():
                caption = f"{name}{'' if metric == 'nsd' else f', {unit}'}: mean over seeds and {sure} interval."
                table = _score_table(tables.summary, metric, styles, caption + _empty_rule(tables, metric))
                yield Fold(f"{name} by label", (table,))


def _differences(tables: Tables, styles: Styles, unit: str, sure: str) -> Iterator[Block]:
    """Paired differences between arms, over all labels and by label."""
    if tables.comparisons is None:
        yield Missing("There is no results/comparisons.csv: paired differences between arms are left out.")
        return
    overall = overall_dsc(tables.comparisons)
    if not overall.empty:
        yield Chart(
            "differences",
            partial(figures.differences, overall, styles),
            described(
                "Differences in mean DSC",
                rows_of(overall),
                _difference_words,
            ),
            f"Paired differences in DSC, seed by seed and case by case, with {sure} intervals. The grey band, "
            f"±{DELTA} DSC, holds differences too small to matter.",
        )
    sized = of_several_sizes(overall, "arm_a")
    if len(sized) and sized["arm_b"].nunique() == 1:
        yield from _gain_by_size(sized, styles, sure)
    few_seeds = seeds_per_arm(tables.study)[0] < MIN_SEEDS  # the notice on top of the page says so
    blocks = _difference_blocks(tables.comparisons, unit, styles, sure, without="fewer than" if few_seeds else None)
    yield Fold("Differences by label, with p-values", tuple(blocks))


def _scores_finding(overall: pd.DataFrame) -> Finding:
    """The arms' mean DSC in a sentence."""
    own = of_variant(overall, main_variant(variants_of(overall)))
    scored = own.dropna(subset=["mean"]).sort_values("mean", ascending=False, kind="stable")
    told = [f"{number(row.mean)} by {row.arm}" for row in rows_of(scored)]
    shown = told if len(told) < 5 else [*told[:2], told[-1]]
    between = "" if len(told) < 5 else f" (best two and last of {len(told)})"
    found = f"Mean DSC: {listing(shown)}{between}." if told else "No arm has a defined mean DSC."
    return Finding("How well does each arm segment cases that it has not seen?", found)


def _gain_by_size(overall: pd.DataFrame, styles: Styles, sure: str) -> Iterator[Block]:
    """The gain at each train size, where there are several."""
    yield Heading("Does the gain depend on how much data there is?")
    base = plain(overall["arm_b"].iloc[0])
    sizes = [variant.train_cases for variant in variants_of(overall)]
    arms = [arm for arm in dict.fromkeys(("transfer", *styles)) if (overall["arm_a"] == arm).any()]
    own = overall[overall["arm_a"] == arms[0]].set_index("train_cases")["mean_diff"]
    told = [f"{signed(own[size])} DSC with {cases(size)}" for size in (sizes[0], sizes[-1]) if size in own.index]
    yield Finding(
        f"Is the difference to {base} larger where fewer cases are there to train on?", f"{arms[0]}: {', '.join(told)}."
    )
    yield Chart(
        "gain_by_size",
        partial(figures.gain_by_size, overall, styles),
        described("Difference in DSC by number of training cases", rows_of(overall), _gain_words),
        f"Paired difference in DSC to {base} against the number of training cases, with {sure} intervals. A line that "
        f"falls to the right: less gain with more data. Grey: ±{DELTA}, too small to matter.",
    )


def _gain_words(row: Any) -> str:
    return f"{row.arm_a}, {cases(row.train_cases)}, {signed(row.mean_diff)}"


def _difference_words(row: Any) -> str:
    return f"{row.arm_a} minus {row.arm_b} {signed(row.mean_diff)}"


def _size_words(row: Any) -> str:
    return f"{row.arm}, {cases(row.train_cases)}, {number(row.mean)}"


def _empty_rule(tables: Tables, metric: str) -> str:
    rule = tables.settings.evaluate.surface_empty
    if metric == "nsd" or rule is None:
        return ""
    meaning = {"diagonal": "the image diagonal", "nan": "nothing (left out)", "inf": "infinity"}.get(rule, rule)
    return f" A structure that a prediction misses counts as {meaning}; one that it alone has is in no mean."


def _score_table(summary: pd.DataFrame, metric: str, styles: Styles, caption: str) -> Table:
    own = summary[summary["metric"] == metric]
    labels = [label for label in dict.fromkeys(own["label"]) if label != "mean"]
    shown = labels if len(labels) == 1 else ["mean", *labels]
    variants = variants_of(own)
    heading = figures.titles(variants)
    groups = []
    for variant in variants:
        part = of_variant(own, variant)
        rows = []
        for arm in (arm for arm in styles if (part["arm"] == arm).any()):
            of_arm = {row.label: row for row in rows_of(part[part["arm"] == arm].drop_duplicates("label"))}
            cells = [_score_cell(of_arm[label]) if label in of_arm else Cell(MISSING) for label in shown]
            main = of_arm["mean"] if "mean" in of_arm else next(iter(of_arm.values()))
            counts = (main.n_seeds, main.n_cases, main.n_missed, main.n_spurious)
            rows.append((Cell(arm_name(arm, styles)), *cells, *(Cell(count(n)) for n in counts)))
        groups.append(TableGroup(f"Trained on {heading[variant]}" if len(variants) > 1 else "", tuple(rows)))
    head = ("Arm", *("Mean of labels" if label == "mean" else label for label in shown))
    caption += " Missed: in the reference only. Spurious: in the prediction only."
    return Table(caption, (*head, "Seeds", "Cases", "Missed", "Spurious"), tuple(groups))


def _score_cell(row: Any) -> Cell:
    digits = 3 if row.metric in _SHARES else 2
    return Cell(number(row.mean, digits), interval(row.ci_low, row.ci_high, digits))


def _difference_blocks(
    comparisons: pd.DataFrame, unit: str, styles: Styles, sure: str, *, without: str | None
) -> Iterator[Block]:
    """Tables of differences and their notes, but for those that begin with `without`."""
    for metric in (metric for metric in _NAMES if (comparisons["metric"] == metric).any()):
        yield _difference_table(comparisons[comparisons["metric"] == metric], metric, unit, styles, sure)
    yield Prose(
        "The p-values flip signs over seeds and speak of these cases; the second holds for the whole family of "
        "comparisons at once. The intervals are what a verdict goes by."
    )
    if "note" in comparisons:
        shown = [of_variant(comparisons, variant)["note"] for variant in variants_of(comparisons)]
        parts = dict.fromkeys(part for notes in shown for note in notes for part in str(note).split("; ") if part)
        notes = [part for part in parts if without is None or not part.startswith(without)]
        if notes:
            yield Prose(f"Notes: {'; '.join(notes)}.")


def _difference_table(own: pd.DataFrame, metric: str, unit: str, styles: Styles, sure: str) -> Table:
    one_base = own["arm_b"].nunique() == 1
    variants = variants_of(own)
    heading = figures.titles(variants)
    digits = 3 if metric in _SHARES else 2
    groups = []
    for variant in variants:
        rows = tuple(
            (
                Cell(arm_name(row.arm_a, styles)),
                *(() if one_base else (Cell(row.arm_b),)),
                Cell("mean of labels" if row.label == "mean" else row.label),
                Cell(signed(row.mean_diff, digits), interval(row.ci_low, row.ci_high, digits)),
                Cell(p_value(row.p)),
                Cell(p_value(getattr(row, "p_maxt", float("nan")))),
                Cell(count(row.n_seeds)),
                Cell(count(row.n_groups)),
                Cell(getattr(row, "inference", "")),
            )
            for row in rows_of(of_variant(own, variant))
        )
        groups.append(TableGroup(f"Trained on {heading[variant]}" if len(variants) > 1 else "", rows))
    against = () if one_base else ("Against",)
    head = ("Arm", *against, "Label", "Difference", "p, these cases", "p, family", "Seeds", "Groups", "Inference")
    base = plain(own["arm_b"].iloc[0]) if one_base else "another arm"
    better = "higher is better" if metric in _SHARES else f"in {unit}, lower is better"
    caption = f"Paired differences in {_NAMES[metric]} to {base} ({better}), with {sure} intervals."
    return Table(caption, head, tuple(groups), text_columns=(0, 1, 7) if one_base else (0, 1, 2, 8))
