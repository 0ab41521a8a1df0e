"""What a linear probe reads off each layer: at a random start, in the source network, and at the end of training."""

from __future__ import annotations

from collections.abc import Iterator

from jaxseg.report.blocks import Block, Finding, Heading, Styles
from jaxseg.report.charts.layers import LayerAxis
from jaxseg.report.sections.by_layer import arm_charts, at_size, layer_value
from jaxseg.report.shown import asked_about, baseline_of, layer_rows, main_size, said, sized
from jaxseg.report.tables import Tables, rows_of
from jaxseg.text import listing, number

_SITES = {"probe_end": "End of training", "probe_source": "Source network", "probe_start": "Start"}
"""Quantity of layers.csv -> where the layer stood when it was read; the first is the one put in words."""


def probes_blocks(tables: Tables, styles: Styles) -> Iterator[Block]:
    """Show how well each layer tells the labels apart, by depth; nothing where no probes were fitted."""
    ends = layer_rows(tables, "probe_end")
    arms = [arm for arm in styles if (ends["arm"] == arm).any()]
    if not arms:
        return
    size, base = main_size(ends), baseline_of(tables) or arms[0]
    sites = {name: at_size(layer_rows(tables, name), size) for name in _SITES}
    values = [layer_value(name, row.arm, row) for name, rows in sites.items() for row in rows_of(rows)]
    told = asked_about(arms, base)
    best = {arm: said(tables, "probe_end", arm, size) for arm in told}
    words = [
        f"{found['highest'].layer} of {arm} ({number(found['highest'].value, 2)})"
        for arm, found in best.items()
        if "highest" in found
    ]
    yield Heading("How much does each layer know of the labels?")
    if words:
        yield Finding(
            "At which depth can a linear classifier read the label off the features?",
            f"Best off {listing(words)} at the end of training, in balanced accuracy.",
        )
    yield from arm_charts(
        "probes",
        values,
        {name: LayerAxis(f"{label}:\nbalanced accuracy") for name, label in _SITES.items() if len(sites[name])},
        styles,
        baseline=base,
        what="Balanced accuracy of a linear probe at the end of training",
        caption=f"Balanced accuracy of a linear classifier of the label at a position, from each layer's features"
        f"{sized(ends, size)}, on cases that it was not fitted to: mean over seeds and {100 * tables.confidence:g} % "
        "interval. Chance is 1 over the number of labels and the background. A source network that already tells the "
        "labels apart in a layer offers the target something to reuse there.",
    )
