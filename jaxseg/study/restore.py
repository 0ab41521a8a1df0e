"""Validates source networks that learn without labels: how much of corrupted validation patches they restore."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from jaxseg import data, inference, seeds, streams, validation
from jaxseg.data import PreparedTask
from jaxseg.data.patches.sampling import corrupted_batch
from jaxseg.models import Network
from jaxseg.settings import EvaluateSettings, TaskSettings
from jaxseg.study.plan.jobs import Job
from jaxseg.study.plan.program import Program
from jaxseg.types import Batch, Frozen, Params, Restoration

CASE_PATCHES = 8
"""Most validation patches of a case, evenly spread over it."""


def make_validate(
    job: Job,
    prepared: PreparedTask,
    folds: Sequence[Sequence[str]],
    settings: EvaluateSettings,
    plan: seeds.SeedPlan,
) -> Callable[[Params, Frozen], Float[np.ndarray, " run"]]:
    """Makes the restored share of each run, averaged over its fold's validation cases.

    The restored share of a case is 1 - (sum of squared errors) / (sum of squared deviations from the mean), both over
    the voxels that count in its validation patches: 1 for a perfect restoration, 0 for one no better than the mean
    intensity (negative values count as 0). Patches and their corruptions are always the same for a case, so that the
    share changes with the network alone.

    Args:
        job: The runs.
        prepared: The task of the runs.
        folds: Validation cases of each fold.
        settings: Windows in one call.
        plan: Devices and strategy.
    """
    program = job.program
    names = tuple(sorted({name for run in job.runs for name in folds[run.key.fold]}))
    cases = [validation_patches(prepared, name, program) for name in names]
    whole = jax.tree.map(lambda *leaves: np.concatenate(leaves), *cases)
    of_patch = np.repeat(np.arange(len(cases)), [len(case.image) for case in cases])
    # One after another is faster on a processor; elsewhere whole groups go through the network at once.
    group = 1 if plan.strategy == "loop" else settings.window_batch
    spare = -len(whole.image) % group
    placed = seeds.replicate(
        jax.tree.map(lambda leaf: np.pad(leaf, [(0, spare)] + [(0, 0)] * (leaf.ndim - 1)), whole), plan
    )
    mapped = _mapped_errors(program.network, group, plan)
    deviations = np.array([_squared_deviations(case.label) for case in cases])
    of_run = np.array([[name in folds[run.key.fold] for name in names] for run in job.runs])

    def validate(params: Params, frozen: Frozen) -> Float[np.ndarray, " run"]:
        errors = seeds.fetch(mapped(params, frozen, placed), len(job.runs))[:, : len(of_patch)].astype(np.float64)
        of_case = np.stack([errors[:, of_patch == index].sum(-1) for index in range(len(cases))], -1)
        # A case of one intensity has nothing to restore and says nothing.
        shares = 1.0 - of_case / np.where(deviations > 0, deviations, np.nan)
        known = of_run & (deviations > 0)
        clipped = np.where(known, np.clip(shares, 0.0, 1.0), 0.0)
        return clipped.sum(-1) / np.where(known.any(-1), known.sum(-1), np.nan)

    return validate


@functools.lru_cache(maxsize=4)  # jobs of one network: traced and compiled once
def _mapped_errors(network: Network, group: int, plan: seeds.SeedPlan) -> Callable[..., Any]:
    made = validation.make_restoration_errors(network, group=group)
    return seeds.map_seeds(made, plan=plan, shared=(1, 2))


def validation_patches(prepared: PreparedTask, name: str, program: Program) -> Batch:
    """Cuts a case's validation patches and corrupts them, with keys that depend on the case's name alone."""
    image, inside = _cut(data.load_case(prepared, name).image, program.task)
    root = streams.fold_in_name(streams.stream_key(0, "validation"), name)
    keys = jax.vmap(lambda index: jax.random.fold_in(root, index))(jnp.arange(len(image)))
    made = jax.jit(corrupted_batch, static_argnums=3)(keys, image, inside, program.objective)
    return jax.tree.map(np.asarray, made)


def _cut(
    image: Float[np.ndarray, "*spatial channels"], task: TaskSettings
) -> tuple[Float[np.ndarray, "patch *size channels"], Bool[np.ndarray, "patch *size"]]:
    """Windows of a case that are evenly spread over it, and which of their voxels lie inside the case."""
    shape, window = image.shape[:-1], task.window
    starts = inference.window_starts(shape, window, 0.0)
    chosen = np.unique(np.linspace(0, len(starts) - 1, min(CASE_PATCHES, len(starts))).round().astype(int))
    patches = np.zeros((len(chosen), *window, image.shape[-1]), np.float32)
    inside = np.zeros(patches.shape[:-1], bool)
    for row, start in enumerate(chosen.tolist()):
        here, there = inference.window_slices(shape, window, starts[start])
        patches[row][here], inside[row][here] = image[there], True
    size = (len(chosen), *task.patch)  # a slice has no axis across it
    return patches.reshape(*size, -1), inside.reshape(size)


def _squared_deviations(wanted: Restoration) -> float:
    """The sum of squared deviations from the mean, over the voxels that count, averaged over channels."""
    values = np.asarray(wanted.image, np.float64)[np.asarray(wanted.weight) > 0]
    return float(np.square(values - values.mean(0)).mean(-1).sum()) if len(values) else 0.0
