"""Makes pairs.csv, interpolation.csv, rewind.csv and variability.csv: how much the runs of an arm differ."""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from jaxseg import losses, seeds, trees
from jaxseg.analysis import alignment, interpolation, statistics, variability
from jaxseg.analysis.wiring import Wiring, trace_wiring
from jaxseg.data import PreparedTask
from jaxseg.data.cases import CaseArrays
from jaxseg.regions import decide
from jaxseg.reserved import MEAN
from jaxseg.settings import EvaluateSettings
from jaxseg.streams import jit_draws, stream_key
from jaxseg.study.plan.program import Program, abstract_params, param_labels
from jaxseg.study.predict import PredictSlabs, make_predict_slabs
from jaxseg.study.probe.networks import Networks, kernel_layers
from jaxseg.study.probe.probes import Probes
from jaxseg.study.probe.representations import Represented
from jaxseg.study.score.scores import group_means, read_scores
from jaxseg.types import Params

ALPHAS = tuple(float(alpha) for alpha in np.linspace(0, 1, 11))
"""The points on the line between two runs."""

OF_PAIRS = (
    *("disagreement", "pairwise_dsc", "parameter_distance", "barrier"),
    *("parameter_distance_aligned", "barrier_aligned"),
)
"""The quantities of pairs.csv."""


class Judge(NamedTuple):
    """Functions that judge altered parameters, compiled for one network and loss and all runs at once."""

    path: Callable[..., Any]
    rewind: Callable[..., Any]
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

    return Judge(
        seeds.map_seeds(interpolation.make_path(quality, ALPHAS), plan=plan, shared=(2,)),
        seeds.map_seeds(interpolation.make_rewind(quality, layers), plan=plan, shared=(2,)),
        layers,
        trace_wiring(program.model, program.classes, program.channels),
        jit_draws(jax.vmap(fresh)),
    )


def rewind_rows(networks: Networks, probes: Probes, judge: Judge, plan: seeds.SeedPlan) -> list[dict[str, Any]]:
    """Measures the DSC lost, without training, when a layer is set back to its start and when it is drawn anew."""
    windows = seeds.replicate((probes.images, probes.labels), plan)
    drawn = judge.fresh(np.array(networks.seeds, np.uint32))
    rows = []
    for how, params in (("rewind", networks.start), ("rerandomise", drawn)):
        found = judge.rewind(seeds.put(params, plan), seeds.put(networks.end, plan), windows)
        for seed, score in zip(networks.seeds, seeds.fetch(found, len(networks)), strict=True):
            for layer, altered in zip(judge.layers, score, strict=False):  # the last score is of the unaltered network
                scores = {"dsc": float(score[-1]), "dsc_rewound": float(altered), "drop": float(score[-1] - altered)}
                rows.append({"arm": networks.arm, "seed": seed, "layer": layer, "how": how, **scores})
    return rows


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
    partners: Params | None = None,
) -> list[dict[str, Any]]:
    """Computes losses on straight lines between runs of the arm.

    Args:
        networks: The runs of the arm.
        probes: Windows with labels.
        judge: The functions of `make_judge`.
        plan: The seed plan of as many runs.
        pairs: Positions of runs.
        partners: Networks that replace each pair's second one; see `aligned_partners`.
    """
    windows = seeds.replicate((probes.images, probes.labels), plan)
    found: list[np.ndarray] = []
    for first in range(0, len(pairs), len(networks)):
        # Filled up to the number of runs, so that one program serves all.
        part = np.minimum(np.arange(first, first + len(networks)), len(pairs) - 1)
        rows = np.array(pairs)[part]
        second = trees.take(networks.end, rows[:, 1]) if partners is None else trees.take(partners, part)
        ends = [seeds.put(params, plan) for params in (trees.take(networks.end, rows[:, 0]), second)]
        found += list(seeds.fetch(judge.path(*ends, windows), min(len(networks), len(pairs) - first)))
    return [
        {
            **{"arm": networks.arm, "seed_a": networks.seeds[a], "seed_b": networks.seeds[b]},
            **{"alpha": alpha, "loss": float(loss)},
        }
        for (a, b), losses_on_line in zip(pairs, found, strict=True)
        for alpha, loss in zip(ALPHAS, losses_on_line, strict=True)
    ]


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
    """Vote entropy of all runs, then with each left out in turn."""
    error: dict[str, Float[np.ndarray, " runs"]]


def agreement(arms: Sequence[Predicted], cases: Sequence[CaseArrays], baseline: str, target: PreparedTask) -> Agreement:
    """Compares runs voxel by voxel, within a region of each case that is the same for all arms."""
    classes = target.classes
    parts: list[Agreement] = []
    for index, case in enumerate(cases):
        maps = {arm.arm: arm.of(index, case.label.shape) for arm in arms}
        known = case.label < classes
        region = known & variability.region_of(np.where(known, case.label, 0), np.concatenate(list(maps.values())))
        inside = {arm: of_arm[:, region] for arm, of_arm in maps.items()}
        truth = case.label[region][None]
        size = max(int(region.sum()), 1)
        pairs = [(arm, arm) for arm in inside] + [(baseline, arm) for arm in inside if arm != baseline in inside]
        left_out = {arm: [np.delete(labels, run, 0) for run in range(len(labels))] for arm, labels in inside.items()}
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
    return float(variability.vote_entropy(labels, classes).mean()) if labels.size else math.nan


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


# ------------------------------------------------------------------------------------------------------------ summary


def variability_rows(
    arms: Sequence[Represented],
    found: Agreement,
    pairs: Sequence[Mapping[str, Any]],
    similarities: Sequence[Mapping[str, Any]],
    cases: pd.DataFrame,
    *,
    confidence: float,
) -> list[dict[str, Any]]:
    """Tabulates all quantities of all arms, with leave-one-run-out intervals.

    Args:
        arms: The arms' runs and layers.
        found: The agreement of the runs' predictions.
        pairs: Rows of pairs.csv.
        similarities: Rows of similarity.csv.
        cases: The variant's rows of cases.csv.
        confidence: Confidence level of the intervals.
    """
    rows: list[dict[str, Any]] = []
    for arm in arms:
        for quantity in OF_PAIRS:
            own = [row for row in pairs if row["quantity"] == quantity and row["arm_a"] == row["arm_b"] == arm.arm]
            rows += _rows_of_pairs(arm, quantity, "", _matrix(own, arm.seeds), confidence)
        entropy = statistics.from_left_out(found.entropy[arm.arm], confidence=confidence)
        error = statistics.t_interval(found.error[arm.arm], confidence=confidence)
        rows += [_row(arm, "entropy", "", entropy), _row(arm, "error_rate", "", error)]
        own = [row for row in similarities if (row["comparison"], row["index"]) == ("within_arm", "cka")]
        own = [{**row, "value": 1 - row["value"]} for row in own if row["arm_a"] == arm.arm]
        by_layer = {layer: _matrix([r for r in own if r["layer"] == layer], arm.seeds) for layer in arm.layers}
        # A layer with too few points for its channels has no value, and is no part of the mean over layers. Of a run in
        # which another layer is constant, pairs have no value, and are no part of the mean over pairs (`n_pairs`).
        usable = [matrix for matrix in by_layer.values() if not np.isnan(matrix).all()]
        if usable:
            rows += _rows_of_pairs(arm, "representation_distance", "", np.mean(usable, axis=0), confidence)
        for layer, matrix in by_layer.items():
            rows += _rows_of_pairs(arm, "representation_distance", layer, matrix, confidence)
    return rows + _score_rows(arms, cases, confidence)


def _row(
    arm: Represented, quantity: str, layer: str, interval: statistics.Interval, num_pairs: int = 0
) -> dict[str, Any]:
    return {
        **{"arm": arm.arm, "quantity": quantity, "layer": layer, "value": interval.estimate},
        **{"ci_low": interval.low, "ci_high": interval.high},
        **{"n_seeds": len(arm.seeds), "n_pairs": num_pairs},
    }


def _rows_of_pairs(
    arm: Represented, quantity: str, layer: str, matrix: np.ndarray, confidence: float
) -> list[dict[str, Any]]:
    """The row of a quantity of pairs; none if no pair has a value."""
    known = ~np.isnan(matrix)
    if not known.any():
        return []
    mean = lambda kept: float(statistics.mean_of_pairs(matrix, kept))  # noqa: E731
    interval = statistics.jackknife(mean, len(matrix), confidence=confidence)
    return [_row(arm, quantity, layer, interval, int(known.sum()) // 2)]


def _score_rows(arms: Sequence[Represented], cases: pd.DataFrame, confidence: float) -> list[dict[str, Any]]:
    """Standard deviations of the runs' scores, over the groups in which every run has one."""
    rows = []
    for scores in read_scores(cases, ("dsc", "hd95", "assd")):
        for arm in arms if scores.label == MEAN else ():
            for metric in scores.metrics:
                groups = group_means(scores.of(arm.arm, metric), scores.groups)
                complete = np.isfinite(groups).all(0)
                if len(groups) > 1 and complete.any():
                    runs = groups[:, complete].mean(1)
                    rows.append(_row(arm, f"sd_{metric}", "", _spread(runs, confidence)))
    return rows


def _matrix(rows: Sequence[Mapping[str, Any]], own: Sequence[int]) -> Float[np.ndarray, "runs runs"]:
    """A symmetric matrix from rows of pairs; NaN for pairs that have none, and on the diagonal."""
    position = {seed: index for index, seed in enumerate(own)}
    matrix = np.full((len(own), len(own)), np.nan)
    for row in rows:
        i, j = position[row["seed_a"]], position[row["seed_b"]]
        matrix[i, j] = matrix[j, i] = row["value"]
    return matrix


def _spread(runs: Float[np.ndarray, " runs"], confidence: float) -> statistics.Interval:
    """Standard deviation over runs."""
    deviation = lambda kept: float(runs[kept].std(ddof=1))  # noqa: E731
    return statistics.jackknife(deviation, len(runs), confidence=confidence, log=True)
