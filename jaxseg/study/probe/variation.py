"""Makes pairs.csv, interpolation.csv and rewind.csv: how much the runs of an arm differ."""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxseg import losses, seeds, trees
from jaxseg.analysis import alignment, interpolation, variability
from jaxseg.analysis.wiring import Wiring, trace_wiring
from jaxseg.data import PreparedTask
from jaxseg.data.cases import CaseArrays
from jaxseg.regions import decide
from jaxseg.settings import EvaluateSettings
from jaxseg.streams import jit_draws, stream_key
from jaxseg.study.plan.program import Program, abstract_params, param_labels
from jaxseg.study.predict import PredictSlabs, make_predict_slabs
from jaxseg.study.probe.networks import Networks, kernel_layers
from jaxseg.study.probe.probes import Probes
from jaxseg.study.score.units import EACH_ITS_OWN, Sources
from jaxseg.types import Params

ALPHAS = tuple(float(alpha) for alpha in np.linspace(0, 1, 11))
"""The points on the line between two runs; at the first and the last lies one of them."""

OF_PAIRS = (
    *("disagreement", "pairwise_dsc", "parameter_distance", "barrier"),
    *("parameter_distance_aligned", "barrier_aligned"),
)
"""The quantities of pairs.csv."""


class Judge(NamedTuple):
    """What judges altered parameters, compiled for one network and loss and all runs at once."""

    quality: Callable[..., interpolation.Quality]
    layers: tuple[str, ...]
    wiring: Wiring
    fresh: Callable[..., Any]
    """Draws initial parameters of runs by their seeds, which differ from those that any run starts from."""


def make_judge(program: Program, plan: seeds.SeedPlan) -> Judge:
    """Makes the functions that judge altered parameters on windows."""
    model = program.network
    quality = interpolation.make_quality(model, losses.make_loss(program.loss, program.regions), program.regions)
    layers = tuple(kernel_layers(trees.flatten(abstract_params(program))))

    def fresh(seed: jax.Array) -> Any:
        image = jnp.zeros((1, *program.task.patch, program.channels), jnp.float32)
        return model.init(stream_key(seed, "rerandomise"), image)["params"]

    # One program judges all networks, however they were altered: compiling it takes longer than putting them together.
    return Judge(
        seeds.map_seeds(quality, plan=plan, shared=(1,)),
        layers,
        trace_wiring(program.model, program.classes, program.channels),
        jit_draws(jax.vmap(fresh)),
    )


def rewind_rows(
    networks: Networks, probes: Probes, judge: Judge, plan: seeds.SeedPlan
) -> tuple[list[dict[str, Any]], Float[np.ndarray, " runs"]]:
    """Measures the DSC lost, without training, when a layer is set back to its start and when it is drawn anew.

    Returns:
        The rows, and the loss of each run as it is.
    """
    windows = seeds.replicate((probes.images, probes.labels), plan)
    drawn = judge.fresh(np.array(networks.seeds, np.uint32))
    ends, rows = seeds.put(networks.end, plan), []

    def judged(params: Params) -> interpolation.Quality:
        return seeds.fetch(judge.quality(params, windows), len(networks))

    own = judged(ends)
    for how, others in (("rewind", networks.start), ("rerandomise", drawn)):
        others = seeds.put(others, plan)
        altered = {
            layer: judged(interpolation.with_layer_of(others, ends, layer, judge.layers)).dsc for layer in judge.layers
        }
        for run, seed in enumerate(networks.seeds):
            dsc = float(own.dsc[run])
            for layer, found in altered.items():
                scores = {"dsc": dsc, "dsc_rewound": float(found[run]), "drop": float(own.dsc[run] - found[run])}
                rows.append({"arm": networks.arm, "seed": seed, "layer": layer, "how": how, **scores})
    return rows, np.asarray(own.loss)


def pairs_of(count: int, limit: int) -> list[tuple[int, int]]:
    """Returns about `limit` pairs of runs, each run in as many: neighbours at distance 1, then 2, ...

    >>> pairs_of(4, 6)
    [(0, 1), (1, 2), (2, 3), (0, 3), (0, 2), (1, 3)]
    """
    pairs: dict[tuple[int, int], None] = {}
    for distance in range(1, count // 2 + 1):
        ring = {(min(i, j), max(i, j)): None for i in range(count) for j in [(i + distance) % count]}
        if pairs and len(pairs) + len(ring) > limit:
            break
        pairs |= ring
    return list(pairs)


def aligned_partners(networks: Networks, wiring: Wiring, pairs: Sequence[tuple[int, int]]) -> Params:
    """Permutes the channels of each pair's second network to bring it closest to the first; pairs first."""
    ends = [trees.take(networks.end, run) for run in range(len(networks))]
    return trees.stack([
        alignment.permute(wiring, ends[b], alignment.align(wiring, ends[a], ends[b])) for a, b in pairs
    ])  # fmt: skip


def path_rows(
    networks: Networks,
    probes: Probes,
    judge: Judge,
    plan: seeds.SeedPlan,
    pairs: Sequence[tuple[int, int]],
    partners: Params,
    own: Float[np.ndarray, " runs"],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Computes losses on straight lines between runs of the arm, and between runs whose channels are aligned.

    Args:
        networks: The runs of the arm.
        probes: Windows with labels.
        judge: The functions of `make_judge`.
        plan: The seed plan of as many runs.
        pairs: Positions of runs.
        partners: The second network of each pair as `aligned_partners` gives it.
        own: The loss of each run, and of its partners, which compute what it does.

    Returns:
        The rows of all lines between runs as they are, and those with partners.
    """
    windows = seeds.replicate((probes.images, probes.labels), plan)
    runs = np.array(pairs)
    # Both kinds one after the other: a last part that is not full is computed as if it were.
    firsts = trees.take(networks.end, np.tile(runs[:, 0], 2))
    seconds = jax.tree.map(lambda *both: np.concatenate(both), trees.take(networks.end, runs[:, 1]), partners)
    found: list[np.ndarray] = []
    for first in range(0, 2 * len(pairs), len(networks)):
        # Filled up to the number of runs, so that one program serves all.
        part = np.minimum(np.arange(first, first + len(networks)), 2 * len(pairs) - 1)
        ends = [seeds.put(trees.take(params, part), plan) for params in (firsts, seconds)]
        inside = [judge.quality(interpolation.on_line(*ends, alpha), windows).loss for alpha in ALPHAS[1:-1]]
        losses_inside = [seeds.fetch(loss, min(len(networks), 2 * len(pairs) - first)) for loss in inside]
        found += list(np.stack(losses_inside, axis=1))
    rows = [
        [
            {
                **{"arm": networks.arm, "seed_a": networks.seeds[a], "seed_b": networks.seeds[b]},
                **{"alpha": alpha, "loss": float(loss)},
            }
            for (a, b), between in zip(pairs, kind, strict=True)
            for alpha, loss in zip(ALPHAS, (own[a], *between, own[b]), strict=True)
        ]
        for kind in (found[: len(pairs)], found[len(pairs) :])
    ]
    return rows[0], rows[1]


# ------------------------------------------------------------------------------------------------------- predictions


class Predicted(NamedTuple):
    """The label maps of an arm's runs on the analysed cases, compressed since they are nearly constant."""

    arm: str
    seeds: tuple[int, ...]
    maps: tuple[bytes, ...]
    """The compressed label maps of each case."""

    def of(self, index: int, shape: Sequence[int]) -> Int[np.ndarray, "runs *spatial"]:
        """Decompresses the label maps of one case."""
        flat = np.frombuffer(zlib.decompress(self.maps[index]), np.uint16)
        return flat.reshape(len(self.seeds), *shape)


def make_predict(program: Program, plan: seeds.SeedPlan, num_runs: int, settings: EvaluateSettings) -> PredictSlabs:
    """Makes the prediction by `num_runs` runs at once, with the windows of the validation."""
    return make_predict_slabs(
        program,
        plan=plan,
        num_runs=num_runs,
        overlap=settings.val_overlap,
        window_batch=settings.window_batch,
    )


def predict_cases(
    networks: Networks, cases: Sequence[CaseArrays], predict: PredictSlabs, plan: seeds.SeedPlan
) -> Predicted:
    """Predicts whole cases with each run, on the training grid."""
    regions = networks.program.regions
    slabs = predict(seeds.put(networks.end, plan), {}, [case.image for case in cases])
    packed = []
    for _, of_case in itertools.groupby(slabs, key=lambda slab: slab.case):
        maps = np.concatenate([decide(slab.probabilities, regions).astype(np.uint16) for slab in of_case], axis=1)
        packed.append(zlib.compress(np.ascontiguousarray(maps).data, 1))
    return Predicted(networks.arm, networks.seeds, tuple(packed))


class Agreement(NamedTuple):
    """Means over cases of how the runs' predictions agree."""

    disagreement: dict[tuple[str, str], Float[np.ndarray, "runs others"]]
    """Share of the region's voxels on which runs disagree, by pair of arms."""
    dsc: dict[str, Float[np.ndarray, "runs runs"]]
    entropy: dict[str, Float[np.ndarray, " left_out"]]
    """Vote entropy of all runs, then without each unit of them (`score.units`) in turn."""
    error: dict[str, Float[np.ndarray, " runs"]]


def agreement(
    arms: Sequence[Predicted],
    cases: Sequence[CaseArrays],
    baseline: str,
    target: PreparedTask,
    sources: Sources = EACH_ITS_OWN,
) -> Agreement:
    """Compares runs voxel by voxel, within a region of each case that is the same for all arms."""
    classes, of_units = target.classes, {arm.arm: sources.units(arm.arm, np.array(arm.seeds)) for arm in arms}
    parts: list[Agreement] = []
    for index, case in enumerate(cases):
        maps = {arm.arm: arm.of(index, case.label.shape) for arm in arms}
        known = case.label < classes
        region = known & variability.region_of(np.where(known, case.label, 0), np.concatenate(list(maps.values())))
        inside = {arm: of_arm[:, region] for arm, of_arm in maps.items()}
        truth = case.label[region][None]
        size = max(int(region.sum()), 1)
        pairs = [(arm, arm) for arm in inside] + [(baseline, arm) for arm in inside if arm != baseline in inside]
        left_out = {
            arm: [labels[of_units[arm] != unit] for unit in np.unique(of_units[arm])] for arm, labels in inside.items()
        }
        parts.append(
            Agreement(
                {(a, b): variability.differing(inside[a], inside[b], classes) / size for a, b in pairs},
                {arm: variability.pairwise_dsc(labels, target.members) for arm, labels in inside.items()},
                {
                    arm: np.array([_entropy(part, classes) for part in (labels, *left_out[arm])])
                    for arm, labels in inside.items()
                },
                {arm: variability.differing(labels, truth, classes)[:, 0] / size for arm, labels in inside.items()},
            )
        )
    # A case in which neither of two runs predicts anything says nothing of their DSC.
    return jax.tree.map(lambda *of_cases: _mean_known(np.stack(of_cases)), *parts)


def _entropy(labels: np.ndarray, classes: int) -> float:
    several = len(labels) > 1 and labels.size  # a run alone has no other to differ from
    return float(variability.vote_entropy(labels, classes).mean()) if several else math.nan


def _mean_known(values: Float[np.ndarray, "cases *any"]) -> Float[np.ndarray, "*any"]:
    known = ~np.isnan(values)
    return np.where(known.any(0), np.where(known, values, 0).sum(0) / np.maximum(known.sum(0), 1), np.nan)


def _pair_rows(
    quantity: str, arms: tuple[str, str], runs: tuple[Sequence[int], Sequence[int]], values: np.ndarray
) -> list[dict[str, Any]]:
    """Rows of pairs.csv from a matrix; within an arm each pair once."""
    return [
        {
            **{"quantity": quantity, "arm_a": arms[0], "seed_a": a, "arm_b": arms[1], "seed_b": b},
            "value": float(values[i, j]),
        }
        for i, a in enumerate(runs[0])
        for j, b in enumerate(runs[1])
        if arms[0] != arms[1] or a < b
    ]


def parameter_rows(networks: Networks) -> list[dict[str, Any]]:
    """Measures the distances between the runs' trained parameters."""
    distances = variability.parameter_distance(_trained(networks, networks.end))
    return _pair_rows("parameter_distance", (networks.arm,) * 2, (networks.seeds,) * 2, distances)


def aligned_parameter_rows(
    networks: Networks, pairs: Sequence[tuple[int, int]], partners: Params
) -> list[dict[str, Any]]:
    """Measures the same distances for pairs whose second network has the first one's order of channels."""
    firsts, seconds = _trained(networks, networks.end), _trained(networks, partners)
    rows = []
    for index, (a, b) in enumerate(pairs):
        both = [np.stack([first[a], second[index]]) for first, second in zip(firsts, seconds, strict=True)]
        rows += _pair_rows(
            "parameter_distance_aligned",
            (networks.arm,) * 2,
            ((networks.seeds[a], networks.seeds[b]),) * 2,
            variability.parameter_distance(both),
        )
    return rows


def _trained(networks: Networks, params: Params) -> list[np.ndarray]:
    labels = trees.flatten(param_labels(networks.program))
    return [leaf for path, leaf in trees.flatten(params).items() if labels[path] == "train"]


def agreement_rows(arms: Sequence[Predicted], found: Agreement) -> list[dict[str, Any]]:
    """Tabulates the disagreement of runs within an arm and with the baseline's, and DSC within an arm."""
    runs = {arm.arm: arm.seeds for arm in arms}
    rows = []
    for (a, b), matrix in found.disagreement.items():
        rows += _pair_rows("disagreement", (a, b), (runs[a], runs[b]), matrix)
    for arm, matrix in found.dsc.items():
        rows += _pair_rows("pairwise_dsc", (arm, arm), (runs[arm],) * 2, matrix)
    return rows


def barrier_rows(paths: Sequence[Mapping[str, Any]], quantity: str = "barrier") -> list[dict[str, Any]]:
    """Computes the height of the barrier on each line."""
    lines: dict[tuple[str, int, int], list[float]] = {}
    for row in paths:
        lines.setdefault((row["arm"], row["seed_a"], row["seed_b"]), []).append(row["loss"])
    return [
        {
            **{"quantity": quantity, "arm_a": arm, "seed_a": a, "arm_b": arm, "seed_b": b},
            "value": float(interpolation.barrier(np.array(values), np.array(ALPHAS))),
        }
        for (arm, a, b), values in lines.items()
    ]
