"""Held-out DSC of the default settings against a plain PyTorch loop: same cases, steps, patches and widths.

    python -m benchmarks.accuracy PATH runs/accuracy --sets=hippocampus_mr,lung_tumour_ct --torch_python=PYTHON

PATH holds the sets in Medical Segmentation Decathlon layout. `--torch_python` is the interpreter of an environment
that has PyTorch, NumPy and nibabel, by default the one that runs this; without PyTorch there, ours is scored alone.
`--former=benchmarks/defaults_0.1.json` trains with the defaults of 0.1 as well, `--lr` sets another rate for what is
compared with them; `--dry_run` prints the configs. What is finished is kept and not done again; `--finished` trains
nothing and makes the table of it. Prints tables in
Markdown: the mean over seeds and groups of cases of a case's DSC (averaged over labels), and paired differences, both
with the two-way interval that the report uses.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from configs import default, hippocampus
from jaxseg import metrics, settings
from jaxseg.analysis import statistics
from jaxseg.study.run import run_stages
from launch import cli

SETS: dict[str, tuple[int, ...]] = {
    "hippocampus_mr": (32, 32, 32),
    "headneck_throat_ct": (32, 32, 32),
    "lung_tumour_ct": (48, 48),
    "nuclei_micro": (64, 64),
}
"""Patch sizes. All sets are used on their files' own grids, so that the plain loop needs no resampling."""
KEYS = ["seed", "group", "case", "label"]


def make_config(name: str, asked: argparse.Namespace, *, former: bool) -> ConfigDict:
    """The default settings, or the hippocampus preset, with nothing changed but the task, its patch and the steps."""
    steps = asked.steps
    config = hippocampus.get_config("scratch") if name == "hippocampus_mr" else default.get_config()
    config.name = name
    config.num_seeds = asked.seeds
    config.arms = default.pick_arms("scratch")
    config.model.ndim = len(SETS[name])
    for task in (config.source, config.target):
        task.patch = SETS[name]
    config.target.data = str(asked.data / name)
    config.train.steps = steps
    config.train.log_every = 50
    config.train.eval_every = config.train.save_every = max(steps // 2 // 50, 1) * 50
    config.analysis.cases = 0
    if former:
        then = settings.from_json(asked.former.read_text(encoding="utf-8"))
        for section in ("optim", "loss", "evaluate"):
            config[section].update({name: value for name, value in then[section].items() if name in config[section]})
        config.target.normalization = then.target.normalization
        if name == "hippocampus_mr":
            config.target.augment.update({"flip": (0,), "gamma": 0.2, "brightness": 0.2})
    elif asked.lr:
        config.optim.lr = asked.lr
    return config


def ours(config: ConfigDict, workdir: Path, *, finished: bool) -> pd.DataFrame:
    """Scores of a study on its test cases, a row a seed, case and label that the reference holds."""
    if not finished:
        run_stages(config, workdir, stages=("prepare", "train", "evaluate"), progress=cli.make_progress())
    (path,) = (workdir / "results").glob("cases.csv*")
    scores = pd.read_csv(path)
    return scores[scores["status"].isin(("ok", "missed"))][[*KEYS, "dsc"]]


def plain(folder: Path, name: str, workdir: Path, seed: int, asked: argparse.Namespace) -> pd.DataFrame:
    """Scores of one seed of the plain loop, trained and tested on the cases of the study in `workdir`."""
    prepared = pd.read_csv(workdir / "default" / "results" / "prepared_target.csv")
    cases = {part: prepared.loc[prepared["fold_0"] == part, "case"].tolist() for part in ("train", "test")}
    names = json.loads((folder / name / "dataset.json").read_text(encoding="utf-8"))["labels"]
    labels = {names[value]: int(value) for value in names if value != "0"}
    output = workdir / f"plain_{seed}.npz"
    if not output.exists():
        same = default.get_config()
        made = {"data": str(folder / name), **cases, "patch": SETS[name], "classes": len(names), "steps": asked.steps}
        made |= {"widths": same.model.widths, "batch": same.train.batch, "lr": asked.torch_lr, "seed": seed}
        made |= {"threads": len(os.sched_getaffinity(0)), "output": str(output)}
        subprocess.run([asked.torch_python, "-m", "benchmarks.torch_loop", json.dumps(made)], check=True)
    rows = []
    groups = dict(zip(prepared["case"], prepared["group"], strict=True))
    with np.load(output) as maps:
        for case in cases["test"]:
            image: Any = nibabel.load(folder / name / "labelsTr" / f"{case}.nii.gz")
            reference = np.asanyarray(image.dataobj).reshape(maps[case].shape)
            for label, value in labels.items():
                if (reference == value).any():
                    score = metrics.overlap.dsc(maps[case] == value, reference == value)
                    rows.append({"seed": seed, "group": groups[case], "case": case, "label": label, "dsc": score})
    return pd.DataFrame(rows)


def by_group(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean DSC, a row a seed and a column a group: over the labels of a case, then over its group's cases."""
    of_case = scores.groupby(["seed", "group", "case"])["dsc"].mean()
    return of_case.groupby(["seed", "group"]).mean().unstack()


def written(interval: statistics.Interval, sign: str = "") -> str:
    """`estimate [low, high]`."""
    return f"{interval.estimate:{sign}.4f} [{interval.low:{sign}.4f}, {interval.high:{sign}.4f}]"


def row(name: str, found: dict[str, pd.DataFrame]) -> str:
    """A set's row: means of all contestants, then differences of the default from the others."""
    means = {who: by_group(scores) for who, scores in found.items()}
    ours_now = means["default"]
    cells = [name, f"{ours_now.shape[0]} x {ours_now.shape[1]}"]
    cells += [written(statistics.two_way_interval(mean.to_numpy())) for mean in means.values()]
    for who, mean in means.items():
        if who != "default":
            paired = (ours_now - mean).dropna().to_numpy()  # of the seeds that both have
            cells.append(written(statistics.two_way_interval(paired), "+"))
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Trains what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--former", type=Path, help="train with the defaults in this file too")
    parser.add_argument("--dry_run", action="store_true", help="print the configs of ours, by set and contestant")
    parser.add_argument("--finished", action="store_true", help="train nothing; print the table of what is finished")
    parser.add_argument("--torch_python", default=sys.executable)
    parser.add_argument("--lr", type=float, help="rate of ours, where the defaults or the preset have another")
    parser.add_argument("--torch_lr", type=float, default=1e-3, help="rate of the plain loop")
    asked = parser.parse_args()
    whom = ["default", *(["former"] if asked.former else [])]
    names = asked.sets.split(",")
    if asked.dry_run:
        made = {name: {who: make_config(name, asked, former=who == "former") for who in whom} for name in names}
        print(json.dumps(made, default=lambda config: json.loads(settings.to_json(config)), indent=1))
        return
    if asked.finished:
        whom += ["plain"] if (asked.workdir / names[0] / "plain_0.npz").exists() else []
    else:
        cli.setup_jax()
        has_torch = not subprocess.run([asked.torch_python, "-c", "import torch"], capture_output=True).returncode
        whom += ["plain"] if has_torch else []
    differences = [f"default less {who}" for who in whom[1:]]
    titles = ["set", "seeds x groups", *whom, *differences]
    print(f"| {' | '.join(titles)} |\n|{' --- |' * len(titles)}", flush=True)
    for name in names:
        workdir = asked.workdir / name
        found = {}
        for who in whom:
            if who == "plain":
                found[who] = pd.concat([plain(asked.data, name, workdir, seed, asked) for seed in range(asked.seeds)])
            else:
                found[who] = ours(
                    make_config(name, asked, former=who == "former"), workdir / who, finished=asked.finished
                )
        print(row(name, found), flush=True)


if __name__ == "__main__":
    main()
