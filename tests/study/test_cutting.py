"""Jobs of arms that use the program of their source networks, and those that gain nothing by it."""

from __future__ import annotations

import pytest
from ml_collections import ConfigDict

from configs import default
from jaxseg.study.plan.jobs import chunk_sizes
from tests.study.test_jobs import plan_of
from tests.tiny_study import tiny_config


def three_arms() -> ConfigDict:
    made = tiny_config()
    made.num_seeds, made.arms = 6, default.pick_arms("scratch", "transfer", "scratch_b")
    return made


@pytest.mark.parametrize("devices", [1, 2])
def test_arms_are_cut_to_the_jobs_of_source_networks_whose_program_they_can_use(devices: int) -> None:
    assert chunk_sizes(plan_of(three_arms(), devices=devices)) == {"pretrain": (6,), "train": (6, 6, 6)}


def test_jobs_are_as_large_as_memory_allows_where_a_common_program_gains_nothing() -> None:
    sizes = {"pretrain": (6,), "train": (18,)}
    assert chunk_sizes(plan_of(three_arms(), devices=4)) == sizes  # two of them would be idle
    assert chunk_sizes(plan_of(three_arms(), strategy="vmap")) == sizes  # the more runs side by side, the faster
    otherwise = three_arms()
    otherwise.pretrain.steps = 5  # no program of the arms' 8 steps
    assert chunk_sizes(plan_of(otherwise)) == sizes
    many = three_arms()
    many.target.train_cases = (2, 3, 4)
    assert chunk_sizes(plan_of(many)) == {"pretrain": (6,), "train": (54,)}  # nine jobs
    assert chunk_sizes(plan_of(three_arms(), of_one_size=lambda task: False)) == sizes  # programs would differ anyway
    asked = three_arms()
    asked.runtime.seeds_per_chunk = "9"
    assert chunk_sizes(plan_of(asked)) == {"pretrain": (6,), "train": (9, 9)}


def test_runs_whose_mean_is_scored_stay_in_one_job() -> None:
    made = tiny_config()
    made.num_seeds, made.arms = 8, default.pick_arms("scratch", "transfer_nested")
    assert chunk_sizes(plan_of(made)) == {"pretrain": (4,), "train": (16,)}
