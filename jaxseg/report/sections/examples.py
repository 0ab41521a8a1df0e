"""The examples section: slices with outlines, and the cases that go worst."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pandas as pd

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
from jaxseg.report.charts import overlays
from jaxseg.report.pictures import Example
from jaxseg.report.shown import main_variant, several_folds, several_sizes
from jaxseg.report.tables import Tables, of_variant, rows_of, variants_of
from jaxseg.text import cases, count, number, plural


def examples_section(tables: Tables, styles: Styles) -> Section:
    """Show slices with outlines, and the cases that go worst."""
    return Section("examples", "Examples and worst cases", tuple(_examples(tables, styles)))


def _examples(tables: Tables, styles: Styles) -> Iterator[Block]:
    if tables.worst_cases is not None:
        yield _worst_finding(tables.worst_cases)
    for k, example in enumerate(tables.examples):
        notes, which = _runs_of(tables, example)
        names = example.label_names
        colours = ", ".join(f"{_COLOUR_NAMES[i % len(_COLOUR_NAMES)]} {name}" for i, name in enumerate(names))
        place = "" if example.place is None else f", slice {example.place[1]} of axis {example.place[0]}"
        scored = any(run.get("dsc") is not None for run in example.runs.values())
        yield Chart(
            f"example_{k}",
            partial(overlays.overlay, example, notes),
            f"Slice of case {example.case} with the outline of the reference and of the predictions of "
            + described("the arms", example.predictions, partial(_note, notes)),
            f"Case {example.case}{place}{which}. White: reference. Colour: prediction ({colours})."
            + (" DSC is that run's on the whole case, mean of labels." if scored else ""),
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
"""The names of the colours of `overlays.LABEL_COLOURS`, in order."""


def _runs_of(tables: Tables, example: Example) -> tuple[dict[str, str], str]:
    """What stands beside each arm's prediction, and what all of them have in common: seed, training cases, fold."""
    own = {arm: example.runs[arm] for arm in example.predictions if arm in example.runs}
    told: dict[str, dict[str, str]] = {"seed": {arm: f"seed {run['seed']}" for arm, run in own.items()}}
    if several_sizes(tables):
        told["train_cases"] = {arm: f"trained on {cases(run['train_cases'])}" for arm, run in own.items()}
    if several_folds(tables):
        told["fold"] = {arm: f"fold {run['fold']}" for arm, run in own.items()}
    shared = [next(iter(words.values())) for words in told.values() if len(set(words.values())) == 1]
    notes = {}
    for arm, run in own.items():
        apart = [words[arm] for words in told.values() if len(set(words.values())) > 1]
        dsc = [] if run.get("dsc") is None else [f"DSC {number(run['dsc'])}"]
        notes[arm] = ", ".join([*dsc, *apart])
    return notes, "".join(f", {words}" for words in shared)
