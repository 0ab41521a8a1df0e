"""Analyses of runs that share starts: two orders to each source network, looked at after half of the steps too."""

from __future__ import annotations

import dataclasses
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from configs import default
from jaxseg import settings, trees
from jaxseg.analysis import statistics
from jaxseg.study import files
from jaxseg.study.plan.planned import PlannedStudy, prepare
from jaxseg.study.probe import filters, pictures, readout, representations, spread
from jaxseg.study.probe.networks import Networks, read_networks
from jaxseg.study.probe.probes import make_probes, rng_for, shown_cases
from jaxseg.study.probe.representations import Features, Represented
from jaxseg.study.probe.variation import Agreement, Predicted
from jaxseg.study.run import STAGES, run_stages
from jaxseg.study.score.units import Sources
from tests.tiny_study import silent, tiny_config

ARM = "nested"
LAYERS = ("encoder/level_0", "encoder/level_1", "decoder/level_0")


def nested_config():
    made = tiny_config()
    made.target.data = "synthetic:blobs?n=12&shape=16x16"
    made.target.test_cases = 4
    made.analysis.half = True
    made.arms = default.pick_arms("scratch")
    made.num_seeds = 4
    made.arms[ARM] = default.arm("pretrained", "none", pretrain={"runs_per_source": 2})
    return made


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("nested")
    run_stages(nested_config(), folder, stages=[stage for stage in STAGES if stage != "report"], progress=silent)
    return folder


@pytest.fixture(scope="module")
def ready(workdir: Path) -> PlannedStudy:
    return prepare(settings.parse(nested_config()), workdir, silent("prepare"))


@pytest.fixture(scope="module")
def networks(ready: PlannedStudy) -> Networks:
    return next(found for found in read_networks(ready, 0, 0) if found.arm == ARM)


def table(workdir: Path, name: str) -> pd.DataFrame:
    return files.read_table(workdir / "results" / f"{name}.csv")


def test_pairs_say_which_source_networks_their_runs_started_from(workdir, networks):
    assert networks.source_seeds == (0, 0, 1, 1)
    pairs = table(workdir, "pairs").query("arm_a == @ARM and arm_b == @ARM")
    assert set(pairs["quantity"]) >= {"barrier_aligned", "parameter_distance_aligned", "disagreement"}
    of = dict(zip(networks.seeds, networks.source_seeds, strict=True))
    for side in "ab":
        np.testing.assert_array_equal(pairs[f"source_{side}"], pairs[f"seed_{side}"].map(of))
    within = pairs["source_a"] == pairs["source_b"]
    distances = pairs[pairs["quantity"] == "parameter_distance"]
    assert distances["value"][within].max() < 0.5 * distances["value"][~within].min()
    assert table(workdir, "pairs").query("arm_a == 'scratch'")["source_a"].isna().all()
    lines = (workdir / "results" / "pairs.csv").read_text().splitlines()
    assert not any("0.0,nested" in line for line in lines), "seeds are whole numbers"


def test_runs_of_one_source_network_count_once_in_the_tables(workdir):
    """Four runs start from two source networks."""
    summary = table(workdir, "summary").set_index("arm")["n_seeds"]
    layers = table(workdir, "layers").query("arm == @ARM and comparison in ('', 'own_start')")
    assert (set(summary[ARM]), set(summary["scratch"])) == ({2}, {4})
    assert set(layers.dropna(subset=["value"])["n_seeds"]) == {2}
    compared = table(workdir, "comparisons")
    assert set(compared["n_seeds"]) == {2}
    assert compared["note"].str.contains("seeds of nested that share a source network count as one: 2 source").all()


def test_runs_of_one_source_network_are_left_out_together_where_runs_are_said_to_differ(workdir):
    """Of two source networks, each left out with both of its runs, no interval can be made."""
    found = table(workdir, "variability").set_index("arm")
    assert set(found.loc[ARM, "n_seeds"]) == {2}
    jackknifed = found.loc[ARM].query("quantity != 'error_rate'")
    assert jackknifed[["ci_low", "ci_high"]].isna().all(axis=None)
    assert set(found.loc["scratch", "n_seeds"]) == {4}


def test_how_far_representations_are_apart_is_that_of_the_end(workdir):
    """Tables hold those of half of the steps as well, and these came last."""
    rows = table(workdir, "similarity").query("comparison == 'within_arm' and index == 'cka' and step == 8")
    found = table(workdir, "variability").query("quantity == 'representation_distance' and layer in @LAYERS")
    found = found.dropna(subset=["value"])
    assert set(found["arm"]) == {"scratch", ARM}
    for row in found.itertuples():
        own = rows[(rows["arm_a"] == row.arm) & (rows["layer"] == row.layer)]
        np.testing.assert_allclose(row.value, 1 - own["value"].mean(), rtol=1e-6)


def test_starts_of_one_draw_are_no_two_networks(networks):
    """Runs from random weights that differ in the order of their batches alone have no floor but themselves."""
    crossed = dataclasses.replace(
        networks, pretrained=False, sources=(None,) * 4, init_ids=(0, 0, 1, 1), order_ids=(0, 1, 0, 1)
    )
    pairs = {(i, j) for i in range(4) for j in range(4) if representations._to_start(crossed, True, i, j)}
    assert pairs == {(i, j) for i in range(4) for j in range(4) if i == j or i // 2 != j // 2}
    starts = {(i, j) for i in range(4) for j in range(4) if representations._between_starts(crossed, i, j)}
    assert starts == {(0, 2), (0, 3), (1, 2), (1, 3)}
    part = dataclasses.replace(crossed, sources=networks.sources)  # of the source a part, and the rest drawn
    assert {(i, j) for i in range(4) for j in range(4) if representations._between_starts(part, i, j)} == starts


def test_the_rates_of_a_walk_count_by_their_share_in_the_late_average(networks):
    layer = "encoder/level_0/conv_0"
    train = dataclasses.replace(networks.program.train, average=0.5)
    averaged = dataclasses.replace(networks, program=dataclasses.replace(networks.program, train=train))
    shares = averaged.relative_rates(layer) / networks.relative_rates(layer)
    np.testing.assert_allclose(shares, [1, 1, 1, 1, 1, 0.75, 0.5, 0.25])
    (half,) = averaged.seen_earlier()
    np.testing.assert_allclose(half.relative_rates(layer) / networks.relative_rates(layer)[:4], [1, 1, 1, 0.5])


def test_positions_are_of_patients_and_a_window_drawn_twice_is_one(ready):
    shown = shown_cases(ready, 0)
    records = [dataclasses.replace(case.record, group=f"p{i // 2}") for i, case in enumerate(shown)]
    of_two = [dataclasses.replace(case, record=record) for case, record in zip(shown, records, strict=True)]
    probes = make_probes(ready, of_two, rng_for(ready, "positions", 0))
    assert set(probes.cases.ravel()) == {0, 1}
    covered = dataclasses.replace(ready.study.target, patch=(16, 16))
    whole = dataclasses.replace(ready, study=dataclasses.replace(ready.study, target=covered))
    tasks = dataclasses.replace(
        ready.tasks,
        prepared={covered: ready.tasks.prepared[ready.study.target]},
    )
    windows = make_probes(dataclasses.replace(whole, tasks=tasks), shown, rng_for(ready, "positions", 0)).windows
    assert windows.ravel().tolist() == np.repeat(np.arange(len(shown)), 2).tolist()


def test_the_interval_of_how_much_runs_differ_is_over_source_networks():
    """By hand: three source networks of two runs each, at 0, 1 and 5, with runs 0.1 apart."""
    at = np.array([0.0, 0.1, 1.0, 1.1, 5.0, 5.1])
    seeds = tuple(range(6))
    pairs = [
        {"quantity": "barrier", "arm_a": ARM, "seed_a": a, "arm_b": ARM, "seed_b": b, "value": abs(at[a] - at[b])}
        for a in seeds
        for b in seeds[a + 1 :]
    ]
    arm = types.SimpleNamespace(arm=ARM, seeds=seeds, layers=())
    found = Agreement({}, {}, {ARM: np.array([0.5, 0.4, 0.5, 0.6])}, {ARM: at})
    empty = pd.DataFrame(
        columns=["arm", "seed", "train_cases", "fold", "case", "group", "label", "status", "dsc", "hd95", "assd"]
    )
    of = Sources({ARM: {0: 0, 1: 0, 2: 1, 3: 1, 4: 2, 5: 2}})
    rows = {
        row["quantity"]: row
        for row in spread.variability_rows([arm], found, pairs, [], empty, confidence=0.95, sources=of)
    }
    assert {row["n_seeds"] for row in rows.values()} == {3}

    def mean(kept):
        distances = np.abs(np.subtract.outer(at[kept], at[kept]))
        return distances.sum() / (len(kept) * (len(kept) - 1))

    by_hand = statistics.from_left_out(
        np.array([mean([*range(6)]), mean([2, 3, 4, 5]), mean([0, 1, 4, 5]), mean([0, 1, 2, 3])])
    )
    barrier, error = rows["barrier"], rows["error_rate"]
    np.testing.assert_allclose((barrier["value"], barrier["ci_low"], barrier["ci_high"]), by_hand[:3])
    np.testing.assert_allclose(
        (error["ci_low"], error["ci_high"]), statistics.t_interval(np.array([0.05, 1.05, 5.05]))[1:3]
    )


def test_a_run_alone_differs_from_no_other():
    """It would look as if an arm with one run were perfectly reproducible."""
    arm = types.SimpleNamespace(arm=ARM, seeds=(0,), layers=())
    found = Agreement({}, {}, {ARM: np.array([np.nan, np.nan])}, {ARM: np.array([0.1])})
    named = ("arm", "seed", "train_cases", "fold", "case", "group", "label", "status")
    empty = pd.DataFrame(columns=[*named, "dsc", "hd95", "assd"])
    rows = spread.variability_rows([arm], found, [], [], empty, confidence=0.95, sources=Sources())
    assert [row["quantity"] for row in rows] == ["error_rate"]
    assert pictures.overlays([Predicted(ARM, (0,), ())], [], 3, 2) == ({}, [])


def test_aligned_networks_are_never_further_apart(workdir):
    pairs = table(workdir, "pairs").set_index(["arm_a", "seed_a", "arm_b", "seed_b"])
    plain, aligned = (
        pairs[pairs["quantity"] == name]["value"] for name in ("parameter_distance", "parameter_distance_aligned")
    )
    assert len(aligned) == len(plain) > 0
    assert (aligned <= plain[aligned.index] + 1e-6).all()


def test_starts_from_one_source_network_are_no_two_networks(workdir):
    rows = table(workdir, "similarity").query("arm_a == @ARM and arm_b == @ARM")
    for comparison in ("starts", "other_start"):
        found = rows[rows["comparison"] == comparison]
        assert len(found)
        assert (found["source_a"] != found["source_b"]).all()
    within = rows.query("comparison == 'within_arm' and step == 8")
    assert set(within["source_a"] == within["source_b"]) == {True, False}


def test_half_of_the_steps_is_looked_at_as_well(workdir, networks):
    for name, at in (("filters", "filters"), ("similarity", "similarity")):
        assert set(table(workdir, name)["step"]) == {4, 8}, at
    similarity = table(workdir, "similarity").query("step == 4")
    assert set(similarity["comparison"]) == {
        *("own_start", "to_source", "to_other_source", "within_arm", "across_arms"),
    }
    by_step = table(workdir, "filters").query("trained").groupby("step")[["angle_deg", "angle_noise_deg"]].mean()
    assert (by_step.loc[4] < by_step.loc[8]).all()
    (half,) = networks.seen_earlier()
    assert half.step == 4
    for path, leaf in trees.flatten(half.end).items():
        assert not np.array_equal(leaf, trees.flatten(networks.end)[path]), path


def test_the_rates_are_those_of_the_schedule(networks, ready):
    assert networks.rates.shape == (4, 8)
    np.testing.assert_allclose(networks.rates[:, :3], np.outer(np.ones(4), [0.5e-3, 1e-3, 1e-3]))
    assert (networks.rates[:, -1] < 2e-4).all()


def test_cases_are_compared_with_other_cases_only(workdir):
    values = table(workdir, "similarity").query("index == 'cka_cases'")
    own = values.query("comparison == 'own_start'")
    assert own["value"].notna().any()
    known = values["value"].dropna()
    assert ((known > -1.5) & (known < 1.01)).all()


def test_coherence_is_of_runs_with_one_start_and_two_orders(workdir, networks):
    found = table(workdir, "coherence")
    assert set(found["arm"]) == {ARM}
    pairs = {(a, b) for a, b in zip(found["seed_a"], found["seed_b"], strict=True)}
    assert pairs == {networks.seeds[:2], networks.seeds[2:]}
    assert found["cosine"].between(-1, 1).all()


def test_coherence_finds_what_two_runs_do_alike(networks):
    """Planted: runs 0 and 1 move the same way but for noise, runs 2 and 3 each their own."""
    rng = np.random.default_rng(0)

    def change(path, start):
        moves = rng.normal(size=start.shape)
        moves[:2] += 3 * rng.normal(size=start.shape[1:])
        return (start + 0.1 * moves).astype(np.float32)

    planted = dataclasses.replace(networks, end=trees.map_with_path(change, networks.start))
    rows = pd.DataFrame(filters.coherence_rows(planted)).groupby("seed_a")["cosine"].mean()
    assert rows[networks.seeds[0]] > 0.8
    assert abs(rows[networks.seeds[2]]) < 0.2


def test_probes_read_what_is_planted_in_a_layer(ready, networks):
    """The label is in the end's features and in no start's."""
    probes = make_probes(ready, shown_cases(ready, 0), rng_for(ready, "positions", 0))
    case, label = probes.points()
    rng = np.random.default_rng(0)
    start, end = rng.normal(size=(2, len(networks), len(label), 4))
    end[..., 0] += 8 * label
    features = Features(start, end, np.arange(len(label)), case)
    rows = pd.DataFrame(readout.probe_rows(Represented(networks, {LAYERS[0]: features}), probes))
    scores = rows.groupby("site")["score"].mean()
    assert scores["end"] > 0.95
    np.testing.assert_allclose(scores["source"], 1 / len(np.unique(label)), atol=0.06)
    assert (rows["n_points"] == len(label)).all()


def test_probes_of_a_study(workdir):
    found = table(workdir, "probes")
    assert set(found["layer"]) == set(LAYERS)
    assert set(map(tuple, found[["arm", "site"]].drop_duplicates().to_numpy())) == {
        *(("scratch", "start"), ("scratch", "end"), (ARM, "source"), (ARM, "end")),
    }
    assert found["score"].between(0, 1).all()
