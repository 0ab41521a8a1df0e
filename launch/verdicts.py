"""Says which of the paper's claims hold over several finished studies.

python -m launch.verdicts --studies='runs/hippocampus,runs/nerve,runs/c3/*' [--table=FILE.csv]

Studies of targets with noise added (`target.noise`) serve the claim on harder tasks alone. Published folders
(docs/studies) will do, but for noise levels, which are compared seed by seed. With --table the verdicts are written
too, in the columns of claims.csv, and beside them what each target measured, with mean, prediction and tau
(over_targets.csv), and a forest plot of the gain (over_targets.svg).

    python -m launch.verdicts --rejudge --studies='runs/*' [--table=FILE.csv]

prints each study's verdict under the rules that it was begun with beside that of today's rules, which is exploratory.
"""

from __future__ import annotations

import glob
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from absl import flags

from jaxseg import paths
from jaxseg.report.charts.style import WIDE_INCHES, to_svg
from jaxseg.report.sections.targets import GAIN_LABEL, gain_forest, gain_rows
from jaxseg.study import claims, outputs, record
from jaxseg.study.claims.findings import UNDECIDED
from jaxseg.study.claims.over_targets import OVER_STUDIES, TARGET_COLUMNS
from jaxseg.study.claims.rejudged import COLUMNS as REJUDGED
from jaxseg.study.claims.table import COLUMNS as VERDICTS
from jaxseg.text import significant, significant_interval
from jaxseg.types import UserError
from launch import cli, places, terminal

_STUDIES = flags.DEFINE_list(
    "studies",
    None,
    "Folders of studies, or addresses in buckets; a pattern in quotes (runs/c3/*) names several folders.",
)
_TABLE = cli.path_flag("table", "File for the verdicts (.csv).")
_REJUDGE = flags.DEFINE_bool("rejudge", False, "Show each study's verdicts then and now instead of those over targets.")


def find(patterns: list[str]) -> list[Path]:
    """Returns the folders that the patterns name, each once.

    Raises:
        UserError: If a pattern names nothing.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        places = _matches(pattern)
        if not places:
            raise UserError(f"--studies: no folder {pattern!r}; give workdirs of finished studies, separated by commas")
        found |= dict.fromkeys(places)
    return list(found)


def _matches(pattern: str) -> list[Path]:
    """The folder of this very name, or those that the pattern matches; addresses in buckets are no patterns."""
    if paths.is_address(pattern):
        return [places.reading(pattern)]
    place = paths.expand(pattern)
    return [place] if place.exists() else sorted(map(Path, glob.glob(str(place))))


def names(folders: list[Path]) -> list[str]:
    """Names folders by their last parts, or by their whole paths if two would be the same."""
    short = [folder.name for folder in folders]
    return short if len({*short}) == len(short) else [str(folder) for folder in folders]


def with_studies(folders: list[Path]) -> list[Path]:
    """Returns the folders that hold a study, among those given and the folders right inside them."""
    within = [place for folder in folders for place in (folder, *sorted(folder.glob("*")))]
    found = [place for place in within if (place / record.NAME).exists()]
    if not found:
        raise UserError(f"--studies: no study in {', '.join(map(str, folders))}: none has a {record.NAME}")
    return list(dict.fromkeys(found))


def to_text(table: pd.DataFrame, width: int) -> str:
    """Formats each claim's verdict, with its quantities and the reason below."""
    blocks = []
    for claim, rows in table.groupby("claim", sort=False):
        first = rows.iloc[0]
        exploratory = " (exploratory)" if first["exploratory"] else ""
        lines = [f"{claim} {first['statement']}: {first['verdict']}{exploratory}"]
        for row in rows.to_dict("records"):
            if pd.notna(row["value"]):
                shown = f"{significant(row['value'])} {significant_interval(row['ci_low'], row['ci_high'])}".rstrip()
                grade = f", {row['grade']}" if isinstance(row["grade"], str) and row["grade"] else ""
                lines.append(f"    {row['quantity']}: {shown}{grade}")
        if isinstance(first["reason"], str) and first["reason"]:
            lines += textwrap.wrap(first["reason"], width, initial_indent="    ", subsequent_indent="    ")
        if first["verdict"] == UNDECIDED and first["needs"]:
            lines += textwrap.wrap(f"needs {first['needs']}", width, initial_indent="    ", subsequent_indent="    ")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _then_and_now(table_path: Path | None) -> None:
    """Prints each study's verdicts under its own rules and under these."""
    if table_path is not None:
        outputs.check_table(table_path, _header(REJUDGED))
    places = with_studies(_folders())
    table = claims.rejudge(dict(zip(names(places), places, strict=True)))
    terminal.say(claims.as_markdown(table))
    if table_path is not None:
        outputs.write_table(table_path, table)
        terminal.say(f"\ntable: {table_path}")


def _folders() -> list[Path]:
    return find(cli.require(_STUDIES.value, "studies", "runs/hippocampus,runs/nerve"))


class _Written(NamedTuple):
    """The files that are written with --table."""

    verdicts: Path
    targets: Path
    figure: Path


def _check_outputs(table: Path) -> _Written:
    """Checks, before anything is read, that the files replace nothing but those of an earlier command like this one.

    A study's claims.csv has the columns of the verdicts, which therefore are known by their role.
    """
    made = _Written(table, table.with_name("over_targets.csv"), table.with_name("over_targets.svg"))
    if table in made[1:]:
        raise UserError(f"--table={table}: what is written beside the verdicts has this name; give another")
    outputs.check_table(table, _header(VERDICTS), holds=f",{OVER_STUDIES},")
    outputs.check_table(made.targets, _header(TARGET_COLUMNS))
    outputs.check_table(made.figure, "<?xml", holds=GAIN_LABEL)
    return made


def _header(columns: Sequence[str]) -> str:
    return ",".join(columns) + "\n"


def main() -> None:
    """Reads the studies and prints the verdicts."""
    table_path = None if _TABLE.value is None else Path(_TABLE.value)
    if _REJUDGE.value:
        _then_and_now(table_path)
        return
    written = None if table_path is None else _check_outputs(table_path)
    folders = _folders()
    named = dict(zip(names(folders), folders, strict=True))
    told = {name: claims.read_target_study(folder) for name, folder in named.items()}
    without_noise, levels = claims.made_noisy({name: study.record for name, study in told.items()})
    if not without_noise:
        raise UserError("--studies: noise was added to the target of every one; give at least one study without")
    studies = {name: told[name] for name in without_noise}
    noisy = {level: claims.read_study(named[name]) for level, name in levels.items()}
    table = claims.over_studies(studies, noisy=noisy)
    for name, study in studies.items():
        terminal.say(f"{name}: {study.record.source or 'no source'} to {study.record.target}")
    if noisy:
        terminal.say(
            f"noise levels of {next(iter(noisy.values())).record.target}: {', '.join(map(str, sorted(noisy)))}"
        )
    terminal.say(f"\n{to_text(table, min(shutil.get_terminal_size().columns, 120))}")
    if written is not None:
        outputs.write_table(written.verdicts, table)
        over_targets = claims.target_table(studies, noisy=noisy)
        outputs.write_table(written.targets, over_targets)
        terminal.say(f"\ntables: {written.verdicts}, {written.targets}")
        gains = gain_rows(over_targets)
        if len(gains):
            outputs.write_file(written.figure, to_svg(gain_forest(gains, width=WIDE_INCHES)))
            terminal.say(f"figure: {written.figure}")


if __name__ == "__main__":
    cli.run(main)
