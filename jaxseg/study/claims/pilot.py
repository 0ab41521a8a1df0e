"""From a finished study to the next: how wide the interval of the gain will be, and what it can then show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jaxseg.analysis.folds import expected_half_width_over_folds
from jaxseg.study.claims.ahead import planned_tables
from jaxseg.study.claims.answer import answer_pair
from jaxseg.study.claims.dsc import gain, size_name, sizes_with
from jaxseg.study.claims.evidence import Pair, gather
from jaxseg.study.claims.findings import Lacking, Void
from jaxseg.study.claims.rules import CONFIDENCE, DELTA
from jaxseg.study.claims.study_tables import read_study
from jaxseg.study.plan.planned import PlannedStudy
from jaxseg.types import UserError

SEEDS = (8, 16, 32)
"""Numbers of seeds that are looked at beside the config's own."""


class Width(NamedTuple):
    """What to expect of the gain at one training set size, with so many seeds of each arm."""

    name: str
    """Of the size."""
    seeds: int
    groups: int
    half: float
    """Half of the width of the interval."""

    @property
    def gain(self) -> float:
        """The smallest estimate that would be graded a gain."""
        return self.half

    @property
    def material_gain(self) -> float:
        """The smallest that would be graded a material gain."""
        return self.half + DELTA


def expected_widths(planned: PlannedStudy, pilot: Path) -> tuple[Pair, list[Width]]:
    """The widths at the training set sizes that study and pilot share, with the config's seeds and those of `SEEDS`.

    The seeds, test groups and folds are the planned study's, the spread between seeds, groups and both is the pilot's.

    Raises:
        UserError: The pilot lacks an arm or a size of the study's, or has one seed or test group.
    """
    study, known = gather(planned_tables(planned)), gather(read_study(pilot))
    pair = answer_pair(study.record)
    for where, evidence in ((f"--pilot={pilot}", known), ("the config", study)):
        if lacking := [arm for arm in pair if arm not in evidence.record.arms]:
            raise UserError(
                f"{where} has no arm {' and no arm '.join(lacking)}, and the interval asked for is that of "
                f"{pair.arm} less {pair.baseline}; it has {', '.join(evidence.record.arms)}"
            )
    shared = [size for size in sizes_with(study, pair) if size in sizes_with(known, pair)]
    if not shared:
        raise UserError(
            f"--pilot={pilot} has no scores of {pair.arm} and {pair.baseline} at a training set size of the config's"
        )
    widths: list[Width] = []
    for size in shared:
        try:
            found, ours = gain(known, pair, size)[0], gain(study, pair, size)[0]
        except (Lacking, Void) as error:
            raise UserError(f"--pilot={pilot} cannot say how much the gain varies: {error}") from None
        if found.spread is None:
            raise UserError(
                f"--pilot={pilot} has {found.n_seeds} seeds and {found.n_groups} test groups at "
                f"{size_name(known, size)}; how much the gain varies takes two of each, in every fold"
            )
        counts = sorted({len(planned.study.seeds), *SEEDS})
        for count in counts:
            # Seeds that share a source network count as one, in the pilot as here; a fold needs two.
            in_fold = count * ours.n_seeds // len(planned.study.seeds) // ours.folds
            if in_fold > 1:
                args = (found.spread, in_fold, ours.n_groups // ours.folds, ours.folds)
                half = expected_half_width_over_folds(*args, confidence=CONFIDENCE)
                widths.append(Width(size_name(study, size), count, ours.n_groups, half))
    return pair, widths


def describe(pair: Pair, widths: Sequence[Width]) -> str:
    """A table of the widths; the config's own number of seeds is one of its rows."""
    rows = [("", "seeds", "test groups", "95 % interval", "gain from", "material gain from")]
    rows += [
        (one.name, f"{one.seeds}", f"{one.groups}", f"+-{one.half:.4f}", f"{one.gain:.4f}", f"{one.material_gain:.4f}")
        for one in widths
    ]
    columns = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, columns, strict=True)).rstrip() for row in rows]
    title = f"how well {pair.arm} - {pair.baseline} will be known (DSC), if it varies as in the pilot"
    return "\n".join([title, *(f"  {line}" for line in lines)])
