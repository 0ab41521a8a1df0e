"""Simulated studies whose truth is set: the tables of a workdir's results, with as much chance in them as real ones.

Each maker draws the tables that one kind of claim needs. Runs are points: an arm has a centre, a seed an effect of its
own, and what the tables hold follows from these, so that pairs of runs share what they share in a real study.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from jaxseg.study.claims.study_tables import ArmRecord, Record, StudyTables

LAYERS = ("encoder/level_0", "encoder/level_1", "encoder/level_2", "decoder/level_1", "decoder/level_0")
STEPS, EVERY = 3000, 60


def arm(**changes) -> ArmRecord:
    """An arm as a study at a constant rate has it."""
    usual = ArmRecord("network", "constant", STEPS, 0, one_source=False, diverged=0, runs=8)
    return usual._replace(**changes)


def record(*arms: str, full_size: int = 64, target: str = "hippo", **changed) -> Record:
    """A record of arms; what stands in `changed` differs."""
    known = {name: arm(kind="prior" if name == "prior" else "network") for name in arms}
    if "transfer" in known:
        known["transfer"] = known["transfer"]._replace(pretrain_steps=1500)
    return Record(target, "blobs", full_size, known | changed, 2)


def study(rec: Record, **tables: pd.DataFrame) -> StudyTables:
    """A study of these tables."""
    return StudyTables(rec, tables)


def merged(*studies: StudyTables) -> StudyTables:
    """One study with the arms and tables of all."""
    arms = {name: one for s in studies for name, one in s.record.arms.items()}
    tables = {
        name: pd.concat([s.tables[name] for s in studies if name in s.tables]) for s in studies for name in s.tables
    }
    return StudyTables(studies[0].record._replace(arms=arms), tables)


def in_folds(made: StudyTables, rng: np.random.Generator, *, folds: int = 2, apart: float = 0.05) -> StudyTables:
    """The same study where folds rotate over seeds: networks are compared on the test cases of one fold alone.

    Args:
        made: A study with similarity.csv or pairs.csv, of seeds from 0 on.
        rng: of the scores, which say where a seed was tested.
        folds: a seed has the fold of its number modulo these.
        apart: standard deviation of what the folds' test cases make similarities and distances differ by.
    """
    levels, tables = apart * rng.normal(size=folds), {}
    for name, rows in made.tables.items():
        own = rows[rows["seed_a"] % folds == rows["seed_b"] % folds]
        fold = own["seed_a"].to_numpy() % folds
        tables[name] = own.assign(fold=fold, value=own["value"] + levels[fold])
    seeds = 1 + max(int(rows["seed_a"].max()) for rows in tables.values())
    tables["cases"] = cases(rng, {name: {0: 0.8} for name in made.record.arms}, seeds=seeds, folds=folds, rotate=True)
    return study(made.record, **tables)


def _keys(table: pd.DataFrame, size: int = 0, fold: int = 0) -> pd.DataFrame:
    return table.assign(train_cases=size, fold=fold)


# ---------------------------------------------------------------------------------------------------------------- cases


Spread = tuple[float, float, float]


def cases(
    rng: np.random.Generator,
    levels: Mapping[str, Mapping[int, float]],
    *,
    seeds: int = 8,
    groups: int = 12,
    spread: Spread | Mapping[int, Spread] = (0.006, 0.006, 0.01),
    skew: float = 0.0,
    first_seed: Mapping[str, int] | None = None,
    folds: int = 1,
    rotate: bool = False,
) -> pd.DataFrame:
    """cases.csv: DSC by arm and training set size, with effects of seed, group and their interaction in each arm.

    Args:
        rng: of all draws.
        levels: mean DSC of each arm at each size.
        seeds: runs of an arm.
        groups: of one case each, in each fold.
        spread: standard deviations of an arm's seed and group effects and of the residual, for all sizes or for each.
        skew: effects are gamma-distributed with this skewness; negative: a tail of bad ones.
        first_seed: of arms whose seeds do not start at 0.
        folds: test groups of each fold are others.
        rotate: a seed is tested on one fold, its number modulo the folds, rather than on all.
    """

    def draw(size):
        if skew == 0:
            return rng.normal(size=size)
        shape = 4 / skew**2
        return np.sign(skew) * (rng.gamma(shape, size=size) - shape) / np.sqrt(shape)

    by_case = 0.05 * rng.normal(size=(folds, 1, groups))
    parts = []
    for name, by_size in levels.items():
        one = 0.0 if name == "prior" else 1.0
        for size, level in by_size.items():
            sd = spread[size] if isinstance(spread, Mapping) else spread
            effect = sd[0] * draw((folds, seeds, 1)) + sd[2] * draw((folds, seeds, groups))
            dsc = level + by_case + one * effect + sd[1] * draw((folds, 1, groups))
            fold, seed, group = np.indices(dsc.shape).reshape(3, -1)
            names = np.char.add(np.char.add("f", fold.astype(str)), np.char.add("g", group.astype(str)))
            kept = (seed % folds == fold) if rotate else np.ones(seed.shape, bool)
            parts.append(
                pd.DataFrame(
                    {
                        **{"arm": name, "seed": seed + (first_seed or {}).get(name, 0), "train_cases": size},
                        **{"fold": fold, "case": names, "group": names, "label": "a", "status": "ok"},
                        "dsc": dsc.ravel(),
                    }
                )[kept]
            )
    return pd.concat(parts, ignore_index=True)


# --------------------------------------------------------------------------------------------------------------- curves


REST = 0.002
"""What an arm at rest still gains in the last doubling of its steps."""
POWER = 0.7


def curves(
    rng: np.random.Generator,
    speeds: Mapping[str, float],
    *,
    seeds: int = 8,
    every: int = EVERY,
    gain: float | Mapping[str, float] = REST,
    level: float = 0.88,
    power: float = POWER,
    level_sd: float = 0.004,
    spread: float = 0.15,
    noise: float = 0.006,
    first_seed: Mapping[str, int] | None = None,
) -> pd.DataFrame:
    """curves.csv: V + u - A e^a (speed t)^-b with noise, as fitted to published curves of a constant rate.

    Args:
        rng: of all draws.
        speeds: of each arm: one of speed 2 is after half of the steps where the other is at its end.
        seeds: runs of an arm.
        every: steps between validations.
        gain: of an arm of speed 1 in the last doubling of its steps, which gives A; for all arms or for each.
        level: V, which runs approach.
        power: b.
        level_sd: sd of u over runs.
        spread: sd of a over runs.
        noise: sd of a validation.
        first_seed: of arms whose seeds do not start at 0.
    """
    parts = []
    steps = np.arange(every, STEPS + 1, every)
    for name, speed in speeds.items():
        own = gain[name] if isinstance(gain, Mapping) else gain
        amplitude = own / (2**power - 1) * np.exp(spread * rng.normal(size=(seeds, 1)))
        final = level + level_sd * rng.normal(size=(seeds, 1))
        dsc = final - amplitude * (speed * steps / STEPS) ** -power
        dsc = dsc + noise * rng.normal(size=dsc.shape)
        seed, step = np.indices(dsc.shape).reshape(2, -1)
        parts.append(
            pd.DataFrame(
                {
                    **{"arm": name, "seed": seed + (first_seed or {}).get(name, 0), "step": steps[step]},
                    **{"seconds": 0.1 * steps[step], "loss": 1 - dsc.ravel(), "val_dsc": dsc.ravel()},
                }
            )
        )
    return _keys(pd.concat(parts, ignore_index=True))


def at_sizes(table: pd.DataFrame, sizes: Sequence[int]) -> pd.DataFrame:
    """The same rows at several training set sizes."""
    return pd.concat([table.assign(train_cases=size) for size in sizes], ignore_index=True)


# -------------------------------------------------------------------------------------------------------------- filters

CONVOLUTIONS = ("encoder/level_0/conv_0", "encoder/level_0/conv_1", "encoder/level_1/conv_0", "decoder/level_0/conv_0")
FILTERS = (8, 8, 32, 8)


def filters(
    rng: np.random.Generator,
    arms: Sequence[str],
    *,
    seeds: int = 8,
    angle: float = 20.0,
    distribution: float = 0.0,
    arrangement: float = 0.0,
    spectrum: float = 0.0,
    auc: float = 0.5,
    spread: float = 1.0,
    growing: float = 0.0,
) -> pd.DataFrame:
    """filters.csv at the end and halfway: the encoder's layers around these values.

    `spread` scales the chance of runs and layers, `growing` the angle's share that came in the second half.
    """
    shape = (len(arms), seeds, len(CONVOLUTIONS))
    a, s, layer = np.indices(shape).reshape(3, -1)

    def around(value, sd):
        runs = rng.normal(size=(*shape[:2], 1))
        return (value + spread * sd * (runs + 0.5 * rng.normal(size=shape))).ravel()

    end = _keys(
        pd.DataFrame(
            {
                **{"arm": np.array(arms)[a], "seed": s, "layer": np.array(CONVOLUTIONS)[layer], "taps": 27},
                **{"filters": np.array(FILTERS)[layer], "trained": True, "angle_deg": around(angle, 3.0)},
                **{"distribution_start": around(0.0, 0.001), "distribution_end": around(distribution, 0.004)},
                **{"moran_end": around(arrangement, 0.005) - 0.01, "moran_expected": -0.01},
                **{"spectral_start": around(0.0, 0.002), "spectral_end": around(spectrum, 0.01)},
                **{"auc_permuted": around(auc, 0.02), "step": STEPS},
            }
        )
    )
    half = end.assign(step=STEPS // 2, angle_deg=end["angle_deg"] * (1 - growing))
    for name in ("angle_deg", "distribution_end", "moran_end", "spectral_end", "auc_permuted"):
        half[name] += spread * 0.002 * rng.normal(size=len(half))
    return pd.concat([end, half], ignore_index=True)


def filter_controls(share: float = 0.2) -> pd.DataFrame:
    """filter_controls.csv: every test finds its control at this share, but in the first layer."""
    rows = [
        ("scratch", layer, name, share if index else np.nan)
        for index, layer in enumerate(CONVOLUTIONS)
        for name in ("distribution", "arrangement", "spectrum", "auc")
    ]
    return _keys(pd.DataFrame(rows, columns=["arm", "layer", "quantity", "smallest_share"]))


# ----------------------------------------------------------------------------------------------------------- similarity


def _rows(comparison, index, arms, seeds, steps, values) -> pd.DataFrame:
    """Rows of similarity.csv from values [layer, pair]."""
    layer, pair = np.indices(values.shape).reshape(2, -1)
    return pd.DataFrame(
        {
            **{"layer": np.array(LAYERS)[layer], "comparison": comparison, "index": index, "value": values.ravel()},
            **{"arm_a": arms[0], "seed_a": seeds[0][pair], "step_a": steps[0]},
            **{"arm_b": arms[1], "seed_b": seeds[1][pair], "step_b": steps[1]},
        }
    )


def own_starts(
    rng: np.random.Generator, arms: Sequence[str], rhos: Mapping[str, float], *, seeds: int = 8, floor: float = 0.4
) -> pd.DataFrame:
    """similarity.csv: ends against own starts, rho above the floor by index, and against others' starts, the floor."""
    parts, every = [], np.arange(seeds)
    a, b = (side.ravel() for side in np.meshgrid(every, every, indexing="ij"))
    for name in arms:
        for index, rho in rhos.items():
            run = 0.03 * rng.normal(size=(len(LAYERS), seeds))  # a run's end is near or far from all starts
            own = floor + rho * (1 - floor) + run + 0.03 * rng.normal(size=run.shape)
            other = floor + run[:, a] + 0.03 * rng.normal(size=(len(LAYERS), seeds))[:, b]
            other += 0.02 * rng.normal(size=other.shape)
            parts.append(_rows("own_start", index, (name, name), (every, every), ("end", "start"), own))
            different = a != b
            pairs = (a[different], b[different])
            parts.append(_rows("other_start", index, (name, name), pairs, ("end", "start"), other[:, different]))
    return _keys(pd.concat(parts, ignore_index=True))


def points(
    rng: np.random.Generator, *, seeds: int = 8, shift: float = 0.0, scale: float = 1.0, shared: float = 0.3, k: int = 6
) -> dict[str, np.ndarray]:
    """Runs of two arms as points [layer, seed, k], with mean squared distance 2 within scratch.

    Args:
        rng: of all draws.
        seeds: runs of an arm.
        shift: squared distance of the arms' centres, in that within scratch: the excess of C9.
        scale: mean squared distance within transfer, in that within scratch: the ratio of C10.
        shared: correlation of the two runs of a seed.
        k: dimensions.
    """
    # The same in all layers: what one run is like, it is like throughout.
    common = rng.normal(size=(1, seeds, k)).repeat(len(LAYERS), 0)
    own = [np.sqrt(shared) * common + np.sqrt(1 - shared) * rng.normal(size=(1, seeds, k)) for _ in range(2)]
    centre = np.sqrt(2 * shift / k)
    return {"scratch": own[0] / np.sqrt(k), "transfer": np.sqrt(scale / k) * own[1] + centre}


def nested_points(
    rng: np.random.Generator, *, sources: int = 8, runs: int = 2, ratio: float = 1.0, between: float = 0.0, k: int = 30
) -> dict[str, np.ndarray]:
    """Runs of two arms as points [layer, seed, k]: transferred ones lie around their source network.

    Args:
        rng: of all draws.
        sources: source networks.
        runs: fine-tunings of each; seeds of one source follow each other.
        ratio: mean squared distance within a source, in that among scratch: the ratio of C10.
        between: squared distance of two sources, in the same.
        k: dimensions.
    """
    count = sources * runs
    scratch = rng.normal(size=(1, count, k))
    centre = np.sqrt(between) * rng.normal(size=(1, sources, k)).repeat(runs, 1)
    arms = {"scratch": scratch, "transfer": centre + np.sqrt(ratio) * rng.normal(size=(1, count, k))}
    return {name: (at / np.sqrt(k)).repeat(len(LAYERS), 0) for name, at in arms.items()}


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.sum((a[:, :, None] - b[:, None, :]) ** 2, -1)


def between_runs(
    of: Mapping[str, np.ndarray], *, unit: float = 0.1, first_seed: Mapping[str, int] | None = None
) -> pd.DataFrame:
    """similarity.csv of points: both indexes are 1 less `unit` times the squared distance."""
    parts, names, start = [], list(of), first_seed or {}
    for i, first in enumerate(names):
        for second in names[i:]:
            s = 1 - unit * _distances(of[first], of[second])
            a, b = np.triu_indices(s.shape[1], 1) if first == second else np.indices(s.shape[1:]).reshape(2, -1)
            kind = "within_arm" if first == second else "across_arms"
            seeds = (a + start.get(first, 0), b + start.get(second, 0))
            for index in ("cka_cases", "procrustes"):
                parts.append(_rows(kind, index, (first, second), seeds, ("end", "end"), s[:, a, b]))
    return _keys(pd.concat(parts, ignore_index=True))


def pairs(of: Mapping[str, Mapping[str, np.ndarray]]) -> pd.DataFrame:
    """pairs.csv of points of each quantity."""
    parts = []
    for name, arms in of.items():
        for own, at in arms.items():
            d = _distances(at, at).mean(0)
            a, b = np.triu_indices(len(d), 1)
            parts.append(
                pd.DataFrame(
                    {
                        **{"quantity": name, "arm_a": own, "seed_a": a, "arm_b": own, "seed_b": b},
                        "value": d[a, b],
                    }
                )
            )
    return _keys(pd.concat(parts, ignore_index=True))


def to_source(
    rng: np.random.Generator, reuse: Sequence[float], *, seeds: int = 8, floor: float = 0.4, sd: float = 0.05
) -> pd.DataFrame:
    """similarity.csv: ends of transfer against their source networks, of scratch against those of other seeds.

    `reuse` is rho of each layer.
    """
    parts, every = [], np.arange(seeds)
    network = sd * rng.normal(size=(len(LAYERS), seeds))  # some source networks are nearer to anything
    a, b = np.nonzero(~np.eye(seeds, dtype=bool))
    for index in ("cka", "cka_cases"):
        noise = sd * rng.normal(size=(len(LAYERS), seeds, seeds))
        unrelated = (floor + network[:, None, :] + noise)[:, a, b]
        own = floor + (1 - floor) * np.asarray(reuse)[:, None] + network + sd * rng.normal(size=network.shape)
        parts.append(_rows("to_other_source", index, ("scratch", "transfer"), (a, b), ("end", "start"), unrelated))
        parts.append(_rows("to_source", index, ("transfer", "transfer"), (every, every), ("end", "start"), own))
    return _keys(pd.concat(parts, ignore_index=True))
