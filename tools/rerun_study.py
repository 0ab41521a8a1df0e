"""Runs some seeds of one arm of a published study again and compares their scores with the published ones.

    python -m tools.rerun_study docs/studies/NAME runs/again --arm=scratch --seeds=0,1

`tools.published` says which config is run. With the code that trained the study, on the same kind of processor with as
many devices, the scores are the same to the last digit. With later code or elsewhere rounding differs: the first losses
agree to a few units in the fifth digit, and training amplifies the difference until a run is at most as far from the
published one as another seed's would be. Two seeds differ by sqrt(2) standard deviations over seeds (root mean square),
and the differences of the means are held against that.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pandas as pd

from jaxseg.study.run import run_stages
from launch import cli, terminal
from tools.published import config_of_arm, read_table

KEYS = ["seed", "case", "label"]


def first_loss_difference(folder: Path, workdir: Path, arm: str, size: int) -> float:
    """Largest relative difference of the first logged training losses: draws that differ would show at once."""
    before, after = (read_table(place, "curves").dropna(subset="loss") for place in (folder, workdir))
    before = before[(before["arm"] == arm) & (before["train_cases"] == size)]
    both = before.merge(after, on=["seed", "step"], suffixes=("", "_again"), validate="one_to_one")
    first = both[both["step"] == both["step"].min()]
    return float((first["loss_again"] / first["loss"] - 1).abs().max())


def rerun(folder: Path, workdir: Path, arm: str, seeds: tuple[int, ...], progress: Any) -> pd.DataFrame:
    """Scores as published and, with the suffix `_again`, as they came now; one row a seed, case and label."""
    made, size = config_of_arm(folder, arm, seeds)
    run_stages(made, workdir, stages=("prepare", "pretrain", "train", "evaluate"), progress=progress)
    before, after = read_table(folder, "cases"), read_table(workdir, "cases")
    before = before[(before["arm"] == arm) & (before["train_cases"] == size) & before["seed"].isin(seeds)]
    both = before.merge(after, on=KEYS, suffixes=("", "_again"), validate="one_to_one")
    if not len(both) == len(before) == len(after):
        raise SystemExit(f"{len(before)} scores were published, {len(after)} came again, {len(both)} of the same cases")
    return both


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
    cases = read_table(asked.published, "cases")
    cases = cases[(cases["arm"] == asked.arm) & (cases["train_cases"] == size)]
    spread = cases.groupby("seed")["dsc"].mean().std()
    first = first_loss_difference(asked.published, asked.workdir, asked.arm, size)
    print(f"{len(both)} scores of {asked.arm}, {size or 'all'} training cases")
    print(f"first losses: largest relative difference {first:.1e}")
    print(f"DSC of a case: largest difference {(both['dsc_again'] - both['dsc']).abs().max():.2g}")
    means = both.groupby("seed")[["dsc", "dsc_again"]].mean()
    for seed, mean in means.iterrows():
        print(f"seed {seed}: mean DSC {mean['dsc']:.4f}, again {mean['dsc_again']:.4f}")
    print(f"standard deviation over the {cases['seed'].nunique()} published seeds: {spread:.4f}")
    moved = ((means["dsc_again"] - means["dsc"]) ** 2).mean() ** 0.5 / (2**0.5 * spread)
    print(f"means moved by {moved:.2f} of what two seeds differ by (root mean square)")


if __name__ == "__main__":
    main()
