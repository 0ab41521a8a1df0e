"""Which lesions are found, in the accuracy section of studies that count them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from jaxseg.report.blocks import Block, Cell, Finding, Heading, Prose, Styles, Table, TableGroup, arm_name
from jaxseg.report.sections import figures
from jaxseg.report.shown import main_variant
from jaxseg.report.tables import Tables, of_variant, rows_of, variants_of
from jaxseg.reserved import MEAN
from jaxseg.text import MISSING, count, interval, listing, number, p_value, plain, signed

_NAMES = {
    "lesion_sensitivity": "Sensitivity",
    "lesion_precision": "Precision",
    "lesion_f1": "F1",
    "lesions_found": "Found per case",
    "lesions_missed": "Missed per case",
    "lesions_spurious": "Spurious per case",
}


def detection_blocks(tables: Tables, styles: Styles) -> Iterator[Block]:
    """Show how many lesions each arm finds and how arms differ, if the study counts lesions."""
    if tables.detection is None or tables.detection.empty:
        return
    sure = f"{100 * tables.confidence:g} %"
    labels = [label for label in dict.fromkeys(tables.detection["label"]) if label != MEAN]
    yield Heading("Are lesions found?")
    yield _finding(tables.detection, labels[0])
    yield Prose(
        "Lesions are connected parts of a label. One is found if the prediction covers at least the asked share of its "
        "voxels, and missed otherwise; a predicted part is spurious if it touches no lesion. Sensitivity is the share "
        "of lesions found, precision the share of predicted parts that are not spurious, F1 their harmonic mean, each "
        "by case. Spurious parts are counted in all cases, the rest where the reference holds the label."
    )
    yield _scores(tables.detection, labels, styles, sure)
    if tables.detection_differences is not None:
        yield _differences(tables.detection_differences, labels, styles, sure)


def _finding(detection: pd.DataFrame, label: str) -> Finding:
    own = of_variant(detection, main_variant(variants_of(detection)))
    # A metric may have no value: sensitivity where no test case holds the label, precision where nothing is predicted.
    own = own[own["label"] == label].pivot_table("mean", "arm", "metric", sort=False, dropna=False)
    own = own.reindex(columns=["lesion_sensitivity", "lesions_spurious"]).dropna()
    told = [
        f"{arm} finds {number(row['lesion_sensitivity'], 2)} of them, with {number(row['lesions_spurious'], 1)} "
        "spurious parts per case"
        for arm, row in own.iterrows()
    ]
    return Finding(f"How many lesions ({label}) does each arm find?", f"{listing(told)}." if told else "None is known.")


def _scores(detection: pd.DataFrame, labels: list[str], styles: Styles, sure: str) -> Table:
    variants = variants_of(detection)
    heading = figures.titles(variants)
    groups = []
    for variant in variants:
        part = of_variant(detection, variant)
        rows = []
        for label in labels:
            for arm in (arm for arm in styles if (part["arm"] == arm).any()):
                own = part[(part["arm"] == arm) & (part["label"] == label)]
                values = {row.metric: row for row in rows_of(own)}
                cells = [_cell(values[name]) if name in values else Cell(MISSING) for name in _NAMES]
                rows.append((Cell(arm_name(arm, styles)), Cell(label), *cells))
        groups.append(TableGroup(f"Trained on {heading[variant]}" if len(variants) > 1 else "", tuple(rows)))
    caption = f"Lesions: means over groups and seeds, with {sure} intervals over seeds."
    return Table(caption, ("Arm", "Label", *_NAMES.values()), tuple(groups), text_columns=(0, 1))


def _cell(row: Any) -> Cell:
    digits = 2 if row.metric.startswith("lesions") else 3
    return Cell(number(row.mean, digits), interval(row.ci_low, row.ci_high, digits))


def _differences(table: pd.DataFrame, labels: list[str], styles: Styles, sure: str) -> Table:
    variants = variants_of(table)
    heading = figures.titles(variants)
    groups = []
    for variant in variants:
        part = of_variant(table, variant)
        rows = tuple(
            (
                Cell(arm_name(row.arm_a, styles)),
                Cell(row.label),
                Cell(_NAMES[row.metric]),
                Cell(signed(row.mean_diff), interval(row.ci_low, row.ci_high)),
                Cell(p_value(row.p)),
                Cell(p_value(row.p_maxt)),
                Cell(count(row.n_seeds)),
                Cell(count(row.n_groups)),
            )
            for row in rows_of(part[part["label"].isin(labels)])
        )
        groups.append(TableGroup(f"Trained on {heading[variant]}" if len(variants) > 1 else "", rows))
    head = ("Arm", "Label", "Quantity", "Difference", "p, these cases", "p, family", "Seeds", "Groups")
    base = plain(table["arm_b"].iloc[0])
    caption = f"Lesions: paired differences to {base}, with {sure} intervals. Fewer missed and spurious are better."
    return Table(caption, head, tuple(groups), text_columns=(0, 1, 2))
