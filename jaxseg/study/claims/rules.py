"""The claims in words, and every number of their rules: fixed before any result, changed only with the version.

Low and high are the limits of a 95 % interval. See docs/claims.md.
"""

from __future__ import annotations

from typing import NamedTuple

RULE_VERSION = 2
"""Version of the rules, which study.json holds from before training on; any change to a number below changes it."""

LEVEL = 0.05
"""1 minus the confidence of the intervals, for the claims of one look at the data."""
CONFIDENCE = 1 - LEVEL
LOOK_LEVELS = (0.0054, 0.0492)
"""Levels of two declared looks: together 0.05 where the second has twice the seeds (O'Brien and Fleming 1979)."""
ONE_FAMILY = ("C1", "C4", "C7", "C11")
"""Claims of the abstract that one study can decide: their verdicts share the level by Holm's method."""
DELTA = 0.01
"""Mean DSC below which a difference does not matter."""
MIN_GROUPS = 3
"""Test groups below which no verdict on DSC is given: with two, the interval misses more often than it says."""
MIN_SEEDS_A_FOLD = 4
"""Seeds that each fold needs if folds rotate over seeds."""

REST = 0.01
"""Runs are at rest if the upper limit of the last doubling's gain, in validation DSC, is below this."""
LATE, HALFWAY = (0.8, 1.0), (0.4, 0.5)
"""Shares of the steps whose validations are averaged: the gain of the last doubling is the first less the second."""
REST_CONFIDENCE, PROJECTION_CONFIDENCE = 0.975, 0.95
"""One-sided confidence of the limit that says whether runs are at rest, and of the one that projects verdicts."""
NEXT_CHANGE = 2**0.5
"""A filter or similarity statistic may change by this many times its change over the last doubling."""

SHORTER = 1.1
"""C1: factor by which the steps must shrink for training to count as shorter."""
SPEED_LEVELS = (0.90, 0.95, 0.98)
"""C1: shares of the baseline's final validation DSC, to which both arms are timed."""
LEVEL_AFTER = 0.75
"""C1: share of the steps after which the baseline's validations are averaged to its level."""
EVALUATIONS = 50
"""C1: the fewest validations that a training must have."""

MIN_CELLS = 5
"""C2: the fewest targets, or training set sizes of one target."""
TAU = 0.01
"""C2: standard deviation of the gain between targets, in DSC, from which gains count as different."""

NOISE_LEVELS = (0.25, 0.5, 1.0, 2.0)
"""C3: standard deviations of the noise added to a target, in standard deviations of each case."""
MIN_TARGETS_C3 = 8
"""C3: the fewest targets for the regression on their difficulty."""

MIN_SIZES = 4
"""C4: the fewest training set sizes."""
SIZE_MATTERS = 0.02
"""C4: DSC that scratch must lose from all cases to the fewest; else fewer cases are no harder task here."""

LITTLE_DEG, MUCH_DEG = 30.0, 45.0
"""C5: angles between a filter's start and end that count as little and as much, in degrees."""
MIN_RATES, RATE_FACTOR = 3, 2.9
"""C5: learning rates, and how many times each is the one below (a factor of 3, as 1e-3 and 3e-3 are rounded)."""

RANDOM = {"distribution": 0.02, "arrangement": 0.03, "spectrum": 0.05, "auc": 0.60}
"""C6: limits below which quantities still count as random."""
STRUCTURED = {"distribution": 0.04, "arrangement": 0.06, "spectrum": 0.10, "auc": 0.70}
"""C6: limits above which quantities no longer count as random."""
CONTROL_SHARE = 0.3
"""C6: share of structure blended into the filters at which each test must have found it ..."""
CONTROLLED = 0.8
"""... in layers that hold at least this share of the filters that had controls: the smallest layers show nothing."""

OF_SCRATCH = 0.9
"""C7: share of scratch's DSC that counts as quite accurate."""
VOID = 0.85
"""C7: share of scratch's DSC at which the mean label map alone makes the claim meaningless."""
NEARLY = 0.02
"""C8: DSC by which a network with a frozen random encoder may fall short of scratch."""

FLOOR_LIMIT = 0.95
"""Similarity of unrelated networks above which a layer says nothing."""
SHARE_OF_LAYERS = 0.5
"""Share of the layers in question that must be usable."""
INDEXES = ("cka_cases", "cka_debiased")
"""Linear CKA from pairs of different cases, and its substitute in tables of earlier versions."""
SHAPES = "procrustes"
"""C9: the second similarity index."""
DIFFERENT, ALIKE = 0.05, 0.10
"""C9: excess distance across arms, in that between scratch networks, above which they differ, below which not."""
AS_HIGH = 2 / 3
"""C10: ratio of variability, of transfer to scratch, that counts as just as high."""
EARLY_LEVELS = (0, 1)
"""C11, C11b: the encoder's early levels; those below are deep."""
REUSED, NOT_REUSED = 0.05, 0.10
"""C11: similarity to the source above the floor at which a level is reused, and below which it is not."""

MIN_STARTS = 2
"""Ranking: the fewest starts. Those that are compared with the baseline share the level of one claim (max-t), and so do
all pairs of starts."""

MIN_TARGETS = 4
"""The fewest targets for a mean over them."""
CAN = frozenset({"C10", "C11b"})
"""Claims that say `can`: one supporting target is enough, at a level that all targets share."""


def of_checkpoint(trained_on: str) -> str:
    """Says what a checkpoint of someone else's may have seen; said beside every number of arms that start from it.

    Args:
        trained_on: The images that it was trained on, in its importer's words; empty if unknown.
    """
    if not trained_on:
        return "what this checkpoint was trained on is unknown, so that it may have seen the test cases"
    return f"this checkpoint was trained on {trained_on}, as declared; that it has not seen the test cases is unchecked"


class Rule(NamedTuple):
    """A claim as a sentence, and when it is supported and contradicted."""

    statement: str
    supported: str
    contradicted: str


def _listed(limits: dict[str, float]) -> str:
    *firsts, last = limits.values()
    return f"{', '.join(f'{limit:g}' for limit in firsts)} and AUC {last:g}"


SENSITIVE = "and self_transfer shows the effect"

RULES = {
    "C1": Rule(
        "transfer shortens training",
        f"low above 1 and estimate at least {SHORTER}",
        f"high below {SHORTER} {SENSITIVE}, or high below 1 / {SHORTER} (slower)",
    ),
    "C2": Rule(
        "the gain depends on task and data",
        f"p at most the level and tau at least {TAU} DSC",
        f"high of tau below {TAU} DSC",
    ),
    "C3": Rule(
        "the gain is larger when the task is harder",
        "slope of the gain on scratch's error: low above 0",
        "the slope's high below 0",
    ),
    "C4": Rule(
        "the gain is larger when data is smaller",
        "slope a doubling: high below 0, and gain at the smallest size: low above 0",
        f"slope's low above 0, or gain at the smallest size: high below {DELTA} DSC; {SENSITIVE}",
    ),
    "C4b": Rule("no gain at full size", f"high below {DELTA} DSC", f"low above {DELTA} DSC"),
    "C5": Rule(
        "filters change little",
        f"some rate within {DELTA} DSC of the best has a projected high of at most {LITTLE_DEG:g} degrees",
        f"all such rates have a low above {MUCH_DEG:g} degrees",
    ),
    "C6": Rule(
        "trained filters still look random",
        f"projected high of all four within {_listed(RANDOM)}, and each control found at a share of {CONTROL_SHARE}",
        f"low of any beyond {_listed(STRUCTURED)}",
    ),
    "C7": Rule(
        "a frozen random encoder is quite accurate",
        "projected low of both margins above 0",
        f"projected high of the margin over {OF_SCRATCH} scratch below 0",
    ),
    "C8": Rule(
        "the encoder need not learn",
        f"projected low of both above 0: frozen less scratch less {NEARLY}, and frozen less no encoder",
        "projected high of the first below 0",
    ),
    "C9": Rule(
        "transferred and scratch networks represent differently",
        f"by both indexes p at most the level and low above {DIFFERENT}",
        f"by both indexes high below {ALIKE}",
    ),
    "C10": Rule(
        "variability among transferred networks can be as high as among scratch",
        "low of either ratio above 2/3",
        "high of both ratios below 2/3",
    ),
    "C11": Rule(
        "feature reuse is not only early",
        f"low of any deep encoder level above {REUSED}",
        f"high of all deep encoder levels below {NOT_REUSED}, and low of the early ones above {NOT_REUSED}",
    ),
    "C11b": Rule(
        "reuse can be larger in deeper layers",
        "low of any deep encoder level's lead over the early ones above 0",
        "high of all their leads below 0",
    ),
}
