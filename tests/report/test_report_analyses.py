"""Sections of the analyses: numbers are those of the tables, names are escaped, what is missing is said."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jaxseg.report import write_report
from jaxseg.report.blocks import Block, Chart, Finding, Fold, Heading, Missing, Section, Table
from jaxseg.report.charts.style import NARROW_INCHES, WIDE_INCHES, arm_styles
from jaxseg.report.sections.filters import filters_section
from jaxseg.report.sections.similarity import similarity_section
from jaxseg.report.sections.summary import summary_section
from jaxseg.report.sections.variability import variability_section
from jaxseg.report.tables import Tables, read_tables
from jaxseg.study.claims.drawn import excess_loss
from jaxseg.study.claims.sentences import page_table
from tests.report.analysis_builder import LAYERS, write_analysis
from tests.report.tables_builder import NASTY, write_claims, write_shown, write_workdir
from tests.report.test_report_page import Page

WIDTHS = pytest.mark.parametrize("width", [WIDE_INCHES, NARROW_INCHES])
SECTIONS = (filters_section, similarity_section, variability_section)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = write_workdir(tmp_path_factory.mktemp("analysed"), sizes=(8, 0), seeds=4, examples=0, n_cases=4, steps=60)
    return write_analysis(workdir, sizes=(8, 0), seeds=4)


@pytest.fixture(scope="module")
def tables(study: Path) -> Tables:
    return read_tables(study)


@pytest.fixture(scope="module")
def blocks(tables: Tables) -> dict[Callable[..., Section], list[Block]]:
    return {build: _section(build, tables) for build in SECTIONS}


def _flat(blocks: Iterable[Block]) -> Iterator[Block]:
    for block in blocks:
        yield block
        if isinstance(block, Fold):
            yield from _flat(block.blocks)


def _section(build: Callable[..., Section], tables: Tables) -> list[Block]:
    return list(_flat(build(tables, arm_styles(tables.arms)).blocks))


def _chart(blocks: Iterable[Block], stem: str) -> Chart:
    return next(block for block in blocks if isinstance(block, Chart) and block.stem == stem)


def _texts(blocks: Iterable[Block]) -> str:
    words = []
    for block in blocks:
        words += [getattr(block, name) for name in ("text", "asked", "found", "title") if hasattr(block, name)]
        if isinstance(block, Table):
            words += [f"{cell.text} {cell.small}" for group in block.groups for row in group.rows for cell in row]
    return " ".join(str(word) for word in words)


# ------------------------------------------------------------------------------------------------------- the whole page


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("nasty")
    write_workdir(workdir, arms=NASTY[:2], seeds=2, examples=0, n_cases=4, steps=60)
    write_analysis(
        workdir, arms=NASTY[:2], seeds=2, layers=("encoder/<b>0</b>", "$x$ & y"), kernels=("<i>k</i>", "head")
    )
    path = workdir / "results" / "claims.csv"
    claims = pd.read_csv(path)
    claims.assign(statement="<script>1</script>", reason="<img src=x>", quantity="<u>q</u> & c").to_csv(
        path, index=False
    )
    write_report(workdir)
    return workdir


def test_a_page_with_analyses_stands_alone_and_escapes_names(nasty: Path):
    text = (nasty / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not {tag for tag, _ in page.elements} & {"script", "iframe", "i", "img", "u"}
    for name in ("<script>1</script>", "<img src=x>", "<u>q</u> & c", "<b>0</b>", "$x$ & y", "<i>k</i>", NASTY[1]):
        assert name in page.text
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    charts = [a for tag, a in page.elements if tag == "svg" and a.get("class") == "chart"]
    assert all(len(chart["aria-label"] or "") > 20 for chart in charts)
    assert "nan" not in page.text.lower()
    assert len(text.encode()) < 8e6


def test_claims_come_before_every_other_table(tables: Tables):
    shown = [block for block in _section(summary_section, tables) if isinstance(block, Table)]
    assert [table.head[0] for table in shown] == ["Claim", "Claim", "Claim", "Arm", "Arm"]
    assert shown[0].cards


def test_every_figure_of_the_analyses_lies_beside_the_page(nasty: Path):
    names = {str(a["id"]).removeprefix("figure-") for tag, a in _page(nasty).elements if tag == "figure"}
    expected = {
        "filter_change",
        "filter_randomness",
        "filters_0",
        "rewind",
        "own_start",
        "between_runs",
        "runs_by_runs",
    }
    expected |= {"layers_by_layers", "interpolation", "disagreement_0", "variance_split", "representation_distance"}
    assert expected <= names
    for suffix in ("svg", "png"):
        assert {path.stem for path in (nasty / "figures").glob(f"*.{suffix}")} == names
    assert not list((nasty / "figures").glob("*.csv"))  # their numbers stand in results/


def _page(workdir: Path) -> Page:
    return Page((workdir / "report.html").read_text(encoding="utf-8"))


def test_every_analysis_starts_with_what_is_asked_and_found(blocks: dict):
    for section in blocks.values():
        findings = [block for block in section if isinstance(block, Finding)]
        assert isinstance(section[0], Finding)
        assert all("?" in block.asked and block.found.endswith(".") for block in findings)
        for heading, below in itertools.pairwise(section):
            assert not isinstance(heading, Heading) or isinstance(below, Finding)


@pytest.mark.parametrize(
    ("build", "fields", "sentence"),
    [
        (filters_section, ("layers", "montages"), "what training does to the filters is left out"),
        (filters_section, ("filter_controls",), "how little structure the tests would find is not known"),
        (filters_section, ("montages",), "pictures of them are left out"),
        (similarity_section, ("similarity", "layer_similarity"), "what networks represent is left out"),
        (similarity_section, ("similarity",), "only layers of one network are compared"),
        (similarity_section, ("layer_similarity",), "layers against layers are left out"),
        (variability_section, ("variability",), "how much runs of an arm differ is left out"),
        (variability_section, ("disagreements",), "where they disagree is left out"),
        (variability_section, ("excess_loss",), "the way between two runs is left out"),
        (variability_section, ("page",), "where the spread of scores comes from is left out"),
    ],
)
def test_what_is_missing_is_said_in_a_line(
    tables: Tables, blocks: dict, build: Callable[..., Section], fields: tuple[str, ...], sentence: str
):
    empty = {name: () if name in ("montages", "disagreements") else None for name in fields}
    partial = _section(build, dataclasses.replace(tables, **empty))
    (missing,) = [block for block in partial if isinstance(block, Missing)]
    assert sentence in missing.text
    assert not [block for block in blocks[build] if isinstance(block, Missing)]
    assert len(partial) < len(blocks[build])


@pytest.mark.parametrize(
    ("quantity", "sentence"),
    [("angle_deg", "how far filters turn is left out"), ("drop", "whether the change matters is left out")],
)
def test_a_quantity_that_no_layer_has_is_said(tables: Tables, quantity: str, sentence: str):
    assert tables.layers is not None
    partial = dataclasses.replace(tables, layers=tables.layers[tables.layers["quantity"] != quantity])
    (missing,) = [block for block in _section(filters_section, partial) if isinstance(block, Missing)]
    assert sentence in missing.text


@pytest.mark.parametrize("comparison", ["own_start", "within_arm", "to_source"])
def test_a_comparison_that_no_one_made_is_said(tables: Tables, comparison: str):
    assert tables.similarity is not None
    assert tables.layers is not None
    kept = {
        "similarity": tables.similarity[tables.similarity["comparison"] != comparison],
        "layers": tables.layers[tables.layers["comparison"] != comparison],
    }
    partial = _section(similarity_section, dataclasses.replace(tables, **kept))
    assert len([block for block in partial if isinstance(block, Missing)]) == 1


def test_tables_without_a_defined_number_make_sections(study: Path, tmp_path: Path):
    columns = {
        "filters": ["angle_deg", "relative_change", "norm_ratio", "distribution_end", "moran_end", "auc"],
        "rewind": ["drop"], "similarity": ["value"], "layer_similarity": ["value"], "interpolation": ["loss"],
        "variability": ["value", "ci_low", "ci_high"], "variance": ["share"], "filter_controls": ["smallest_share"],
    }  # fmt: skip
    workdir = Path(shutil.copytree(study, tmp_path / "blank"))
    for name, which in columns.items():
        path = workdir / "results" / f"{name}.csv"
        pd.read_csv(path).assign(**dict.fromkeys(which, np.nan)).to_csv(path, index=False)
    tables = read_tables(write_shown(workdir))
    for build in SECTIONS:
        blocks = _section(build, tables)
        assert "nan" not in _texts(blocks).lower()
        next(block for block in blocks if isinstance(block, Chart)).draw(width=NARROW_INCHES)


def test_one_seed_makes_sections_without_intervals(tmp_path: Path):
    workdir = write_workdir(tmp_path, arms=("scratch",), seeds=1, examples=0, n_cases=3, steps=60)
    write_analysis(workdir, arms=("scratch",), seeds=1)
    tables = read_tables(workdir)
    for build in SECTIONS:
        blocks = _section(build, tables)
        assert isinstance(blocks[0], Finding)
        assert "nan" not in _texts(blocks).lower()


# -------------------------------------------------------------------------------------------------------------- numbers


def test_angles_drawn_are_means_of_the_largest_training_sets_rows(blocks: dict, study: Path):
    data = pd.DataFrame(_chart(blocks[filters_section], "filter_change").draw.args[0])
    filters = pd.read_csv(study / "results" / "filters.csv").query("train_cases == 0 and trained")
    expected = filters.groupby(["layer", "arm"])["angle_deg"].mean()
    drawn = data[data["panel"] == "angle_deg"].set_index(["layer", "series"])["value"]
    for key, angle in expected.items():
        assert drawn[key] == pytest.approx(angle)
    assert drawn[("head", "two unrelated filters")] == 90
    assert ("encoder/level_0/conv_0", "frozen_random_encoder") not in drawn.index
    least, most = (expected.xs("scratch", level="arm").agg(name) for name in ("min", "max"))
    assert f"by {least:.0f}° to {most:.0f}° by layer in scratch" in _texts(blocks[filters_section])


@pytest.fixture
def changed(study: Path, tmp_path: Path) -> Callable[[pd.DataFrame], str]:
    """The words of the section on filters where filters.csv is another."""

    def words(filters: pd.DataFrame) -> str:
        workdir = tmp_path / "changed"
        shutil.copytree(study, workdir, dirs_exist_ok=True)
        filters.to_csv(workdir / "results" / "filters.csv", index=False)
        return _texts(_section(filters_section, read_tables(write_shown(workdir))))

    return words


def test_filters_beyond_a_limit_are_named(study: Path, changed: Callable[[pd.DataFrame], str]):
    filters = pd.read_csv(study / "results" / "filters.csv")
    calm = filters.assign(
        distribution_end=filters["distribution_start"],
        moran_end=filters["moran_expected"],
        spectral_end=filters["spectral_start"],
        auc_permuted=0.5,
    )
    assert "All 11 trained layers of scratch stay within all limits of a random draw." in changed(calm)
    calm.loc[calm["layer"] == "head", "auc_permuted"] = 0.61
    words = changed(calm)
    assert "10 of 11 trained layers of scratch stay within all limits; not head." in words
    assert "Layers beyond each: weights 0, taps 0, channels 0, AUC 1." in words


def test_an_excess_counts_as_rule_c6_counts_it(study: Path, changed: Callable[[pd.DataFrame], str]):
    """Less structure than a random draw is none, and what the start had already training did not put there."""
    filters = pd.read_csv(study / "results" / "filters.csv").assign(
        distribution_start=0.5, distribution_end=0.51, spectral_start=0.5, spectral_end=0.2, auc_permuted=0.1
    )
    filters["moran_end"] = filters["moran_expected"]
    assert "All 11 trained layers of scratch stay within all limits of a random draw." in changed(filters)
    # Arrangement counts to both sides: taps that repel each other are no random draw either.
    filters.loc[filters["layer"] == "encoder/level_0/conv_0", "moran_end"] -= 0.04
    assert "not encoder/level_0/conv_0. Layers beyond each: weights 0, taps 1, channels 0, AUC 0." in changed(filters)


def test_reuse_is_measured_against_scratch(blocks: dict, study: Path):
    data = pd.DataFrame(_chart(blocks[similarity_section], "reuse_by_depth").draw.args[0])
    assert set(data["series"]) == {"transfer", "scratch (floor)"}
    table = pd.read_csv(study / "results" / "similarity.csv").query(
        "comparison in ('to_source', 'to_other_source') and index == 'cka_debiased' and train_cases == 0"
    )
    mean = table.groupby(["arm_a", "layer"])["value"].mean()
    for layer in LAYERS:
        (rho,) = data[(data["panel"] == "rho") & (data["layer"] == layer)]["value"]
        own, floor = mean["transfer", layer], mean["scratch", layer]
        assert rho == pytest.approx((own - floor) / (1 - floor))


def test_reuse_is_told_as_the_rule_of_c11_finds_it(blocks: dict, tmp_path: Path):
    (told,) = (b.found for b in blocks[similarity_section] if isinstance(b, Finding) and "fine-tuned" in b.asked)
    assert told.startswith(
        "In transfer reuse is 0.75 in the encoder's early levels (0 and 1) and, deeper, 0.60 in encoder/level_2 (1: "
    )
    workdir = write_workdir(tmp_path, seeds=8, examples=0, n_cases=4, steps=60)
    judged = read_tables(write_claims(write_analysis(workdir, seeds=8, claims=False)))
    assert judged.claims is not None
    rows = judged.claims.query("claim == 'C11' and role == 'claim'").set_index("quantity")["value"]
    early, deep = rows["reuse, mean of early levels"], rows["reuse, encoder/level_2"]
    (told,) = (
        b.found for b in _section(similarity_section, judged) if isinstance(b, Finding) and "fine-tuned" in b.asked
    )
    assert f"reuse is {early:.2f} in the encoder's early levels (0 and 1) and, deeper, {deep:.2f} in" in told


def test_runs_by_runs_puts_every_pair_in_its_cell(tables: Tables, blocks: dict):
    assert tables.similarity is not None
    chart = _chart(blocks[similarity_section], "runs_by_runs")
    matrices = {matrix.title: matrix for matrix in chart.draw.args[0]}
    assert list(matrices) == ["encoder/level_0", "encoder/level_2", "decoder/level_0"]
    values = matrices["decoder/level_0"].values
    assert values.shape == (12, 12)
    np.testing.assert_array_equal(values, values.T)
    np.testing.assert_array_equal(np.diagonal(values), 1)
    own = tables.similarity.query("layer == 'decoder/level_0' and index == 'cka_debiased' and train_cases == 0")
    pair = own.query("comparison == 'across_arms' and arm_a == 'scratch' and seed_a == 1 and arm_b == 'transfer'")
    assert values[1, 4 + 2] == pair.loc[pair["seed_b"] == 2, "value"].item()
    two = tables.similarity.query("index == 'cka_debiased' and train_cases == 0 and comparison == 'across_arms'")
    across = two.query("arm_a == 'scratch' and arm_b == 'transfer' and seed_a != seed_b")["value"].mean()
    assert f"one of each (of other seeds) to {across:.2f}." in _texts(blocks[similarity_section])


def test_an_index_without_values_is_neither_named_nor_shown(tables: Tables, blocks: dict):
    """With few analysed cases the table has rows of different cases alone, and they are empty."""
    assert tables.similarity is not None
    empty = tables.similarity[tables.similarity["index"] == "cka_debiased"].assign(index="cka_cases", value=np.nan)
    more = dataclasses.replace(tables, similarity=pd.concat([tables.similarity, empty]))
    made = _section(similarity_section, more)
    assert _texts(made) == _texts(blocks[similarity_section])
    known = dataclasses.replace(tables, similarity=pd.concat([tables.similarity, empty.assign(value=0.5)]))
    caption = _chart(_section(similarity_section, known), "runs_by_runs").caption
    assert "CKA between cases" in caption, "an index has a name of its own"


def test_the_floor_of_agreement_is_of_networks_that_were_not_trained(tables: Tables, blocks: dict):
    assert tables.similarity is not None
    starts = tables.similarity.query("comparison == 'starts' and index == 'cka_debiased' and train_cases == 0")
    assert set(starts["arm_a"]) == {"scratch", "transfer"}
    floor = starts.query("arm_a == 'scratch'")["value"].mean()
    assert f"Two untrained networks: {floor:.2f}." in _texts(blocks[similarity_section])


def test_a_barrier_is_the_loss_beyond_the_line_between_the_ends():
    rows = pd.DataFrame(
        {"arm": "a", "seed_a": 0, "seed_b": 1, "alpha": [1.0, 0.0, 0.5], "loss": [3.0, 1.0, 2.5]}
    ).assign(train_cases=0, fold=0)  # in any order
    found = excess_loss(pd.concat([rows, rows.assign(seed_b=2, loss=[1.0, 1.0, 2.0])])).set_index(["seed_b", "alpha"])
    assert found.loc[1, "excess"].to_dict() == {0.0: 0.0, 0.5: 0.5, 1.0: 0.0}
    assert found.loc[2, "mean_excess"].to_dict() == {0.0: 0.0, 0.5: 0.75, 1.0: 0.0}


def test_variability_is_shown_as_the_table_has_it(blocks: dict, study: Path):
    row = pd.read_csv(study / "results" / "variability.csv").query(
        "train_cases == 0 and arm == 'transfer' and quantity == 'barrier'"
    )
    value, low, high = row[["value", "ci_low", "ci_high"]].iloc[0]
    words = _texts(blocks[variability_section])
    assert f"{value:.3f} [{low:.3f}, {high:.3f}]" in words


@pytest.mark.slow
def test_a_page_of_many_arms_seeds_and_layers_stays_light(tmp_path: Path):
    arms = ("scratch", "transfer", *(f"arm_{i}" for i in range(10)))
    kernels = tuple(f"{part}/level_{i}/conv_{j}" for part in ("encoder", "decoder") for i in range(6) for j in range(4))
    layers = tuple(f"{part}/level_{i}" for part in ("encoder", "decoder") for i in range(6))
    workdir = write_workdir(tmp_path, arms=arms, sizes=(4, 0), seeds=16, n_cases=6, steps=300)
    write_analysis(workdir, arms=arms, sizes=(4, 0), seeds=16, layers=layers, kernels=kernels)
    assert write_report(workdir).stat().st_size < 8e6
    assert _page(workdir)


# ------------------------------------------------------------------------------------------------------------- variance


def test_a_crossed_arm_shows_its_streams(tables: Tables, study: Path):
    shares = {
        **{"init": 0.4, "order": 0.12, "init x order": 0.08, "group": 0.25},
        **{"init x group": 0.05, "order x group": 0.04, "init x order x group": 0.06},
    }
    variance = pd.read_csv(study / "results" / "variance.csv")
    plain = variance[variance["arm"] != "transfer"]
    crossed = pd.DataFrame({"source": shares.keys(), "share": shares.values()})
    crossed = crossed.assign(arm="transfer", train_cases=0, fold=0, label="mean", metric="dsc")
    both = pd.concat([plain, crossed.assign(variance=crossed["share"], n_runs=12, n_left_out=3)])
    blocks = _section(variability_section, dataclasses.replace(tables, page=page_table({"variance": both})))
    found = next(block.found for block in blocks if isinstance(block, Finding) and "between cases?" in block.asked)
    assert "in transfer 60 % in the seed, 25 % in the case and 15 % in which cases a run gets wrong" in found
    told = "In transfer, whose random streams are crossed: initialisation 40 %, order of batches 12 %, these in "
    told += "combination 8 % and both: which cases a run gets wrong 15 %"
    assert told in found
    assert "(from 12 runs; 3 left out, because runs they are crossed with are missing)" in found
    figure = _chart(blocks, "variance_split").draw(width=WIDE_INCHES)
    written = {text.get_text() for text in [*figure.texts, *figure.axes[0].texts]}
    assert {"seed: chance in training", "initialisation", "order of batches", "these in combination"} <= written
    assert {"40 %", "15 %"} <= written
