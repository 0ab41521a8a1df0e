"""What was made faster for thousands of runs gives what the plain loops gave, to the last digit."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from configs import default
from jaxseg import logs, settings, trees
from jaxseg.analysis import statistics
from jaxseg.reserved import MEAN, POOLED
from jaxseg.study.plan import jobs as planned_jobs
from jaxseg.study.plan import planned as readiness
from jaxseg.study.plan import tasks as planned_tasks
from jaxseg.study.plan.jobs import Job
from jaxseg.study.plan.planned import PlannedStudy
from jaxseg.study.score import power, tables
from jaxseg.study.score.scores import read_scores
from jaxseg.types import RunInputs
from tests.tiny_study import silent, tiny_config


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> PlannedStudy:
    made = tiny_config()
    made.num_seeds, made.arms = 3, default.pick_arms("scratch", "transfer")
    made.target.update({"train_cases": (2, 0), "folds": 2})
    return readiness.prepare(settings.parse(made), tmp_path_factory.mktemp("planned"), silent(""))


def log_of(job: Job, rng: np.random.Generator) -> logs.TrainingLog:
    step = np.array([0, 3, 7])
    shape = (len(job.runs), len(step))
    loss = rng.normal(size=shape)
    loss[:, 0] = np.nan
    alive = np.full(shape, 3)
    return logs.TrainingLog(step, loss, step > 0, rng.normal(size=shape), alive, np.array([np.nan, 0.1, 0.3]))


def test_a_case_is_found_without_a_look_at_all_others(planned: PlannedStudy) -> None:
    prepared = planned.tasks.prepared[planned.study.target]
    for place, record in enumerate(prepared.cases):
        assert prepared.record(record.name) is record
        assert prepared.positions[record.name] == place
    assert prepared.positions is prepared.positions
    fewer = dataclasses.replace(prepared, cases=prepared.cases[1:])
    assert fewer.positions[prepared.cases[1].name] == 0
    with pytest.raises(KeyError):
        fewer.record(prepared.cases[0].name)


def test_curves_are_those_of_run_after_run(planned: PlannedStudy) -> None:
    rng = np.random.default_rng(0)
    jobs = planned.plan.jobs
    restoring = dataclasses.replace(jobs[0], program=dataclasses.replace(jobs[0].program, objective="restore"))
    measured = [(job, log_of(job, rng)) for job in (restoring, *jobs[1:])]
    parts = []
    for job, log in measured:
        for index, run in enumerate(job.runs):
            of_run = {"step": log.step, "seconds": log.step * log.median_step_seconds, "loss": log.loss[index]}
            restored = job.program.restores
            of_run["val_dsc"] = math.nan if restored else log.val_dsc[index]
            of_run["val_restored"] = log.val_dsc[index] if restored else math.nan
            identity = {name: getattr(run.key, name) for name in tables.KEYS}
            parts.append(pd.DataFrame(of_run).assign(**identity)[list(tables.PRETRAIN_COLUMNS)])
    got = tables.curves_of(measured, tables.PRETRAIN_COLUMNS)
    pd.testing.assert_frame_equal(got, pd.concat(parts, ignore_index=True), check_exact=True)
    assert got["val_restored"].notna().sum() == 3 * len(restoring.runs)


def test_inputs_of_runs_are_those_of_run_after_run(planned: PlannedStudy) -> None:
    for job in planned.plan.jobs:
        names = planned_tasks.cohort_names(planned.tasks, job.program.task)
        rows = []
        for run in job.runs:
            cases = [names.index(name) for name in planned_tasks.training_cases(planned.tasks, job, run)]
            rows.append(
                RunInputs(
                    cases=jnp.asarray(cases + [cases[-1]] * (len(names) - len(cases)), jnp.int32),
                    num_cases=jnp.asarray(len(cases), jnp.int32),
                    rate=jnp.asarray(run.rate, jnp.float32),
                )
            )
        got, expected = planned_tasks.run_inputs(planned.tasks, job), trees.stack(rows)
        for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
            np.testing.assert_array_equal(ours, theirs)
        assert job.kind == "pretrain" or len(set(got.num_cases.tolist())) == 2


def test_a_source_network_is_trained_once_in_the_first_wave_that_needs_it(planned: PlannedStudy) -> None:
    sources = [run.key for job in planned.plan.of_kind("pretrain") for run in job.runs]
    assert len(sources) == len(set(sources)) == 3
    group: dict[int, dict[planned_jobs.Run, None]] = {}
    source = planned.plan.of_kind("pretrain")[0].runs[0]
    for wave in (1, 2, 0):
        planned_jobs._need_source(group, source, wave)
    assert {wave: [*runs] for wave, runs in group.items()} == {1: [], 0: [source]}


def test_improvement_counts_every_pair() -> None:
    rng = np.random.default_rng(1)
    for size in (1, 3, 8, 40):
        a, b = (rng.integers(0, 6, count).astype(float) for count in (size, size + 2))
        a[0], b[-1] = math.inf, math.nan
        known = b[~np.isnan(b)]
        pairs = np.mean((a[:, None] > known) + 0.5 * (a[:, None] == known))
        assert statistics.probability_of_improvement(a, b) == float(pairs)
    assert math.isnan(statistics.probability_of_improvement(np.array([math.nan]), np.ones(2)))


def test_ids_of_seeds_are_those_of_each_arm() -> None:
    """Two arms of the same seeds: of one, init and order are crossed; of the other, all streams go with the seed."""
    ids = {"crossed": [(0, 0), (0, 1), (1, 0), (1, 1)], "plain": [(0, 0), (1, 1), (2, 2), (3, 3)]}
    rng = np.random.default_rng(2)
    rows = [
        {
            **{"arm": arm, "seed": seed, "train_cases": 0, "fold": 0, "case": f"c{case}", "group": f"g{case}"},
            **{"label": "a", "status": "ok", "dsc": rng.uniform()},
            **{"init_id": init, "order_id": order, "subset_id": 0},
        }
        for arm, of_arm in ids.items()
        for seed, (init, order) in enumerate(of_arm)
        for case in range(3)
    ]
    found = power.variance(pd.DataFrame(rows), metrics=("dsc",)).groupby("arm")["source"].unique()
    assert {"init", "order", "init x order"} <= set(found["crossed"])
    assert {"seed", "group", "seed x group"} == set(found["plain"])


@pytest.fixture(scope="module")
def scored() -> pd.DataFrame:
    """Two arms, sizes and labels, a region of both, three folds of two cases, with every status."""
    rng = np.random.default_rng(3)
    rows = [
        {
            **{"arm": arm, "seed": seed, "train_cases": size, "fold": fold, "case": f"c{fold}{case}", "label": label},
            **{"group": f"g{fold}{case}", "region": label == "both", "dsc": rng.uniform(), "hd95": rng.uniform()},
            "status": str(rng.choice(["ok", "missed", "spurious", "both_empty"], p=(0.7, 0.1, 0.1, 0.1))),
        }
        for arm in ("scratch", "transfer")
        for size in (4, 0)
        for fold in range(3)
        for seed in range(4)
        for case in range(2)
        for label in ("b", "a", "both")
    ]
    return pd.DataFrame(rows)


def test_counts_are_those_of_label_after_label(scored: pd.DataFrame) -> None:
    found = list(read_scores(scored, ("dsc", "hd95")))
    assert len(found) == 2 * (1 + 3) * (3 + 1)
    for scores in found:
        own = scored[scored["train_cases"] == scores.train_cases]
        own = own if scores.fold == POOLED else own[own["fold"] == scores.fold]
        own = own[~own["region"]] if scores.label == MEAN else own[own["label"] == scores.label]
        for arm, counts in scores.counts.items():
            number = own.loc[own["arm"] == arm, "status"].value_counts()
            missed, spurious, empty = (int(number.get(s, 0)) for s in ("missed", "spurious", "both_empty"))
            assert counts == (missed, spurious, spurious + empty)
    assert sum(scores.counts["scratch"].missed for scores in found) > 0


def test_parts_of_the_scores_are_the_same_as_among_all(scored: pd.DataFrame) -> None:
    every = list(read_scores(scored, ("dsc",)))
    some = list(read_scores(scored, ("dsc",), each_label=False, folds="together"))
    same = [one for one in every if one.label == MEAN and one.fold == POOLED]
    assert [(one.train_cases, one.fold, one.label) for one in some] == [
        (one.train_cases, one.fold, one.label) for one in same
    ]
    for one, other in zip(some, same, strict=True):
        assert one.counts == other.counts
        for arm in one.values:
            np.testing.assert_array_equal(one.values[arm], other.values[arm])
            np.testing.assert_array_equal(one.seeds[arm], other.seeds[arm])
    one_fold = scored[scored["fold"] == 0]
    assert {one.fold for one in read_scores(one_fold, ("dsc",), folds="together")} == {0}
