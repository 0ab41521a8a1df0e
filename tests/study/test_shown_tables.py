"""Tables that the page shows: what the claims' rules find, and the definitions of the summary."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jaxseg import settings
from jaxseg.study import claims, files
from jaxseg.study.claims.reuse import encoder_level
from jaxseg.study.claims.rules import EARLY_LEVELS
from jaxseg.study.claims.sentences import page_table
from jaxseg.study.claims.shown import reuse_table
from jaxseg.study.plan import tasks
from jaxseg.study.score import comparisons
from jaxseg.study.score.tables import for_reading
from jaxseg.types import UserError
from tests.report.analysis_builder import write_analysis
from tests.report.tables_builder import write_claims, write_workdir
from tests.tiny_study import put, tiny_config

LIMITS = ["value", "ci_low", "ci_high"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pd.DataFrame]:
    """The tables of a made-up study of two training set sizes, and what the rules make of them."""
    workdir = write_workdir(tmp_path_factory.mktemp("made") / "study", sizes=(4, 0), seeds=8, examples=0)
    study = claims.read_study(write_claims(write_analysis(workdir, sizes=(4, 0), seeds=8)))
    found = files.read_table(workdir / "results" / "claims.csv")
    return {**study.tables, **claims.rule_tables(study, confidence=0.95), "claims": found}


def test_folds_are_read_together_at_each_size_and_test_set_that_has_several() -> None:
    rows = [("own", 4, -1, 0.1), ("own", 4, 0, 0.2), ("own", 4, 1, 0.3), ("own", 0, 1, 0.4), ("B", 4, 0, 0.5)]
    table = pd.DataFrame(rows, columns=["test_set", "train_cases", "fold", "mean"])
    assert for_reading(table)["mean"].tolist() == [0.1, 0.4, 0.5]
    assert for_reading(table.drop(columns="test_set"))["mean"].tolist() == [0.1, 0.4]


def test_speed_is_what_the_rule_of_c1_finds_at_every_size(made: dict[str, pd.DataFrame]) -> None:
    found = made["claims"].query("claim == 'C1' and role not in ('answer', 'target')")
    speed = made["speed"].set_index(["arm", "train_cases"])
    ratio = found[found["quantity"] == "times fewer steps"]
    assert len(ratio) == 2
    for row in ratio.itertuples():
        own = speed.loc[(row.arm, row.train_cases)]
        np.testing.assert_allclose(
            own[["ratio", "ci_low", "ci_high"]].astype(float), [row.value, row.ci_low, row.ci_high]
        )
    lost = found[found["quantity"].str.contains("never reach") & found["quantity"].str.endswith("transfer")]
    assert len(lost) == 2
    for row in lost.itertuples():
        own = speed.loc[("transfer", row.train_cases)]
        assert own["n_censored"] / own["n_runs"] == row.value
    assert np.isnan(speed.loc[("frozen_random_encoder", 0), "total_ratio"])  # it loads nothing


def test_reuse_by_layer_is_what_the_rule_of_c11_finds(made: dict[str, pd.DataFrame]) -> None:
    found = made["claims"].query("claim == 'C11' and role == 'claim'").set_index("quantity")
    layers = made["layers"].query("arm == 'transfer' and train_cases == 0 and comparison == 'to_source'")
    rho = layers[layers["quantity"] == "rho"].set_index("layer")
    np.testing.assert_allclose(
        rho.loc["encoder/level_2", LIMITS].astype(float), found.loc["reuse, encoder/level_2", LIMITS].astype(float)
    )
    early = rho.loc[["encoder/level_0", "encoder/level_1"], "value"].mean()
    assert found.loc["reuse, mean of early levels", "value"] == pytest.approx(early)


def test_reuse_is_a_row_a_layer_of_the_same_numbers(made: dict[str, pd.DataFrame]) -> None:
    reuse = reuse_table(made["layers"]).query("arm == 'transfer' and train_cases == 0").set_index("layer")
    rho = (reuse["similarity"] - reuse["floor"]) / (1 - reuse["floor"])
    used = reuse["rho"].notna()
    assert used.sum() == 5
    np.testing.assert_allclose(reuse.loc[used, "rho"], rho[used])
    assert {encoder_level(layer) for layer in reuse.index[reuse["part"] == "early"]} == set(EARLY_LEVELS)


def test_the_parts_of_reuse_are_those_of_the_encoder(made: dict[str, pd.DataFrame]) -> None:
    """C11 is about the encoder's levels; a decoder is neither early nor deep."""
    reuse = reuse_table(made["layers"]).query("arm == 'transfer' and train_cases == 0").set_index("layer")["part"]
    assert reuse.to_dict() == {
        **dict.fromkeys(("encoder/level_0", "encoder/level_1"), "early"),
        "encoder/level_2": "deep",
        **dict.fromkeys(("decoder/level_1", "decoder/level_0"), ""),
    }


def test_the_page_names_ends_counts_and_sums() -> None:
    """Of small tables: what is lowest and highest, what is beyond a limit or below one, and which share is whose."""
    fixed = {"arm": "a", "train_cases": 0, "fold": 0}
    drops = pd.DataFrame({"layer": ["x", "y", "z"], "value": [0.3, 0.001, np.nan]})
    layers = drops.assign(**fixed, comparison="", quantity="drop", limit=np.nan)
    sources = {"seed": 0.5, "group": 0.2, "seed x group": 0.3}
    variance = pd.DataFrame({"source": sources.keys(), "share": sources.values()}).assign(**fixed)
    variance = variance.assign(metric="dsc", label="mean", n_runs=4, n_left_out=0)
    rates = pd.DataFrame({"lr": [1e-3, 1e-2], "val_dsc": [0.8, 0.795], "chosen": [True, False]}).assign(
        joint=False, **fixed
    )
    page = page_table({"layers": layers, "variance": variance, "rates": rates})
    facts = {(row.about, row.quantity): (row.layer, row.value) for row in page.itertuples()}
    assert facts["drop", "lowest"] == ("y", 0.001)
    assert facts["drop", "highest"] == ("x", 0.3)
    assert facts["drop", "defined"] == ("", 2)
    assert facts["drop", "small"] == ("", 1)
    assert facts["variance", "both"] == ("", 0.3)
    assert facts["variance", "runs"] == ("", 0.5)
    assert facts["rates", "end of the grid"] == ("", 1e-3)
    assert facts["rates", "nearly as good"] == ("", 1e-2)


JOINT = {
    "a": (0.10, 0.30, 0.50),
    "b": (0.20, 0.35, 0.34),
    "placebo of b": (0.20, 0.35, 0.34),
    "c": (0.00, 0.25, 0.40),
}
"""Scores of arms at three rates; the third is best on average."""


def facts_of_rates(scores: dict[str, tuple[float, ...]]) -> dict[tuple[str, str], float]:
    table = pd.DataFrame(
        {"arm": arm, "train_cases": 0, "fold": 0, "lr": lr, "val_dsc": score, "joint": True, "chosen": lr == 1e-2}
        for arm, own in scores.items()
        for lr, score in zip((1e-3, 3e-3, 1e-2), own, strict=True)
    )
    return {(row.about, row.quantity): row.value for row in page_table({"rates": table}).itertuples()}


def test_rates_that_trials_do_not_tell_apart_are_told() -> None:
    """Arm by arm the third rate is ahead by 0.20, -0.01 and 0.15; the placebo's trials are those of b."""
    facts = facts_of_rates(JOINT)
    gaps = np.array([0.20, -0.01, 0.15])
    assert (facts["joint rate", "taken"], facts["joint rate", "second"]) == (1e-2, 3e-3)
    assert facts["joint rate", "trials"] == 3
    assert facts["joint rate", "gap"] == pytest.approx(gaps.mean())
    assert facts["joint rate", "error"] == pytest.approx(gaps.std(ddof=1) / np.sqrt(3))
    assert ("rates", "nearly as good") not in facts  # of one arm: no arm chose alone


@pytest.mark.parametrize(
    ("scores", "told"),
    [
        ({"a": (0, 0.3, 0.5), "b": (0, 0.2, 0.41), "c": (0, 0.1, 0.3)}, False),  # ahead in all by about as much
        ({"a": (0, 0.500, 0.505), "b": (0, 0.400, 0.405)}, True),  # ahead, by less than matters
        ({"a": (0, 0.3, 0.5)}, True),  # one pair says nothing
    ],
)
def test_rates_that_trials_tell_apart_need_no_word(scores: dict[str, tuple[float, ...]], told: bool) -> None:
    assert (("joint rate", "second") in facts_of_rates(scores)) is told


def test_layers_hold_the_quantities_of_c6(made: dict[str, pd.DataFrame]) -> None:
    """An excess at the end is read against the run's own start; arrangement counts to both sides."""
    of_run = "arm == 'scratch' and train_cases == 0 and layer == 'encoder/level_1/conv_0'"
    own = made["filters"].query(of_run)
    value = made["layers"].query(of_run).set_index("quantity")["value"]
    assert value["distribution"] == pytest.approx((own["distribution_end"] - own["distribution_start"]).mean())
    assert value["spectrum"] == pytest.approx((own["spectral_end"] - own["spectral_start"]).mean())
    assert value["arrangement"] == pytest.approx((own["moran_end"] - own["moran_expected"]).abs().mean())
    assert value["angle_deg"] == pytest.approx(own["angle_deg"].mean())


def test_the_summary_is_the_mean_of_the_scores_of_seeds(tiny_study: Path) -> None:
    keys = ["arm", "train_cases", "fold", "label", "metric"]
    scores, summary = (files.read_table(tiny_study / "results" / f"{name}.csv") for name in ("seed_scores", "summary"))
    mean = scores.groupby(keys)["value"].agg(["mean", "count"])
    summary = summary.set_index(keys).dropna(subset=["mean"])
    assert len(summary) > 20
    pd.testing.assert_series_equal(mean["mean"].loc[summary.index], summary["mean"], check_index=False)
    assert (mean["count"].loc[summary.index].to_numpy() == summary["n_seeds"].to_numpy()).all()


def test_training_leaves_diverged_runs_out_and_counts_late_ones_late() -> None:
    rows = [(seed, step, loss, dsc) for seed, ends in enumerate([(0.1, 0.8), (0.2, 0.6), (np.nan, 0.9)])
            for step, (loss, dsc) in enumerate([(1.0, 0.3), ends])]  # fmt: skip
    curves = pd.DataFrame(rows, columns=["seed", "step", "loss", "val_dsc"]).assign(arm="a", train_cases=0, fold=0)
    reached = pd.DataFrame({"seed": [0, 1, 2], "step": [10, 30, 40], "censored": [False, False, True]})
    (row,) = comparisons.training(curves, reached.assign(arm="a", train_cases=0, fold=0)).to_dict("records")
    assert (row["n_runs"], row["n_reached"], row["n_survived"], row["median_step"]) == (3, 2, 2, 30)
    assert row["last_val_dsc"] == pytest.approx(0.7)


def test_names_that_could_mean_something_to_a_table_are_names(tmp_path: Path) -> None:
    arms = ("scratch", "baseline", "arm", "mean", "all", "image", "end")
    workdir = write_analysis(write_workdir(tmp_path, arms=arms, seeds=3, examples=0), arms=arms, seeds=3)
    study = claims.read_study(workdir)
    tables = claims.rule_tables(study, confidence=0.95)
    assert set(tables["speed"]["arm"]) == set(arms) - {"scratch"}
    assert set(tables["layers"]["arm"]) == set(arms)
    renamed = {name: table.replace({"mean": "other"}) for name, table in study.tables.items()}
    record = study.record._replace(arms={name.replace("mean", "other"): arm for name, arm in study.record.arms.items()})
    other = claims.rule_tables(claims.StudyTables(record, renamed), confidence=0.95)
    for name, table in tables.items():
        pd.testing.assert_frame_equal(table.replace({"mean": "other"}), other[name])


@pytest.mark.parametrize("name", ["source", "source_2"])
def test_names_of_source_networks_are_refused_for_arms(name: str) -> None:
    made = tiny_config()
    put(made, f"arms.{name}", made.arms.scratch)
    with pytest.raises(UserError, match=rf"arm name '{name}': 'source', 'source_2', .* are reserved"):
        settings.parse(made)


@pytest.mark.parametrize(("labels", "regions", "word"), [(("a", "mean"), (), "label"), (("a",), ("mean",), "region")])
def test_a_label_that_stands_for_the_mean_is_refused(
    labels: tuple[str, ...], regions: tuple[str, ...], word: str
) -> None:
    class Prepared:
        name = "set"
        regions = None

    Prepared.labels = labels
    made = tiny_config()
    put(made, "evaluate.regions", ", ".join(f"{region}=a" for region in regions))
    with pytest.raises(UserError, match=re.escape(f"set has a {word} called 'mean', which is reserved")):
        tasks.check_labels(settings.parse(made), Prepared)


def test_an_arm_without_any_run_left_is_lacking_in_words(tmp_path: Path) -> None:
    workdir = write_workdir(tmp_path, seeds=3, examples=0)
    path = workdir / "results" / "curves.csv"
    curves = files.read_table(path)
    lost = curves["arm"] == "scratch"
    curves.loc[lost & (curves["step"] > 0), ["loss", "val_dsc"]] = np.nan
    curves.to_csv(path, index=False)
    study = claims.read_study(workdir)
    found = claims.claims(study).drop_duplicates("claim").set_index("claim")["reason"]
    assert found.loc["C1"].startswith("every run of scratch diverged")
    assert claims.rule_tables(study, confidence=0.95)["speed"].empty
