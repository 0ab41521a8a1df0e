"""What a task segments: labels that exclude each other, or regions that overlap.

nnU-Net's dataset.json has regions where `labels` maps a name to a list of several values; `regions_class_order` then
says, region by region, which value is written where that region was predicted. Settings make regions of the labels of
any other data (`TaskSettings.regions`).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxseg.data import names
from jaxseg.data.cases import CaseList, NamedRegion
from jaxseg.data.formats import description as descriptions
from jaxseg.types import UserError

Labels = tuple[tuple[str, int], ...]
"""Pairs (name, value)."""


def described(description: Mapping[str, Any], where: Path) -> tuple[Labels, int | None, tuple[NamedRegion, ...]]:
    """Return the labels of dataset.json, the value of nnU-Net's `ignore`, and the regions, of which there may be none.

    Raises:
        UserError: `labels` or `regions_class_order` has a form that cannot be used.
    """
    raw = description.get("labels")
    if not has_regions(description):
        labels, ignore = descriptions.labels(description, where)
        return labels, ignore, ()
    found, ignore = _values_of_regions(raw, where)  # type: ignore[arg-type]
    written = _class_order(description.get("regions_class_order"), found, where)
    regions = tuple(NamedRegion(*pair, value) for pair, value in zip(found, written, strict=True))
    values = sorted({value for region in regions for value in region.values})
    if ignore in values:
        raise UserError(f"{where}: the value {ignore} of the label `ignore` is part of a region as well")
    return tuple((str(value), value) for value in values), ignore, regions


def has_regions(description: Mapping[str, Any]) -> bool:
    """Return whether `labels` gives some name a list of other than one value."""
    raw = description.get("labels")
    return isinstance(raw, Mapping) and any(isinstance(entry, list) and len(entry) != 1 for entry in raw.values())


def label_warnings(description: Mapping[str, Any], regions: Sequence[NamedRegion]) -> tuple[str, ...]:
    """Warn of what dataset.json says of its labels and what is not done, or hardly meant."""
    if regions:
        return order_warnings(regions)
    unused = "regions_class_order" in description and description["regions_class_order"] is not None
    text = "`regions_class_order` of dataset.json is not used: no label has a list of several values"
    return (*descriptions.label_warnings(description), *([text] if unused else []))


def order_warnings(regions: Sequence[NamedRegion]) -> tuple[str, ...]:
    """Warn of regions that are written over by a larger one that comes later."""
    return tuple(
        f"the region {later.name!r} is written after {earlier.name!r}, which is part of it and so is never left in a "
        "predicted label map: list larger regions first"
        for place, earlier in enumerate(regions)
        for later in regions[place + 1 :]
        if set(earlier.values) < set(later.values)
    )


def _values_of_regions(raw: Mapping[str, Any], where: Path) -> tuple[list[tuple[str, tuple[int, ...]]], int | None]:
    """(name, values) of every region in the file's order, and the value of `ignore`."""
    found: list[tuple[str, tuple[int, ...]]] = []
    ignore: int | None = None
    for key, entry in raw.items():
        shown = names.shown(key)
        given = entry if isinstance(entry, list) else [entry]
        values = [value for item in given if (value := descriptions.whole(item)) is not None]
        if not given:
            raise UserError(
                f"{where}: the label '{shown}' has an empty list; name the values that the region is made of"
            )
        if len(values) != len(given):
            raise UserError(f"{where}: the label '{shown}' has the value {entry!r}, not a list of whole numbers")
        if len(set(values)) != len(values):
            raise UserError(f"{where}: the region '{shown}' names a value twice, {entry!r}")
        if not all(0 <= value <= 65535 for value in values):
            raise UserError(f"{where}: label values must lie between 0 and 65535, got {entry!r} of '{shown}'")
        if key.lower() == "ignore":
            if ignore is not None or len(values) != 1 or values[0] == 0:
                raise UserError(f"{where}: the label `ignore` must have one value above 0, got {entry!r}")
            ignore = values[0]
        elif values == [0]:
            continue
        elif 0 in values or key.lower() == "background":
            raise UserError(
                f"{where}: the label '{shown}' has the value {entry!r}; 0 is background and part of no region, and "
                "background is 0"
            )
        else:
            found.append((names.check(key, "the region", where), tuple(values)))
    several = sorted({names.shown(name) for name, _ in found if [other for other, _ in found].count(name) > 1})
    if several:
        raise UserError(f"{where}: the region name {', '.join(several)} is used more than once")
    return found, ignore


def _class_order(raw: Any, regions: Sequence[tuple[str, tuple[int, ...]]], where: Path) -> list[int]:
    """The value that each region writes.

    Raises:
        UserError: There is not one for each region, or one is no part of its region or written by another as well.
    """
    text = ", ".join(f"'{names.shown(name)}'" for name, _ in regions)
    if raw is None:
        raise UserError(
            f"{where}: `labels` has regions made of several values, and `regions_class_order` is missing. It gives the "
            f"value that is written where each region was predicted, one for each of {text}, in this order."
        )
    order = [descriptions.whole(value) for value in raw] if isinstance(raw, list) else []
    if len(order) != len(regions) or None in order:
        raise UserError(
            f"{where}: `regions_class_order` is {raw!r}; it must be a list of {len(regions)} whole numbers, the value "
            f"that is written for each of {text}, in this order"
        )
    written = [value for value in order if value is not None]
    for (name, values), value in zip(regions, written, strict=True):
        if value not in values:
            raise UserError(
                f"{where}: `regions_class_order` writes {value} where '{names.shown(name)}' was predicted, which is "
                f"made of {', '.join(map(str, values))}; give one of these, or a written map would not show the region"
            )
        if written.count(value) > 1:
            raise UserError(
                f"{where}: `regions_class_order` is {raw!r} and writes {value} for several regions, which a written "
                "map could not tell apart; give each a value of its own"
            )
    return written


# ------------------------------------------------------------------------------------------------------------- choice


def choose(
    listing: CaseList, *, labels: Sequence[str], regions: Sequence[tuple[str, Sequence[str]]], data: str
) -> tuple[Labels, tuple[NamedRegion, ...]]:
    """Return the classes of a task's label maps with their values, and its regions, of which there may be none.

    Args:
        listing: The task's data.
        labels: Names of the labels or regions to segment, in this order; empty for all.
        regions: Regions that settings make of labels, as pairs (name, labels); each writes the first of its labels.
        data: What messages call the data.

    Raises:
        UserError: A name is unknown or occurs twice, or regions are made where the data has some.
    """
    if regions and listing.regions:
        raise UserError(
            f"regions: {data} has regions of its own, {', '.join(repr(one.name) for one in listing.regions)}; leave "
            "`regions` empty, and choose among them with `labels`."
        )
    if regions and listing.parts:
        raise UserError(
            f"regions: {data} pools several sets, of which one may not annotate what a region is made of; leave "
            "`regions` empty, or take one of the sets alone"
        )
    values = dict(listing.labels)
    if regions:
        used = [label for _, group in regions for label in group]
        _check_known(used, values, data, field="regions", what="label")
        made = tuple(NamedRegion(name, tuple(values[x] for x in group), values[group[0]]) for name, group in regions)
    else:
        known = {one.name: one for one in listing.regions}
        _check_known(labels, known or values, data, field="labels", what="region" if known else "label")
        if len(set(labels)) != len(labels):
            raise UserError(f"labels: {tuple(labels)} names a label twice.")
        if not known:
            return tuple((name, values[name]) for name in labels or values), ()
        made = tuple(known[name] for name in labels or known)
    written = [one.written for one in made]
    several = [one for one in made if written.count(one.written) > 1]
    if several:
        raise UserError(
            f"regions: {' and '.join(repr(one.name) for one in several)} write the same label; a region writes the "
            "first of its labels, so begin each with another one."
        )
    held = {value for one in made for value in one.values}
    return tuple((name, value) for name, value in sorted(listing.labels, key=lambda x: x[1]) if value in held), made


def _check_known(wanted: Sequence[str], known: Mapping[str, Any], data: str, *, field: str, what: str) -> None:
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UserError(f"{field}: {data} has no {what} {name!r}; it has {', '.join(map(repr, known))}.{hint}")
