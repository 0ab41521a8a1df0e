"""Made-up workdirs for the report: tables with the columns of the contract, and names that break careless pages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from jaxseg.study import claims, files
from jaxseg.study.claims.sentences import page_table
from jaxseg.study.claims.shown import READ
from jaxseg.study.claims.told import group_table
from jaxseg.study.score.comparisons import worst_cases
from jaxseg.study.score.power import variance

NASTY = (
    "scratch",
    "<script>alert('arm')</script>",
    "\"quoted\" & 'arm'",
    "$\\frac{1}{x}$ naïve-早い腕",
)
GAINS = (0.0, 0.03, -0.05, 0.012, 0.02, 0.018, 0.01, 0.015, -0.3, -0.02, 0.004, 0.022)


def write_workdir(
    directory: Path,
    *,
    arms: tuple[str, ...] = ("scratch", "transfer", "frozen_random_encoder"),
    sizes: tuple[int, ...] = (0,),
    seeds: int = 4,
    folds: int = 1,
    labels: tuple[str, ...] = ("anterior", "posterior"),
    n_cases: int = 12,
    case_name: str = "case_{:03d}",
    name: str = "quickstart",
    steps: int = 600,
    examples: int = 2,
    diverged: bool = False,
) -> Path:
    """Write every table of a finished study; the same arguments give the same bytes."""
    rng = np.random.default_rng(7)
    results = directory / "results"
    results.mkdir(parents=True)
    runs = [(arm, size, fold, seed) for arm in arms for size in sizes for fold in range(folds) for seed in range(seeds)]
    lost = runs[-1] if diverged else None
    cases = _cases(rng, runs, arms, labels, n_cases, case_name, lost)
    curves = _curves(rng, runs, arms, steps, lost)
    cases.to_csv(results / "cases.csv", index=False)
    curves.to_csv(results / "curves.csv", index=False)
    _convergence(curves, steps).to_csv(results / "convergence.csv", index=False)
    _summary(cases).to_csv(results / "summary.csv", index=False)
    variance(cases).to_csv(results / "variance.csv", index=False)
    worst_cases(cases).to_csv(results / "worst_cases.csv", index=False)
    if len(arms) > 1:
        _comparisons(cases, arms).to_csv(results / "comparisons.csv", index=False)
    _examples(rng, results, arms, sizes, labels, examples, case_name)
    for arm in arms:
        for size in sizes:
            for fold in range(folds):
                path = directory / "load_tables" / arm.replace("/", "_") / f"n{size}_fold{fold}.txt"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(
                    "parameter                       shape          what\n"
                    "encoder/level_0/conv_0/kernel   3x3x3x1x8      loaded\n"
                    "head/kernel                     1x1x1x8x3      re-initialised: source has 2 classes </pre>\n"
                    "loaded 97.6 % of 18,203 parameters\n"
                )
    (directory / "study.json").write_text(json.dumps(_study(arms, runs, labels, name, steps, n_cases, case_name, lost)))
    config = {
        "name": name,
        "analysis": {"confidence": 0.95, "target_fraction": 0.99},
        "train": {"steps": steps},
        "note": "</pre><b>bold</b>",
    }
    (directory / "config.json").write_text(json.dumps(config))
    return write_shown(directory)


def write_shown(directory: Path, *, confidence: float = 0.95) -> Path:
    """Write the tables that follow from the others, as the analysis does."""
    for name, table in claims.shown_tables(directory, confidence=confidence).items():
        table.to_csv(directory / "results" / f"{name}.csv", index=False)
    return directory


def write_claims(directory: Path) -> Path:
    """Write the verdicts and the answer, and what the page says of them beside the tables of `write_shown`."""
    results, study = directory / "results", claims.read_study(directory)
    claims.claims(study).to_csv(results / "claims.csv", index=False)
    group_table(study).to_csv(results / "test_groups.csv", index=False)
    read = {
        name: files.read_table(results / f"{name}.csv")
        for name in (*READ, "layers")
        if (results / f"{name}.csv").exists()
    }
    page_table({name: table for name, table in read.items() if len(table)}).to_csv(results / "page.csv", index=False)
    return directory


def _cases(rng, runs, arms, labels, n_cases, case_name, lost) -> pd.DataFrame:
    difficulty = rng.normal(0, 0.03, n_cases)
    rows: list[dict[str, Any]] = []
    for arm, size, fold, seed in runs:
        level = 0.9 + GAINS[arms.index(arm) % len(GAINS)] * (8 / (size or 64)) ** 0.3 - 0.1 * (4 / (size or 64)) ** 0.5
        run = rng.normal(0, 0.006)
        for case in range(n_cases):
            for k, label in enumerate(labels):
                dsc = float(np.clip(level + run + difficulty[case] - 0.02 * k + rng.normal(0, 0.01), 0, 1))
                status = "ok"
                if (arm, size, fold, seed) == lost or (case == 0 and k == 1 and rng.random() < 0.3):
                    dsc, status = 0.0, "missed"
                if case == 1 and k == 1:
                    dsc, status = (np.nan, "both_empty") if rng.random() < 0.7 else (0.0, "spurious")
                ok = status == "ok"
                rows.append(
                    {
                        "arm": arm, "seed": seed, "train_cases": size, "fold": fold, "case": case_name.format(case),
                        "group": f"patient {case // 2}", "label": label, "dsc": dsc,
                        "hd95": 10 * (1 - dsc) + 1 if ok else (60.0 if status in ("missed", "spurious") else np.nan),
                        "assd": 3 * (1 - dsc) if ok else np.nan, "nsd": np.nan, "unit": "mm",
                        "hd_definition": "pooled", "status": status,
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def _curves(rng, runs, arms, steps, lost) -> pd.DataFrame:
    rows = []
    for arm, size, fold, seed in runs:
        gain = GAINS[arms.index(arm) % len(GAINS)]
        tau = steps * (0.16 - 2 * gain if gain < 0.05 else 0.1)
        shift = rng.normal(0, 0.004)
        for step in range(0, steps + 1, 10):
            fell = (arm, size, fold, seed) == lost and step > steps // 3
            loss = 0.12 - gain + 1.4 * np.exp(-step / tau) + rng.normal(0, 0.04)
            dsc = 0.9 + gain + shift - 0.85 * np.exp(-step / tau) + rng.normal(0, 0.004)
            rows.append(
                {
                    "arm": arm, "seed": seed, "train_cases": size, "fold": fold, "step": step, "seconds": step * 0.04,
                    "loss": np.nan if fell else loss, "val_dsc": np.nan if fell or step % 30 else max(dsc, 0.0),
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def _convergence(curves: pd.DataFrame, steps: int) -> pd.DataFrame:
    target = 0.89
    rows = []
    for (arm, size, fold, seed), run in curves.dropna(subset=["val_dsc"]).groupby(
        ["arm", "train_cases", "fold", "seed"], sort=False
    ):
        reached = run[run["val_dsc"].rolling(3).median() >= target]
        step = reached["step"].min() if len(reached) else np.nan
        rows.append((arm, seed, size, fold, target, step, step * 0.04, not len(reached)))
    columns = ["arm", "seed", "train_cases", "fold", "target_dsc", "step", "seconds", "censored"]
    return pd.DataFrame(rows, columns=columns)


def _with_mean_label(cases: pd.DataFrame) -> pd.DataFrame:
    held = cases[cases["status"].isin(["ok", "missed"])]
    by = ["arm", "train_cases", "fold", "seed", "case", "group"]
    mean = held.groupby(by, sort=False)[["dsc", "hd95", "assd"]].mean().reset_index().assign(label="mean")
    return pd.concat([held, mean])


def _t_interval(values: np.ndarray) -> tuple[float, float, float, float]:
    values = np.asarray(values, float)
    if len(values) < 2:
        return float(np.mean(values)), np.nan, np.nan, np.nan
    sd = float(np.std(values, ddof=1))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * sd / len(values) ** 0.5
    return float(np.mean(values)), float(np.mean(values)) - half, float(np.mean(values)) + half, sd


def _with_pooled(cases: pd.DataFrame) -> pd.DataFrame:
    """Rows of all folds together come with fold -1 where there are several folds."""
    several = cases["fold"].nunique() > 1
    return (
        pd.concat([cases.assign(case=cases["case"] + cases["fold"].astype(str), fold=-1), cases]) if several else cases
    )


def _summary(cases: pd.DataFrame) -> pd.DataFrame:
    cases = _with_pooled(cases)
    rows = []
    for (arm, size, fold, label), own in _with_mean_label(cases).groupby(
        ["arm", "train_cases", "fold", "label"], sort=False
    ):
        raw = cases[(cases["arm"] == arm) & (cases["train_cases"] == size) & (cases["fold"] == fold)]
        raw = raw if label == "mean" else raw[raw["label"] == label]
        for metric in ("dsc", "hd95", "assd"):
            mean, low, high, sd = _t_interval(own.groupby("seed")[metric].mean().to_numpy())
            rows.append(
                {
                    "arm": arm, "train_cases": size, "fold": fold, "label": label, "metric": metric, "mean": mean,
                    "ci_low": low, "ci_high": high, "sd": sd, "n_seeds": own["seed"].nunique(),
                    "n_groups": own["group"].nunique(), "n_cases": own["case"].nunique(),
                    "n_missed": int((raw["status"] == "missed").sum()),
                    "n_spurious": int((raw["status"] == "spurious").sum()),
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def _comparisons(cases: pd.DataFrame, arms: tuple[str, ...]) -> pd.DataFrame:
    cases = _with_pooled(cases)
    rows = []
    for (size, fold, label), own in _with_mean_label(cases).groupby(["train_cases", "fold", "label"], sort=False):
        per_seed = own.groupby(["arm", "seed"])["dsc"].mean()
        for arm in arms[1:]:
            mean, low, high, _ = _t_interval((per_seed[arm] - per_seed[arms[0]]).to_numpy())
            rows.append(
                {
                    "metric": "dsc", "label": label, "train_cases": size, "fold": fold, "arm_a": arm, "arm_b": arms[0],
                    "mean_diff": mean, "ci_low": low, "ci_high": high, "p": 0.125, "p_maxt": 0.25,
                    "n_seeds": own["seed"].nunique(), "n_groups": own["group"].nunique(),
                    "n_cases": own["case"].nunique(), "inference": "seeds and groups",
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def _examples(rng, results: Path, arms, sizes, labels, n: int, case_name: str) -> None:
    entries, arrays = [], {}
    rows, columns = np.mgrid[:96, :112]
    for k in range(n):
        centre = (48 + 6 * k, 58 - 5 * k)

        def disc(radius: float, *, off: tuple[float, float] = (0, 0), at: tuple[int, int] = centre) -> np.ndarray:
            wobble = 1 + 0.12 * np.sin(3 * np.arctan2(rows - at[0], columns - at[1]))
            return ((rows - at[0] - off[0]) ** 2 + (columns - at[1] - off[1]) ** 2) ** 0.5 < radius * wobble

        reference = disc(18).astype(np.uint8) + (disc(9, off=(2, 3)) if len(labels) > 1 else 0)
        texture = rng.normal(0, 14, (96, 112)) + 40 * np.exp(-((rows - 48) ** 2 + (columns - 56) ** 2) / 1800)
        arrays[f"image_{k}"] = np.clip(60 + 55.0 * reference + texture, 0, 255).astype(np.uint8)
        arrays[f"reference_{k}"] = reference.astype(np.uint8)
        for i in range(len(arms)):
            guess = disc(17 + i % 4, off=(1 + i % 3, -1)).astype(np.uint8)
            guess += disc(8 + i % 3, off=(2, 1)) if len(labels) > 1 else 0
            arrays[f"prediction_{k}_{i}"] = guess.astype(np.uint8)
        entries.append(
            {
                "case": case_name.format(k), "label_names": list(labels), "slice_axis": 2, "slice_index": 12 + k,
                "arms": list(arms),
                "runs": {arm: {"seed": 0, "train_cases": sizes[-1], "fold": 0, "dsc": 0.81 + 0.01 * k} for arm in arms},
            }
        )  # fmt: skip
    (results / "examples.json").write_text(json.dumps(entries))
    np.savez_compressed(results / "examples.npz", **arrays)


def _pretrain(init: str) -> dict[str, Any] | None:
    return None if init == "random" else {"steps": 300, "share": "per_seed", "from_workdir": ""}


def _source(init: str, seed: int) -> dict[str, Any] | None:
    return None if init == "random" else {"arm": "source", "train_cases": 0, "fold": 0, "seed": seed}


def _study(arms, runs, labels, name, steps, n_cases, case_name, lost) -> dict[str, Any]:
    inits = {"transfer": "pretrained", "frozen_pretrained_encoder": "pretrained", "mean_var": "mean_var"}
    return {
        "name": name,
        "rule_version": 1,
        "versions": {"jax": "0.10.2", "jaxseg": "0.1.0.dev0", "numpy": "2.4.1"},
        "device": {"platform": "cpu", "kind": "x86-64", "count": 2},
        "git_commit": "0123456789abcdef0123456789abcdef01234567",
        "trained_on": [
            {
                "versions": {"jax": "0.11.2"},
                "device": {"platform": "gpu", "kind": "H100", "count": 1},
                "git_commit": None,
            }
        ],
        "source": {
            "name": "blobs <source>",
            "labels": ["blob"],
            "unit": "mm",
            "channels": 1,
            "normalization": ["zscore"],
            "cases": {"train": 24, "val": 6, "test": 0},
        },
        "target": {
            "name": "tubes & blobs",
            "labels": list(labels),
            "unit": "mm",
            "noise": 0.0,
            "channels": 1,
            "normalization": ["zscore"],
            "cases": {"train": 8, "val": 4, "test": n_cases},
            "splits": [{"train": [], "val": [], "test": [case_name.format(case) for case in range(n_cases)]}],
        },
        "arms": {
            arm: {
                "init": inits.get(arm, "pretrained" if arm == NASTY[1] else "random"),
                "freeze": "encoder" if "frozen" in arm else "none",
                "kind": "network",
                "schedule": "constant",
                "parameters": 18203,
                "trainable": 9100 if "frozen" in arm else 18203,
                "pretrain": _pretrain(inits.get(arm, "pretrained" if arm == NASTY[1] else "random")),
            }
            for arm in arms
        },
        "runs": [
            {
                "kind": "train", "arm": arm, "train_cases": size, "fold": fold, "seed": seed,
                "directory": "train/g/chunk_0", "index": i, "steps": steps, "subset_id": seed,
                "source": _source(inits.get(arm, "pretrained" if arm == NASTY[1] else "random"), seed),
                "diverged_at": steps // 3 if (arm, size, fold, seed) == lost else None,
            }
            for i, (arm, size, fold, seed) in enumerate(runs)
        ]
        + [
            {
                "kind": "pretrain", "arm": "source", "train_cases": 0, "fold": 0, "seed": seed, "steps": 300,
                "directory": "train/pretrain/chunk_0", "index": i, "source": None, "diverged_at": None,
            }
            for i, seed in enumerate(sorted({run[3] for run in runs}))
        ],
        "timing": {"prepare": 3.1, "pretrain": 41.0, "train": 83.4, "evaluate": 12.0},
        "parts": {"pretrain": {"compile": 9.5, "validate": 2.25}, "train": {"compile": 17.25, "validate": 6.5}},
        "programs": [
            {"stage": "train", "name": "chunk", "number": 1, "cached": 0}
            | {"traced": 1.75, "lowered": 0.45, "compiled": 12.65},
            {"stage": "train", "name": "", "number": 38, "cached": 13}
            | {"traced": 0.35, "lowered": 0.15, "compiled": 1.95},
        ],
        "exclusions": [{"case": f"<b>{case_name.format(99)}</b>", "reason": "label value 7 is not in dataset.json"}],
        "train": {"steps": steps},
    }  # fmt: skip
