"""Runs some seeds of one arm of a published study again and compares their scores with the published ones.

    python -m docs.rerun_study docs/studies/NAME runs/again --arm=scratch --seeds=0,1

The learning rate is the one that was chosen then. On the same kind of processor with as many devices the scores are the
same to the last digit; elsewhere rounding differs, and what should agree are means over seeds, within their spread.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd
from ml_collections import ConfigDict

from jaxseg import config as config_module
from jaxseg.study.claims.evidence import largest_size
from jaxseg.study.claims.record import read_record
from jaxseg.study.run import run_stages
from launch import cli

KEYS = ["seed", "case", "label"]


def read_cases(folder: Path) -> pd.DataFrame:
    """Scores of a workdir, or of a folder that `docs.publish_study` wrote."""
    (path,) = (folder / "results").glob("cases.csv*")
    return pd.read_csv(path)


def config_of(folder: Path, arm: str, seeds: tuple[int, ...]) -> tuple[ConfigDict, int]:
    """The study's config with one arm at its largest size, and that size."""
    made = config_module.from_json((folder / "config.json").read_text())
    record = json.loads((folder / "study.json").read_text())
    runs = [run for run in record["runs"] if run["kind"] == "train" and run["arm"] == arm]
    size = largest_size(read_record(record), sorted({run["train_cases"] for run in runs}))
    (rate,) = {run["lr"] for run in runs if run["train_cases"] == size}
    own = made.arms[arm]
    own.train_cases = (size,)
    with own.unlocked():
        own.optim = ConfigDict({**own.get("optim", {}), "lr": rate, "lr_grid": (), "lr_seeds": ()})
    made.arms = ConfigDict({arm: own})
    made.seed_ids = seeds
    return made, size


def rerun(folder: Path, workdir: Path, arm: str, seeds: tuple[int, ...], progress: Any) -> pd.DataFrame:
    """Scores as published and, with the suffix `_again`, as they came now; one row a seed, case and label."""
    made, size = config_of(folder, arm, seeds)
    run_stages(made, workdir, stages=("prepare", "pretrain", "train", "evaluate"), progress=progress)
    before, after = read_cases(folder), read_cases(workdir)
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
    both = rerun(asked.published, asked.workdir, asked.arm, seeds, cli.make_progress())
    difference = (both["dsc_again"] - both["dsc"]).abs().max()
    print(f"{len(both)} scores of {asked.arm}, seeds {asked.seeds}; largest difference of a DSC: {difference:.2g}")
    print(f"mean {both['dsc'].mean():.4f}, again {both['dsc_again'].mean():.4f}")


if __name__ == "__main__":
    main()
