"""Budgets, probes, coherence, noise by rate and aligned channels: shown where their tables are, and nowhere else."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pandas as pd
import pytest

from jaxseg.report.blocks import Chart, Finding, Prose, Section, Table
from jaxseg.report.charts.style import arm_styles
from jaxseg.report.sections.filters import filters_section
from jaxseg.report.sections.similarity import similarity_section
from jaxseg.report.sections.training import training_section
from jaxseg.report.sections.variability import variability_section
from jaxseg.report.tables import Tables, read_tables
from jaxseg.study.claims.drawn import budget_means
from tests.report.analysis_builder import KERNELS, LAYERS, write_analysis
from tests.report.tables_builder import write_shown, write_workdir

ARMS = ("scratch", "transfer")
SCORES = {"end": 0.9, "source": 0.6, "start": 0.4}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = write_workdir(tmp_path_factory.mktemp("all") / "study", arms=ARMS, examples=0, n_cases=4, steps=60)
    return write_analysis(workdir, arms=ARMS)


@pytest.fixture(scope="module")
def tables(plain: Path) -> Tables:
    """A study with tables of budgets, probes and coherence, whose numbers are known."""
    runs = list(itertools.product(ARMS, range(4)))
    budget = [(arm, s, 0, 0, step, "val_dsc", step / 100 + s / 1000) for arm, s in runs for step in (15, 30, 60)]
    sites = {"scratch": ("start", "end"), "transfer": ("source", "end")}
    probes = [
        (arm, seed, 0, 0, layer, site, SCORES[site] - depth / 100)
        for (arm, seed), (depth, layer) in itertools.product(runs, enumerate(LAYERS))
        for site in sites[arm]
    ]
    coherence = [("scratch", 0, 0, layer, 0, other, other / 10) for layer in KERNELS for other in (1, 2, 3)]
    keys = ["arm", "seed", "train_cases", "fold"]
    of_pairs = ["arm", "train_cases", "fold", "layer", "seed_a", "seed_b", "cosine"]
    made = {
        "budget": pd.DataFrame(budget, columns=[*keys, "step", "metric", "value"]),
        "probes": pd.DataFrame(probes, columns=[*keys, "layer", "site", "score"]),
        "coherence": pd.DataFrame(coherence, columns=of_pairs),
    }
    for name, table in made.items():
        table.to_csv(plain / "results" / f"{name}.csv", index=False)
    return read_tables(write_shown(plain))


def _charts(section: Section) -> dict[str, Chart]:
    return {block.stem: block for block in section.blocks if isinstance(block, Chart)}


def _found(section: Section) -> str:
    return "\n".join(block.found for block in section.blocks if isinstance(block, Finding))


def test_what_a_part_of_the_steps_reaches_is_a_table(tables: Tables):
    blocks = training_section(tables, arm_styles(tables.arms)).blocks
    (table,) = (block for block in blocks if isinstance(block, Table) and "a part of the steps" in block.caption)
    assert table.head == ("Arm", "25 % of the steps", "50 % of the steps", "all steps")
    assert [[cell.text for cell in row[1:]] for row in table.groups[0].rows] == [["0.151", "0.301", "0.601"]] * 2


def test_parts_of_the_steps_of_arms_of_other_lengths_share_a_column(tables: Tables):
    assert tables.budget_means is not None
    means = tables.budget_means.copy()
    means.loc[(means["arm"] == "scratch") & (means["share"] == 0.25), "share"] = 0.24
    made = training_section(dataclasses.replace(tables, budget_means=means), arm_styles(tables.arms)).blocks
    (table,) = (block for block in made if isinstance(block, Table) and "a part of the steps" in block.caption)
    assert (len(table.head), table.head[2:]) == (4, ("50 % of the steps", "all steps"))
    assert [[cell.text for cell in row[1:]] for row in table.groups[0].rows] == [["0.151", "0.301", "0.601"]] * 2


def test_test_scores_are_shown_rather_than_validation_where_there_are_any():
    rows = [("a", s, 0, 0, 8, metric, level + s) for metric, level in (("val_dsc", 0), ("dsc", 5)) for s in (0, 1)]
    columns = ["arm", "seed", "train_cases", "fold", "step", "metric", "value"]
    means = budget_means(pd.DataFrame(rows, columns=columns), confidence=0.95).set_index("metric")
    assert means["value"].to_dict() == {"val_dsc": 0.5, "dsc": 5.5}
    assert means["n_runs"].tolist() == [2, 2]


def test_probes_are_shown_by_depth_at_each_site(tables: Tables):
    section = similarity_section(tables, arm_styles(tables.arms))
    assert "Best off encoder/level_0 of scratch (0.90) and encoder/level_0 of transfer (0.90)" in _found(section)
    assert {
        text.get_text() for axis in _charts(section)["probes"].draw(width=6).axes for text in [axis.xaxis.label]
    } == {*(f"{site}:\nbalanced accuracy" for site in ("End of training", "Source network", "Start"))}


def test_coherence_has_a_panel_where_runs_share_their_start(tables: Tables):
    assert tables.layers is not None
    assert tables.layers.query("quantity == 'cosine'")["value"].tolist() == pytest.approx([0.2] * len(KERNELS))
    assert "Cosine" in _charts(filters_section(tables, arm_styles(tables.arms)))["filter_change"].caption
    without = dataclasses.replace(tables, layers=tables.layers.query("quantity != 'cosine'"))
    assert "Cosine" not in _charts(filters_section(without, arm_styles(tables.arms)))["filter_change"].caption


def test_angles_by_rate_stand_beside_those_of_noise(tables: Tables):
    assert tables.claims is not None
    like = tables.claims.iloc[0].to_dict() | {"claim": "C5", "role": "claim", "arm": "scratch"}
    rows = [
        {**like, "quantity": "median angle at rate 0.001, degrees", "value": 21.4, "ci_low": 18.0, "ci_high": 24.8},
        {**like, "quantity": "median angle at rate 0.003, degrees", "value": 40.0, "ci_low": 38.0, "ci_high": 42.0},
        {**like, "quantity": "noise alone would turn them, at rate 0.001, degrees", "value": 20.5},
    ]
    judged = dataclasses.replace(tables, claims=pd.DataFrame(rows))
    words = [b.text for b in filters_section(judged, arm_styles(tables.arms)).blocks if isinstance(b, Prose)]
    assert (
        "21.4° [18.0, 24.8] at rate 0.001 (noise alone: 20.5°) and 40.0° [38.0, 42.0] at rate 0.003: claim" in words[0]
    )


def test_barriers_of_aligned_channels_stand_beside_the_others(tables: Tables):
    assert tables.variability is not None
    own = tables.variability.query("quantity in ('barrier', 'parameter_distance')")
    aligned = own.assign(quantity=own["quantity"] + "_aligned", value=0.125)
    both = dataclasses.replace(tables, variability=pd.concat([tables.variability, aligned]))
    section = variability_section(both, arm_styles(tables.arms))
    assert "other's order first, by 0.125 in scratch and 0.125 in transfer." in _found(section)
    assert "order first" not in _found(variability_section(tables, arm_styles(tables.arms)))
    (table, *_) = (block for block in section.blocks if isinstance(block, Table))
    assert [row[0].text for row in table.groups[0].rows].count(
        "The same with channels in the order that fits best"
    ) == 2
