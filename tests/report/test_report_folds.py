"""A study of several folds says of every figure and number whether it is of one fold, and which, or of all."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import pandas as pd
import pytest

from jaxseg.data.splits import Split
from jaxseg.report.blocks import Block, Chart, Finding, Fold, Section, Table
from jaxseg.report.charts.style import arm_styles
from jaxseg.report.sections.arms import standfirst
from jaxseg.report.sections.examples import examples_section
from jaxseg.report.sections.filters import filters_section
from jaxseg.report.sections.similarity import similarity_section
from jaxseg.report.sections.variability import variability_section
from jaxseg.report.tables import Tables, read_tables
from tests.report.analysis_builder import KERNELS, LAYERS, write_analysis
from tests.report.tables_builder import write_shown, write_workdir
from tests.report.test_report_analyses import _chart, _section

RAW = ("filters", "filter_controls", "rewind", "similarity", "layer_similarity", "interpolation", "variability")
ARMS = ("scratch", "transfer")


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    workdir = write_workdir(
        tmp_path_factory.mktemp("folds") / "study", arms=ARMS, seeds=3, folds=2, n_cases=4, steps=60, examples=1
    )
    write_analysis(workdir, arms=ARMS, seeds=3, layers=LAYERS[:2], kernels=KERNELS[:2], claims=False)
    results = workdir / "results"
    for name in RAW:
        table = pd.read_csv(results / f"{name}.csv")
        other = table.assign(fold=1)
        if name == "similarity":
            other["n_points"] += 512
        pd.concat([table, other]).to_csv(results / f"{name}.csv", index=False)
    pictures = json.loads((results / "analysis.json").read_text()) | {"train_cases": 0, "fold": 0}
    (results / "analysis.json").write_text(json.dumps(pictures))
    return read_tables(write_shown(workdir))


def _captions(blocks: list[Block]) -> dict[str, str]:
    return {block.stem: block.caption for block in blocks if isinstance(block, Chart)}


@pytest.mark.parametrize(
    ("build", "stems", "words"),
    [
        (similarity_section, ("own_start", "reuse_by_depth", "between_runs"), ", over all folds"),
        (similarity_section, ("runs_by_runs", "layers_by_layers"), ", fold 0"),
        (filters_section, ("filter_change", "filter_randomness", "rewind"), ", over all folds"),
        (filters_section, ("filters_0",), "seed 0, fold 0: "),
        (variability_section, ("interpolation", "disagreement_0"), ", fold 0"),
        (examples_section, ("example_0",), ", fold 0"),
    ],
)
def test_captions_say_the_fold_of_what_is_drawn(
    tables: Tables, build: Callable[..., Section], stems: tuple[str, ...], words: str
):
    captions = _captions(_section(build, tables))
    other = ", fold 0" if "all folds" in words else ", over all folds"
    for stem in stems:
        assert words in captions[stem], stem
        assert other not in captions[stem], stem


def test_test_cases_of_all_folds_are_counted(tables: Tables):
    """Those of the first fold alone would be a part of what every number of the page is of."""
    splits = tuple(Split((), (), cases) for cases in (("a", "b"), ("c", "d", "e")))
    target = dataclasses.replace(tables.study.target, splits=splits)
    study = dataclasses.replace(tables.study, target=target)
    assert "scored on 5 test cases" in standfirst(dataclasses.replace(tables, study=study))


def test_sentences_and_tables_of_one_fold_say_which(tables: Tables):
    blocks = _section(variability_section, tables)
    found = [block.found for block in blocks if isinstance(block, Finding)]
    assert len([text for text in found if ", fold 0." in text]) == 2  # disagreement, and the way between two runs
    (table,) = [block for block in blocks if isinstance(block, Table)]
    assert ", fold 0, with" in table.caption
    controls = next(
        b for b in filters_section(tables, arm_styles(ARMS)).blocks if isinstance(b, Fold) and "notice" in b.title
    )
    assert ", fold 0, that is found" in controls.blocks[0].caption
    assert "Read at 2,048 to 2,560 places" in _chart(_section(similarity_section, tables), "own_start").caption
