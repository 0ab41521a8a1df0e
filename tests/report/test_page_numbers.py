"""Every number on a page is one of the study's tables, of study.json or of the rules: the page computes nothing."""

from __future__ import annotations

import dataclasses
import functools
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
import pytest

from jaxseg.report import write_report
from jaxseg.study.claims import claims, read_study, shown_tables
from tests.conftest import ROOT
from tests.report.page_numbers import NUMBER, SOURCES, TRIPLE, Tables, read_words, unknown_numbers

PUBLISHED = sorted(path.parent for path in (ROOT / "docs" / "studies").glob("*/report.html"))


@pytest.fixture(scope="module")
def made_anew(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Published tables with verdicts and what else a page needs by the rules of today, and their page."""

    @functools.cache
    def make(name: str) -> Path:
        workdir = tmp_path_factory.mktemp(name) / "study"
        shutil.copytree(ROOT / "docs" / "studies" / name, workdir, ignore=shutil.ignore_patterns("figures", "*.html"))
        _put(workdir, {"claims": claims(read_study(workdir))})
        _put(workdir, shown_tables(workdir, confidence=0.95))
        write_report(workdir)
        return workdir

    return make


def _put(workdir: Path, tables: Mapping[str, pd.DataFrame]) -> None:
    for name, table in tables.items():
        for old in (workdir / "results").glob(f"{name}.csv*"):
            old.unlink()
        table.to_csv(workdir / "results" / f"{name}.csv", index=False)


@pytest.fixture(params=["tiny", *(folder.name for folder in PUBLISHED)])
def workdir(request: pytest.FixtureRequest, made_anew: Callable[[str], Path]) -> Path:
    return request.getfixturevalue("tiny_study") if request.param == "tiny" else made_anew(request.param)


def test_every_number_of_a_page_is_in_its_tables(workdir: Path) -> None:
    words, tables = read_words(workdir / "report.html"), Tables(workdir)
    bad = {found: unknown for found in words if (unknown := unknown_numbers(found, tables))}
    assert bad == {}
    assert {found.section for found in words} >= set(SOURCES) - {"elsewhere"}  # which asks for an external test set
    assert sum(len(NUMBER.findall(found.text)) for found in words) > 800
    assert sum(len(TRIPLE.findall(found.text)) for found in words) > 80


def test_there_are_published_pages() -> None:
    assert len(PUBLISHED) > 1


def test_a_number_that_is_not_in_the_tables_is_found(made_anew: Callable[[str], Path]) -> None:
    """Estimates with their limits are altered one at a time, by three units of their last digit."""
    workdir = made_anew(PUBLISHED[0].name)
    tables = Tables(workdir)
    found = [words for words in read_words(workdir / "report.html") if words.section != "loaded"]
    places = [(words, m) for words in found for m in TRIPLE.finditer(words.text) if "." in m[1][:-2]]
    missed = []
    for words, place in random.Random(0).sample(places, 100):
        digit = str((int(place[1][-1]) + 3) % 10)
        altered = words.text[: place.end(1) - 1] + digit + words.text[place.end(1) :]
        if not unknown_numbers(dataclasses.replace(words, text=altered), tables):
            missed.append(altered)
    assert len(missed) < 5  # another row may have these very digits
