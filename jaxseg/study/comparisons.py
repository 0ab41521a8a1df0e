"""Tables drawn from scores and curves: what each arm reaches, how arms differ, when they converge.

Tables in, tables out. Averages are taken in one order everywhere: labels within a case, cases within their group,
groups alike, seeds alike; so the difference of two rows of `summary` is the difference in `comparisons`. A label counts
where the case's *reference* holds it, whatever was predicted, so the cases are the same for every arm.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from jaxseg.analysis import convergence as times
from jaxseg.analysis import statistics
from jaxseg.types import UserError

METRICS = ("dsc", "hd95", "assd", "nsd")
LOWER_IS_BETTER = frozenset({"hd95", "assd", "hd"})
BASELINE = "scratch"
MEAN = "mean"
"""The label of rows that average a case's labels."""
POOLED = -1
"""The fold of rows that take the test cases of all folds together."""

_CASE_COLUMNS = ("arm", "seed", "train_cases", "fold", "case", "group", "label", "status")
_CURVE_COLUMNS = ("arm", "seed", "train_cases", "fold", "step", "seconds", "val_dsc")


def _require(table: pd.DataFrame, columns: Sequence[str], name: str) -> None:
    missing = [c for c in columns if c not in table]
    if missing:
        raise UserError(
            f"{name} lacks the columns {', '.join(missing)}; it has {', '.join(map(str, table.columns))}. Give the "
            "table that the study wrote."
        )


def baseline_of(arms: Sequence[str]) -> str:
    """The arm that the others are compared with: `scratch` where it is present, else the first."""
    return BASELINE if BASELINE in arms else arms[0]


def _with_pooled(table: pd.DataFrame) -> pd.DataFrame:
    """Adds the rows of all folds together, as fold `POOLED`, where there are several folds."""
    table = table.assign(own_fold=table["fold"])
    if table["fold"].nunique() < 2:
        return table
    return pd.concat([table, table.assign(fold=POOLED)], ignore_index=True)


def _scores(cases: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """One row a case and label whose reference holds the label, and one a case for the mean over its labels."""
    held = cases[cases["status"].isin(["ok", "missed"])]
    keys = ["arm", "train_cases", "fold", "seed", "group", "case"]
    by_case = held.groupby(keys, sort=False)[list(metrics)]
    means = by_case.mean()
    # A label without a value must not leave a mean of the others: that would drop misses from it.
    incomplete = by_case.count().lt(by_case.size(), axis=0)
    mean_rows = means.mask(incomplete).reset_index().assign(label=MEAN)
    return pd.concat([held[[*keys, "label", *metrics]], mean_rows], ignore_index=True)


def _variants(scores: pd.DataFrame) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Scores by train size, fold and label: labels in their order of appearance, the mean last."""
    for (train_cases, fold), variant in scores.groupby(["train_cases", "fold"], sort=True):
        labels = [label for label in variant["label"].unique() if label != MEAN]
        for label in [*labels, MEAN]:
            keys = {"label": label, "train_cases": train_cases, "fold": fold}
            yield keys, variant[variant["label"] == label]


def _by_seed_and_case(scores: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Seeds as rows, cases (group, fold they are tested in, name) as columns; seeds that lack a whole fold left out."""
    wide = scores.pivot(index="seed", columns=["group", "own_fold", "case"], values=metric)
    tested = scores.groupby("seed")["own_fold"].nunique()
    return wide.loc[tested.index[tested == scores["own_fold"].nunique()]]


def _by_group(wide: pd.DataFrame) -> pd.DataFrame:
    return wide.T.groupby(level="group", sort=False).mean().T


def summary(cases: pd.DataFrame, *, confidence: float = 0.95, metrics: Sequence[str] = METRICS) -> pd.DataFrame:
    """What each arm reaches, by train size, fold, label and metric.

    Args:
        cases: rows of cases.csv.
        confidence: level of the intervals.
        metrics: columns of `cases`; one without a single value (NSD without a tolerance) gives no rows.

    Returns:
        Columns arm, train_cases, fold, label, metric, unit, mean, ci_low, ci_high (t over seeds: new seeds, on these
        cases), sd (over seeds), iqm (interquartile mean over seeds x groups), n_seeds, n_groups, n_cases, n_missed,
        n_spurious, n_absent. The last three count predictions over all seeds: references found empty-handed,
        predictions of a label that the reference lacks, and all references that lack it (n_spurious / n_absent is the
        false-positive rate). Fold -1 takes all folds together, where there are several.

    Raises:
        UserError: if `cases` lacks a column.
    """
    _require(cases, (*_CASE_COLUMNS, *metrics), "cases.csv")
    metrics = [m for m in metrics if cases[m].notna().any()]
    tall = _with_pooled(cases)
    units = cases["unit"].iloc[0] if "unit" in cases and len(cases) else ""
    scores = _with_pooled(_scores(cases, metrics))
    order = {arm: i for i, arm in enumerate(cases["arm"].unique())}
    rows: list[dict[str, Any]] = []
    for keys, part in _variants(scores):
        of_variant = tall[(tall["train_cases"] == keys["train_cases"]) & (tall["fold"] == keys["fold"])]
        counted = of_variant if keys["label"] == MEAN else of_variant[of_variant["label"] == keys["label"]]
        for arm, of_arm in sorted(part.groupby("arm", sort=False), key=lambda item: order[str(item[0])]):
            status = counted.loc[counted["arm"] == arm, "status"].value_counts()
            missed, spurious = int(status.get("missed", 0)), int(status.get("spurious", 0))
            for metric in metrics:
                wide = _by_seed_and_case(of_arm, metric)
                groups = _by_group(wide)
                by_seed = groups.mean(axis=1).to_numpy()
                interval = statistics.t_interval(by_seed, confidence=confidence)
                finite = bool(np.isfinite(by_seed).all())
                rows.append(
                    {
                        **{"arm": arm, **keys, "metric": metric},
                        "unit": units if metric in LOWER_IS_BETTER else "",
                        "mean": float(by_seed.mean()) if len(by_seed) else math.nan,
                        **{"ci_low": interval.low, "ci_high": interval.high},
                        "sd": float(by_seed.std(ddof=1)) if finite and len(by_seed) > 1 else math.nan,
                        "iqm": statistics.interquartile_mean(groups.to_numpy()),
                        **{"n_seeds": len(groups), "n_groups": groups.shape[1], "n_cases": wide.shape[1]},
                        **{"n_missed": missed, "n_spurious": spurious},
                        "n_absent": spurious + int(status.get("both_empty", 0)),
                    }
                )
    columns = ["arm", "train_cases", "fold", "label", "metric", "unit", "mean", "ci_low", "ci_high", "sd", "iqm"]
    counts = ["n_seeds", "n_groups", "n_cases", "n_missed", "n_spurious", "n_absent"]
    return pd.DataFrame(rows, columns=[*columns, *counts])


def paired_scores(scores_a: pd.DataFrame, scores_b: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, bool]:
    """Aligns two arms' tables (seeds as rows, cases as columns) on seeds and on cases that all of them scored.

    Returns:
        Both tables with equal rows and columns, and whether the rows are the same seeds. Arms that share no seed
        (a placebo with seeds of its own) are matched in the order of their seeds.
    """
    shared = scores_a.index.intersection(scores_b.index).sort_values()
    if len(shared):
        scores_a, scores_b = scores_a.loc[shared], scores_b.loc[shared]
    else:
        count = min(len(scores_a), len(scores_b))
        scores_a, scores_b = scores_a.sort_index().iloc[:count], scores_b.sort_index().iloc[:count]
    complete = scores_a.columns[scores_a.notna().all()].intersection(
        scores_b.columns[scores_b.notna().all()], sort=False
    )
    return scores_a[complete], scores_b[complete], bool(len(shared))


def _inference(num_seeds: int, num_groups: int) -> str:
    if num_seeds < 2 or not num_groups:
        return "descriptive"
    return "new seeds and groups" if num_groups > 1 else "new seeds, on these cases"


def _note(num_seeds: int, left_out: int, paired: bool, finite: bool) -> str:
    notes = []
    if num_seeds < statistics.MIN_SEEDS:
        least = statistics.minimum_p(num_seeds)
        notes.append(f"fewer than {statistics.MIN_SEEDS} seeds: no verdict, p cannot be below {least:.2g}")
    if left_out:
        notes.append(f"{left_out} cases without a value for every run left out")
    if not paired:
        notes.append("no seed in common: matched in order")
    if not finite:
        notes.append("infinite distances: no interval")
    return "; ".join(notes)


def _compare(
    wide_a: pd.DataFrame, wide_b: pd.DataFrame, metric: str, confidence: float
) -> tuple[dict[str, Any], pd.Series]:
    """One comparison without its p values, and the difference of each seed."""
    num_cases = wide_a.columns.union(wide_b.columns).size
    a, b, paired = paired_scores(wide_a, wide_b)
    groups_a, groups_b = _by_group(a).to_numpy(), _by_group(b).to_numpy()
    with np.errstate(invalid="ignore"):
        d = groups_a - groups_b
        mean_diff = float(d.mean()) if d.size else math.nan
    finite = bool(np.isfinite(d).all())
    num_seeds, num_groups = d.shape
    interval = (
        statistics.two_way_interval(d, confidence=confidence)
        if finite and d.size
        else statistics.Interval(mean_diff, math.nan, math.nan, math.nan)
    )
    by_seed = pd.Series(d.mean(1) if finite and d.size else math.nan, index=b.index, dtype=float)
    better = (groups_b.mean(1), groups_a.mean(1)) if metric in LOWER_IS_BETTER else (groups_a.mean(1), groups_b.mean(1))
    row = {
        **{"mean_diff": mean_diff, "ci_low": interval.low, "ci_high": interval.high},
        **{"n_seeds": num_seeds, "n_groups": num_groups, "n_cases": a.shape[1]},
        "inference": _inference(num_seeds, num_groups) if finite else "descriptive",
        "p_min": statistics.minimum_p(num_seeds),
        "effect_size": statistics.standardized_difference(by_seed.to_numpy()),
        "probability_of_improvement": statistics.probability_of_improvement(*better) if d.size else math.nan,
        "note": _note(num_seeds, num_cases - a.shape[1], paired, finite),
    }
    return row, by_seed


COMPARISON_COLUMNS = (
    *("metric", "label", "train_cases", "fold", "arm_a", "arm_b", "mean_diff", "ci_low", "ci_high", "p", "p_maxt"),
    *("n_seeds", "n_groups", "n_cases", "inference", "p_min", "effect_size", "probability_of_improvement"),
    *("n_missed_a", "n_missed_b", "n_spurious_a", "n_spurious_b", "note"),
)


def comparisons(
    cases: pd.DataFrame,
    arms: Sequence[str],
    *,
    confidence: float,
    rng: np.random.Generator,
    metrics: Sequence[str] = METRICS,
) -> pd.DataFrame:
    """How each arm differs from the baseline (`scratch` where present, else the first arm), arm_a minus arm_b.

    Args:
        cases: rows of cases.csv.
        arms: the study's arms in their order; one without rows (all its runs diverged) is left out.
        confidence: level of the intervals.
        rng: for sign flips, where there are too many to list.
        metrics: columns of `cases`.

    Returns:
        The columns `COMPARISON_COLUMNS`, by train size, fold (-1: all folds together), label (`mean`: labels averaged
        within a case) and metric. The interval is `statistics.two_way_interval` and decides; `p` is a sign-flip p over
        seeds, on these cases; `p_maxt` adjusts it for all rows of the same fold. `probability_of_improvement` is that
        a run of arm_a beats one of arm_b. `p_min` is the smallest p that this many seeds can give.

    Raises:
        UserError: if `cases` lacks a column.
    """
    _require(cases, (*_CASE_COLUMNS, *metrics), "cases.csv")
    metrics = [m for m in metrics if cases[m].notna().any()]
    baseline = baseline_of(arms)
    missing = (
        _with_pooled(cases)
        .assign(missed=lambda t: t["status"] == "missed")
        .assign(spurious=lambda t: t["status"] == "spurious")
    )
    by_label = missing.groupby(["arm", "train_cases", "fold", "label"])[["missed", "spurious"]].sum()
    over_labels = missing.groupby(["arm", "train_cases", "fold"])[["missed", "spurious"]].sum()

    rows, differences = [], []
    for keys, part in _variants(_with_pooled(_scores(cases, metrics))):
        by_arm = dict(iter(part.groupby("arm", sort=False)))
        for arm in (arm for arm in arms if arm != baseline and arm in by_arm and baseline in by_arm):
            counts: dict[str, int] = {}
            for side, name in (("a", arm), ("b", baseline)):
                variant = (name, keys["train_cases"], keys["fold"])
                line = over_labels.loc[variant] if keys["label"] == MEAN else by_label.loc[(*variant, keys["label"])]
                counts |= {f"n_missed_{side}": int(line["missed"]), f"n_spurious_{side}": int(line["spurious"])}
            for metric in metrics:
                wide_a, wide_b = (_by_seed_and_case(by_arm[name], metric) for name in (arm, baseline))
                row, by_seed = _compare(wide_a, wide_b, metric, confidence)
                rows.append({"metric": metric, **keys, "arm_a": arm, "arm_b": baseline, **row, **counts})
                differences.append(by_seed)
    table = pd.DataFrame(rows, columns=list(COMPARISON_COLUMNS)).astype({"p": float, "p_maxt": float})
    for fold in table["fold"].unique():
        family = np.flatnonzero((table["fold"] == fold).to_numpy())
        family = family[[differences[i].notna().any() for i in family]]
        if not len(family):
            continue
        # Flips are indexed by the baseline's seed, which every comparison of the family shares.
        d = pd.concat([differences[i] for i in family], axis=1).T.to_numpy()
        p, p_maxt = statistics.max_t_sign_flip(d, rng=rng)
        table.loc[family, "p"], table.loc[family, "p_maxt"] = p, p_maxt
    return table


def convergence(curves: pd.DataFrame, arms: Sequence[str], *, fraction: float = 0.99) -> pd.DataFrame:
    """When each run reaches the target, see `jaxseg.analysis.convergence`.

    Args:
        curves: rows of curves.csv; val_dsc is NaN between evaluations.
        arms: the study's arms in their order; the target is `scratch`'s, the first arm's where there is none.
        fraction: of the baseline's final value.

    Returns:
        Columns arm, seed, train_cases, fold, target_dsc, step, seconds, censored; the target is that of the same train
        size and fold. A censored run has the step and seconds of its last evaluation. Runs and variants without an
        evaluation give no row.

    Raises:
        UserError: if `curves` lacks a column.
    """
    _require(curves, _CURVE_COLUMNS, "curves.csv")
    baseline = baseline_of(arms)
    rows = []
    for (train_cases, fold), variant in curves.groupby(["train_cases", "fold"], sort=True):
        # A step counts as an evaluation of an arm if one of its runs has a value there: a run that diverged has NaN.
        evaluated = variant[variant.groupby(["arm", "step"])["val_dsc"].transform(lambda v: v.notna().any())]
        by_arm = {
            arm: part.pivot(index="seed", columns="step", values="val_dsc").sort_index(axis=1)
            for arm, part in evaluated.groupby("arm", sort=False)
        }
        target = times.target_dsc(by_arm[baseline].to_numpy(), fraction=fraction) if baseline in by_arm else math.nan
        for arm in (arm for arm in arms if arm in by_arm):
            found = times.steps_to_target(by_arm[arm].columns.to_numpy(), by_arm[arm].to_numpy(), target)
            clock = evaluated[evaluated["arm"] == arm].set_index(["seed", "step"])["seconds"]
            for seed, step, censored in zip(by_arm[arm].index, *found, strict=True):
                rows.append(
                    (arm, seed, train_cases, fold, target, step, clock.get((seed, step), math.nan), bool(censored))
                )
    columns = ["arm", "seed", "train_cases", "fold", "target_dsc", "step", "seconds", "censored"]
    return pd.DataFrame(rows, columns=columns)


def worst_cases(cases: pd.DataFrame, *, metric: str = "dsc", limit: int = 10) -> pd.DataFrame:
    """The cases and labels that go worst, by their mean over all runs.

    Args:
        cases: rows of cases.csv.
        metric: a column of it.
        limit: how many rows to keep.

    Returns:
        Columns case, group, label, mean, min, max, n_missed, n_runs, worst first.
    """
    held = cases[cases["status"].isin(["ok", "missed"])].assign(missed=lambda t: t["status"] == "missed")
    by_case = held.groupby(["case", "group", "label"], sort=False)
    table = by_case[metric].agg(["mean", "min", "max"])
    table["n_missed"], table["n_runs"] = by_case["missed"].sum(), by_case.size()
    return table.sort_values("mean", ascending=metric not in LOWER_IS_BETTER, kind="stable").head(limit).reset_index()


def _cell(value: object, digits: int, missing: str) -> str:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return str(value)
    if isinstance(value, float | np.floating):
        return missing if math.isnan(value) else f"{value:.{digits}f}"
    return str(value)


def tables_text(table: pd.DataFrame, *, digits: int = 3) -> str:
    """A table as aligned text: numbers to the right with fixed digits, words to the left, a dash where undefined."""
    columns = []
    for name in table.columns:
        cells = [str(name), *(_cell(v, digits, "-") for v in table[name])]
        width = max(map(len, cells))
        right = pd.api.types.is_numeric_dtype(table[name])
        columns.append([c.rjust(width) if right else c.ljust(width) for c in cells])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


_LATEX = {
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{c: "\\" + c for c in "&%$#_{}"},
}


def to_latex(table: pd.DataFrame, *, caption: str = "", label: str = "", digits: int = 3) -> str:
    """A table in LaTeX with the rules of `booktabs`; text is escaped, undefined numbers are dashes.

    Written out here because pandas's own writer goes through its HTML styler.

    Args:
        table: any table of this module.
        caption: with one, the tabular stands in a `table` float.
        label: of the float.
        digits: of numbers that are not whole.
    """

    def escape(text: str) -> str:
        return "".join(_LATEX.get(c, c) for c in text)

    align = "".join("r" if pd.api.types.is_numeric_dtype(table[c]) else "l" for c in table.columns)
    lines = [rf"\begin{{tabular}}{{{align}}}", r"\toprule", " & ".join(escape(str(c)) for c in table.columns) + r" \\"]
    lines.append(r"\midrule")
    for values in table.itertuples(index=False, name=None):
        cells = (
            _cell(v, digits, "--").replace("-", "$-$", 1)
            if isinstance(v, float) and v < 0
            else escape(_cell(v, digits, "--"))
            for v in values
        )
        lines.append(" & ".join(cells) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    if caption:
        name = [rf"\label{{{label}}}"] if label else []
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{escape(caption)}}}", *name, *lines, r"\end{table}"]
    return "\n".join(lines) + "\n"
