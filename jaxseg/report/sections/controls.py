"""What controls found, in a sentence: whether placebos stayed quiet and positive controls showed the effect."""

from __future__ import annotations

import pandas as pd
from markupsafe import Markup

from jaxseg.report.blocks import sentence
from jaxseg.report.tables import rows_of
from jaxseg.study.claims.controls import is_loud
from jaxseg.text import listing

_PLACEBOS = {"scratch_b": "placebo", "shuffled_source": "negative control"}
_POSITIVE = "self_transfer"
_EFFECT = {"C1": "supported", "C4": "supported", "C4b": "contradicted"}
"""Claim -> the verdict by which it shows that an arm gains."""


def control_words(controls: pd.DataFrame) -> Markup:
    """Return a sentence for each placebo and positive control: quiet, found, or not; empty without any."""
    judged = controls.drop_duplicates(["arm", "claim"])
    sentences = []
    for arm in map(str, judged["arm"].unique()):
        own = judged[judged["arm"] == arm]
        verdicts = {row.claim: row.verdict for row in rows_of(own)}
        if arm in _PLACEBOS:
            loud = [f"{claim} {verdict}" for claim, verdict in verdicts.items() if is_loud(claim, verdict)]
            found = f"not quiet, {listing(loud)}" if loud else "quiet"
            what = f"{_PLACEBOS[arm]} {arm}"
        elif arm == _POSITIVE:
            shown = [claim for claim, verdict in verdicts.items() if _EFFECT.get(claim) == verdict]
            found = "found" if shown else "not found, so that an absence of the effect shows nothing here"
            what = f"positive control {arm}"
        else:
            continue
        behind = ", ".join(f"{claim} {verdict}" for claim, verdict in verdicts.items())
        text = "The {what}: <b>{found}</b> ({behind})."
        sentences.append(sentence(text, what=what, found=found, behind=behind))
    return Markup(" ").join(sentences)
