"""Compares a study's verdicts under the rules it began with to those of today's rules."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from jaxseg.study import files
from jaxseg.study.claims.judging import judge_claims
from jaxseg.study.claims.study_tables import read_study
from jaxseg.types import UserError

COLUMNS = ("study", "claim", "rule_version", "then", "now", "reason", "exploratory")
NOT_ASKED = "not asked"
"""Stands for the verdict on a claim that the study has no arm, size or table for."""


def _then(workdir: Path) -> dict[str, Mapping[str, Any]]:
    """The first row of each claim in the study's own claims.csv."""
    path = files.find_table(workdir / "results", "claims")
    if path is None:
        return {}
    table = files.read_table(path)
    rows = table[table["role"].isin(["claim", "lacking"])].drop_duplicates("claim").to_dict("records")
    return {str(row["claim"]): {str(key): value for key, value in row.items()} for row in rows}


def rejudge(folders: Mapping[str, Path]) -> pd.DataFrame:
    """Tabulates, by study and claim, the verdict in claims.csv and that of today's rules with the reason.

    Args:
        folders: Workdirs by name.

    Returns:
        The columns `COLUMNS`. Rules newer than a study were made with its tables in sight, so what they say about it
        is marked `exploratory`.

    Raises:
        UserError: If a folder lacks the tables to judge it.
    """
    rows: list[dict[str, Any]] = []
    for name, folder in folders.items():
        then, study = _then(folder), read_study(folder)
        if "cases" not in study.tables:
            raise UserError(
                f"no cases.csv in {folder / 'results'}, which published studies leave out; give its workdir"
            )
        for claim, found in judge_claims(study).items():
            before = then.get(claim, {})
            verdict = before.get("verdict")
            rows.append(
                {
                    **{"study": name, "claim": claim, "rule_version": study.record.rule_version},
                    "then": verdict if isinstance(verdict, str) and verdict else NOT_ASKED,
                    "now": NOT_ASKED if found.lacks else found.verdict,
                    "reason": found.reason,
                    "exploratory": found.exploratory,
                }
            )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def as_markdown(table: pd.DataFrame) -> str:
    """Formats the claims that have a verdict under either set of rules as a Markdown table."""
    said = table[(table["then"] != NOT_ASKED) | (table["now"] != NOT_ASKED)]
    named = "".join(f" {words} |" for words in ("study", "claim", "verdict then", "verdict now, exploratory", "reason"))
    lines = [f"|{named}", "| --- | --- | --- | --- | --- |"]
    for row in said.to_dict("records"):
        # The words of the rule itself stand on the page of the claims.
        reason = str(row["reason"]).partition(": supported needs")[0].replace("|", "/")
        cells = (row["study"], row["claim"], row["then"], row["now"], reason)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
