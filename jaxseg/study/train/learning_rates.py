"""Chooses learning rates on validation data, from trials with seeds of their own, before arms train."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from jaxseg import logs
from jaxseg.loop import is_done
from jaxseg.settings import ArmSettings
from jaxseg.study import files
from jaxseg.study.plan.jobs import Job, Plan
from jaxseg.study.plan.program import Program

TABLE = "rates.csv"
VARIANT = ["arm", "train_cases", "fold"]
LAST = 3
"""Number of validations at the end of a trial whose mean is its score, since one alone is noisy."""

Rates = dict[tuple[str, int, int], float]
"""Learning rates by arm, train size and fold."""


def validate_from(program: Program) -> int:
    """Returns the step from which a trial is validated: only its last scores count, unless its rate follows all."""
    if program.optim.schedule == "plateau":
        return 0
    # The last score is that of the last step, whether or not it is a multiple of eval_every.
    before = (program.train.steps - 1) // program.train.eval_every
    return max(before - (LAST - 2), 0) * program.train.eval_every


def rates_table(workdir: Path, plan: Plan, arms: Sequence[ArmSettings]) -> pd.DataFrame:
    """Tabulates the score of trials by variant and rate, averaged over seeds, and the rate that was chosen.

    The largest mean validation DSC wins, and of equals the smaller rate. A trial that diverged scores 0. Arms
    that choose jointly share one rate, that of the largest mean over all of their variants: a rate of its own for each
    arm, picked on a seed or two, would differ between arms by chance and pass for an effect of the arm.

    Args:
        workdir: Folder of the study.
        plan: The study's jobs.
        arms: The study's arms.
    """
    rows = []
    for job in plan.of_kind("select"):
        log = logs.read_log(workdir / job.directory, len(job.runs))
        curves = log.val_dsc[:, log.validated & (log.step > 0)]
        died = log.diverged_at
        for index, run in enumerate(job.runs):
            score = np.nan_to_num(curves[index, -LAST:].mean()) if died[index] is None else 0.0
            rows.append(run.key._asdict() | {"lr": run.rate, "val_dsc": score, "diverged": died[index] is not None})
    if not rows:
        return pd.DataFrame(columns=[*VARIANT, "lr", "val_dsc", "n_seeds", "n_diverged", "joint", "chosen"])
    trials = pd.DataFrame(rows).groupby([*VARIANT, "lr"], sort=False, as_index=False)
    table = trials.agg(val_dsc=("val_dsc", "mean"), n_seeds=("seed", "count"), n_diverged=("diverged", "sum"))
    table = table.sort_values([*VARIANT, "lr"], kind="stable", ignore_index=True)
    joint = table["arm"].isin([arm.name for arm in arms if arm.optim.lr_choice == "joint"])
    own = table[~joint].groupby(VARIANT)["val_dsc"].idxmax()
    mean = table[joint].groupby("lr")["val_dsc"].mean()
    shared = [] if mean.empty else [mean.idxmax()]
    chosen = table.index.isin(own) | (joint & table["lr"].isin(shared))
    return table.assign(joint=joint, chosen=chosen)


def write_rates(workdir: Path, plan: Plan, arms: Sequence[ArmSettings]) -> None:
    """Writes results/rates.csv if there were trials."""
    if plan.of_kind("select"):
        files.write_table(workdir / "results" / TABLE, rates_table(workdir, plan, arms))


def chosen_rates(workdir: Path, plan: Plan, arms: Sequence[ArmSettings]) -> Rates:
    """Returns the rates chosen from the trials; empty if no arm chooses one or the trials are not done.

    A rate that arms chose jointly is that of all their variants, also of those that were not tried; an arm with
    `optim.lr_factor` takes that multiple of it.

    Raises:
        DamagedError: If a trial's last checkpoint is not as it was written.
        ValueError: If runs that are to train at a chosen rate have none.
    """
    trials = plan.of_kind("select")
    if not all(is_done(workdir / job.directory, job.program.train.steps) for job in trials):
        return {}
    table = rates_table(workdir, plan, arms)
    chosen = table[table["chosen"].astype(bool)]  # without trials the column is empty, and no longer of booleans
    columns = (chosen[name].tolist() for name in (*VARIANT, "lr"))
    rates = {(arm, size, fold): rate for arm, size, fold, rate in zip(*columns, strict=True)}
    joint = {arm.name: arm.optim.lr_factor for arm in arms if arm.optim.lr_grid and arm.optim.lr_choice == "joint"}
    shared = {rate for (arm, _, _), rate in rates.items() if arm in joint}
    keys = [run.key for job in plan.of_kind("train") for run in job.runs if run.key.arm in joint]
    rates = {(key.arm, key.train_cases, key.fold): rate * joint[key.arm] for key in keys for rate in shared} | rates
    choosing = {arm.name for arm in arms if arm.optim.lr_grid}
    wanted = {run.key for job in plan.of_kind("train") for run in job.runs if run.key.arm in choosing}
    missing = {key for key in wanted if (key.arm, key.train_cases, key.fold) not in rates}
    if without := sorted({f"{key.arm}/{key.variant()}" for key in missing}):
        raise ValueError(f"no trial chose a rate of optim.lr_grid for {', '.join(without)}")
    return rates


def with_rates(job: Job, chosen: Rates) -> Job:
    """Returns a job whose runs train with the chosen rates; runs of arms that choose none keep theirs."""
    runs = tuple(
        dataclasses.replace(run, rate=chosen.get((run.key.arm, run.key.train_cases, run.key.fold), run.rate))
        for run in job.runs
    )
    return dataclasses.replace(job, runs=runs)
