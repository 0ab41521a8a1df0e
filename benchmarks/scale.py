"""Cost of everything around the training for growing studies: planning, records, tables, claims and the page.

    python -m benchmarks.scale
    python -m benchmarks.scale --runs=625,2500,10000 --cases=312,1250,5000
    python -m benchmarks.scale --profile=claims --runs=2500 --cases=

Nothing is trained: the study is planned from synthetic images of 8 x 8 pixels, and the tables that training, evaluation
and analyses would leave are drawn at random. One series of studies grows in seeds, with 60 cases; the other in cases,
with 40 runs. Every study has a process of its own. Its stages are timed in seconds of processor time, so that other
work on the machine hardly counts; memory is the peak of the process less that after its imports. The exponent is the
slope of log time over log size between the last two sizes: 1 is linear, 2 quadratic.

What grows with pairs of runs by its nature, the similarity of all pairs within an arm, is not in the tables.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import math
import pstats
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from configs import default
from jaxseg import logs, settings
from jaxseg.report import write_report
from jaxseg.settings import StudySettings
from jaxseg.streams import host_rng
from jaxseg.study import claims, files, record
from jaxseg.study.plan import planned as readiness
from jaxseg.study.plan import tasks as planned_tasks
from jaxseg.study.plan.planned import PlannedStudy
from jaxseg.study.recording import planned_record
from jaxseg.study.score import comparisons, power, tables
from jaxseg.types import Progress

ARMS = ("scratch", "transfer", "scratch_b", "transfer_encoder", "frozen_random_encoder")
STEPS, EVERY = 120, 10
RUNS_OF_A_SEED = 125
"""Runs of each seed in the series that grows in seeds: 5 arms, 5 training set sizes and 5 folds."""
LAYERS = ("encoder/level_0/conv_0", "encoder/level_1/conv_0", "decoder/level_0/conv_0")


class Size(NamedTuple):
    """The size of a study."""

    seeds: int
    cases: int
    sizes: tuple[int, ...]
    arms: tuple[str, ...]


def size_of(axis: str, number: int) -> Size:
    """The size of a study with so many runs, or cases."""
    if axis == "runs":
        return Size(max(2, number // RUNS_OF_A_SEED), 60, (4, 8, 16, 32, 0), ARMS)
    return Size(4, number, (0,), ARMS[:2])


def config_of(size: Size) -> Any:
    """The config of a study of a size."""
    config = default.get_config()
    config.name, config.num_seeds = "scale", size.seeds
    config.arms = default.pick_arms(*size.arms)
    config.target.data = f"synthetic:blobs?n={size.cases}&shape=8x8"
    config.source.data = "synthetic:blobs?n=12&shape=8x8&seed=1"
    config.target.update({"folds": 5, "train_cases": size.sizes, "val_cases": 4, "patch": (8, 8)})
    config.source.update({"val_cases": 2, "test_cases": 2, "patch": (8, 8)})
    config.model.update({"ndim": 2, "widths": (2, 4)})
    config.train.update({"steps": STEPS, "log_every": EVERY, "eval_every": EVERY, "save_every": STEPS})
    config.pretrain.steps = STEPS
    config.runtime.update({"seeds_per_chunk": "64", "devices": "1"})
    return config


# --------------------------------------------------------------------------------------------------- what is made up


def silent(title: str) -> Progress:
    """Progress that nobody watches."""
    return lambda what, done, total, note="", runs=(): None


def make_cases(planned: PlannedStudy, rng: np.random.Generator) -> pd.DataFrame:
    """Rows of cases.csv: every run on the test cases of its fold."""
    study, parts = planned.study, []
    prepared, splits = planned.tasks.prepared[study.target], planned.tasks.splits[study.target]
    group = {case.name: case.group for case in prepared.cases}
    for job in planned.plan.of_kind("train"):
        for run in job.runs:
            names = np.array(splits[run.key.fold].test, object)
            case, label = (side.ravel() for side in np.meshgrid(names, prepared.labels, indexing="ij"))
            dsc = np.clip(0.8 + 0.02 * (run.key.arm == "transfer") + rng.normal(0, 0.03, len(case)), 0, 1)
            parts.append(
                pd.DataFrame(
                    {
                        **{"arm": run.key.arm, "seed": run.key.seed, "train_cases": run.key.train_cases},
                        **{"fold": run.key.fold, "case": case, "group": [group[name] for name in case]},
                        **{"label": label, "dsc": dsc, "hd95": 10 * (1 - dsc), "assd": 3 * (1 - dsc), "nsd": math.nan},
                        **{"unit": "mm", "hd_definition": "pooled", "status": "ok", **run.ids},
                    }
                )
            )
    return pd.concat(parts, ignore_index=True)


def make_logs(planned: PlannedStudy, rng: np.random.Generator) -> list[logs.TrainingLog]:
    """The log of each job of the arms: curves that come to rest."""
    step = np.arange(0, STEPS + 1, EVERY)
    found = []
    for job in planned.plan.of_kind("train"):
        shape = (len(job.runs), len(step))
        dsc = 0.82 - 0.8 * np.exp(-step / 20) + rng.normal(0, 0.01, shape)
        length = np.broadcast_to(np.diff(step, prepend=0), shape)
        seconds = np.full(len(step), 0.1)
        found.append(logs.TrainingLog(step, 1 - dsc, np.ones(len(step), bool), dsc, length, seconds))
    return found


def make_filters(planned: PlannedStudy, rng: np.random.Generator) -> pd.DataFrame:
    """Rows of filters.csv: every run and layer."""
    keys = [run.key for job in planned.plan.of_kind("train") for run in job.runs]
    table = pd.DataFrame([{**key._asdict(), "layer": layer} for key in keys for layer in LAYERS])
    table = table.assign(step=STEPS, taps=9, channels=4, filters=8, trained=True)
    numbers = (
        *("angle_deg", "angle_q25", "angle_q75", "angle_of_null", "angle_null_sd", "angle_noise_deg"),
        *("relative_change", "relative_change_of_null", "norm_ratio", "distribution_start", "distribution_end"),
        *("moran_start", "moran_end", "moran_expected", "moran_p", "centre_start", "centre_end", "centre_of_null"),
        *("spectral_start", "spectral_end", "auc", "auc_permuted"),
    )
    return table.assign(**{name: rng.uniform(0.4, 0.6, len(table)) for name in numbers})


# ------------------------------------------------------------------------------------------------------------- stages


def stages(size: Size, workdir: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The stages of a study in order; each is done before the next is asked for."""
    config, rng = config_of(size), np.random.default_rng(0)
    study, results = settings.parse(config), workdir / "results"
    arms, held = [arm.name for arm in study.arms], {}

    def keep(name: str, make: Callable[[], Any]) -> Callable[[], None]:
        return lambda: held.update({name: make()})

    yield "prepare", keep("planned", lambda: readiness.prepare(study, workdir, silent("")))
    planned: PlannedStudy = held["planned"]
    yield "plan", lambda: readiness.plan_jobs(study, planned.tasks, None)
    yield "run inputs", lambda: [planned_tasks.run_inputs(planned.tasks, job) for job in planned.plan.of_kind("train")]
    files.write_text(workdir / files.CONFIG, settings.to_json(config))
    yield "study.json", lambda: record.write(workdir, planned_record(planned, claims.RULE_VERSION))
    yield "read study.json", lambda: record.read(workdir)
    jobs, measured = planned.plan.of_kind("train"), make_logs(planned, rng)
    yield "curves", keep("curves", lambda: tables.curves_of(zip(jobs, measured, strict=True)))
    files.write_table(results / "curves.csv", held["curves"])
    files.write_table(results / "filters.csv", make_filters(planned, rng))
    cases = make_cases(planned, rng)
    yield "order of cases", keep("cases", lambda: tables.in_order(study, [cases], tables.KEYS))
    yield "write cases", lambda: files.write_table(results / "cases.csv", held["cases"])
    yield "read cases", keep("cases", lambda: files.read_table(results / "cases.csv"))
    yield from score_stages(study, held["cases"], held["curves"], arms)
    tables.write_comparisons(study, workdir)
    yield "claims", keep("claims", lambda: claims.claims(claims.read_study(workdir)))
    files.write_table(results / "claims.csv", held["claims"])
    yield "tables of the page", lambda: claims.write_shown(workdir, confidence=study.analysis.confidence)
    yield "page", lambda: write_report(workdir)


def score_stages(
    study: StudySettings, cases: pd.DataFrame, curves: pd.DataFrame, arms: list[str]
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The tables that are made from scores and curves."""
    level, rng = study.analysis.confidence, host_rng(study.base_seed)
    yield "summary", lambda: comparisons.summary(cases, confidence=level)
    yield "comparisons", lambda: comparisons.comparisons(cases, arms, confidence=level, rng=rng)
    yield "convergence", lambda: comparisons.convergence(curves, arms)
    yield "worst cases", lambda: comparisons.worst_cases(cases, limit=tables.WORST)
    yield "variance", lambda: power.variance(cases)
    yield "planning", lambda: power.planning(cases, arms, confidence=level)


def measure(axis: str, number: int, profiled: str) -> dict[str, Any]:
    """Seconds of processor time of each stage, the peak of memory in MiB, and the bytes of the page."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        readiness.prepare(settings.parse(config_of(size_of("cases", 60))), Path(folder) / "first", silent(""))
        base, seconds = peak_mib(), {}
        for name, work in stages(size_of(axis, number), Path(folder) / "study"):
            began = time.process_time()
            if name == profiled:
                with cProfile.Profile() as profile:
                    work()
                pstats.Stats(profile, stream=sys.stderr).sort_stats("cumulative").print_stats(45)
            else:
                work()
            seconds[name] = time.process_time() - began
            print(f"{name}: {seconds[name]:.2f} s", file=sys.stderr, flush=True)
        page = Path(folder) / "study" / "report.html"
        return {"seconds": seconds, "mib": peak_mib() - base, "page": page.stat().st_size}


def peak_mib() -> float:
    """The most memory that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# -------------------------------------------------------------------------------------------------------------- tables


def exponent(sizes: list[int], values: list[float]) -> str:
    """The slope of log value over log size between the last two sizes; nothing where a clock is too coarse for it."""
    if len(sizes) < 2 or min(values[-2:]) < 0.02:
        return ""
    return f"{math.log(values[-1] / values[-2]) / math.log(sizes[-1] / sizes[-2]):.2f}"


def table(axis: str, found: dict[int, dict[str, Any]]) -> str:
    """The seconds of every stage by size, with the exponent."""
    sizes = list(found)
    lines = [
        f"| {axis} | {' | '.join(f'{size:,}' for size in sizes)} | exponent |",
        "| --- |" + " --- |" * len(sizes) + " --- |",
    ]
    for name in found[sizes[-1]]["seconds"]:
        values = [one["seconds"][name] for one in found.values()]
        lines.append(f"| {name} | {' | '.join(f'{value:.2f}' for value in values)} | {exponent(sizes, values)} |")
    total = [sum(one["seconds"].values()) for one in found.values()]
    lines.append(f"| all | {' | '.join(f'{value:.1f}' for value in total)} | {exponent(sizes, total)} |")
    mib = [one["mib"] for one in found.values()]
    lines.append(f"| memory, MiB | {' | '.join(f'{value:.0f}' for value in mib)} | {exponent(sizes, mib)} |")
    page = [one["page"] / 2**20 for one in found.values()]
    lines.append(f"| page, MiB | {' | '.join(f'{value:.2f}' for value in page)} | {exponent(sizes, page)} |")
    return "\n".join(lines)


def main() -> None:
    """Measures every study in a process of its own and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default="625,2500,10000")
    parser.add_argument("--cases", default="312,1250,5000")
    parser.add_argument("--profile", default="", help="stage to profile")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(asked.one[0], int(asked.one[1]), asked.profile)))
        return
    for axis, sizes in (("runs", asked.runs), ("cases", asked.cases)):
        found = {}
        for size in map(int, filter(None, sizes.split(","))):
            command = [sys.executable, "-m", "benchmarks.scale", "--one", axis, str(size), f"--profile={asked.profile}"]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
            found[size] = json.loads(done.stdout.splitlines()[-1])
        if found:
            print(table(axis, found), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
