"""Makes similarity.csv and layer_similarity.csv: how similar the features of runs are, at their starts and ends."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxseg import seeds
from jaxseg.analysis import activations, case_similarity, similarity, sites
from jaxseg.models import layer_names
from jaxseg.study.plan.program import Program, feature_grids
from jaxseg.study.probe.networks import Networks
from jaxseg.study.probe.probes import Probes

INDICES: dict[str, similarity.Measure] = {
    "cka": similarity.cka_measure(debiased=False),
    "cka_debiased": similarity.cka_measure(debiased=True),
    "procrustes": similarity.PROCRUSTES,
    "svcca": similarity.svcca_measure(),
    "pwcca": similarity.PWCCA,
}
OF_CASES = "cka_cases"
"""The index that compares only positions of different cases (`jaxseg.analysis.case_similarity`)."""
POINTS_PER_NEURON = 10
"""The fewest points per neuron: with fewer, an index mostly measures how few there are, and is NaN."""


@dataclasses.dataclass(frozen=True)
class Features:
    """The features of one layer of an arm's runs at the positions of the probes."""

    start: Float[np.ndarray, "runs points channels"]
    end: Float[np.ndarray, "runs points channels"]
    unique: Int[np.ndarray, " unique"]
    """The points that are read at a site of the layer which no earlier point was read at."""
    case: Int[np.ndarray, " points"]
    """The index of the case that each point lies in."""


@dataclasses.dataclass(frozen=True)
class Represented:
    """The features of an arm's runs."""

    networks: Networks
    layers: dict[str, Features]

    @property
    def arm(self) -> str:
        """The name of the arm."""
        return self.networks.arm

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the runs."""
        return self.networks.seeds


Record = Callable[..., Any]


def make_recorder(program: Program, plan: seeds.SeedPlan) -> Record:
    """Makes a compiled function that records the features of all runs at once."""
    model = program.network
    return seeds.map_seeds(activations.make_record(model), plan=plan, shared=(1, 2))


def represent(
    networks: Networks, probes: Probes, record: Record, plan: seeds.SeedPlan, same_start: Represented | None = None
) -> Represented:
    """Records the features of every layer at the start and at the end, at the same positions for all networks.

    Only features at positions are kept; whole feature maps are in memory for one batch at a time.

    Args:
        networks: The networks of an arm.
        probes: The inputs of the networks.
        record: A recorder from `make_recorder`.
        plan: The seed plan of as many runs.
        same_start: The same runs at another end, whose features of the start are reused.
    """
    settings = networks.program.model
    patch, grids = probes.labels.shape[2:], feature_grids(networks.program)
    flat, shape = probes.positions.reshape(-1, len(patch)), probes.positions.shape[:3]
    chosen = {layer: sites.nearest_sites(flat, patch, grids[layer]).reshape(shape) for layer in layer_names(settings)}
    images, indices = seeds.replicate((probes.images, chosen), plan)

    def features(params: Any) -> dict[str, np.ndarray]:
        return seeds.fetch(record(seeds.put(params, plan), images, indices), len(networks))

    if same_start is None:
        start = features(networks.start)
    else:
        start = {layer: known.start for layer, known in same_start.layers.items()}
    end, (case, _), windows = features(networks.end), probes.points(), probes.windows.ravel()
    layers = {
        layer: Features(start[layer], end[layer], sites.first_of_each(index.reshape(-1, shape[-1]), windows), case)
        for layer, index in chosen.items()
    }
    return Represented(networks, layers)


def similarity_rows(arms: Sequence[Represented], baseline: str, *, of_starts: bool = True) -> list[dict[str, Any]]:
    """Makes one row for each layer, pair of networks of interest (see `compared`), and index.

    Args:
        arms: All of a variant.
        baseline: Arm that the others are compared with.
        of_starts: Also what does not depend on the step: two starts of an arm, and the starts of other runs.
    """
    first, whole = references([arm.networks for arm in arms], baseline)
    rows: list[dict[str, Any]] = []
    for layer in dict.fromkeys(layer for arm in arms for layer in arm.layers):
        having = [arm for arm in arms if layer in arm.layers]
        # Of one layer, and of the arm in hand and those two: all of them together would be large.
        kept = {arm.arm: _sides(arm, layer) for arm in having if any(arm.networks is one for one in (first, whole))}
        known = [found if found is not None and found.arm in kept else None for found in (first, whole)]
        for arm in having:
            sides = {**kept, arm.arm: kept.get(arm.arm) or _sides(arm, layer)}
            for a, b, names in compared(arm.networks, known[0], known[1], of_starts=of_starts):
                rows += _compare(_at(sides, a), _at(sides, b), names)
    return rows


def _at(sides: Mapping[str, tuple[_Side, _Side]], end: End) -> _Side:
    return sides[end.networks.arm][("start", "end").index(end.step)]


class End(NamedTuple):
    """An arm's runs at their start or at their end."""

    networks: Networks
    step: str


Names = Callable[[int, int], tuple[str, ...]]
"""Of the comparisons that two runs are a pair of, from their positions."""


def references(arms: Sequence[Networks], baseline: str) -> tuple[Networks | None, Networks | None]:
    """The baseline's runs, and those of the first arm that starts from whole source networks."""
    first = next((arm for arm in arms if arm.arm == baseline), None)
    return first, next((arm for arm in arms if arm.pretrained), None)


def compared(
    arm: Networks, first: Networks | None, whole: Networks | None, *, of_starts: bool = True
) -> Iterator[tuple[End, End, Names]]:
    """The pairs of networks that are of interest for an arm.

    An arm that starts from whole source networks has these as its starts. What likeness to a source network another
    arm's runs have anyway is taken from networks that did not even start from the weights that the source started
    from: with the same seed they would have.

    Args:
        arm: Its runs.
        first: Those of the baseline.
        whole: Those of an arm that starts from whole source networks.
        of_starts: See `similarity_rows`.
    """
    start, end = End(arm, "start"), End(arm, "end")
    yield end, start, functools.partial(_to_start, arm, of_starts)
    yield end, end, lambda i, j: ("within_arm",) if i < j else ()
    if of_starts:
        yield start, start, functools.partial(_between_starts, arm)
    if not arm.pretrained and whole is not None:
        yield end, End(whole, "start"), functools.partial(_partly, arm, whole)
    if first is not None and first is not arm:
        yield End(first, "end"), end, lambda i, j: ("across_arms",)
        if arm.pretrained:
            yield End(first, "end"), start, functools.partial(_unrelated, first, arm)


def _share_start(networks: Networks, i: int, j: int) -> bool:
    """Whether two runs start from one and the same network: their starts are then no two networks.

    Those of whole source networks differ in these; others also in the draw of their weights.
    """
    same_source = networks.sources[i] == networks.sources[j]
    return same_source and (networks.pretrained or networks.init_ids[i] == networks.init_ids[j])


def _between_starts(networks: Networks, i: int, j: int) -> tuple[str, ...]:
    return ("starts",) if i < j and not _share_start(networks, i, j) else ()


def _to_start(networks: Networks, of_others: bool, i: int, j: int) -> tuple[str, ...]:
    """A run against a start; its own is its source network where it was given a whole one."""
    if i != j:
        return ("other_start",) if of_others and not _share_start(networks, i, j) else ()
    return ("own_start", "to_source") if networks.pretrained else ("own_start",)


def _partly(arm: Networks, whole: Networks, i: int, j: int) -> tuple[str, ...]:
    """A run that took part of a source network, against that network."""
    source = arm.sources[i]
    same = source is not None and source == whole.sources[j]
    # One network may be the source of several runs.
    return ("to_source",) if same and whole.sources.index(source) == j else ()


def _unrelated(first: Networks, arm: Networks, i: int, j: int) -> tuple[str, ...]:
    """A run of the baseline against the source of a run of an arm, unless both started from the same draw."""
    source = arm.sources[j]
    return ("to_other_source",) if source is not None and source.seed != first.init_ids[i] else ()


class _Side(NamedTuple):
    """One layer of an arm's runs at one step, ready to be compared."""

    layer: str
    networks: Networks
    step: str
    unique: Int[np.ndarray, " unique"]
    live: Int[np.ndarray, " runs"]
    """The number of channels that are not constant; with none, every index is NaN."""
    ready: Ready


Ready = tuple[dict[str, similarity.Prepared], case_similarity.Prepared]
"""Intermediate results of the indices, by name, and of the index over cases."""


def _sides(arm: Represented, layer: str) -> tuple[_Side, _Side]:
    """Start and end."""
    features = arm.layers[layer]
    sides, cases = [], case_similarity.group_points(features.case[features.unique])
    for step in ("start", "end"):
        values = getattr(features, step)[:, features.unique]
        live = similarity.varying(values).sum((1, 2))
        ready = _prepared(jnp.asarray(values), cases)
        sides.append(_Side(layer, arm.networks, step, features.unique, live, ready))
    return sides[0], sides[1]


# One index after another, each in a program of its own. Decompositions of several indices would otherwise run side by
# side, in one program or in two that were dispatched one after the other, and jaxlib's batched LAPACK calls then wait
# for each other for ever where there are no more threads than such calls (seen with jaxlib 0.10 on two cores).


def _prepared(values: Float[Array, "runs points channels"], cases: case_similarity.Cases) -> Ready:
    by_index = {name: jax.block_until_ready(_prepare(name, values)) for name in INDICES}
    return by_index, jax.block_until_ready(_prepare_cases(values, cases))


def _compared(a: Ready, b: Ready) -> dict[str, Float[np.ndarray, "runs others"]]:
    found = {name: np.asarray(_compare_prepared(name, a[0][name], b[0][name])) for name in INDICES}
    return {**found, OF_CASES: np.asarray(_compare_cases(a[1], b[1]))}


@functools.partial(jax.jit, static_argnums=0)
def _prepare(index: str, values: Float[Array, "runs points channels"]) -> similarity.Prepared:
    return jax.vmap(INDICES[index].prepare)(values)


@functools.partial(jax.jit, static_argnums=0)
def _compare_prepared(index: str, a: similarity.Prepared, b: similarity.Prepared) -> Float[Array, "runs others"]:
    return similarity.compare_prepared(INDICES[index], a, b)


_prepare_cases = jax.jit(case_similarity.prepare)
_compare_cases = jax.jit(case_similarity.compare)


def _compare(a: _Side, b: _Side, names: Names) -> list[dict[str, Any]]:
    """Rows of the pairs of runs for which `names`, of their positions, gives those of comparisons."""
    ours, theirs = a.networks, b.networks
    named = [(i, j, name) for i in range(len(ours)) for j in range(len(theirs)) for name in names(i, j)]
    # Networks of other strides are read at other sites: nothing to compare point by point.
    if not named or not np.array_equal(a.unique, b.unique):
        return []
    points, found = len(a.unique), _compared(a.ready, b.ready)
    # Of all runs, so that no layer has a value for those pairs alone whose runs both have dead channels.
    neurons = int(max(*a.live, *b.live))
    enough = points >= POINTS_PER_NEURON * neurons
    rows = []
    for i, j, comparison in named:
        for index, values in found.items():
            rows.append(
                {
                    **{"layer": a.layer, "comparison": comparison, "step": ours.step},
                    **{"arm_a": ours.arm, "seed_a": ours.seeds[i], "step_a": a.step},
                    **{"arm_b": theirs.arm, "seed_b": theirs.seeds[j], "step_b": b.step},
                    **{"source_a": ours.source_seeds[i], "source_b": theirs.source_seeds[j]},
                    **{"index": index, "value": float(values[i, j]) if enough else np.nan},
                    **{"n_points": points, "n_neurons": neurons},
                }
            )
    return rows


def layer_rows(arm: Represented) -> list[dict[str, Any]]:
    """Compares layers with layers at the end of the first run."""
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
