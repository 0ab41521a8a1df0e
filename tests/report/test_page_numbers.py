"""Every number on a page is one of the study's tables, of study.json or of the rules: the page computes nothing."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest

from jaxseg.report import write_report
from tests.report.analysis_builder import write_analysis
from tests.report.page_numbers import NUMBER, SOURCES, TRIPLE, Tables, read_words, unknown_numbers
from tests.report.tables_builder import write_claims, write_workdir

ARMS = ("scratch", "transfer", "scratch_b", "frozen_random_encoder")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up study of three training set sizes with its page; only its form is that of a real one."""
    workdir = write_workdir(tmp_path_factory.mktemp("made") / "study", arms=ARMS, sizes=(4, 16, 0), seeds=5, examples=1)
    write_claims(write_analysis(workdir, arms=ARMS, sizes=(4, 16, 0), seeds=5))
    write_report(workdir)
    return workdir


@pytest.fixture(params=["tiny_study", "made"])
def workdir(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def test_every_number_of_a_page_is_in_its_tables(workdir: Path) -> None:
    words, tables = read_words(workdir / "report.html"), Tables(workdir)
    bad = {found: unknown for found in words if (unknown := unknown_numbers(found, tables))}
    assert bad == {}
    assert {found.section for found in words} >= set(SOURCES) - {"elsewhere"}  # which asks for an external test set
    assert sum(len(NUMBER.findall(found.text)) for found in words) > 800
    assert sum(len(TRIPLE.findall(found.text)) for found in words) > 80


def test_a_number_that_is_not_in_the_tables_is_found(tiny_study: Path) -> None:
    """Estimates with their limits are altered one at a time, by three units of their last digit."""
    workdir = tiny_study
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
