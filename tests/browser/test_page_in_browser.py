"""A finished page in a real browser: nothing is logged, cut off, broken or hard to reach, on a desktop or a phone.

Skipped where there is no Chromium; `JAXSEG_CHROMIUM` names a browser that is not on the path.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from axe_core_python import sync_playwright as axe
from playwright import sync_api

from jaxseg.report import write_report
from jaxseg.text import limit, signed
from tests.report.analysis_builder import write_analysis
from tests.report.tables_builder import NASTY, write_claims, write_workdir

DESKTOP, PHONE = 1280, 390
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The system's Chromium; playwright's own is not downloaded."""
    found = os.environ.get("JAXSEG_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("there is no Chromium on this machine")
    with sync_api.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=found)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with every section, and with names that break careless pages."""
    arms = ("scratch", "transfer", *NASTY[1:])
    workdir = write_workdir(tmp_path_factory.mktemp("browser") / "study", arms=arms, seeds=8, sizes=(4, 0))
    write_analysis(workdir, arms=arms, seeds=8, sizes=(4, 0))
    write_claims(workdir)
    write_report(workdir)
    return workdir


@pytest.fixture(scope="module", params=["tiny_study", "made_up"])
def workdir(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module", params=[DESKTOP, PHONE])
def page(request: pytest.FixtureRequest, browser: Any, workdir: Path) -> Iterator[Any]:
    """The page with all that a reader can unfold unfolded; what it logs or asks the network for is an error.

    It is loaded once for all tests, which change nothing in it.
    """
    opened = browser.new_page(viewport={"width": request.param, "height": 900})
    opened.set_default_timeout(300_000)  # milliseconds: a machine that does much else loads a page for a minute
    said: list[str] = []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda asked: said.append(asked.url) if asked.url.startswith("http") else None)
    opened.goto((workdir / "report.html").as_uri())
    opened.evaluate("document.querySelectorAll('details').forEach(fold => { fold.open = true })")
    yield opened
    opened.close()
    assert said == []


def test_nothing_is_wider_than_the_window(page: Any) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    beyond = """[...document.querySelectorAll('main *, header *, nav *')]
        .filter(e => !e.closest('.scroll, pre, svg') && e.getBoundingClientRect().right > window.innerWidth + 1)
        .map(e => e.outerHTML.slice(0, 200))"""
    assert page.evaluate(beyond) == []


def test_every_anchor_leads_somewhere(page: Any) -> None:
    links = page.evaluate("[...document.querySelectorAll('a[href]')].map(link => link.getAttribute('href'))")
    assert len(links) > 8
    for link in links:
        assert link.startswith("#")
        assert page.evaluate("id => document.getElementById(id) !== null", link[1:]), link


def test_no_serious_fault_of_accessibility(page: Any) -> None:
    # Naming every element that passes takes most of axe's time.
    found = axe.Axe().run(page, options={"resultTypes": ["violations"]})["violations"]
    serious = {
        fault["id"]: [node["html"][:200] for node in fault["nodes"]][:3]
        for fault in found
        if fault["impact"] in ("serious", "critical")
    }
    assert serious == {}


def test_the_page_starts_with_the_answer_of_the_table(page: Any, workdir: Path) -> None:
    claims = pd.read_csv(workdir / "results" / "claims.csv")
    answer = claims[claims["role"] == "answer"]
    section = page.locator("section").first
    assert section.locator("p").first.inner_text() == answer["reason"].iloc[0]
    assert page.evaluate("document.querySelector('.lead').getBoundingClientRect().top") < 900
    value, low, high = answer.iloc[0][["value", "ci_low", "ci_high"]]
    first = section.locator(".strip div").first.inner_text()
    assert f"{signed(value)} DSC" in first
    assert f"{limit(low)} to {limit(high)}" in first


def test_figures_for_the_other_width_are_not_shown(page: Any) -> None:
    shown, hidden = (".narrow", ".wide") if page.viewport_size["width"] == PHONE else (".wide", ".narrow")
    assert page.locator(f"figure > {shown} svg").first.is_visible()
    assert not page.locator(f"figure > {hidden} svg").first.is_visible()
