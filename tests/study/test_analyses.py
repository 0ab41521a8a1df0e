"""Analyses of trained networks: the tables of a finished study, and planted differences that each of them must find."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest

import jaxseg
from configs import default
from jaxseg import checkpoint, manifest, seeds, settings, trees
from jaxseg.models import layer_names, make_model
from jaxseg.report import write_report
from jaxseg.study import files
from jaxseg.study.plan.planned import PlannedStudy, prepare
from jaxseg.study.probe import filters, representations, variation
from jaxseg.study.probe import stage as probe_stage
from jaxseg.study.probe.networks import Networks, forward_program, read_networks
from jaxseg.study.probe.probes import judged_cases, make_probes, rng_for, shown_cases
from jaxseg.study.run import STAGES, run_stages
from tests.tiny_study import silent, tiny_config


@pytest.fixture(scope="module")
def ready(tiny_study: Path) -> PlannedStudy:
    return prepare(settings.parse(tiny_config()), tiny_study, silent("prepare"))


@pytest.fixture(scope="module")
def plan() -> seeds.SeedPlan:
    return seeds.make_plan(2)


@pytest.fixture(scope="module")
def scratch(ready: PlannedStudy) -> Networks:
    return next(networks for networks in read_networks(ready, 0, 0) if networks.arm == "scratch")


@pytest.fixture(scope="module")
def tools(ready: PlannedStudy, scratch: Networks, plan: seeds.SeedPlan) -> probe_stage.Tools:
    return probe_stage.make_tools(forward_program(ready.study, scratch.program), plan, 2, ready.study.evaluate)


def with_end(networks: Networks, change) -> Networks:
    """The networks with other ends: `change(path, leaf)`."""
    return dataclasses.replace(networks, end=trees.map_with_path(change, networks.end))


# ------------------------------------------------------------------------------------------------- a finished study


def test_a_study_leaves_the_tables_of_the_analyses(tiny_study):
    found = {name: files.read_table(tiny_study / "results" / f"{name}.csv") for name in probe_stage.TABLES}
    for name, columns in probe_stage.TABLES.items():
        assert tuple(found[name].columns) == columns, name
    arms, layers = 3, ("encoder/level_0", "encoder/level_1", "decoder/level_0")
    assert len(found["filters"]) == arms * 2 * 4
    assert (found["filters"]["step"] == 8).all()
    assert found["rewind"].groupby("how").size().to_dict() == dict.fromkeys(("rewind", "rerandomise"), arms * 2 * 4)
    counts = found["similarity"].groupby("comparison").size() / (len(layers) * (len(representations.INDICES) + 1))
    expected = {"own_start": 2, "other_start": 2, "within_arm": 1, "starts": 1}
    once = {"across_arms": 2 * 4, "to_source": 2, "to_other_source": 2}  # the last two of transfer and of scratch
    assert counts.to_dict() == {name: arms * count for name, count in expected.items()} | once
    assert set(found["similarity"]["layer"]) == set(layers) == set(found["layer_similarity"]["layer_a"])
    assert set(found["pairs"]["quantity"]) == set(variation.OF_PAIRS)
    assert not len(found["coherence"]), "no two runs of this study share a start"
    assert len(found["probes"]) == arms * 2 * len(layers) * 2
    assert len(found["interpolation"]) == arms * len(variation.ALPHAS)
    for entry in json.loads((tiny_study / "results" / "analysis.json").read_text())["montages"]:
        with np.load(tiny_study / "results" / "analysis.npz") as arrays:
            assert arrays[entry["key_start"]].shape == arrays[entry["key_end"]].shape


def test_a_frozen_encoder_is_where_it_was(tiny_study):
    study = jaxseg.load(tiny_study)
    of_arm = study.table("filters").query("arm == 'frozen_random_encoder'").set_index("layer")
    frozen, moved = of_arm[~of_arm["trained"]], of_arm[of_arm["trained"]]
    assert set(frozen.index) == {f"encoder/level_{i}/conv_0" for i in (0, 1)}
    assert (frozen["angle_deg"] == 0).all()
    assert (frozen["auc"] == 0.5).all()
    assert (frozen["angle_noise_deg"] == 0).all()
    assert (moved["angle_noise_deg"] > 0).all()
    assert (moved["angle_deg"] > 0).all()
    own = study.table("similarity").query("arm_a == 'frozen_random_encoder' and comparison == 'own_start'")
    own = own[own["index"] == "cka"].set_index("layer")["value"]
    np.testing.assert_allclose(own[["encoder/level_0", "encoder/level_1"]], 1, atol=1e-5)
    rewound = study.table("rewind").query("arm == 'frozen_random_encoder'").set_index("layer")
    altered = {how: rewound["drop"][rewound["how"] == how][frozen.index] for how in ("rewind", "rerandomise")}
    assert (altered["rewind"] == 0).all(), "setting a frozen layer back changes nothing"
    assert (altered["rerandomise"] != 0).any(), "drawing it anew does"


def test_similarity_of_two_runs_by_another_way(tiny_study, ready):
    """The features of the public interface's parameters, read at the same voxels, in float64."""
    study = jaxseg.load(tiny_study)
    row = study.table("similarity").query("comparison == 'across_arms' and arm_b == 'transfer' and seed_a != seed_b")
    row = row[row["index"] == "cka"].set_index("layer").loc["encoder/level_1"].iloc[0]
    material = make_probes(ready, shown_cases(ready, 0), rng_for(ready, "positions", 0))
    windows = material.images.reshape(-1, *material.images.shape[2:])
    positions = material.positions.reshape(len(windows), -1, 2)
    model = make_model(ready.study.model, classes=3)
    features = []
    for side in "ab":
        params = study.arm(row[f"arm_{side}"]).params(seed=int(row[f"seed_{side}"]))
        _, state = model.apply({"params": params}, windows, mutable=["activations"])
        level = np.asarray(state["activations"]["encoder"]["level_1"], np.float64)
        read = {
            (number, *(position // 2)): level[(window, *(position // 2))]
            for window, number in enumerate(material.windows.ravel())
            for position in positions[window]
        }
        features.append(np.stack(list(read.values())))
    x, y = (values - values.mean(0) for values in features)
    expected = np.sum((x.T @ y) ** 2) / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    assert row["n_points"] == len(x)
    np.testing.assert_allclose(row["value"], expected, rtol=1e-4)


def test_a_second_run_measures_nothing_anew(tiny_study, tmp_path):
    workdir = tmp_path / "study"
    shutil.copytree(tiny_study, workdir)
    before = {path: path.read_bytes() for path in sorted((workdir / "results").iterdir())}
    part = workdir / "analysis" / "n0_fold0" / "rewind.csv"
    written = part.stat().st_mtime_ns
    (workdir / "results" / "rewind.csv").unlink()
    run_stages(tiny_config(), workdir, stages=("analyze",), progress=silent)
    assert part.stat().st_mtime_ns == written
    assert {path: path.read_bytes() for path in sorted((workdir / "results").iterdir())} == before


def test_a_variant_is_measured_anew_when_it_has_more_runs(tiny_study, ready):
    folder = tiny_study / "analysis" / "n0_fold0"
    whole = probe_stage._measured_of(ready, 0, 0)
    assert ["transfer", 1] in whole["runs"]
    assert probe_stage._is_measured(folder, whole)
    assert not probe_stage._is_measured(folder, {**whole, "runs": [*whole["runs"], ["transfer", 2]]})


def test_a_variant_is_measured_anew_when_more_cases_are_shown_or_formulas_changed(tiny_study, ready, monkeypatch):
    folder = tiny_study / "analysis" / "n0_fold0"
    report = dataclasses.replace(ready.study.report, examples=7)
    more = dataclasses.replace(ready, study=dataclasses.replace(ready.study, report=report))
    assert not probe_stage._is_measured(folder, probe_stage._measured_of(more, 0, 0))
    monkeypatch.setattr(probe_stage, "FORMULAS", probe_stage.FORMULAS + 1)
    assert not probe_stage._is_measured(folder, probe_stage._measured_of(ready, 0, 0))


def test_results_do_not_depend_on_the_number_of_devices(ready):
    """The tables in the workdir come from two devices."""
    alone = dataclasses.replace(ready.study.runtime, devices=1)
    on_one = dataclasses.replace(ready, study=dataclasses.replace(ready.study, runtime=alone))
    rows, _ = probe_stage.measure(on_one, 0, 0, lambda what: None)
    for name in ("similarity", "pairs", "rewind"):
        table = files.read_table(ready.workdir / "results" / f"{name}.csv")
        for column in ("value", "drop"):
            if column in table:
                np.testing.assert_allclose([row[column] for row in rows[name]], table[column], atol=2e-5)


def test_a_variant_whose_runs_all_diverged_has_tables_without_rows(tiny_study, tmp_path, monkeypatch):
    workdir = tmp_path / "study"
    shutil.copytree(tiny_study, workdir)
    shutil.rmtree(workdir / "analysis")
    monkeypatch.setattr(probe_stage, "read_networks", lambda *args: iter(()))
    run_stages(tiny_config(), workdir, stages=("analyze",), progress=silent)
    for name, columns in probe_stage.TABLES.items():
        table = files.read_table(workdir / "results" / f"{name}.csv")
        assert not len(table)
        assert tuple(table.columns) == columns, name
    assert write_report(workdir).stat().st_size > 0


def test_scores_alone_are_analysed_where_networks_are_not_wanted(tiny_study, tmp_path):
    workdir = tmp_path / "study"
    shutil.copytree(tiny_study, workdir)
    shutil.rmtree(workdir / "analysis")
    for name in [*probe_stage.TABLES, "summary", "claims"]:
        manifest.remove(workdir / "results" / f"{name}.csv")
    made, written = tiny_config(), files.read_json(workdir / "config.json")
    made.analysis.cases = written["analysis"]["cases"] = 0
    files.write_json(workdir / "config.json", written)
    run_stages(made, workdir, stages=("analyze",), progress=silent)
    assert not (workdir / "results" / "filters.csv").exists()
    pd.testing.assert_frame_equal(*(files.read_table(w / "results" / "summary.csv") for w in (workdir, tiny_study)))
    assert (workdir / "results" / "claims.csv").exists()
    assert write_report(workdir).stat().st_size > 0


def test_a_study_without_networks_has_no_analyses(tmp_path):
    made = tiny_config()
    made.arms = default.pick_arms("prior")
    run_stages(made, tmp_path, stages=STAGES, progress=silent)
    assert not (tmp_path / "results" / "filters.csv").exists()
    assert (tmp_path / "results" / "claims.csv").exists()
    assert write_report(tmp_path).stat().st_size > 0


# --------------------------------------------------------------------------------------------------- planted truths


def test_what_is_found_of_a_run_stays_where_more_seeds_come(ready, scratch):
    """A study is judged again when it has more seeds: what was judged at the first look is the same, to the bit."""
    first = dataclasses.replace(scratch, waves=(0, 0))
    twice = {field: jax.tree.map(lambda leaf: np.concatenate([leaf, leaf]), getattr(scratch, field)) for field in
             ("start", "end", "rates")}  # fmt: skip
    ids = {field: getattr(scratch, field) * 2 for field in ("sources", "init_ids", "order_ids")}
    more = dataclasses.replace(scratch, seeds=(*scratch.seeds, 10, 11), waves=(0, 0, 1, 1), **twice, **ids)
    draws = functools.partial(rng_for, ready, "filters", "scratch")
    before, after = (pd.DataFrame(filters.filter_rows(networks, draws)) for networks in (first, more))
    kept = after[after["seed"].isin(scratch.seeds)].reset_index(drop=True)
    assert len(after) == 2 * len(before) > 0
    pd.testing.assert_frame_equal(kept, before, check_exact=True)


def test_only_the_encoder_moved(ready, scratch, tools, plan):
    rng = np.random.default_rng(0)

    def change(path, leaf):
        start = trees.flatten(scratch.start)[path]
        return start + 0.5 * rng.normal(size=leaf.shape).astype(np.float32) * path.startswith("encoder")

    moved = with_end(scratch, change)
    angles = {row["layer"]: row["angle_deg"] for row in filters.filter_rows(moved, lambda *words: rng)}
    assert all((angle > 5) == layer.startswith("encoder") for layer, angle in angles.items())
    windows = make_probes(ready, judged_cases(ready, 0), rng_for(ready, "windows", 0))
    rewound, _ = variation.rewind_rows(moved, windows, tools.judge, plan)
    untrained, _ = variation.rewind_rows(dataclasses.replace(scratch, end=scratch.start), windows, tools.judge, plan)
    of = lambda rows, how: [row for row in rows if row["how"] == how]  # noqa: E731
    assert all(row["drop"] == 0 for row in of(untrained, "rewind"))
    assert {row["dsc"] for row in rewound}.isdisjoint(row["dsc"] for row in untrained), "the end is what is judged"
    drops = {row["layer"]: row["drop"] for row in of(rewound, "rewind")}
    assert all(drop == 0 for layer, drop in drops.items() if not layer.startswith("encoder"))
    assert any(drop != 0 for layer, drop in drops.items() if layer.startswith("encoder"))


def permuted(params, order):
    """Run 1 becomes run 0 with the channels of the coarsest encoder level's first convolution in another order."""
    leaves = {path: np.array(leaf) for path, leaf in trees.flatten(params).items()}
    for path, leaf in leaves.items():
        leaf[1] = leaf[0]
        if path.startswith("encoder/level_1/conv_0/"):
            leaf[1] = leaf[0][..., order]
        if path == "decoder/level_0/conv_0/kernel":  # which reads the coarse channels first, then those of the skip
            leaf[1] = leaf[0][..., [*order, 4, 5], :]
    return trees.unflatten(leaves)


def test_two_networks_that_differ_by_the_order_of_their_channels(ready, scratch, tools, plan):
    """Far apart in parameters, the same in all that they compute."""
    twins = dataclasses.replace(scratch, end=permuted(scratch.end, [2, 3, 1, 0]))
    shown = shown_cases(ready, 0)
    material = make_probes(ready, shown, rng_for(ready, "positions", 0))
    represented = representations.represent(twins, material, tools.record, plan)
    rows = representations.similarity_rows([represented], "scratch")
    values = [row["value"] for row in rows if (row["comparison"], row["index"]) == ("within_arm", "cka")]
    np.testing.assert_allclose(values, 1, atol=1e-5)
    predicted = variation.predict_cases(twins, shown, tools.predict, plan)
    found = variation.agreement([predicted], shown, "scratch", ready.tasks.prepared[ready.study.target])
    assert found.disagreement["scratch", "scratch"].max() == 0
    assert found.entropy["scratch"][0] == 0
    (distance,) = variation.parameter_rows(twins)
    assert distance["value"] > 0.1
    windows = make_probes(ready, judged_cases(ready, 0), rng_for(ready, "windows", 0))
    partners = variation.aligned_partners(twins, tools.judge.wiring, [(0, 1)])
    (distance,) = variation.aligned_parameter_rows(twins, [(0, 1)], partners)
    assert distance["value"] == 0
    _, own = variation.rewind_rows(twins, windows, tools.judge, plan)
    both = variation.path_rows(twins, windows, tools.judge, plan, [(0, 1)], partners, own)
    losses, aligned = ([row["loss"] for row in rows] for rows in both)
    np.testing.assert_allclose(losses[0], losses[-1], rtol=1e-5)
    assert abs(losses[5] - losses[0]) > 1e-4, "halfway lies another network"
    np.testing.assert_allclose(aligned, losses[0], rtol=1e-5)


def test_the_floor_of_reuse_shares_no_random_weights_with_the_source(tiny_study):
    """The source network of seed 1 was drawn as scratch's seed 1 was, so the two are not unrelated."""
    rows = jaxseg.load(tiny_study).table("similarity").query("comparison == 'to_other_source'")
    assert (rows["arm_a"] == "scratch").all()
    assert (rows["arm_b"] == "transfer").all()
    assert (rows["seed_a"] != rows["seed_b"]).all()


def test_source_networks_are_the_starts_of_transfer(tiny_study, ready):
    """`to_source` of transfer is the end against the same seed's pretrained network."""
    record = json.loads((tiny_study / "study.json").read_text())
    source = next(run for run in record["runs"] if run["kind"] == "pretrain" and run["seed"] == 1)
    transfer = next(networks for networks in read_networks(ready, 0, 0) if networks.arm == "transfer")
    directory = tiny_study / source["directory"] / "checkpoints"
    trained = trees.flatten(checkpoint.read_seed(directory, source["steps"], source["index"]))
    start = trees.flatten(jax.tree.map(lambda leaf: leaf[1], transfer.start))
    for path, leaf in start.items():
        if not path.startswith("head"):
            np.testing.assert_array_equal(leaf, trained[path])
    assert transfer.pretrained
    assert layer_names(ready.study.model) == ("encoder/level_0", "encoder/level_1", "decoder/level_0")
