"""The claims in words, and every number of their rules: fixed before any result, changed only with the version.

Low and high are the limits of a 95 % interval. See docs/claims.md.
"""

from __future__ import annotations

from typing import NamedTuple

RULE_VERSION = 1
"""Stands in study.json from before training on; another number below is another version."""

LEVEL = 0.05
"""1 minus the confidence of the intervals."""
CONFIDENCE = 1 - LEVEL
P_LIMIT = 0.05
DELTA = 0.01
"""Mean DSC below which a difference does not matter."""
MIN_GROUPS = 3
"""Test groups below which no verdict on DSC is given: with two, the interval misses more often than it says."""

SHORTER = 1.1
"""C1: times fewer steps."""
TARGET_FRACTION = 0.99
"""C1: of what the baseline reaches, the level that both arms are timed to."""
EVALUATIONS = 50
"""C1: validations that a training must have at least."""

BAND = 4 * DELTA
"""C2: width within which all gains are alike."""

NOISE_LEVELS = (0.25, 0.5, 1.0, 2.0)
"""C3: standard deviations of the noise added to a target, in those of each case."""
MIN_TARGETS = 5
"""C3: for the correlation."""

MIN_SIZES = 4
"""C4: training set sizes."""
FLAT_SLOPE = -0.003
"""C4: DSC a doubling of the training set; a slope above it is no growing gain."""

LITTLE_DEG, MUCH_DEG = 30.0, 45.0
"""C5: angle between a filter's start and end."""

RANDOM = {"distribution": 0.02, "arrangement": 0.03, "spectrum": 0.05, "auc": 0.60}
"""C6: what still counts as random."""
STRUCTURED = {"distribution": 0.04, "arrangement": 0.06, "spectrum": 0.10, "auc": 0.70}
"""C6: what no longer does."""
CONTROL_SHARE = 0.3
"""C6: share of structure blended into the filters at which each test must have found it ..."""
CONTROLLED = 0.8
"""... in layers that hold at least this share of the filters that had controls: the smallest layers show nothing."""

OF_SCRATCH = 0.9
"""C7: share of scratch's DSC that is quite accurate."""
VOID = 0.85
"""C7: share of scratch's DSC above which the mean label map alone makes the claim mean nothing."""

FLOOR_LIMIT = 0.95
"""Similarity of unrelated networks above which a layer says nothing."""
SHARE_OF_LAYERS = 0.5
"""Of the layers asked about, which must be usable."""
KEPT = 0.5
"""C8: similarity above the floor at which an encoder is as it started."""
EXCESS = 0.1
"""C9: excess distance, in that between scratch networks, that is a difference worth the word."""
AS_HIGH = 0.8
"""C10: ratio of variability, transferred to scratch, that is as high."""
EARLY = ("encoder/level_0", "encoder/level_1")
"""C11, C11b: the early layers; all others but the head are deep."""
REUSE_INDEX = "cka_debiased"
"""C8, C11, C11b: the index of similarity (C8 asks for `procrustes` as well)."""
REUSED = 0.25
"""C11: similarity to the source above the floor at which a layer is reused."""

LOSS_CHANGE, DSC_CHANGE = 0.02, 0.005
"""Gate G: relative change of the training loss, and change of validation DSC, over the last quarter of the steps."""
SHARE_OF_RUNS = 7 / 8
"""Gate G: of an arm's runs, which must change by less."""
TELLING = 2.0
"""Gate G: how many standard errors of a run's change its limit must hold for runs at rest to pass: each does with
P(|z| < 2) = 0.95, seven of eight in 95 studies of 100. Changes no verdict, only what a reason says."""


class Rule(NamedTuple):
    """A claim as a sentence, and when it is supported and contradicted."""

    statement: str
    supported: str
    contradicted: str


def _listed(limits: dict[str, float]) -> str:
    *firsts, last = limits.values()
    return f"{', '.join(f'{limit:g}' for limit in firsts)} and AUC {last:g}"


RULES = {
    "C1": Rule(
        "transfer shortens training",
        f"low above {SHORTER} times",
        "high below 1, whichever way censored runs are counted",
    ),
    "C2": Rule(
        "the gain depends on task and data",
        f"low of one cell above {DELTA} DSC, and high of another below that low",
        f"all intervals within one band of {BAND} DSC",
    ),
    "C3": Rule(
        "the gain is larger when the task is harder",
        f"slope over noise levels: low above 0, and correlation over targets positive at p <= {P_LIMIT}",
        f"slope over noise levels: high below 0, or correlation over targets negative at p <= {P_LIMIT}",
    ),
    "C4": Rule(
        "the gain is larger when data is smaller",
        f"slope: high below 0, and gain at the smallest size: low above {DELTA} DSC",
        f"slope: low above {FLAT_SLOPE} DSC a doubling",
    ),
    "C4b": Rule(
        "no gain at full size",
        f"interval within -{DELTA} and {DELTA} DSC",
        f"low above {DELTA} or high below -{DELTA} DSC",
    ),
    "C5": Rule("filters change little", f"high at most {LITTLE_DEG:g} degrees", f"low above {MUCH_DEG:g} degrees"),
    "C6": Rule(
        "trained filters still look random",
        f"high of all four within {_listed(RANDOM)}, and each control found at a share of {CONTROL_SHARE}",
        f"low of any beyond {_listed(STRUCTURED)}",
    ),
    "C7": Rule(
        "a frozen random encoder is quite accurate",
        "low of both margins above 0",
        f"high of the margin over {OF_SCRATCH} scratch below 0",
    ),
    "C8": Rule(
        "the encoder need not learn",
        f"C7 supported, and low of both similarities above {KEPT}",
        f"high of either similarity below {KEPT}, or C7 contradicted",
    ),
    "C9": Rule(
        "transferred and scratch networks represent differently",
        f"p <= {P_LIMIT} and excess distance at least {EXCESS}",
        f"high of the excess distance below {EXCESS}",
    ),
    "C10": Rule(
        "variability among transferred networks can be as high as among scratch",
        f"low of any ratio but that of parameters above {AS_HIGH}",
        f"high of all four ratios below {AS_HIGH}",
    ),
    "C11": Rule(
        "feature reuse is not only early",
        f"low of the deep layers' mean above {REUSED}",
        f"high of the deep layers' mean below {REUSED} and low of the early layers' above {REUSED}",
    ),
    "C11b": Rule(
        "reuse can be larger in deeper layers",
        "low of any deep layer's lead over the early ones above 0",
        "high of all deep layers' leads below 0",
    ),
}
EXISTENTIAL = frozenset({"C2", "C10", "C11b"})
"""Claims that say `can`: over several studies one supporting target is enough, after Bonferroni over studies."""
