"""Sources that are pooled from several others, `A+B`: one list of cases, with labels joined by name.

A label is the same class in all parts that have its name. A part may lack a label of another part: its cases then do
not say where that structure is, which is not the same as saying that it is absent. `CaseList.parts` keeps the labels of
each part, so that the loss can tell the two apart (`losses.merge_unannotated`).
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence

import numpy as np

from jaxseg import paths
from jaxseg.data import digests, names
from jaxseg.data.cases import CaseFiles, CaseList, Part, RawCase, Source
from jaxseg.data.volumes import volume
from jaxseg.types import UserError

SIGN = "+"
"""What stands between the parts of a pooled source."""
SEPARATOR = "."
"""What stands between the name of a part, which holds none, and that of a case."""


# ----------------------------------------------------------------------------------------------------- `data` strings


def split_data(data: str, schemes: Sequence[str]) -> tuple[str, ...]:
    """Split a `data` string into its parts; one that is not pooled is its only part.

    Names may hold a `+` themselves: what exists under the longer name is not split.

    Args:
        data: See `TaskSettings.data`.
        schemes: Prefixes of `data` before a colon.

    Raises:
        UserError: A part is empty.
    """
    pieces = data.split(SIGN)
    parts: list[str] = []
    while pieces:
        longest = (count for count in range(len(pieces), 1, -1) if _exists(pieces[:count], schemes))
        count = next(longest, 1)
        parts.append(SIGN.join(pieces[:count]))
        del pieces[:count]
    if len(parts) > 1 and not all(parts):
        raise UserError(
            f"data {data!r} has an empty part: `+` pools several sources, as in FOLDER_A+FOLDER_B. A folder with a "
            f"`+` in its own name is taken as it is where it exists, and this one does not"
        )
    return tuple(parts)


def _exists(pieces: Sequence[str], schemes: Sequence[str]) -> bool:
    """Whether pieces between `+` signs are one folder or TFDS dataset."""
    text = SIGN.join(pieces)
    scheme, separator, rest = text.partition(":")
    if not separator or scheme not in schemes:
        return os.path.lexists(paths.expand(text))
    if scheme != "tfds":
        return False
    # Labels in the query of a dataset may hold a `+`, too: it goes on until another source begins.
    behind = [piece for place, piece in enumerate(pieces) if place and "?" in SIGN.join(pieces[:place])]
    begun = any(piece.partition(":")[0] in schemes or os.path.lexists(paths.expand(piece)) for piece in behind)
    return not begun and (bool(behind) or os.path.lexists(paths.expand(rest.partition("?")[0])))


# -------------------------------------------------------------------------------------------------------------- pool


def pool(parts: Sequence[Source], data: str) -> Source:
    """Pool several sources.

    Cases are called `PART.CASE`. Groups that a part publishes keep their names, so that a patient who is in two parts
    is one patient; a case without a group is a group of its own. As a patient, such a case keeps its own name where its
    part publishes groups of others, since the target may call the patient so.

    Args:
        parts: The sources.
        data: The `data` string, for messages.

    Raises:
        UserError: The parts differ in their number of channels, or one has regions that overlap.
    """
    listings = [part.listing for part in parts]
    own_names = _part_names(listings)
    _check_channels(listings, own_names, data)
    _check_no_regions(listings, own_names, data)
    labels = tuple(
        (name, value)
        for value, name in enumerate(dict.fromkeys(name for one in listings for name, _ in one.labels), start=1)
    )
    ignore = len(labels) + 1 if any(one.ignore is not None for one in listings) else None
    kind = np.uint8 if len(labels) < 254 else np.uint16
    tables = [_values(one, dict(labels), ignore) for one in listings]

    def own(files: CaseFiles) -> CaseFiles:
        return dataclasses.replace(files, name=files.name.removeprefix(own_names[files.part] + SEPARATOR))

    def read(files: CaseFiles) -> RawCase:
        raw = parts[files.part].read(own(files))
        if not labels:
            return raw
        return dataclasses.replace(raw, label=volume.replace_values(raw.label, tables[files.part], kind))

    def identity(progress: digests.Progress | None) -> str:
        return digests.of_values([(name, part.identity(progress)) for name, part in zip(own_names, parts, strict=True)])

    listing = _joined(listings, own_names, labels, ignore, data)
    return Source(
        listing=listing,
        read=read,
        grid_of=lambda files: parts[files.part].grid_of(own(files)),
        identity=identity,
        digests_of=lambda files: parts[files.part].digests_of(own(files)),
    )


def _joined(
    listings: Sequence[CaseList],
    own_names: Sequence[str],
    labels: tuple[tuple[str, int], ...],
    ignore: int | None,
    data: str,
) -> CaseList:
    """The listings of the parts as one."""
    cases: list[CaseFiles] = []
    refused: list[tuple[str, str]] = []
    for place, (name, one) in enumerate(zip(own_names, listings, strict=True)):
        cases += _renamed(one.cases, place, name, data)
        refused += [(f"{name}{SEPARATOR}{case}", reason) for case, reason in one.refused]
    return CaseList(
        name=f" {SIGN} ".join(own_names),
        labels=labels,
        ignore=ignore,
        modality=tuple(
            " / ".join(dict.fromkeys(kinds)) for kinds in zip(*(one.modality for one in listings), strict=True)
        ),
        cases=tuple(sorted(cases, key=lambda case: case.name)),
        refused=tuple(refused),
        warnings=(*_label_warnings(listings, own_names), *_own_warnings(listings, own_names)),
        splits=None,
        sources=tuple(path for one in listings for path in one.sources),
        parts=tuple(
            Part(name, one.labels, one.ignore, one.modality) for name, one in zip(own_names, listings, strict=True)
        ),
    )


def _part_names(listings: Sequence[CaseList]) -> list[str]:
    """The names of the parts: those of their sets, numbered where several have one name."""
    found: list[str] = []
    for listing in listings:
        name = re.sub(r"[^\w-]+", "_", listing.name).strip("_-") or "part"
        free = (f"{name}_{number}" if number > 1 else name for number in range(1, len(listings) + 1))
        found.append(next(one for one in free if one not in found))
    return found


def _check_channels(listings: Sequence[CaseList], own_names: Sequence[str], data: str) -> None:
    if len({len(one.modality) for one in listings}) > 1:
        said = ", ".join(
            f"{name} {len(one.modality)} ({', '.join(one.modality)})"
            for name, one in zip(own_names, listings, strict=True)
        )
        raise UserError(
            f"data {data!r}: the parts of a pooled source need the same channels in the same order, and these have "
            f"{said}; pool sets with as many channels each"
        )


def _check_no_regions(listings: Sequence[CaseList], own_names: Sequence[str], data: str) -> None:
    for name, one in zip(own_names, listings, strict=True):
        if one.regions:
            raise UserError(
                f"data {data!r}: {name} has regions that overlap ({', '.join(region.name for region in one.regions)}), "
                "which cannot be pooled; give each of its labels one value in its dataset.json, or take it alone"
            )


def _values(listing: CaseList, pooled: dict[str, int], ignore: int | None) -> dict[int, int]:
    """The pooled value of each value in a part's files."""
    table = {0: 0} | {value: pooled[name] for name, value in listing.labels}
    return table if listing.ignore is None or ignore is None else table | {listing.ignore: ignore}


def _renamed(cases: Sequence[CaseFiles], place: int, part: str, data: str) -> list[CaseFiles]:
    some = any(case.published for case in cases)
    mend = "Rename the case, or the set, in its dataset.json."
    renamed = []
    for case in cases:
        name = names.check(f"{part}{SEPARATOR}{case.name}", "the case", f"data {data!r}", file=True, mend=mend)
        group = case.group if case.published else name
        patient = case.patient if some else name
        renamed.append(dataclasses.replace(case, name=name, group=group, patient=patient, part=place))
    return renamed


def _label_warnings(listings: Sequence[CaseList], own_names: Sequence[str]) -> list[str]:
    """Names that are one but for capitals, which are two classes."""
    first: dict[str, tuple[str, str]] = {}
    told = []
    for part, listing in zip(own_names, listings, strict=True):
        for name, _ in listing.labels:
            known, where = first.setdefault(name.casefold(), (name, part))
            if known != name:
                told.append(
                    f"the labels {known!r} of {where} and {name!r} of {part} are two classes; if they are one "
                    "structure, give them one name in both dataset.json files"
                )
    return told


def _own_warnings(listings: Sequence[CaseList], own_names: Sequence[str]) -> list[str]:
    told = []
    for part, listing in zip(own_names, listings, strict=True):
        told += [f"{part}: {text}" for text in listing.warnings]
        if listing.splits is not None:
            told.append(f"{part}: the folds that it lists are not used, as a pooled source is split part by part")
    return told
