"""What stands beside a difference of arms in words: what its interval speaks of, and what limits it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxseg.analysis import statistics
from jaxseg.study.score.scores import Contrast
from jaxseg.study.score.units import Sources
from jaxseg.text import plural


def _shared(folds: Sequence[Contrast]) -> bool:
    """Whether seeds share source networks, which then count in their place."""
    return any(fold.seeds_each > 1 for fold in folds)


def inference(folds: Sequence[Contrast]) -> str:
    """Returns what the interval of a difference, given in each fold, speaks of."""
    if any(len(fold.d) < 2 or not fold.d.size or not np.isfinite(fold.d).all() for fold in folds):
        return "descriptive"
    new = "new source networks" if _shared(folds) else "new seeds"
    return f"{new} and groups" if all(fold.d.shape[1] > 1 for fold in folds) else f"{new}, on these cases"


def note(folds: Sequence[Contrast], left_out: int, arms: Sequence[str], sources: Sources) -> str:
    """Returns what limits a difference; empty if nothing does.

    Args:
        folds: The difference in each fold that counts.
        left_out: Number of cases that are left out of all folds.
        arms: The arms that are compared.
        sources: The source networks of their runs.
    """
    notes, n_units = [], sum(len(fold.d) for fold in folds)
    what = "source networks" if _shared(folds) else "seeds"
    if crossed := " and ".join(arm for arm in arms if arm in sources.crossed):
        notes.append(f"runs of {crossed} share ids of crossed streams and count as one: no interval")
    elif n_units < statistics.MIN_SEEDS:
        least = statistics.minimum_p(n_units)
        notes.append(f"fewer than {statistics.MIN_SEEDS} {what}: no verdict, p cannot be below {least:.2g}")
    if _shared(folds) and not crossed:
        named = " and ".join(arm for arm in arms if sources.shared(arm))
        n_seeds = sum(len(fold.row_of) for fold in folds)
        count = f"{plural(n_units, 'source network')} ({plural(n_seeds, 'seed')})"
        notes.append(f"seeds of {named} that share a source network count as one: {count}")
    alone = "all seeds of {arm} start from one source network: of this checkpoint alone"
    notes += [alone.format(arm=arm) for arm in arms if arm in sources.one]
    if left_out:
        notes.append(f"{left_out} cases without a value for every run left out")
    if lacking := sum(not len(fold.d) for fold in folds) if len(folds) > 1 else 0:
        notes.append(f"no run of both arms in {lacking} of {len(folds)} folds: no mean over folds")
    if not crossed and not all(fold.paired for fold in folds if len(fold.d) or len(folds) == 1):
        notes.append("no seed in common: matched in order")
    if not all(np.isfinite(fold.d).all() for fold in folds):
        notes.append("infinite distances: no interval")
    return "; ".join(notes)
