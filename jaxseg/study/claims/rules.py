"""The claims, in words, and the numbers of their rules: fixed before any result, changed only with the version."""

from __future__ import annotations

from typing import NamedTuple

RULE_VERSION = 1
"""Stands in study.json from before training on; another rule is another version. See docs/claims.md."""

DELTA = 0.01
"""Mean DSC below which a difference does not matter."""
MIN_GROUPS = 3
"""Test groups below which no verdict on DSC is given: with two, the interval misses more often than it says."""


class Rule(NamedTuple):
    """A claim as a sentence, and when it is supported and contradicted; low and high are 95 % limits."""

    statement: str
    supported: str
    contradicted: str
    gated: bool = False
    """Whether the runs must have converged (gate G)."""


RULES = {
    "C1": Rule(
        "transfer shortens training",
        "low above 1.1 times",
        "high below 1, whichever way censored runs are counted",
        gated=True,
    ),
    "C2": Rule(
        "the gain depends on task and data",
        "low of one cell above 0.01 DSC, and high of another below that low",
        "all intervals within one band of 0.04 DSC",
    ),
    "C3": Rule(
        "the gain is larger when the task is harder",
        "slope over noise levels: low above 0, and correlation over targets positive at p <= 0.05",
        "slope over noise levels: high below 0, or correlation over targets negative at p <= 0.05",
    ),
    "C4": Rule(
        "the gain is larger when data is smaller",
        "slope: high below 0, and gain at the smallest size: low above 0.01 DSC",
        "slope: low above -0.003 DSC a doubling",
    ),
    "C4b": Rule(
        "no gain at full size",
        "interval within -0.01 and 0.01 DSC",
        "low above 0.01 or high below -0.01 DSC",
    ),
    "C5": Rule("filters change little", "high at most 30 degrees", "low above 45 degrees", gated=True),
    "C6": Rule(
        "trained filters still look random",
        "high of all four within 0.02, 0.03, 0.05 and AUC 0.60, and each control found at a share of 0.3",
        "low of any beyond 0.04, 0.06, 0.10 or AUC 0.70",
        gated=True,
    ),
    "C7": Rule(
        "a frozen random encoder is quite accurate",
        "low of both margins above 0",
        "high of the margin over 0.9 scratch below 0",
        gated=True,
    ),
    "C8": Rule(
        "the encoder need not learn",
        "C7 supported, and low of both similarities above 0.5",
        "high of either similarity below 0.5, or C7 contradicted",
        gated=True,
    ),
    "C9": Rule(
        "transferred and scratch networks represent differently",
        "p <= 0.05 and excess distance at least 0.1",
        "high of the excess distance below 0.1",
    ),
    "C10": Rule(
        "variability among transferred networks can be as high as among scratch",
        "low of any of the four ratios above 0.8",
        "high of all four ratios below 0.8",
    ),
    "C11": Rule(
        "feature reuse is not only early",
        "low of the deep layers' mean above 0.25",
        "high of the deep layers' mean below 0.25 and low of the early layers' above 0.25",
    ),
    "C11b": Rule(
        "reuse can be larger in deeper layers",
        "low of any deep layer's lead over the early ones above 0",
        "high of all deep layers' leads below 0",
    ),
}
EXISTENTIAL = frozenset({"C2", "C10", "C11b"})
"""Claims that say `can`: over several studies one supporting target is enough, after Bonferroni over studies."""
