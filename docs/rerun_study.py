"""Runs some seeds of one arm of a published study again and compares their scores with the published ones.

    python -m docs.rerun_study docs/studies/NAME runs/again --arm=scratch --seeds=0,1

The learning rate is the one that was chosen then. What a study wrote down is what it is run with, whatever the defaults
have become since; a field that it does not mention has the value of `docs/studies/defaults_0.1.json`, the defaults with
which these studies were made, and one that came after 0.1 has its default, which changes nothing. With the code that
trained the study, on the same kind of processor with as many devices, the scores are the same to the last digit. With
later code or elsewhere rounding differs: the first losses agree to a few units in the fifth digit, and training
amplifies the difference until a run is at most as far from the published one as another seed's would be. Two seeds
differ by sqrt(2) standard deviations over seeds (root mean square), and the differences of the means are held against
that.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd
from ml_collections import ConfigDict

from configs import default
from jaxseg import settings
from jaxseg.study.claims.evidence import largest_size
from jaxseg.study.claims.study_tables import read_record
from jaxseg.study.run import run_stages
from launch import cli, terminal

KEYS = ["seed", "case", "label"]
DEFAULTS_THEN = Path(__file__).parent / "studies" / "defaults_0.1.json"
"""All defaults of version 0.1. Never changed: it says what published studies were made with."""


def read_table(folder: Path, name: str) -> pd.DataFrame:
    """A table of a workdir, or of a folder that `docs.publish_study` wrote."""
    (path,) = (folder / "results").glob(f"{name}.csv*")
    return pd.read_csv(path)


def fill(into: ConfigDict, given: ConfigDict) -> None:
    """Sets fields of a config, section by section; arms are replaced as a whole.

    Fields that are gone are left out: they had their default in all published studies, which is what the code does now.
    """
    for name, value in given.items():
        if isinstance(value, ConfigDict) and name != "arms":
            fill(into[name], value)
        elif name in into:
            into[name] = value


def with_later_fields(made: ConfigDict) -> ConfigDict:
    """A config as it was written, with the values that fields had when studies did not write them down."""
    full = default.get_config()
    fill(full, settings.from_json(DEFAULTS_THEN.read_text()))
    fill(full, made)
    return full


def config_of(folder: Path, arm: str, seeds: tuple[int, ...]) -> tuple[ConfigDict, int]:
    """The study's config with one arm at its largest size, and that size."""
    made = with_later_fields(settings.from_json((folder / "config.json").read_text()))
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


def first_loss_difference(folder: Path, workdir: Path, arm: str, size: int) -> float:
    """Largest relative difference of the first logged training losses: draws that differ would show at once."""
    before, after = (read_table(place, "curves").dropna(subset="loss") for place in (folder, workdir))
    before = before[(before["arm"] == arm) & (before["train_cases"] == size)]
    both = before.merge(after, on=["seed", "step"], suffixes=("", "_again"), validate="one_to_one")
    first = both[both["step"] == both["step"].min()]
    return float((first["loss_again"] / first["loss"] - 1).abs().max())


def rerun(folder: Path, workdir: Path, arm: str, seeds: tuple[int, ...], progress: Any) -> pd.DataFrame:
    """Scores as published and, with the suffix `_again`, as they came now; one row a seed, case and label."""
    made, size = config_of(folder, arm, seeds)
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
