"""The page of a study with several starts: which one to take, by rows of the tables."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from jaxseg.report import write_report
from jaxseg.report.blocks import Chart, Table
from jaxseg.report.charts.style import arm_styles
from jaxseg.report.sections.ranking import ranking_blocks
from jaxseg.report.tables import read_tables
from jaxseg.study import files
from tests.report.page_numbers import Tables, read_words, unknown_numbers
from tests.report.tables_builder import write_claims, write_shown, write_workdir


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with two starts, of which one gains, and a placebo."""
    arms = ("scratch", "transfer", "transfer_heads", "scratch_b")
    workdir = write_workdir(tmp_path_factory.mktemp("ranked"), arms=arms, seeds=8, labels=("a",), examples=0)
    study = json.loads((workdir / "study.json").read_text())
    study["arms"]["transfer"]["source"] = "hearts"
    study["arms"]["transfer_heads"] |= {name: study["arms"]["transfer"][name] for name in ("init", "pretrain")}
    study["arms"]["transfer_heads"] |= {"source": "<b>heads</b>", "fine_tuning": "the head alone for 20 % of the steps"}
    for run in study["runs"]:
        if run["arm"] == "transfer_heads":
            run["source"] = {"arm": "source_2", "train_cases": 0, "fold": 0, "seed": run["seed"]}
    first = [run | {"seconds": 12.5} for run in study["runs"] if run["kind"] == "pretrain"]
    second = [run | {"arm": "source_2", "directory": "train/pretrain/chunk_1", "seconds": 40.25} for run in first]
    study["runs"] = [run for run in study["runs"] if run["kind"] == "train"] + first + second
    (workdir / "study.json").write_text(json.dumps(study))
    write_shown(write_claims(workdir))
    write_report(workdir)
    return workdir


def test_the_page_says_which_start_to_take(ranked: Path) -> None:
    words = read_words(ranked / "report.html")
    (told,) = set(files.read_table(ranked / "results" / "claims.csv").query("role == 'ranking'")["reason"])
    assert "start from transfer: +0.0" in told
    assert {one.section for one in words if told in one.text} == {"summary", "accuracy"}
    texts = [one.text for one in words]
    assert "Which start?" in texts
    assert any("scratch_b (placebo)" in text for text in texts)
    assert any("<b>heads</b>" in text for text in texts)
    assert any("pretrained on one of hearts and <b>heads</b> help" in text for text in texts)
    assert any("the head alone for 20 % of the steps" in text for text in texts)
    assert not [text for text in texts if re.search(r"\bnan\b", text)]  # nothing is known of what a start has seen


def test_its_limits_are_called_those_of_the_level_in_the_table(ranked: Path) -> None:
    tables = read_tables(ranked)
    for level, words in ((0.95, "(95 %)"), (0.9946, "(99.46 %)")):
        assert tables.ranking is not None
        shown = dataclasses.replace(tables, ranking=tables.ranking.assign(confidence=level))
        blocks = [block for block in ranking_blocks(shown, arm_styles(tables.arms)) if isinstance(block, Chart | Table)]
        assert [f"limits that hold for all starts together {words}" in block.caption for block in blocks] == [
            True,
            True,
        ]


def test_its_numbers_are_those_of_the_ranking(ranked: Path) -> None:
    tables = Tables(ranked)
    bad = {one: unknown for one in read_words(ranked / "report.html") if (unknown := unknown_numbers(one, tables))}
    assert bad == {}
    ranking = files.read_table(ranked / "results" / "ranking.csv").set_index("arm")
    assert ranking.loc[["transfer", "transfer_heads"], "pretrain_seconds"].tolist() == [12.5, 40.25]
    assert (ranked / "figures" / "ranking.svg").exists()


def test_a_study_of_one_start_has_no_ranking(tmp_path: Path) -> None:
    workdir = write_claims(write_workdir(tmp_path, seeds=8, examples=0))
    write_report(workdir)
    assert not (workdir / "results" / "ranking.csv").exists()
    assert "Which start?" not in [one.text for one in read_words(workdir / "report.html")]
