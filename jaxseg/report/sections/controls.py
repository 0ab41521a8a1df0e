"""What controls found, in a sentence: whether placebos stayed quiet and positive controls showed the effect."""

from __future__ import annotations

import pandas as pd
from markupsafe import Markup

from jaxseg.analysis.statistics import MIN_SEEDS
from jaxseg.report.blocks import sentence
from jaxseg.report.tables import rows_of
from jaxseg.study.claims.controls import is_loud
from jaxseg.text import listing

_PLACEBOS = {"scratch_b": "placebo", "shuffled_source": "negative control"}
_POSITIVE = "self_transfer"
_EFFECT = {"C1": ("against", 1.0), "C4": ("smallest", 0.0), "C4b": ("gain", 0.0)}
"""Claim -> the key of its quantity whose lower limit is above a number where an arm trains faster, or gains."""


def control_words(controls: pd.DataFrame) -> Markup:
    """Return a sentence for each placebo and positive control: quiet, found, or not; empty without any."""
    judged = controls.drop_duplicates(["arm", "claim"])
    sentences = []
    for arm in map(str, judged["arm"].unique()):
        own, own_rows = judged[judged["arm"] == arm], controls[controls["arm"] == arm]
        verdicts = {row.claim: row.verdict for row in rows_of(own)}
        if arm in _PLACEBOS:
            loud = [f"{claim} {verdict}" for claim, verdict in verdicts.items() if is_loud(claim, verdict)]
            found = f"not quiet, {listing(loud)}" if loud else "quiet"
            what = f"{_PLACEBOS[arm]} {arm}"
        elif arm == _POSITIVE:
            found = "found" if any(_shows(of_claim) for _, of_claim in own_rows.groupby("claim")) else "not found"
            what = f"positive control {arm}"
        else:
            continue
        behind = ", ".join(f"{claim} {verdict}" for claim, verdict in verdicts.items())
        text = "The {what}: <b>{found}</b> ({behind})."
        sentences.append(sentence(text, what=what, found=found, behind=behind))
    return Markup(" ").join(sentences)


def _shows(of_claim: pd.DataFrame) -> bool:
    """Whether what a claim gives on a positive control shows the effect, as verdicts that rest on an absence ask for.

    Doubts forbid that: too few test groups or validations, or rates that differ. They then are all of the reason, in
    which the numbers that a rule was applied to stand otherwise.
    """
    claim, reason = str(of_claim["claim"].iloc[0]), str(of_claim["reason"].iloc[0])
    key, nothing = _EFFECT.get(claim, ("", 0.0))
    applied = any(name and name in reason for name in of_claim["quantity"].fillna("").astype(str))
    return applied and any(
        row.key == key and row.n_seeds >= MIN_SEEDS and row.ci_low > nothing for row in rows_of(of_claim)
    )
