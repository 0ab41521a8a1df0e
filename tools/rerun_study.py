"""Runs some seeds of one arm of a published study again and compares their scores with the published ones.

    python -m tools.rerun_study docs/studies/NAME runs/again --arm=scratch --seeds=0,1

`tools.published` says which config is run. With the code that trained the study, on the same kind of processor with as
many devices, every seed's mean scores are the same to the last digit. With later code or elsewhere rounding differs,
and training amplifies the difference until a run is at most as far from the published one as another seed's would be.
Two seeds differ by sqrt(2) standard deviations over seeds (root mean square), and the differences of the means are held
against that.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pandas as pd

from jaxseg.reserved import MEAN, POOLED
from jaxseg.study import files
from jaxseg.study.run import run_stages
from jaxseg.study.score.comparisons import seed_scores
from launch import cli, terminal
from tools.published import config_of_arm

KEYS = ["arm", "seed", "train_cases", "fold", "label", "metric"]


def rerun(folder: Path, workdir: Path, arm: str, seeds: tuple[int, ...], progress: Any) -> pd.DataFrame:
    """Mean scores of runs as published and, with the suffix `_again`, as they came now; one row a seed and score."""
    made, size = config_of_arm(folder, arm, seeds)
    run_stages(made, workdir, stages=("prepare", "pretrain", "train", "evaluate"), progress=progress)
    before = scores_of(folder, arm, size)
    after = of_folds(seed_scores(files.read_table(workdir / "results" / "cases.csv")))
    before = before[before["seed"].isin(seeds)]
    both = before.merge(after, on=KEYS, suffixes=("", "_again"), validate="one_to_one")
    if not len(both) == len(before) == len(after):
        raise SystemExit(f"{len(before)} scores were published, {len(after)} came again, {len(both)} of the same seeds")
    return both


def scores_of(folder: Path, arm: str, size: int) -> pd.DataFrame:
    """The published mean scores of an arm's runs at one training set size."""
    scores = of_folds(files.read_table(folder / "results" / "seed_scores.csv"))
    return scores[(scores["arm"] == arm) & (scores["train_cases"] == size)]


def of_folds(scores: pd.DataFrame) -> pd.DataFrame:
    """Scores in each fold: those over folds together are of all seeds, which are not all run again."""
    return scores[scores["fold"] != POOLED]


def mean_dsc(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean DSC of each seed, over labels and folds."""
    own = scores[(scores["metric"] == "dsc") & (scores["label"] == MEAN)]
    return own.groupby("seed")[[name for name in ("value", "value_again") if name in own]].mean()


def main() -> None:
    """Prints the largest difference and the means."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("published", type=Path)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--arm", default="scratch")
    parser.add_argument("--seeds", default="0,1")
    asked = parser.parse_args()
    cli.setup_jax()
    seeds = tuple(map(int, asked.seeds.split(",")))
    both = rerun(asked.published, asked.workdir, asked.arm, seeds, terminal.make_progress())
    size = int(both["train_cases"].iloc[0])
    every = mean_dsc(scores_of(asked.published, asked.arm, size))["value"]
    print(f"{len(both)} mean scores of {asked.arm}, {size or 'all'} training cases")
    print(f"largest difference: {(both['value_again'] - both['value']).abs().max():.2g}")
    means = mean_dsc(both)
    for seed, mean in means.iterrows():
        print(f"seed {seed}: mean DSC {mean['value']:.4f}, again {mean['value_again']:.4f}")
    print(f"standard deviation over the {len(every)} published seeds: {every.std():.4f}")
    moved = ((means["value_again"] - means["value"]) ** 2).mean() ** 0.5 / (2**0.5 * every.std())
    print(f"means moved by {moved:.2f} of what two seeds differ by (root mean square)")


if __name__ == "__main__":
    main()
