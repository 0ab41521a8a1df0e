"""The examples section: slices with outlines, and the cases that go worst."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pandas as pd

from jaxseg.report import overlays
from jaxseg.report.blocks import (
    Block,
    Cell,
    Chart,
    Finding,
    Missing,
    Section,
    Styles,
    Table,
    TableGroup,
    arm_name,
    described,
)
from jaxseg.report.effects import main_variant, seed_scores
from jaxseg.report.pictures import Example
from jaxseg.report.tables import Tables, of_variant, rows_of, variants_of
from jaxseg.report.text import cases, count, number, plural


def examples_section(tables: Tables, styles: Styles) -> Section:
    """Show slices with outlines, and the cases that go worst."""
    return Section("examples", "Examples and worst cases", tuple(_examples(tables, styles)))


def _examples(tables: Tables, styles: Styles) -> Iterator[Block]:
    if tables.worst_cases is not None:
        yield _worst_finding(tables.worst_cases)
    for k, example in enumerate(tables.examples):
        notes, size = _case_scores(tables, example)
        names = example.label_names
        colours = ", ".join(f"{_COLOUR_NAMES[i % len(_COLOUR_NAMES)]} {name}" for i, name in enumerate(names))
        yield Chart(
            f"example_{k}",
            partial(overlays.overlay, example, notes),
            f"Slice of case {example.case} with the outline of the reference and of the predictions of "
            + described("the arms", example.predictions, partial(_note, notes)),
            f"Case {example.case}, slice {example.slice_index} of axis {example.slice_axis}, seed {example.seed}{size}."
            f" White: reference. Colour: prediction ({colours})."
            + (" DSC is that run's on the whole case, mean of labels." if notes else ""),
        )
    if not tables.examples:
        yield Missing("There is no results/examples.json and examples.npz: example slices are left out.")
    if tables.worst_cases is None:
        yield Missing("There is no results/worst_cases.csv: the list of worst cases is left out.")
        return
    if tables.worst_cases.empty:
        return
    main = main_variant(variants_of(tables.worst_cases))
    ranked = of_variant(tables.worst_cases, main)
    grouped = (ranked["case"] != ranked["group"]).any()
    rows = tuple(
        (
            Cell(row.case),
            *((Cell(row.group),) if grouped else ()),
            Cell(row.label),
            Cell(number(row.mean), f"[{number(row.min)}, {number(row.max)}]" if row.n_runs > 1 else ""),
            Cell(arm_name(row.worst_arm, styles), f"seed {row.worst_seed}"),
            Cell(f"{count(row.n_missed)} of {count(row.n_runs)}"),
        )
        for row in rows_of(ranked)
    )
    if rows:
        head = ("Case", *(("Group",) if grouped else ()), "Label", "DSC, mean and range", "Lowest in", "Missed by")
        caption = f"The structures segmented worst, over all runs trained on {cases(main.train_cases)}."
        yield Table(caption, head, (TableGroup("", rows),), text_columns=(0, 1, 2, 4) if grouped else (0, 1, 3))


def _worst_finding(worst_cases: pd.DataFrame) -> Finding:
    first = next(rows_of(of_variant(worst_cases, main_variant(variants_of(worst_cases)))))
    return Finding(
        "What do the segmentations look like, and on which cases do they fail?",
        f"Worst goes {first.label} of {first.case}: mean DSC {number(first.mean)} over {plural(first.n_runs, 'run')}, "
        f"missed by {count(first.n_missed)}.",
    )


def _note(notes: dict[str, str], arm: str) -> str:
    return f"{arm} {notes.get(arm, '')}".strip()


_COLOUR_NAMES = ("orange", "sky blue", "yellow", "pink", "green", "red", "lilac", "white")
"""Of overlays.LABEL_COLOURS."""


def _case_scores(tables: Tables, example: Example) -> tuple[dict[str, str], str]:
    """DSC of the shown runs on the whole case, where it is clear which runs are shown."""
    if tables.cases is None:
        return {}, ""
    own = tables.cases[(tables.cases["case"] == example.case) & (tables.cases["seed"] == example.seed)]
    if example.train_cases is not None:
        own = own[own["train_cases"] == example.train_cases]
    if example.fold is not None:
        own = own[own["fold"] == example.fold]
    if own.empty or len(own[["train_cases", "fold"]].drop_duplicates()) > 1:
        return {}, ""
    runs = seed_scores(own)
    notes = {row.arm: f"DSC {number(row.value)}" for row in rows_of(runs)}
    several = len(variants_of(tables.cases)) > 1
    return notes, f", trained on {cases(int(own['train_cases'].iloc[0]))}" if several else ""
