"""How often the intervals cover the truth and the tests cry wolf, by simulation; prints Markdown tables.

    python -m tools.coverage [--draws 4000] [--tables 400] [--seed 0]

Takes about 15 minutes on one core. Every number comes from the functions that the study itself calls.
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from jaxseg.analysis import statistics
from jaxseg.reserved import MEAN
from jaxseg.study.score import comparisons

SEEDS, GROUPS = (6, 8, 16), (10, 14, 40)

SPREADS = {
    "seed 1, group 1, residual 1": (1.0, 1.0, 1.0),
    "seed 1, group 0.3, residual 1": (1.0, 0.3, 1.0),
    "seed 0.3, group 1, residual 1": (0.3, 1.0, 1.0),
    "seed 1, group 1, residual 0.3": (1.0, 1.0, 0.3),
    "seed 1, no group effect, residual 1": (1.0, 0.0, 1.0),
    "no seed effect, group 1, residual 1": (0.0, 1.0, 1.0),
    "residual alone": (0.0, 0.0, 1.0),
}
"""Standard deviations."""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _covers(draws: int, interval: Callable[[], statistics.Interval], truth: float) -> str:
    hits = 0
    for _ in range(draws):
        got = interval()
        hits += got.low <= truth <= got.high
    return f"{100 * hits / draws:.1f}"


def _normal(rng: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    return rng.normal(size=size)


def _heavy(rng: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    return rng.standard_t(5, size) / math.sqrt(5 / 3)


def _skewed(rng: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    return rng.exponential(size=size) - 1


def _layout(
    rng: np.random.Generator,
    num_seeds: int,
    num_groups: int,
    spread: tuple[float, float, float],
    draw: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray] = _normal,
    cases: int = 1,
    folds: int = 1,
) -> np.ndarray:
    """D[seed, group] with mean 0.

    With `cases` > 1 a group averages 1 to `cases` cases with a residual each; with `folds` > 1 the groups belong to
    folds by turns, and a seed has an effect of its own in each, as networks trained on different cases do.
    """
    seed, group, residual = spread
    scale = residual / np.sqrt(rng.integers(1, cases, num_groups, endpoint=True))
    by_seed = seed * draw(rng, (num_seeds, folds))[:, np.arange(num_groups) % folds]
    return by_seed + group * draw(rng, (1, num_groups)) + scale * draw(rng, (num_seeds, num_groups))


def two_way(rng: np.random.Generator, draws: int) -> str:
    """Coverage of the interval that decides, beside t over seeds and t over groups, which leave one effect out."""
    rows = []
    equal, weak = (1.0, 1.0, 1.0), (0.3, 0.3, 1.0)
    settings: list[tuple[str, tuple[Any, ...]]] = [(name, (spread,)) for name, spread in SPREADS.items()]
    settings += [
        ("1, 1, 1, heavy tails (t, 5 df)", (equal, _heavy)),
        ("1, 1, 1, skewed (exponential)", (equal, _skewed)),
        ("1, 1, 1, groups of 1 to 8 cases", (equal, _normal, 8)),
        ("0.3, 0.3, 1, groups of 1 to 8 cases", (weak, _normal, 8)),
        ("1, 1, 1, five folds together", (equal, _normal, 1, 5)),
        ("1, 0.3, 1, five folds together", ((1.0, 0.3, 1.0), _normal, 1, 5)),
    ]

    def over_both(s: int, g: int, of_layout: tuple[Any, ...]) -> statistics.Interval:
        return statistics.two_way_interval(_layout(rng, s, g, *of_layout))

    def over_seeds(s: int, g: int) -> statistics.Interval:
        return statistics.t_interval(_layout(rng, s, g, equal).mean(1))

    for name, of_layout in settings:
        cells = [_covers(draws, functools.partial(over_both, s, g, of_layout), 0.0) for s in SEEDS for g in GROUPS]
        rows.append([name, *cells])
    naive = [_covers(draws, functools.partial(over_seeds, s, g), 0.0) for s in SEEDS for g in GROUPS]
    rows.append(["*for contrast:* 1, 1, 1, t over seeds", *naive])
    return _table(["standard deviations", *(f"{s} x {g}" for s in SEEDS for g in GROUPS)], rows)


def _distances(points: np.ndarray) -> np.ndarray:
    return np.sum((points[:, None] - points[None, :]) ** 2, -1)


def pairs(rng: np.random.Generator, draws: int) -> str:
    """Coverage of the jackknife for mean squared distances of runs in k dimensions, their ratio, and their excess."""
    rows = []
    for k in (1, 3, 10, 50):
        cells: dict[str, list[str]] = {"distance": [], "ratio": [], "excess": []}
        for s in SEEDS:

            def points(s: int = s, k: int = k) -> np.ndarray:
                return rng.normal(size=(2 * s, k))

            def distance(s: int = s) -> statistics.Interval:
                d = _distances(points())
                return statistics.jackknife(lambda kept: float(statistics.mean_of_pairs(d, kept)), s, log=True)

            def ratio(s: int = s) -> statistics.Interval:
                d = _distances(points())
                a, b = d[:s, :s], d[s:, s:]

                def of_means(kept: np.ndarray) -> float:
                    return float(statistics.mean_of_pairs(a, kept) / statistics.mean_of_pairs(b, kept))

                return statistics.jackknife(of_means, s, log=True)

            def excess(s: int = s) -> statistics.Interval:
                z = points()
                z[s:, 0] += 2.0  # pairs across arms are 2^2 further apart than pairs within
                d = _distances(z)
                a, b, across = d[:s, :s], d[s:, s:], d[:s, s:]
                return statistics.jackknife(
                    lambda kept: (
                        statistics.mean_of_pairs(across, kept)
                        - (statistics.mean_of_pairs(a, kept) + statistics.mean_of_pairs(b, kept)) / 2
                    ),
                    s,
                )

            cells["distance"].append(_covers(draws, distance, 2.0 * k))
            cells["ratio"].append(_covers(draws, ratio, 1.0))
            cells["excess"].append(_covers(draws, excess, 4.0))
        rows.append([str(k), *(c for column in cells.values() for c in column)])
    names = ("distance (log)", "ratio of two arms (log)", "excess between arms")
    return _table(["k", *(f"{name}, {s} seeds" for name in names for s in SEEDS)], rows)


def _cases(
    rng: np.random.Generator, arms: Sequence[str], num_seeds: int, num_groups: int, spread: tuple
) -> pd.DataFrame:
    """cases.csv of arms that differ by chance alone: two labels, two train sizes, three metrics that go together."""
    seed, group, residual = spread
    parts = []
    level = rng.normal(size=num_groups)
    for arm in arms:
        for size in (8, 32):
            shared = seed * rng.normal(size=(num_seeds, 1, 1)) + group * rng.normal(size=(1, num_groups, 1))
            values = level[None, :, None] + shared + residual * rng.normal(size=(num_seeds, num_groups, 2))
            index = np.indices(values.shape).reshape(3, -1)
            dsc = values.ravel()
            parts.append(
                pd.DataFrame(
                    {
                        **{"arm": arm, "seed": index[0], "train_cases": size, "fold": 0, "case": index[1].astype(str)},
                        **{"group": index[1].astype(str), "label": np.array(["a", "b"])[index[2]], "status": "ok"},
                        **{"dsc": dsc, "hd95": -dsc + 0.5 * rng.normal(size=dsc.shape), "assd": -dsc, "nsd": math.nan},
                    }
                )
            )
    return pd.concat(parts, ignore_index=True)


def false_positives(rng: np.random.Generator, tables: int) -> str:
    """Share of wrong calls of `comparisons` where no arm differs: 3 pairs x 2 sizes x 3 labels x 3 metrics a table."""
    arms = ("scratch", "transfer", "first_k", "frozen")
    rows = []
    for num_seeds, num_groups, (name, spread) in (
        (8, 14, ("seed and residual, on these cases", (1.0, 0.0, 1.0))),
        (16, 14, ("seed and residual, on these cases", (1.0, 0.0, 1.0))),
        (8, 14, ("seed, group and residual", (1.0, 1.0, 1.0))),
        (16, 40, ("seed, group and residual", (1.0, 1.0, 1.0))),
    ):
        interval, single, adjusted, verdict = [], [], [], []
        for _ in range(tables):
            cases = _cases(rng, arms, num_seeds, num_groups, spread)
            got = comparisons.comparisons(cases, arms, confidence=0.95, rng=rng)
            outside = (got["ci_low"] > 0) | (got["ci_high"] < 0)
            interval.append(outside.mean())
            single.append((got["p"] <= 0.05).mean())
            adjusted.append((got["p_maxt"] <= 0.05).any())
            verdict.append(outside[(got["label"] == MEAN) & (got["metric"] == "dsc")].mean())
        rates = [f"{100 * float(np.mean(x)):.1f}" for x in (interval, verdict, single, adjusted)]
        if spread[1]:
            rates[2:] = ["(not its question)"] * 2
        rows.append([name, f"{num_seeds} x {num_groups}", *rates])
    head = ("effects", "seeds x groups", "interval excludes 0", "the same, DSC, mean label", "p <= .05")
    return _table([*head, "any p_maxt <= .05 in a table"], rows)


def main() -> None:
    """Prints all tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=4000, help="draws of each setting of an interval")
    parser.add_argument("--tables", type=int, default=400, help="tables of each setting of the comparisons")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    error = 100 * math.sqrt(0.05 * 0.95 / options.draws)
    sections = (
        (f"Two-way interval, nominal 95 %: coverage in % (standard error {error:.2f})", two_way(rng, options.draws)),
        # More draws: the lowest of 36 settings is compared with a bound, and is low by chance as well.
        ("Jackknife over seeds, nominal 95 %: coverage in %", pairs(rng, options.draws * 5 // 2)),
        ("Comparisons where no arm differs: false positives in %", false_positives(rng, options.tables)),
    )
    for title, table in sections:
        print(f"\n## {title}\n\n{table}", flush=True)


if __name__ == "__main__":
    main()
