"""Writes whether controls of published studies did what they must: a positive control is found, a placebo is quiet.

    python -m tools.draw_controls [--studies=docs/studies]

The file `controls/table.md` below that folder gets a table, which a page shows by

    ```{include} controls/table.md
    ```

Prints how many did. `--check` writes nothing and fails if the file is not as it would be written.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from jaxseg.reserved import MEAN
from jaxseg.study import files, record
from jaxseg.study.claims.study_tables import read_record
from jaxseg.study.record import NAME
from jaxseg.study.score.comparisons import baseline_of
from jaxseg.types import UserError
from tools.draw_claims import STUDIES, line, write_or_check

POSITIVE, PLACEBO = "self_transfer", "scratch_b"
FILE = Path("controls") / "table.md"


class Control(NamedTuple):
    """A control against the baseline at one number of training cases."""

    target: str
    source: str
    arm: str
    train_cases: int
    mean: float
    low: float
    high: float

    @property
    def found(self) -> bool:
        """Whether there is a gain for certain."""
        return self.low > 0

    @property
    def quiet(self) -> bool:
        """Whether there may be no difference."""
        return self.low <= 0 <= self.high

    @property
    def is_right(self) -> bool:
        """Whether the control did what it must."""
        return self.found if self.arm == POSITIVE else self.quiet


def controls_of(folder: Path) -> Iterator[Control]:
    """The controls of a published study, in the order of its table of comparisons; none where it was not compared."""
    found, path = record.read(folder, any_format=True), files.find_table(folder / "results", "comparisons")
    if found is None or path is None:
        return
    study, table = read_record(found), files.read_table(path)
    own = table[
        (table["metric"] == "dsc")
        & (table["label"] == MEAN)
        & (table["arm_b"] == baseline_of(list(study.arms)))
        & table["arm_a"].isin([POSITIVE, PLACEBO])
        & table["ci_low"].notna()
    ]
    # All folds together come first, where there are several.
    own = own.sort_values("fold", kind="stable").drop_duplicates(["arm_a", "train_cases"])
    for row in own.to_dict("records"):
        size = study.number_of_cases(row["train_cases"])
        limits = row["ci_low"], row["ci_high"]
        yield Control(study.target, study.source, row["arm_a"], size, row["mean_diff"], *limits)


def text_of(controls: list[Control]) -> str:
    """A sentence that counts, then the table."""
    parts = {arm: [one for one in controls if one.arm == arm] for arm in (POSITIVE, PLACEBO)}
    right = {arm: sum(one.is_right for one in own) for arm, own in parts.items()}
    yes = {POSITIVE: "found", PLACEBO: "quiet"}
    rows = [
        line(("target", "source", "control", "training cases", "difference in DSC [95 %]", "")),
        line(["---"] * 6),
    ]
    for one in sorted(controls, key=lambda one: (one.arm != POSITIVE, one.target, one.train_cases)):
        rows.append(
            line(
                (
                    *(one.target, one.source, f"`{one.arm}`", str(one.train_cases)),
                    f"{one.mean:+.3f} [{one.low:.3f}, {one.high:.3f}]",
                    yes[one.arm] if one.is_right else f"**not {yes[one.arm]}**",
                )
            )
        )
    counts = (
        f"The positive control is found in {right[POSITIVE]} of {len(parts[POSITIVE])} comparisons, and the placebo is "
        f"quiet in {right[PLACEBO]} of {len(parts[PLACEBO])}. By chance a placebo is not in one of twenty."
    )
    return "\n".join((counts, "", *rows, ""))


def main() -> None:
    """Writes the file, or says that it is not as it would be written."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--studies", type=Path, default=STUDIES, help="folder with published studies")
    parser.add_argument("--check", action="store_true", help="write nothing, fail where the file differs")
    asked = parser.parse_args()
    try:
        controls = [one for path in sorted(asked.studies.rglob(NAME)) for one in controls_of(path.parent)]
        if not controls:
            raise UserError(f"no study below {asked.studies} has a control: they are the arms {POSITIVE} and {PLACEBO}")
    except UserError as error:
        parser.exit(2, f"{error}\n")
    text = text_of(controls)
    write_or_check({asked.studies / FILE: text}, parser, check=asked.check)
    print(text.partition(". ")[0])


if __name__ == "__main__":
    main()
