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
    Section,
    Styles,
    Table,
    TableGroup,
    described,
)
from jaxseg.report.by_layer import arm_charts, known, layer_row, mean_by_layer
from jaxseg.report.effects import baseline_of, few_at_a_time, main_size, sized
from jaxseg.report.layers import LayerAxis, Mark, layer_chart
from jaxseg.report.montages import montage
from jaxseg.report.spread import over_seeds
from jaxseg.report.style import BASELINE_ARM, ArmStyle
from jaxseg.report.tables import Tables, first_fold, rows_of, variants_of
from jaxseg.report.text import MINUS, cases, interval, listing, number, plural

_TESTS = {
    "distribution": ("weights", "Weights: excess\nKS distance", 0.02),
    "arrangement": ("taps", f"Taps: Moran's I\n{MINUS} expected", 0.03),
    "spectrum": ("channels", "Channels: excess\nspectral energy", 0.05),
    "auc": ("AUC", "Start told from\nend: AUC", 0.60),
}
"""Test -> in a word, axis label, and how much a layer may show that still looks random (the study's rules)."""

_UNRELATED = "two unrelated filters"


def filters_section(tables: Tables, styles: Styles) -> Section:
    """Show what training does to the filters."""
    if tables.filters is None and tables.rewind is None and not tables.montages:
        blocks: tuple[Block, ...] = (
            Missing("There is no results/filters.csv with rows in it: what training does to the filters is left out."),
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
    trained = None if tables.filters is None else tables.filters[tables.filters["trained"]]
    if trained is None or trained.empty:
        yield Missing("There is no results/filters.csv with trained layers in it: how far filters turn is left out.")
        return
    size = main_size(trained)
    values = _change_by_layer(first_fold(trained, size), styles, tables.confidence)
    angles = values[(values["panel"] == "angle_deg") & (values["series"] != _UNRELATED)]
    arms = [arm for arm in styles if (angles["series"] == arm).any()]
    base = baseline_of(tables) or arms[0]
    told = [arm for arm in dict.fromkeys((base, "transfer", *arms)) if arm in arms][:2]
    yield Finding(
        "How much of a filter's direction does training change? A filter is all weights that make one output channel.",
        f"Median filters turn {listing([_turn_words(arm, angles[angles['series'] == arm]) for arm in told])}; two "
        "unrelated ones stand at about 90°.",
    )
    axes = {
        "angle_deg": LayerAxis("Angle, degrees"),
        "relative_change": LayerAxis("Change / start"),
        "norm_ratio": LayerAxis("Norm, end / start", ((1.0, "same"),)),
    }
    yield from arm_charts(
        "filter_change",
        values,
        axes,
        styles,
        baseline=base,
        what="Median angle between start and end, degrees",
        caption=f"How filters change from start to end, layer by layer{sized(trained, size)}: the median filter "
        f"of each layer, mean over seeds and its {100 * tables.confidence:g} % interval. Grey: what two unrelated "
        "draws give (90° ± 2 sd). Angles count for verdicts; lengths depend on weight decay too. Frozen layers are "
        "left out.",
        behind={_UNRELATED: Mark(styles[arms[0]], "band")},
    )
    if trained["train_cases"].nunique() > 1:
        yield Fold("Angles by number of training cases", (_angles_by_size(trained, styles, tables.confidence),))


def _change_by_layer(filters: pd.DataFrame, styles: Styles, confidence: float) -> pd.DataFrame:
    """Mean over seeds of each arm's layers, and the null beside them."""
    panels = {name: name for name in ("angle_deg", "relative_change", "norm_ratio")}
    rows = mean_by_layer(filters, panels, confidence)
    for row in rows_of(filters.drop_duplicates("layer")):
        low, high = row.angle_of_null - 2 * row.angle_null_sd, row.angle_of_null + 2 * row.angle_null_sd
        rows.append(layer_row("angle_deg", _UNRELATED, row.layer, known(row.angle_of_null, low, high)))
        rows.append(layer_row("relative_change", _UNRELATED, row.layer, known(row.relative_change_of_null)))
    return pd.DataFrame(rows)


def _turn_words(arm: str, angles: pd.DataFrame) -> str:
    defined = angles["value"].dropna()
    if defined.empty:
        return f"by an undefined angle in {arm}"
    least, most = defined.min(), defined.max()
    return f"by {least:.0f}° to {most:.0f}° in {arm} ({defined.mean():.0f}° on average over layers)"


def _angles_by_size(trained: pd.DataFrame, styles: Styles, confidence: float) -> Table:
    sizes = [variant.train_cases for variant in variants_of(trained)]
    parts = {size: first_fold(trained, size) for size in sizes}
    groups, numbers = [], []
    for arm in (arm for arm in styles if (trained["arm"] == arm).any()):
        rows = []
        for layer in dict.fromkeys(trained.loc[trained["arm"] == arm, "layer"]):
            own = [part[(part["arm"] == arm) & (part["layer"] == layer)] for part in parts.values()]
            means = [over_seeds(part["angle_deg"], confidence) for part in own]
            fixed = {"arm": arm, "layer": layer}
            numbers += [{**fixed, "train_cases": n, **m._asdict()} for n, m in zip(sizes, means, strict=True)]
            rows.append((Cell(layer), *(Cell(number(m.value, 1), interval(m.ci_low, m.ci_high, 1)) for m in means)))
        groups.append(TableGroup(arm, tuple(rows)))
    head = ("Layer", *(cases(size) for size in sizes))
    caption = "Median angle between start and end, degrees, mean over seeds."
    return Table(caption, head, tuple(groups), stem="angles_by_size", data=pd.DataFrame(numbers))


# ----------------------------------------------------------------------------------------------------------- randomness


def _randomness(tables: Tables, styles: Styles) -> Iterator[Block]:
    if tables.filters is None:
        return
    size = main_size(tables.filters)
    filters = first_fold(tables.filters, size)
    filters = filters[filters["trained"]]
    if filters.empty:
        return
    arms = [arm for arm in styles if (filters["arm"] == arm).any()]
    random_start = [arm for arm in arms if tables.study.get("arms", {}).get(arm, {}).get("init") == "random"]
    arm = BASELINE_ARM if BASELINE_ARM in arms else (random_start or arms)[0]
    yield Heading("Do trained filters still look random?")
    values = {name: _looks(filters[filters["arm"] == name], tables.confidence) for name in arms}
    yield Finding(
        f"Could the trained filters of {arm} be taken for a fresh random draw?", _looks_words(arm, values[arm])
    )
    yield _looks_chart("filter_randomness", arm, values[arm], styles[arm], tables, size)
    controls = _controls(tables, size)
    if controls is not None:
        yield controls
    others = [name for name in few_at_a_time(arms, arm)[0] if name != arm]  # all are in filters.csv
    if others:
        charts = tuple(
            _looks_chart(f"filter_randomness_{k + 1}", name, values[name], styles[name], tables, size)
            for k, name in enumerate(others)
        )
        yield Fold("The same for other arms", charts)


def _looks(filters: pd.DataFrame, confidence: float) -> pd.DataFrame:
    """Start and end of one arm on the four tests, by layer."""
    measured = filters.assign(
        arrangement_start=filters["moran_start"] - filters["moran_expected"],
        arrangement_end=filters["moran_end"] - filters["moran_expected"],
        spectrum_start=filters["spectral_start"],
        spectrum_end=filters["spectral_end"],
        auc_end=filters["auc"],
    )
    rows = []
    for when in ("start", "end"):
        panels = {test: f"{test}_{when}" for test in _TESTS if f"{test}_{when}" in measured}
        rows += [row | {"series": when} for row in mean_by_layer(measured, panels, confidence)]
    return pd.DataFrame(rows)


def _looks_words(arm: str, values: pd.DataFrame) -> str:
    ends = values[values["series"] == "end"].pivot_table(
        index="layer", columns="panel", values="value", sort=False, dropna=False
    )
    beyond = {test: ends[test].abs() > most for test, (_, _, most) in _TESTS.items() if test in ends}
    told = pd.DataFrame(beyond)
    caught = list(told.index[told.any(axis=1)])
    if not caught:
        return f"All {plural(len(told), 'trained layer')} of {arm} stay within all limits of a random draw."
    by_test = [f"{_TESTS[test][0]} {int(hit.sum())}" for test, hit in beyond.items()]
    named = listing(caught if len(caught) < 5 else [*caught[:3], f"{len(caught) - 3} more"])
    return (
        f"{len(told) - len(caught)} of {plural(len(told), 'trained layer')} of {arm} stay within all limits; not "
        f"{named}. Layers beyond each: {', '.join(by_test)}."
    )


def _looks_chart(stem: str, arm: str, values: pd.DataFrame, style: ArmStyle, tables: Tables, size: int) -> Chart:
    axes = {}
    for test, (_, label, most) in _TESTS.items():
        two_sided = test == "arrangement"
        axes[test] = LayerAxis(label, ((-most, ""), (most, "limit")) if two_sided else ((most, "limit"),))
    ends = values[(values["series"] == "end") & (values["panel"] == "distribution")]
    return Chart(
        stem,
        partial(layer_chart, values, axes, {"start": Mark(style, "hollow"), "end": Mark(style)}),
        f"Four tests of whether filters of {arm} still look random. "
        + described("Excess KS distance at the end", rows_of(ends), lambda r: f"{r.layer} {number(r.value)}"),
        f"{arm}{sized(tables.filters, size)}: how far each layer is from a fresh random draw, before (hollow) "
        f"and after training (filled), mean over seeds with {100 * tables.confidence:g} % intervals. Weights: "
        "distance from the initialiser's distribution. Taps: whether neighbouring weights are alike. Channels: energy "
        "in directions that shuffled weights lack. AUC: how well a classifier that saw other runs tells start from "
        "end; 0.5 is chance. Beyond the dashed limit a layer no longer counts as random.",
        values.assign(arm=arm),
    )


def _controls(tables: Tables, size: int) -> Block | None:
    if tables.filter_controls is None:
        return Missing(
            "There is no results/filter_controls.csv: how little structure the tests would find is not known."
        )
    own = first_fold(tables.filter_controls, size) if (tables.filter_controls["train_cases"] == size).any() else None
    if own is None:
        return None
    own = own[own["arm"] == own["arm"].iloc[0]]
    known = [test for test in _TESTS if (own["quantity"] == test).any()]
    shares = {(row.layer, row.quantity): row.smallest_share for row in rows_of(own)}
    rows = tuple(
        (Cell(layer), *(Cell(_share_words(shares.get((layer, test), math.nan))) for test in known))
        for layer in dict.fromkeys(own["layer"])
    )
    worst = own["smallest_share"]
    found = f"{(worst <= 0.3).sum()} of {len(worst)} controls are found at a share of 0.3 or less"
    caption = (
        f"How little structure the tests would notice: the smallest share of a structured filter, blended into the "
        f"filters of {own['arm'].iloc[0]}, that is found in 80 % of draws. {found}."
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
    changed = [float(((m.end - m.start) ** 2).sum() ** 0.5 / ((m.start**2).sum() ** 0.5 or 1.0)) for m in by_arm[first]]
    steps = [f"{m.layer} {number(c, 2)}" for m, c in zip(by_arm[first], changed, strict=True)]
    told = pd.DataFrame({"arm": first, "layer": [m.layer for m in by_arm[first]], "relative_change": changed})
    yield Finding(
        "Can the eye see what training did to the filters?",
        f"Between start and end the filters shown of {first} change by these shares of their length: "
        f"{'; '.join(steps)}.",
    )
    charts = []
    for k, (arm, layers) in enumerate(by_arm.items()):
        charts.append(
            Chart(
                f"filters_{k}",
                partial(montage, layers),
                f"Central slices of kernels of {arm} at start and end of training and with structure put in, layers "
                f"{listing([layer.layer for layer in layers])}",
                f"{arm}, its first seed: central slices of kernels, one tile a filter (columns) and input channel "
                "(rows). Blue: positive, orange: negative, one scale for start and "
                "end. The control shows what structure would look like.",
                told if arm == first else None,
            )
        )
    yield charts[0]
    if charts[1:]:
        yield Fold("Filters of the other arms", tuple(charts[1:]))


def _rewind(tables: Tables, styles: Styles) -> Iterator[Block]:
    if tables.rewind is None:
        yield Missing("There is no results/rewind.csv with rows in it: whether the change matters is left out.")
        return
    yield Heading("Does the change matter?")
    size = main_size(tables.rewind)
    values = pd.DataFrame(mean_by_layer(first_fold(tables.rewind, size), {"drop": "drop"}, tables.confidence))
    arms = [arm for arm in styles if (values["series"] == arm).any()]
    base = baseline_of(tables) or arms[0]
    arm = base if base in arms else arms[0]
    own = values[values["series"] == arm].dropna(subset=["value"])
    if own.empty:
        yield Missing("results/rewind.csv holds no defined drop.")
        return
    most = next(rows_of(own.nlargest(1, "value")))
    small = int((own["value"] < 0.01).sum())
    yield Finding(
        "What does a trained layer lose when its weights are set back to where they started?",
        f"In {arm} {most.layer} loses most, {number(most.value)} DSC; {small} of {plural(len(own), 'layer')} lose less "
        "than 0.01.",
    )
    yield from arm_charts(
        "rewind",
        values,
        {"drop": LayerAxis("Drop in DSC", ((0.0, "no drop"),))},
        styles,
        baseline=base,
        what="Drop in DSC",
        caption="Drop in DSC on validation patches when one layer is set back to its start and the others keep their "
        f"trained weights{sized(tables.rewind, size)}: mean over seeds and {100 * tables.confidence:g} % interval. A "
        "layer that hardly turned can still matter.",
    )
