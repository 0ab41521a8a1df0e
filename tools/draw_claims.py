"""Writes what published studies say of a claim together: a forest plot, and a table that a page includes.

    python -m tools.draw_claims C1 C7
    python -m tools.draw_claims C1 --studies=docs/studies --into=docs/studies/over_targets

For each claim that is named it writes `CLAIM.svg` and `CLAIM.md`: the verdict over targets with its reason or,
where it is undecided, with what would decide it; the value of each study with its own verdict; the mean over targets,
where another target is to be expected, and how far targets differ. A page shows them by

    ```{include} over_targets/C1.md
    ```

A study is a folder that `tools.publish_study` filled, or a workdir; those without a study.json are no studies.
`--check` writes nothing and fails if a file is not as it would be written.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from jaxseg.report.charts.style import WIDE_INCHES, to_svg
from jaxseg.report.sections.targets import claim_forest, words_of
from jaxseg.study import claims, files
from jaxseg.study.claims.findings import DEPENDS, UNDECIDED, Finding
from jaxseg.study.claims.means import speaking
from jaxseg.study.claims.over_targets import MEAN, PREDICTION, SLOPE, STUDY, TAU, judge_over, shown_keys
from jaxseg.study.claims.pooling import general_name
from jaxseg.study.claims.rules import RULES
from jaxseg.study.record import NAME
from jaxseg.types import UserError

STUDIES = Path("docs/studies")
TOGETHER = {
    MEAN: "**mean over targets**",
    PREDICTION: "another target is to be expected at",
    TAU: "how far targets differ, tau",
    SLOPE: "slope of the gain on difficulty",
}
"""What rows over all targets are called, in their order."""
DIFFICULTY = "difficulty"
"""The quantity of C3 that has no sign and no limits."""


class Gallery(NamedTuple):
    """Published studies: what each tells about its target, its own verdicts, and its page if it has one."""

    told: Mapping[str, claims.TargetStudy]
    verdicts: Mapping[str, Mapping[str, str]]
    pages: Mapping[str, str]


def read_gallery(root: Path) -> Gallery:
    """Reads every study below a folder.

    Raises:
        UserError: If there is none.
    """
    folders = {path.parent.relative_to(root).as_posix(): path.parent for path in sorted(root.rglob(NAME))}
    told = {name: claims.read_target_study(folder) for name, folder in folders.items()}
    without_noise, _ = claims.made_noisy({name: study.record for name, study in told.items()})
    if not without_noise:
        raise UserError(f"no study below {root}: give a folder with studies that `tools.publish_study` wrote")
    pages = {name: f"{name.partition('/')[0].replace('_', '-')}.md" for name in without_noise}
    return Gallery(
        {name: told[name] for name in without_noise},
        {name: own_verdicts(folders[name]) for name in without_noise},
        {name: page for name, page in pages.items() if (root / page).exists()},
    )


def own_verdicts(folder: Path) -> dict[str, str]:
    """A study's own verdict on each claim."""
    found = files.find_table(folder / "results", "claims")
    table = files.read_table(found) if found is not None else pd.DataFrame(columns=["role", "claim", "verdict"])
    own = table[table["role"] == "claim"].drop_duplicates("claim")
    return dict(zip(own["claim"], own["verdict"], strict=True))


def write_claim(claim: str, gallery: Gallery, figure: str) -> tuple[str, str]:
    """Makes the text and the figure of a claim.

    Args:
        claim: A key of `RULES`.
        gallery: The studies.
        figure: Address of the figure as the page gives it.

    Raises:
        UserError: If no study can speak of the claim.
    """
    judged = judge_over(gallery.told)
    rows = claims.target_table(gallery.told)
    names = quantity_names(claim, gallery, rows)
    if not names:
        raise UserError(f"{claim}: no study can speak of it; {judged[claim].finding.reason}")
    svg = to_svg(claim_forest(rows, claim, names, width=WIDE_INCHES))
    verdict, left_out = verdict_words(judged[claim].finding)
    text = "\n".join(
        (
            *(verdict, ""),
            *(f"```{{figure}} {figure}", f":alt: {RULES[claim].statement}, by study and over targets", ""),
            *(caption(rows[rows["claim"] == claim]), "```", ""),
            *table_lines(rows[rows["claim"] == claim], claim, names, gallery),
            *(("", f"Left out: {left_out}.") if left_out else ()),
        )
    )
    return f"{text}\n", svg


def quantity_names(claim: str, gallery: Gallery, rows: pd.DataFrame) -> dict[str, str]:
    """What the quantities of a claim that a study measured with limits are called, in their order, by key."""
    if claim == "C3":
        hard = not rows[(rows["claim"] == "C3") & (rows["role"] == STUDY)].empty
        return {DIFFICULTY: "scratch's error", "gain": "gain"} if hard else {}
    found: dict[str, str] = {}
    for told in speaking(claim, gallery.told).told.values():
        for one in told.quantities:
            if pd.notna(one.low):
                found.setdefault(one.key, general_name(one))
    wanted = shown_keys(claim, list(found))
    return {key: found[key] for key in wanted}


def verdict_words(found: Finding) -> tuple[str, str]:
    """The verdict with its reason and, if undecided, what would decide it; then the studies left out, and why."""
    exploratory = " (exploratory)" if found.exploratory else ""
    needs = f" To decide it: {found.needs}." if found.needs and found.verdict in (UNDECIDED, DEPENDS) else ""
    reason, _, left_out = found.reason.partition("; left out: ")
    words = f"**{found.claim}, {RULES[found.claim].statement}: {found.verdict}{exploratory}.** "
    words += f"{reason[:1].upper()}{reason[1:]}.{needs}"
    return words, left_out


def caption(rows: pd.DataFrame) -> str:
    """What the figure's marks mean, as far as it has them."""
    words = ["Squares: studies, with their intervals."]
    if (rows["role"] == MEAN).any():
        words.append("Diamond: mean over targets, as random effects. Bar: where another target is to be expected.")
    return " ".join(words)


def table_lines(rows: pd.DataFrame, claim: str, names: Mapping[str, str], gallery: Gallery) -> Iterator[str]:
    """The lines of the table: a row for each study, then those over all targets."""
    limits = (name if key == DIFFICULTY else f"{name} [95 %]" for key, name in names.items())
    head = ("target", "source", "study", *limits, "verdict there")
    yield line(head)
    yield line(["---"] * len(head))
    studies = rows[rows["role"] == STUDY]
    for (target, name), own in studies.groupby(["target", "study"], sort=False):
        study = str(name)
        page = gallery.pages.get(study)
        source = gallery.told[study].record.source if study else ""
        verdict = gallery.verdicts.get(study, {}).get(claim, "")
        yield line((str(target), source, f"[{study}]({page})" if page else study, *numbers(own, claim, names), verdict))
    for role, name in TOGETHER.items():
        own = rows[rows["role"] == role]
        if len(own):
            yield line((name, "", "", *numbers(own, claim, names), ""))


def numbers(rows: pd.DataFrame, claim: str, names: Mapping[str, str]) -> list[str]:
    """A value with its limits for each quantity; empty where there is none, and limits alone of a prediction."""
    words, by_key = words_of(claim), {row["quantity"]: row for row in rows.to_dict("records")}
    found = []
    for key in names:
        row = by_key.get(key)
        if row is None:
            found.append("")
            continue
        limits = words.limits(row["ci_low"], row["ci_high"])
        written = words.plain if row["role"] == TAU or key == DIFFICULTY else words.signed
        value = "" if row["role"] == PREDICTION else written(row["value"])
        found.append(f"{value} {limits}".strip())
    return found


def line(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |"


def write_or_check(made: Mapping[Path, str], parser: argparse.ArgumentParser, *, check: bool) -> None:
    """Writes files and prints their names or, to check, ends with status 1 where one differs."""
    if check:
        differing = [
            str(path) for path, text in made.items() if not path.exists() or path.read_text(encoding="utf-8") != text
        ]
        if differing:
            parser.exit(1, f"not as the studies have it: {', '.join(differing)}; write them without --check\n")
        return
    for path, text in made.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path)


def main() -> None:
    """Writes the files, or says which are not as they would be written."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("claims", nargs="+", choices=list(RULES), metavar="CLAIM", help="C1 to C11b")
    parser.add_argument("--studies", type=Path, default=STUDIES, help="folder with published studies")
    parser.add_argument("--into", type=Path, help="folder to write to; over_targets beside the studies if left out")
    parser.add_argument("--check", action="store_true", help="write nothing, fail where a file differs")
    asked = parser.parse_args()
    into = asked.into or asked.studies / "over_targets"
    try:
        gallery = read_gallery(asked.studies)
        made: dict[Path, str] = {}
        for claim in asked.claims:
            text, svg = write_claim(claim, gallery, f"{into.name}/{claim}.svg")
            made |= {into / f"{claim}.md": text, into / f"{claim}.svg": svg}
    except UserError as error:
        parser.exit(2, f"{error}\n")
    write_or_check(made, parser, check=asked.check)


if __name__ == "__main__":
    main()
