"""The filters section: how far training turns them, whether they still look random, whether the change matters."""

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
    Heading,
    Missing,
    Prose,
    Section,
    Styles,
    Table,
    TableGroup,
    described,
    first_then_fold,
)
from jaxseg.report.charts.layers import LayerAxis, LayerValue, Mark, layer_chart
from jaxseg.report.charts.montages import montage
from jaxseg.report.charts.style import BASELINE_ARM, ArmStyle
from jaxseg.report.pictures import Montage
from jaxseg.report.sections.by_layer import arm_charts, at_size, layer_value
from jaxseg.report.shown import (
    asked_about,
    baseline_of,
    few_at_a_time,
    layer_facts,
    layer_rows,
    main_size,
    of_fold,
    of_run,
    said,
    sized,
)
from jaxseg.report.tables import Tables, first_fold, rows_of, variants_of
from jaxseg.study.claims.rules import CONTROL_SHARE, DELTA, RANDOM
from jaxseg.text import MINUS, MISSING, cases, interval, listing, number, plural

_TESTS = {
    "distribution": ("weights", f"Weights: KS excess,\nend {MINUS} start"),
    "arrangement": ("taps", "Taps: Moran's I,\ndistance from chance"),
    "spectrum": ("channels", f"Channels: spectral\nenergy, end {MINUS} start"),
    "auc": ("AUC", "Told from own\npermuted: AUC"),
}
"""Quantity of rule C6 -> in a word, and its axis label."""

_UNRELATED = "two unrelated filters"
_COHERENT = (
    " Cosine: whether runs that start from the same weights and see the data in other orders go the same way, mean "
    "over pairs. It is 0 where only noise moves the filters."
)
_DROPS = {"drop": "Set back to start:\ndrop in DSC", "drop_rerandomised": "Drawn anew:\ndrop in DSC"}
"""What is done to a layer, by its quantity in layers.csv."""
_ANEW = " Drawn anew: with other random weights, which tells whether its very start mattered or only its statistics."


def filters_section(tables: Tables, styles: Styles) -> Section:
    """Show what training does to the filters."""
    if tables.layers is None and not tables.montages:
        blocks: tuple[Block, ...] = (
            Missing("There is no results/layers.csv with rows in it: what training does to the filters is left out."),
        )
    else:
        blocks = (
            *_change(tables, styles),
            *_randomness(tables, styles),
            *_montages(tables),
            *_rewind(tables, styles),
        )
    return Section("filters", "What training does to the filters", blocks)


# --------------------------------------------------------------------------------------------------------------- change


def _change(tables: Tables, styles: Styles) -> Iterator[Block]:
    angles = layer_rows(tables, "angle_deg")
    arms = [arm for arm in styles if (angles["arm"] == arm).any()]
    if not arms:
        yield Missing("There is no results/layers.csv with angles in it: how far filters turn is left out.")
        return
    size = main_size(angles)
    values = _change_by_layer(tables, size)
    base = baseline_of(tables) or arms[0]
    told = asked_about(arms, base)
    words = [_turn_words(arm, size, tables) for arm in told]
    yield Finding(
        "How much of a filter's direction does training change? A filter is all weights that make one output channel.",
        f"Median filters turn {listing(words)}; two unrelated ones stand at about 90°.",
    )
    yield from _by_rate(tables)
    axes = {
        "angle_deg": LayerAxis("Angle, degrees"),
        "relative_change": LayerAxis("Change / start"),
        "norm_ratio": LayerAxis("Norm, end / start", ((1.0, "same"),)),
    }
    coherent = at_size(layer_rows(tables, "cosine"), size)
    if len(coherent):
        axes["cosine"] = LayerAxis("Ways of two runs\nfrom one start: cosine", ((0.0, "random walk"),))
        values += [layer_value("cosine", row.arm, row) for row in rows_of(coherent)]
    yield from arm_charts(
        "filter_change",
        values,
        axes,
        styles,
        baseline=base,
        what="Median angle between start and end, degrees",
        caption=f"How filters change from start to end, layer by layer{sized(angles, size)}: the median filter "
        f"of each layer, mean over seeds and its {100 * tables.confidence:g} % interval. Grey: what two unrelated "
        "draws give (90° ± 2 sd). Angles count for verdicts; lengths depend on weight decay too. Frozen layers are "
        f"left out.{_COHERENT if len(coherent) else ''}",
        behind={_UNRELATED: Mark(styles[arms[0]], "band")},
    )
    if angles["train_cases"].nunique() > 1:
        yield Fold("Angles by number of training cases", (_angles_by_size(tables, styles),))


def _change_by_layer(tables: Tables, size: int) -> list[LayerValue]:
    """Each arm's layers, and what two unrelated filters give beside them."""
    values = [
        layer_value(name, row.arm, row)
        for name in ("angle_deg", "relative_change", "norm_ratio")
        for row in rows_of(at_size(layer_rows(tables, name), size))
    ]
    values += [LayerValue("angle_deg", _UNRELATED, *row) for row in layer_facts(tables, "angle_of_null", size)]
    values += [LayerValue("relative_change", _UNRELATED, *row) for row in layer_facts(tables, "change_of_null", size)]
    return values


def _turn_words(arm: str, size: int, tables: Tables) -> str:
    turned = said(tables, "angle_deg", arm, size)
    if "lowest" not in turned:
        return f"by an undefined angle in {arm}"
    least, most = (number(turned[name].value, 0) for name in ("lowest", "highest"))
    return f"by {least}° to {most}° by layer in {arm}"


def _by_rate(tables: Tables) -> Iterator[Block]:
    """What claim C5 rests on: the median filter's angle at each rate that trains well, with what noise alone gives."""
    table = tables.claims
    found = [] if table is None else list(rows_of(table[(table["claim"] == "C5") & (table["role"] == "claim")]))
    angles = [row for row in found if row.quantity.startswith("median angle")]
    if not angles:
        return
    noise = {row.quantity.rpartition(" at ")[2]: row.value for row in found if row not in angles}
    parts = []
    for row in angles:
        where = row.quantity.rpartition(" at ")[2]
        alone = f" (noise alone: {number(noise[where], 1)}°)" if where in noise else ""
        limits = interval(row.ci_low, row.ci_high, 1)
        parts.append(f"{number(row.value, 1)}° {limits} at {where.removesuffix(', degrees')}{alone}")
    yield Prose(
        f"Over all filters of the encoder of {angles[0].arm} the median turns {listing(parts)}: claim C5. Noise alone: "
        "the angle that the optimizer's steps would give on gradients of pure noise."
    )


def _angles_by_size(tables: Tables, styles: Styles) -> Table:
    angles = layer_rows(tables, "angle_deg")
    sizes = [variant.train_cases for variant in variants_of(angles)]
    groups = []
    for arm in (arm for arm in styles if (angles["arm"] == arm).any()):
        own = angles[angles["arm"] == arm]
        found = {(row.layer, row.train_cases): row for row in rows_of(own)}
        rows = [
            (Cell(layer), *(_angle_cell(found.get((layer, size))) for size in sizes))
            for layer in dict.fromkeys(own["layer"])
        ]
        groups.append(TableGroup(arm, tuple(rows)))
    head = ("Layer", *(cases(size) for size in sizes))
    caption = f"Median angle between start and end, degrees, mean over seeds{of_fold(angles, sizes[-1])}."
    return Table(caption, head, tuple(groups))


def _angle_cell(row: Any) -> Cell:
    return Cell(MISSING) if row is None else Cell(number(row.value, 1), interval(row.ci_low, row.ci_high, 1))


# ----------------------------------------------------------------------------------------------------------- randomness


def _randomness(tables: Tables, styles: Styles) -> Iterator[Block]:
    known = layer_rows(tables, next(iter(_TESTS)))
    if known.empty:
        return
    size = main_size(known)
    tests = {test: at_size(layer_rows(tables, test), size) for test in _TESTS}
    arms = [arm for arm in styles if any((rows["arm"] == arm).any() for rows in tests.values())]
    if not arms:
        return
    random_start = [arm for arm in arms if tables.study.arms[arm].init == "random"]
    arm = BASELINE_ARM if BASELINE_ARM in arms else (random_start or arms)[0]
    yield Heading("Do trained filters still look random?")
    values = {name: pd.concat([rows[rows["arm"] == name] for rows in tests.values()]) for name in arms}
    yield Finding(
        f"Could the trained filters of {arm} be taken for a fresh random draw?",
        _looks_words(arm, values[arm], tables, size),
    )
    yield _looks_chart("filter_randomness", arm, values[arm], styles[arm], tables, size)
    controls = _controls(tables, size)
    if controls is not None:
        yield controls
    others = [name for name in few_at_a_time(arms, arm)[0] if name != arm]  # all are in layers.csv
    if others:
        charts = tuple(
            _looks_chart(f"filter_randomness_{k + 1}", name, values[name], styles[name], tables, size)
            for k, name in enumerate(others)
        )
        yield Fold("The same for other arms", charts)


def _looks_words(arm: str, values: pd.DataFrame, tables: Tables, size: int) -> str:
    """Which layers show more than the limit of rule C6 within which filters count as random: an excess, one-sided."""
    random = {name: int(row.value) for name, row in said(tables, "random", arm, size).items()}
    over = set(values.loc[values["value"] > values["limit"], "layer"])
    caught = [layer for layer in dict.fromkeys(values["layer"]) if layer in over]
    if not caught:
        return f"All {plural(random['layers'], 'trained layer')} of {arm} stay within all limits of a random draw."
    by_test = [f"{words[0]} {int(said(tables, test, arm, size)['beyond'].value)}" for test, words in _TESTS.items()]
    named = listing(caught if len(caught) < 5 else [*caught[:3], f"{len(caught) - 3} more"])
    return (
        f"{random['within']} of {plural(random['layers'], 'trained layer')} of {arm} stay within all limits; not "
        f"{named}. Layers beyond each: {', '.join(by_test)}."
    )


def _looks_chart(stem: str, arm: str, values: pd.DataFrame, style: ArmStyle, tables: Tables, size: int) -> Chart:
    shown = [layer_value(row.quantity, arm, row) for row in rows_of(values)]
    axes = {test: LayerAxis(label, ((RANDOM[test], "limit"),)) for test, (_, label) in _TESTS.items()}
    weights, of_size = values[values["quantity"] == "distribution"], sized(layer_rows(tables, "distribution"), size)
    return Chart(
        stem,
        partial(layer_chart, shown, axes, {arm: Mark(style)}),
        f"Four tests of whether filters of {arm} still look random. "
        + described("Excess KS distance, end less start", rows_of(weights), lambda r: f"{r.layer} {number(r.value)}"),
        f"{arm}{of_size}: how far training takes each layer from a random draw, by the quantities "
        f"of claim C6, mean over seeds with {100 * tables.confidence:g} % intervals. Weights: distance from the "
        "initialiser's distribution, less that at the start. Taps: how much more, or less, neighbouring weights are "
        "alike than by chance. Channels: energy in directions that shuffled weights lack, less that at the start. AUC: "
        "how well a classifier that saw other runs tells filters from themselves with their weights permuted; 0.5 is "
        "chance. Beyond the dashed limit a "
        "layer no longer counts as random; the claim itself is about the mean over the encoder's filters.",
    )


def _controls(tables: Tables, size: int) -> Block | None:
    if tables.filter_controls is None:
        return Missing(
            "There is no results/filter_controls.csv: how little structure the tests would find is not known."
        )
    own = first_fold(tables.filter_controls, size)
    if own.empty:
        return None
    own = own[own["arm"] == own["arm"].iloc[0]]
    known = [test for test in _TESTS if (own["quantity"] == test).any()]
    shares = {(row.layer, row.quantity): row.smallest_share for row in rows_of(own)}
    rows = tuple(
        (Cell(layer), *(Cell(_share_words(shares.get((layer, test), math.nan))) for test in known))
        for layer in dict.fromkeys(own["layer"])
    )
    told = said(tables, "filter_controls", str(own["arm"].iloc[0]), size)
    counts = [int(told[name].value) for name in ("found", "controls")]
    found = f"{counts[0]} of {counts[1]} controls are found at a share of {CONTROL_SHARE} or less"
    caption = (
        f"How little structure the tests would notice: the smallest share of a structured filter, blended into the "
        f"filters of {own['arm'].iloc[0]}{sized(tables.filter_controls, size)}, that is found in 80 % of draws. "
        f"{found}."
    )
    head = ("Layer", *(_TESTS[test][0].capitalize() if test != "auc" else "AUC" for test in known))
    return Fold("Would the tests notice structure?", (Table(caption, head, (TableGroup("", rows),)),))


def _share_words(share: float) -> str:
    return "not up to 0.5" if math.isnan(share) else number(share, 2)


# ------------------------------------------------------------------------------------------------- pictures and rewind


def _montages(tables: Tables) -> Iterator[Block]:
    if not tables.montages:
        yield Missing("There is no results/analysis.json and analysis.npz with filters: pictures of them are left out.")
        return
    yield Heading("What filters look like")
    by_arm: dict[str, list[Any]] = {}
    for layer in tables.montages:
        by_arm.setdefault(layer.arm, []).append(layer)
    first = next(iter(by_arm))
    steps = [f"{m.layer} {number(m.relative_change, 2)}" for m in by_arm[first] if m.relative_change is not None]
    if steps:
        yield Finding(
            "Can the eye see what training did to the filters?",
            f"Between start and end the slices shown of {first} change by these shares of their length: "
            f"{'; '.join(steps)}.",
        )
    charts = []
    for k, (arm, layers) in enumerate(by_arm.items()):
        run = f"{arm}, {_seed_of(layers[0])}{of_run(tables, layers[0].train_cases, layers[0].fold)}"
        charts.append(
            Chart(
                f"filters_{k}",
                partial(montage, layers),
                f"Central slices of kernels of {arm} at start and end of training and with structure put in, layers "
                f"{listing([layer.layer for layer in layers])}",
                f"{run}: central slices of kernels, one tile a filter (columns) and input "
                "channel (rows). Blue: positive, orange: negative, one scale for start and end. The control "
                "shows what structure would look like.",
            )
        )
    yield from first_then_fold("Filters of the other arms", charts)


def _seed_of(layer: Montage) -> str:
    return "its first seed" if layer.seed is None else f"seed {layer.seed}"


def _rewind(tables: Tables, styles: Styles) -> Iterator[Block]:
    rows = layer_rows(tables, "drop")
    if rows.empty:
        yield Missing("There is no results/layers.csv with a drop in it: whether the change matters is left out.")
        return
    yield Heading("Does the change matter?")
    size = main_size(rows)
    drawn = {name: at_size(layer_rows(tables, name), size) for name in _DROPS}
    values = [layer_value(name, row.arm, row) for name, own in drawn.items() for row in rows_of(own)]
    arms = [arm for arm in styles if any(value.series == arm for value in values)]
    base = baseline_of(tables) or arms[0]
    arm = base if base in arms else arms[0]
    found = said(tables, "drop", arm, size)
    if "highest" not in found:
        yield Missing("There is no defined drop in results/layers.csv: whether the change matters is left out.")
        return
    most, small, layers = found["highest"], int(found["small"].value), int(found["defined"].value)
    yield Finding(
        "What does a trained layer lose when its weights are set back to where they started?",
        f"In {arm} {most.layer} loses most, {number(most.value)} DSC; {small} of {plural(layers, 'layer')} lose less "
        f"than {DELTA}.{_anew_words(tables, arm, size)}",
    )
    yield from arm_charts(
        "rewind",
        values,
        {name: LayerAxis(label, ((0.0, "no drop"),)) for name, label in _DROPS.items() if len(drawn[name])},
        styles,
        baseline=base,
        what="Drop in DSC",
        caption="Drop in DSC on validation patches when one layer is set back to its start and the others keep their "
        f"trained weights{sized(rows, size)}: mean over seeds and {100 * tables.confidence:g} % interval. A "
        f"layer that hardly turned can still matter.{_ANEW if len(drawn['drop_rerandomised']) else ''}",
    )


def _anew_words(tables: Tables, arm: str, size: int) -> str:
    """What the layer loses that loses most when it is drawn anew, where that was tried."""
    found = said(tables, "drop_rerandomised", arm, size)
    if "highest" not in found:
        return ""
    return f" Drawn anew instead, {found['highest'].layer} loses most, {number(found['highest'].value)} DSC."
