"""Held-out DSC of planned settings against those set by hand in configs/pairs.py, in the same training time.

    python -m benchmarks.planned PATH runs/planned --sets=hippocampus_mr,nerve_us --minutes=3

PATH holds the sets in Medical Segmentation Decathlon layout. For each set two studies train networks from scratch, with
the same seeds, split, optimizer and schedule: one with the grid, patch, network, intensities, augmentation and batch
that `--stages=plan` proposes, the other with those of configs/pairs.py. Steps are such that the seeds of either train
for `--minutes` by the time model of --dry_run; what they took is in the table. `--dry_run` prints the plans and trains
nothing. What is finished is kept and not done again. The table is printed and written to table.md in the workdir.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import jax

from benchmarks import accuracy
from configs import auto, pairs
from jaxseg import settings
from jaxseg.analysis import statistics
from jaxseg.study import record
from jaxseg.study.plan import cost
from jaxseg.study.plan.jobs import make_plan
from jaxseg.study.plan.planned import memory_bytes
from jaxseg.study.proposal.choice import as_lines
from jaxseg.study.workdir import read_config
from launch import cli, planning, terminal

SIDES = ("hand", "planned")
_TRAINING = 0.6
"""Share of a study's budget that its steps have; the plan is made for a budget of this much more."""


BY_HAND = {
    "target": ("spacing_mm", "patch", "as_slices", "normalization", "clip", "foreground", "augment"),
    "model": ("ndim", "widths", "strides", "kernels"),
    "train": ("batch", "accumulate", "remat"),
}
"""What a plan decides, and what configs/pairs.py sets instead; steps follow from the time."""


def make_side(name: str, asked: argparse.Namespace, *, by_hand: bool) -> Any:
    """The study of a set before it is planned, or with the settings made by hand; all else is the same."""
    config = auto.get_config(str(asked.data / name))
    config.name, config.num_seeds = name, asked.seeds
    config.target.train_cases, config.target.val_cases = (0,), 2
    config.evaluate.update({"overlap": 0.5, "val_overlap": 0.0, "tolerance_mm": 0.0})
    config.analysis.cases = 0
    if by_hand:
        made = pairs.get_config(f"{name},{name},{asked.data},scratch")
        for part, fields in BY_HAND.items():
            config[part].update({field: made[part][field] for field in fields})
        config.source.patch = config.target.patch  # of no arm, but checked
    return config


def set_steps(config: Any, seconds: float, size: tuple[int, int], speed: cost.Speed) -> None:
    """Sets the steps that all runs together take so long for, by the time model, and validations five times a run."""
    config.pretrain.eval_every = 0
    config.train.update({"steps": 100, "log_every": 20, "eval_every": 20, "save_every": 20})
    study = settings.parse(config)
    sizes = {arm.source: size for arm in study.arms}
    plan = make_plan(
        study, target_size=size, source_sizes=sizes, memory_bytes=memory_bytes(1), devices=1, strategy="loop"
    )
    each = sum(cost.job_seconds(job, speed) for job in plan.jobs) / 100
    every = max(1, int(seconds / each) // 25)
    config.train.update({"steps": 25 * every, "log_every": every, "eval_every": 5 * every, "save_every": 5 * every})


def make_configs(name: str, asked: argparse.Namespace) -> dict[str, Any]:
    """The configs of a set by side; those of studies that were begun stay as they were."""
    folders = {side: asked.workdir / name / side for side in SIDES}
    begun = {side: read_config(folder) for side, folder in folders.items() if folder.exists()}
    if len(begun) == len(SIDES) and all(begun.values()):
        return begun
    hand, planned = (make_side(name, asked, by_hand=side == "hand") for side in SIDES)
    speed, seconds = cost.measure_speed(tuple(jax.local_devices())), 60 * asked.minutes
    fixed = ("target.val_cases", "evaluate.overlap", "evaluate.val_overlap")
    made, found, _ = planning.plan(planned, asked.workdir, fixed=fixed, seconds=seconds / _TRAINING, speed=speed)
    if asked.dry_run:
        terminal.say("\n".join([f"## {name}", *as_lines(made), ""]))
    for config in (hand, planned):
        set_steps(config, seconds, (len(found.channels), found.classes), speed)
    return {"hand": hand, "planned": planned} | {side: config for side, config in begun.items() if config}


def described(config: Any) -> str:
    """Grid, patch, widths, batch and steps."""
    task, train = config.target, config.train
    return f"{task.spacing_mm}; {task.patch}; {config.model.widths}; {train.batch} x {train.steps:,}"


def trained_seconds(workdir: Path) -> float:
    """What the training of a study took, with compiling and validation."""
    found = record.read(workdir)
    return 0.0 if found is None else found.timing.get("train", 0.0)


def row(name: str, asked: argparse.Namespace) -> str:
    """Trains both sides of a set and returns its row."""
    configs = make_configs(name, asked)
    scores = {
        side: accuracy.by_group(accuracy.ours(configs[side], asked.workdir / name / side, finished=False))
        for side in SIDES
    }
    hand, planned = (scores[side] for side in SIDES)
    cells = [name, f"{hand.shape[0]} x {hand.shape[1]}"]
    for side in SIDES:
        cells += [described(configs[side]), f"{trained_seconds(asked.workdir / name / side):.0f}"]
    cells += [accuracy.written(statistics.two_way_interval(scores[side].to_numpy())) for side in SIDES]
    cells.append(accuracy.written(statistics.two_way_interval((planned - hand).to_numpy()), "+"))
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Trains what is missing and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--sets", default=",".join(pairs.SETS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument(
        "--minutes", type=float, default=3.0, help="training time of a set and side, all seeds together"
    )
    parser.add_argument("--dry_run", action="store_true", help="print the plans and train nothing")
    asked = parser.parse_args()
    cli.setup_jax()
    titles = [
        "set",
        "seeds x groups",
        "by hand",
        "s",
        "planned",
        "s",
        "DSC by hand",
        "DSC planned",
        "planned less hand",
    ]
    lines = [f"| {' | '.join(titles)} |", f"|{' --- |' * len(titles)}"]
    for name in asked.sets.split(","):
        if asked.dry_run:
            terminal.say("\n".join(f"{side}: {described(made)}" for side, made in make_configs(name, asked).items()))
            continue
        lines.append(row(name, asked))
        (asked.workdir / "table.md").write_text("\n".join([*lines, ""]), encoding="utf-8")
    if not asked.dry_run:
        print("\n".join(lines))


if __name__ == "__main__":
    main()
