"""Where the spread of scores comes from: seeds, cases, or both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from jaxseg.report.blocks import Block, Chart, Finding, Heading, Missing, Styles, described
from jaxseg.report.charts.shares import Part, share_chart
from jaxseg.report.shown import main_size, said, sized
from jaxseg.report.tables import Tables
from jaxseg.text import count, listing, number

_SOURCES = {
    "seed": "seed: chance in training",
    "init": "initialisation",
    "order": "order of batches",
    "subset": "draw of training cases",
    "streams": "these in combination",
    "group": "case: some are harder",
    "both": "both: which cases a run gets wrong",
}
"""What shares of the variance are called; interactions of the streams are one share, those with the case another."""
_WHERE = {"runs": "in the seed", "group": "in the case", "both": "in which cases a run gets wrong"}
"""Where the three shares lie into which the variance of every arm is split."""


def _crossed_words(arm: str, facts: Mapping[str, Any]) -> str:
    """What each stream of a crossed arm accounts for, and which runs the split leaves out."""
    named = [f"{_SOURCES[name]} {_percent(facts[name])}" for name in _SOURCES if name in facts and name != "group"]
    used, left_out = (count(facts[name].value) for name in ("n_runs", "n_left_out"))
    without = f" (from {used} runs; {left_out} left out, because runs they are crossed with are missing)"
    left = without if facts["n_left_out"].value else ""
    return f"In {arm}, whose random streams are crossed: {listing(named)}{left}."


def _share_words(facts: Mapping[str, Any]) -> str:
    """What lies in the seed, in the case, and in both together: a run may fail on a case that others find easy."""
    return listing([f"{_percent(facts[name])} {where}" for name, where in _WHERE.items() if name in facts])


def _percent(row: Any) -> str:
    return f"{number(100 * row.value, 0)} %"


def sources_blocks(tables: Tables, styles: Styles) -> Iterator[Block]:
    """Show what share of the variance of scores the seed and the case account for."""
    rows = None if tables.page is None else tables.page[tables.page["about"] == "variance"]
    if rows is None or rows.empty:
        yield Missing(
            "There is no results/page.csv with shares of variance: where the spread of scores comes from is left out."
        )
        return
    size = main_size(rows)
    facts = {arm: told for arm in styles if (told := said(tables, "variance", arm, size))}
    if not facts:
        return
    yield Heading("Where does the spread of scores come from?")
    shares = [f"in {arm} {_share_words(told)}" for arm, told in [*facts.items()][:3]]
    sentences = [f"Of the variance of DSC lie {'; '.join(shares)}."]
    sentences += [_crossed_words(arm, told) for arm, told in facts.items() if "seed" not in told]
    yield Finding("Do scores differ more between seeds or between cases?", " ".join(sentences))
    parts = [
        Part(arm, styles[arm], tuple((_SOURCES[name], told[name].value) for name in _SOURCES if name in told))
        for arm, told in facts.items()
    ]
    yield Chart(
        "variance_split",
        partial(share_chart, parts),
        described("Share of variance by seed", facts, lambda arm: f"{arm} {number(facts[arm]['runs'].value, 2)}"),
        f"Variance of DSC (mean of labels){sized(rows, size)}, split into what the seed does to all cases, "
        "what is particular to a case (or patient) for all seeds, and the rest.",
    )
