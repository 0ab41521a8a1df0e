"""Made-up tables of the analyze stage, believable and without any trained network."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd

from tests.report.tables_builder import write_shown

LAYERS = ("encoder/level_0", "encoder/level_1", "encoder/level_2", "decoder/level_1", "decoder/level_0")
KERNELS = (
    *("encoder/level_0/conv_0", "encoder/level_0/conv_1", "encoder/level_1/conv_0", "encoder/level_1/conv_1"),
    *("encoder/level_2/conv_0", "encoder/level_2/conv_1", "decoder/level_1/conv_0", "decoder/level_1/conv_1"),
    *("decoder/level_0/conv_0", "decoder/level_0/conv_1", "head"),
)
INDICES = ("cka", "cka_debiased", "procrustes")


def write_analysis(
    directory: Path,
    *,
    arms: tuple[str, ...] = ("scratch", "transfer", "frozen_random_encoder"),
    sizes: tuple[int, ...] = (0,),
    seeds: int = 4,
    layers: tuple[str, ...] = LAYERS,
    kernels: tuple[str, ...] = KERNELS,
    claims: bool = True,
) -> Path:
    """Write the tables beside those of `write_workdir`; the same arguments give the same bytes."""
    rng = np.random.default_rng(11)
    results = directory / "results"
    tables = {
        "filters": _filters(rng, arms, sizes, seeds, kernels),
        "filter_controls": _filter_controls(rng, arms, sizes, kernels),
        "rewind": _rewind(rng, arms, sizes, seeds, kernels),
        "similarity": _similarity(rng, arms, sizes, seeds, layers),
        "layer_similarity": _layer_similarity(rng, arms, sizes, layers),
        "interpolation": _interpolation(rng, arms, sizes, seeds),
        "variability": _variability(rng, arms, sizes, seeds, layers),
    }
    if claims:
        tables["claims"] = claims_table(seeds)
    for name, table in tables.items():
        table.to_csv(results / f"{name}.csv", index=False)
    _pictures(rng, results, arms)
    return write_shown(directory)


def _runs(arms, sizes, seeds):
    return [(k, arm, size, seed) for k, arm in enumerate(arms) for size in sizes for seed in range(seeds)]


def _filters(rng, arms, sizes, seeds, kernels) -> pd.DataFrame:
    rows = []
    for k, arm, size, seed in _runs(arms, sizes, seeds):
        for i, layer in enumerate(kernels):
            taps = 1 if layer == "head" else 27
            channels = 1 if i == 0 else 8 * 2 ** (i // 4)
            frozen = "frozen" in arm and layer.startswith("encoder")
            moved = 0.0 if frozen else abs((0.9 - 0.15 * k) * (0.35 + 0.06 * (i % 5)) + rng.normal(0, 0.03))
            spatial = taps > 1
            rows.append(
                {
                    "arm": arm, "seed": seed, "train_cases": size, "fold": 0, "layer": layer, "taps": taps,
                    "channels": channels, "filters": 8, "trained": not frozen, "angle_deg": 57 * moved,
                    "angle_q25": 50 * moved, "angle_q75": 64 * moved, "angle_of_null": 90.0,
                    "angle_null_sd": 57.3 / (taps * channels) ** 0.5, "relative_change": 1.1 * moved,
                    "relative_change_of_null": 2**0.5, "norm_ratio": 1 + 0.3 * moved,
                    "distribution_start": rng.normal(0, 0.003), "distribution_end": 0.03 * moved + rng.normal(0, 0.003),
                    "moran_start": -1 / 26 + rng.normal(0, 0.01) if spatial else np.nan,
                    "moran_end": -1 / 26 + 0.12 * moved if spatial else np.nan,
                    "moran_expected": -1 / 26 if spatial else np.nan, "moran_p": 0.2 if spatial else np.nan,
                    "centre_start": 1 / 27 if spatial else np.nan, "centre_end": 0.04 if spatial else np.nan,
                    "centre_of_null": 1 / 27 if spatial else np.nan, "spectral_start": abs(rng.normal(0, 0.005)),
                    "spectral_end": 0.08 * moved,
                    **dict.fromkeys(("auc", "auc_permuted"), 0.5 + 0.25 * moved if seeds > 1 else np.nan),
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def _filter_controls(rng, arms, sizes, kernels) -> pd.DataFrame:
    rows = [
        (size, 0, arms[0], layer, quantity, rng.choice([0.1, 0.2, 0.3, 0.4, np.nan]))
        for size in sizes
        for layer in kernels
        for quantity in ("distribution", "arrangement", "spectrum", "auc")
    ]
    return pd.DataFrame(rows, columns=["train_cases", "fold", "arm", "layer", "quantity", "smallest_share"])


def _rewind(rng, arms, sizes, seeds, kernels) -> pd.DataFrame:
    rows = []
    for _, arm, size, seed in _runs(arms, sizes, seeds):
        for i, layer in enumerate(kernels):
            drop = 0.0 if "frozen" in arm and layer.startswith("encoder") else 0.4 * np.exp(-i) + rng.normal(0, 0.01)
            rows.append((arm, seed, size, 0, layer, 0.85, 0.85 - drop, drop))
    return pd.DataFrame(rows, columns=["arm", "seed", "train_cases", "fold", "layer", "dsc", "dsc_rewound", "drop"])


def _similarity(rng, arms, sizes, seeds, layers) -> pd.DataFrame:
    everyone = range(seeds)
    rows = []

    def add(comparison: str, a: tuple, b: tuple, size: int, level: float) -> None:
        for i, layer in enumerate(layers):
            n_neurons = 8 * 2 ** (i % 3)
            few = layer == layers[len(layers) // 2] and size == 4  # too few points for its channels
            for index in INDICES:
                value = np.clip(level - 0.03 * i + rng.normal(0, 0.015) - 0.05 * (index == "procrustes"), 0, 1)
                rows.append((layer, comparison, *a, *b, size, 0, index, np.nan if few else value, 2048, n_neurons))

    for size in sizes:
        for k, arm in enumerate(arms):
            for seed in everyone:
                add("own_start", (arm, seed, "end"), (arm, seed, "start"), size, 0.8 + 0.05 * k)
                if arm == "transfer":
                    add("to_source", (arm, seed, "end"), (arm, seed, "start"), size, 0.9)
            for a, b in itertools.permutations(everyone, 2):
                add("other_start", (arm, a, "end"), (arm, b, "start"), size, 0.45)
                if arm == arms[0]:
                    add("to_other_source", (arm, a, "end"), ("transfer", b, "start"), size, 0.55)
            for a, b in itertools.combinations(everyone, 2):
                add("within_arm", (arm, a, "end"), (arm, b, "end"), size, 0.72 + 0.03 * k)
        for a, b in itertools.combinations(everyone, 2):
            add("starts", (arms[0], a, "start"), (arms[0], b, "start"), size, 0.4)
            add("starts", ("transfer", a, "start"), ("transfer", b, "start"), size, 0.9)
        for one, other in itertools.combinations(arms, 2):
            for a, b in itertools.product(everyone, repeat=2):
                add("across_arms", (one, a, "end"), (other, b, "end"), size, 0.62 + 0.3 * (a == b))
    columns = ["layer", "comparison", "arm_a", "seed_a", "step_a", "arm_b", "seed_b", "step_b", "train_cases", "fold"]
    return pd.DataFrame(rows, columns=[*columns, "index", "value", "n_points", "n_neurons"])


def _layer_similarity(rng, arms, sizes, layers) -> pd.DataFrame:
    rows = [
        (arm, 0, size, 0, a, b, "cka", 1.0 if a == b else float(np.exp(-0.4 * abs(i - j)) * rng.uniform(0.8, 1)))
        for arm in arms
        for size in sizes
        for (i, a), (j, b) in itertools.product(enumerate(layers), repeat=2)
        if i <= j
    ]
    return pd.DataFrame(rows, columns=["arm", "seed", "train_cases", "fold", "layer_a", "layer_b", "index", "value"])


def _interpolation(rng, arms, sizes, seeds) -> pd.DataFrame:
    rows = []
    for k, arm in enumerate(arms):
        for size, (a, b) in itertools.product(sizes, itertools.combinations(range(seeds), 2)):
            height, ends = (0.9 - 0.3 * k) * rng.uniform(0.8, 1.2), rng.uniform(0.2, 0.25, 2)
            for alpha in np.linspace(0, 1, 11):
                loss = (1 - alpha) * ends[0] + alpha * ends[1] + 4 * height * alpha * (1 - alpha)
                rows.append((size, 0, arm, a, b, alpha, loss))
    return pd.DataFrame(rows, columns=["train_cases", "fold", "arm", "seed_a", "seed_b", "alpha", "loss"])


def _variability(rng, arms, sizes, seeds, layers) -> pd.DataFrame:
    levels = {
        "disagreement": 0.05, "pairwise_dsc": 0.9, "entropy": 0.04, "error_rate": 0.07, "parameter_distance": 1.2,
        "barrier": 0.8, "representation_distance": 0.3, "sd_dsc": 0.006, "sd_hd95": 0.4, "sd_assd": 0.1,
    }  # fmt: skip
    rows = []
    for size, (k, arm) in itertools.product(sizes, enumerate(arms)):
        for quantity, level in levels.items():
            for layer in ("", *layers) if quantity == "representation_distance" else ("",):
                value = level * (1 - 0.1 * k) * rng.uniform(0.95, 1.05)
                sure = 0.1 * value if seeds > 2 else np.nan
                n_pairs = seeds * (seeds - 1) // 2
                rows.append((arm, size, 0, quantity, layer, value, value - sure, value + sure, seeds, n_pairs))
    columns = ["arm", "train_cases", "fold", "quantity", "layer", "value", "ci_low", "ci_high", "n_seeds", "n_pairs"]
    return pd.DataFrame(rows, columns=columns)


def claims_table(seeds: int) -> pd.DataFrame:
    """Claims with every kind of row and verdict; numbers and names that break careless pages."""
    few = f"needs at least 8 seeds, has {seeds}" if seeds < 8 else ""
    claims = [
        ("C1", "transfer shortens training", "transfer", [("steps, scratch / transfer", 2.13, 1.6, 2.9)], "supported"),
        ("C2", "the gain depends on task and data", "transfer", [], "undecided"),
        ("C4b", "no gain at full size", "transfer", [("gain at full size", 0.021, 0.013, 0.029)], "contradicted"),
        ("C5", "filters change little", "scratch", [("median angle, degrees", 21.4, 18.0, 24.8)], "supported"),
        (
            "C11", "feature reuse is not only early", "transfer",
            [*((f"reuse, encoder/level_{i}", 0.8 - 0.1 * i, 0.7 - 0.1 * i, 0.9 - 0.1 * i) for i in range(2, 6)),
             ("reuse, mean of early levels", 0.75, 0.65, 0.85)],
            "supported",
        ),
    ]  # fmt: skip
    rows = [
        _claim(
            claim,
            statement,
            "claim",
            arm,
            quantity,
            "undecided" if few else verdict,
            few or "limit < 1 & rest",
            seeds,
        )
        for claim, statement, arm, quantities, verdict in claims
        for quantity in quantities or [("", np.nan, np.nan, np.nan)]
    ]
    placebo = ("steps of scratch / scratch_b", 1.02, 0.9, 1.15)
    why = "placebo: only its seeds differ from scratch"
    rows.append(_claim("C1", claims[0][1], "control", "scratch_b", placebo, "undecided", why, seeds))
    other = ("steps of scratch / transfer", 3.3, 2.0, 5.5)
    rows.append(_claim("C1", claims[0][1], "other size", "transfer", other, "", "", seeds, size=8))
    nothing = ("", np.nan, np.nan, np.nan)
    rows.append(
        _claim("answer", "transfer on tubes", "answer", "transfer", nothing, "", "transfer here: +0.015 DSC", seeds)
    )
    return pd.DataFrame(rows)


def _claim(claim, statement, role, arm, quantity, verdict, reason, seeds, size=0) -> dict[str, object]:
    name, value, low, high = quantity
    return {
        "claim": claim, "statement": statement, "role": role, "arm": arm, "baseline": "scratch", "quantity": name,
        "value": value, "ci_low": low, "ci_high": high, "verdict": verdict, "reason": reason, "rule_version": 2,
        "n_seeds": seeds, "n_groups": 6, "train_cases": size, "fold": 0, "grade": "", "tag": "at rest", "needs": "",
        "projected_low": np.nan, "projected_high": np.nan, "look": np.nan, "exploratory": False,
        "confidence": 0.95, "key": name,
    }  # fmt: skip


def _pictures(rng, results: Path, arms) -> None:
    arrays: dict[str, np.ndarray] = {}
    montages, slices = [], []
    for i, arm in enumerate(arms):
        for layer, shape in ((KERNELS[0], (1, 8, 3, 3)), (KERNELS[5], (8, 8, 3, 3))):
            entry = {"arm": arm, "layer": layer, "seed": 0, "relative_change": 0.1 + 0.01 * i}
            start = rng.normal(0, 0.2, shape)
            smooth = np.ones((3, 3)) * rng.normal(0, 0.2, (*shape[:2], 1, 1))
            kinds = {"start": start, "end": start + rng.normal(0, 0.06, shape), "control": 0.6 * start + smooth}
            for kind, values in kinds.items():
                key = f"filters_{i}_{layer.replace('/', '_')}_{kind}"
                arrays[key], entry[f"key_{kind}"] = values.astype(np.float32), key
            montages.append(entry)
    rows, columns = np.mgrid[:80, :96]
    for k in range(2):
        far = ((rows - 40) ** 2 + (columns - 48 - 6 * k) ** 2) ** 0.5
        image = np.clip(90 + 80 * (far < 16) + rng.normal(0, 12, far.shape), 0, 255).astype(np.uint8)
        arrays[f"image_{k}"], arrays[f"reference_{k}"] = image, (far < 16).astype(np.uint8)
        keys = {}
        for i, arm in enumerate(arms):
            ring = np.clip(0.5 - abs(far - 16 - i) / 6, 0, 0.5) * (rng.random(far.shape) < 0.8)
            keys[arm] = f"share_{k}_{i}"
            arrays[keys[arm]] = ring.astype(np.float32)
        slices.append(
            {
                "case": f"case_{k:03d}",
                "key_image": f"image_{k}",
                "key_reference": f"reference_{k}",
                "arms": keys,
                "differing": {arm: 0.05 + 0.01 * i for i, arm in enumerate(arms)},
            }
        )
    (results / "analysis.json").write_text(json.dumps({"montages": montages, "disagreement": slices}))
    np.savez_compressed(results / "analysis.npz", **arrays)
