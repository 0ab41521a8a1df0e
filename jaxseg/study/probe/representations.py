"""similarity.csv and layer_similarity.csv: how alike the features of runs are, at their starts and at their ends."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxseg import seeds, trees
from jaxseg.analysis import activations, similarity, sites
from jaxseg.models import layer_names
from jaxseg.study.plan.program import Program
from jaxseg.study.probe.networks import Networks
from jaxseg.study.probe.probes import Probes

INDICES: dict[str, similarity.Measure] = {
    "cka": similarity.cka_measure(debiased=False),
    "cka_debiased": similarity.cka_measure(debiased=True),
    "procrustes": similarity.PROCRUSTES,
    "svcca": similarity.svcca_measure(),
    "pwcca": similarity.PWCCA,
}
POINTS_PER_NEURON = 10
"""With fewer, an index mostly measures how few points there are; its value is NaN."""


@dataclasses.dataclass(frozen=True)
class Features:
    """One layer of an arm's runs at the positions of the probes."""

    start: Float[np.ndarray, "runs points channels"]
    end: Float[np.ndarray, "runs points channels"]
    unique: Int[np.ndarray, " unique"]
    """Points that are not read at a site that an earlier one was read at already."""


@dataclasses.dataclass(frozen=True)
class Represented:
    """An arm's runs as their features."""

    networks: Networks
    layers: dict[str, Features]

    @property
    def arm(self) -> str:
        """Its name."""
        return self.networks.arm

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of its runs."""
        return self.networks.seeds


Record = Callable[..., Any]


def make_recorder(program: Program, plan: seeds.SeedPlan) -> Record:
    """A compiled function that records features of all runs at once."""
    model = program.network
    return seeds.map_seeds(activations.make_record(model), plan=plan, shared=(1, 2))


def represent(networks: Networks, probes: Probes, record: Record, plan: seeds.SeedPlan) -> Represented:
    """Features of every layer at the start and at the end, at the same positions for all networks.

    Only features at positions are kept: of whole feature maps one batch is in memory at a time.
    """
    settings = networks.program.model
    model = networks.program.network
    patch, channels = probes.labels.shape[2:], probes.images.shape[-1]
    grids = activations.layer_grids(model, trees.take(networks.end, 0), patch, channels)
    flat, shape = probes.positions.reshape(-1, len(patch)), probes.positions.shape[:3]
    chosen = {layer: sites.nearest_sites(flat, patch, grids[layer]).reshape(shape) for layer in layer_names(settings)}
    images, indices = seeds.replicate((probes.images, chosen), plan)
    found = [
        seeds.fetch(record(seeds.put(params, plan), images, indices), len(networks))
        for params in (networks.start, networks.end)
    ]
    layers = {
        layer: Features(found[0][layer], found[1][layer], sites.first_of_each(index.reshape(-1, shape[-1])))
        for layer, index in chosen.items()
    }
    return Represented(networks, layers)


def similarity_rows(arms: Sequence[Represented], baseline: str) -> list[dict[str, Any]]:
    """One row for each layer, pair of networks that is of interest, and index.

    An arm that starts from whole source networks has these as its starts. What likeness to a source network another
    arm's runs have anyway is taken from networks that did not even start from the weights that the source started
    from: with the same seed they would have.

    Args:
        arms: All of a variant.
        baseline: Arm that the others are compared with.
    """
    first = next((arm for arm in arms if arm.arm == baseline), None)
    whole = next((arm for arm in arms if arm.networks.pretrained), None)
    rows: list[dict[str, Any]] = []
    for layer in dict.fromkeys(layer for arm in arms for layer in arm.layers):
        # Of one layer, and of the arm in hand and those two: all of them together would be large.
        kept = {arm.arm: _sides(arm, layer) for arm in (first, whole) if arm is not None and layer in arm.layers}
        for arm in arms:
            if layer not in arm.layers:
                continue
            start, end = kept.get(arm.arm) or _sides(arm, layer)
            rows += _compare(end, start, functools.partial(_to_start, arm.networks.pretrained))
            rows += _compare(end, end, lambda i, j: ("within_arm",) if i < j else ())
            rows += _compare(start, start, lambda i, j: ("starts",) if i < j else ())
            if not arm.networks.pretrained and whole is not None and whole.arm in kept:
                rows += _compare(end, kept[whole.arm][0], functools.partial(_partly, arm, whole))
            if first is not None and first is not arm and first.arm in kept:
                rows += _compare(kept[first.arm][1], end, lambda i, j: ("across_arms",))
                if arm.networks.pretrained:
                    rows += _compare(kept[first.arm][1], start, functools.partial(_unrelated, first, arm))
    return rows


def _to_start(pretrained: bool, i: int, j: int) -> tuple[str, ...]:
    """A run against a start; its own is its source network where it was given a whole one."""
    if i != j:
        return ("other_start",)
    return ("own_start", "to_source") if pretrained else ("own_start",)


def _partly(arm: Represented, whole: Represented, i: int, j: int) -> tuple[str, ...]:
    """A run that took part of a source network, against that network."""
    source = arm.networks.sources[i]
    same = source is not None and source == whole.networks.sources[j]
    # One network may be the source of several runs.
    return ("to_source",) if same and whole.networks.sources.index(source) == j else ()


def _unrelated(first: Represented, arm: Represented, i: int, j: int) -> tuple[str, ...]:
    """A run of the baseline against the source of a run of an arm, unless both started from the same draw."""
    source = arm.networks.sources[j]
    return ("to_other_source",) if source is not None and source.seed != first.networks.init_ids[i] else ()


class _Side(NamedTuple):
    """One layer of an arm's runs at one step, ready to be compared."""

    layer: str
    arm: str
    seeds: tuple[int, ...]
    step: str
    unique: Int[np.ndarray, " unique"]
    live: Int[np.ndarray, " runs"]
    """Channels that are not the same everywhere."""
    ready: dict[str, similarity.Prepared]
    """By index."""


def _sides(arm: Represented, layer: str) -> tuple[_Side, _Side]:
    """Start and end."""
    features = arm.layers[layer]
    sides = []
    for step in ("start", "end"):
        values = getattr(features, step)[:, features.unique]
        live = (np.ptp(values, axis=1) > 0).sum(-1)
        sides.append(_Side(layer, arm.arm, arm.seeds, step, features.unique, live, _prepared(jnp.asarray(values))))
    return sides[0], sides[1]


@jax.jit
def _prepared(values: Float[Array, "runs points channels"]) -> dict[str, similarity.Prepared]:
    return {name: jax.vmap(measure.prepare)(values) for name, measure in INDICES.items()}


@jax.jit
def _compared(
    a: dict[str, similarity.Prepared], b: dict[str, similarity.Prepared]
) -> dict[str, Float[Array, "runs others"]]:
    return {name: similarity.compare_prepared(measure, a[name], b[name]) for name, measure in INDICES.items()}


def _compare(a: _Side, b: _Side, names: Callable[[int, int], tuple[str, ...]]) -> list[dict[str, Any]]:
    """Rows of the pairs of runs for which `names`, of their positions, gives those of comparisons."""
    named = [(i, j, comparison) for i in range(len(a.seeds)) for j in range(len(b.seeds)) for comparison in names(i, j)]
    # Networks of other strides are read at other sites: nothing to compare point by point.
    if not named or not np.array_equal(a.unique, b.unique):
        return []
    points, found = len(a.unique), jax.tree.map(np.asarray, _compared(a.ready, b.ready))
    rows = []
    for i, j, comparison in named:
        neurons = int(max(a.live[i], b.live[j]))
        enough = points >= POINTS_PER_NEURON * neurons
        for index, values in found.items():
            rows.append(
                {
                    **{"layer": a.layer, "comparison": comparison},
                    **{"arm_a": a.arm, "seed_a": a.seeds[i], "step_a": a.step},
                    **{"arm_b": b.arm, "seed_b": b.seeds[j], "step_b": b.step},
                    **{"index": index, "value": float(values[i, j]) if enough else np.nan},
                    **{"n_points": points, "n_neurons": neurons},
                }
            )
    return rows


def layer_rows(arm: Represented) -> list[dict[str, Any]]:
    """Layers against layers, of the first run's end."""
    names = list(arm.layers)
    values = similarity.between_layers([arm.layers[name].end[0] for name in names])
    return [
        {
            **{"arm": arm.arm, "seed": arm.seeds[0], "layer_a": a, "layer_b": b},
            **{"index": "cka", "value": float(values[i, j])},
        }
        for i, a in enumerate(names)
        for j, b in enumerate(names)
    ]
