"""The whole config that a published study ran with, or the part of it that runs one arm again.

    python -m tools.published docs/studies/NAME docs/studies/OTHER
    python -m tools.published docs/studies/NAME --arm=scratch --seeds=0,1

Prints the configs as JSON, by folder. What a study wrote down stands, whatever the defaults have become since; a field
that came later has its default, which changes nothing. With `--arm`, the config is that of one arm alone, at the
study's largest training set, with the learning rate that was chosen then and the seeds that are asked for.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ml_collections import ConfigDict

from configs import default
from jaxseg import settings
from jaxseg.study import record
from jaxseg.study.claims.evidence import largest_size
from jaxseg.study.claims.study_tables import read_record


def fill(into: ConfigDict, given: ConfigDict) -> None:
    """Sets fields of a config, section by section; arms are replaced as a whole.

    Fields that are gone are left out: they had their default in all published studies, which is what the code does now.
    """
    for name, value in given.items():
        if isinstance(value, ConfigDict) and name != "arms":
            fill(into[name], value)
        elif name in into:
            into[name] = value


def whole_config(folder: Path) -> ConfigDict:
    """The study's config as it was written, with the defaults of fields that came later."""
    full = default.get_config()
    fill(full, settings.from_json((folder / "config.json").read_text(encoding="utf-8")))
    return full


def config_of_arm(folder: Path, arm: str, seeds: tuple[int, ...]) -> tuple[ConfigDict, int]:
    """The study's config with one arm at its largest size, and that size."""
    made = whole_config(folder)
    found = record.read(folder, any_format=True)
    if found is None:
        raise SystemExit(f"{folder} has no study.json")
    runs = [run for run in found.runs_of("train") if run.arm == arm]
    size = largest_size(read_record(found), sorted({run.train_cases for run in runs}))
    (rate,) = {run.lr for run in runs if run.train_cases == size}
    own = made.arms[arm]
    own.train_cases = (size,)
    with own.unlocked():
        own.optim = ConfigDict({**own.get("optim", {}), "lr": rate, "lr_grid": (), "lr_seeds": ()})
    made.arms = ConfigDict({arm: own})
    made.seed_ids = seeds
    return made, size


def main() -> None:
    """Prints the configs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", type=Path, nargs="+")
    parser.add_argument("--arm", default="", help="one arm alone, as `tools.rerun_study` runs it")
    parser.add_argument("--seeds", default="0,1", help="of that arm")
    asked = parser.parse_args()
    seeds = tuple(map(int, asked.seeds.split(",")))
    found = {
        str(folder): config_of_arm(folder, asked.arm, seeds)[0] if asked.arm else whole_config(folder)
        for folder in asked.studies
    }
    print(json.dumps({folder: json.loads(settings.to_json(made)) for folder, made in found.items()}, indent=1))


if __name__ == "__main__":
    main()
