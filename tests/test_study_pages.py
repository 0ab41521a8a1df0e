"""Numbers on pages of studies are those of the tables beside them, and tables over targets those of the studies."""

import functools
import re
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import ROOT
from tests.programs import run

STUDIES = ROOT / "docs" / "studies"
TABLES = {"version-1": ("../studies",)}
"""Where a page's tables are, if not in the folder of its name or, without such a folder, in those of all studies."""
PAGES = sorted({path.stem for path in STUDIES.glob("*.md")} - {"index", "sharing"})
INTERVAL = re.compile(r"([+-]?\d+(?:\.\d+)?)[^|\[\]0-9]{0,60}?\[([+-]?\d+(?:\.\d+)?),\s([+-]?\d+(?:\.\d+)?)\]")
OVER_TARGETS = sorted((STUDIES / "over_targets").glob("*.md"))
"""Tables over targets, which pages of questions include."""


def written(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text if float(text) else f"{0:.{digits}f}"  # without the sign of a zero


def as_written(text: str) -> str:
    return written(float(text), len(text.partition(".")[2]))


@functools.cache
def intervals_of(path: Path) -> set[tuple[str, ...]]:
    """Every estimate of a table with its limits, as a page may write it: to any digits, turned round or inverted."""
    columns = pd.read_csv(path, nrows=0).columns
    estimate = next((name for name in ("mean_diff", "mean", "value", "effect") if name in columns), None)
    if estimate is None or "ci_low" not in columns:
        return set()
    names = [estimate, "ci_low", "ci_high"]
    rows = pd.read_csv(path, usecols=names)[names].dropna().drop_duplicates().to_numpy()
    return set().union(*(ways_to_write(*row) for row in rows))


def ways_to_write(value: float, low: float, high: float) -> set[tuple[str, ...]]:
    ways = [(value, low, high), (-value, -high, -low)]
    if low > 0:  # times fewer steps, times more
        ways.append((1 / value, 1 / high, 1 / low))
    return {tuple(written(number, digits) for number in way) for way in ways for digits in range(5)}


def intervals_in(text: str) -> list[tuple[str, ...]]:
    return [match.groups() for match in INTERVAL.finditer(text.replace("\N{MINUS SIGN}", "-"))]


def known_to(page: str) -> set[tuple[str, ...]]:
    """What the tables behind a page hold."""
    own = page.replace("-", "_")
    names = TABLES.get(page, (own, f"{own}/*") if (STUDIES / own).exists() else ("*", "*/*"))
    folders = [place for name in names for place in STUDIES.glob(name)]
    tables = [path for place in folders for path in (*place.glob("results/*.csv"), *place.glob("*.csv"))]
    shown = [tuple(map(float, found)) for path in OVER_TARGETS for found in intervals_in(path.read_text())]
    return set().union(*map(intervals_of, tables), *(ways_to_write(*row) for row in shown))


@pytest.mark.parametrize("page", PAGES)
def test_every_interval_of_a_page_is_in_its_tables(page: str) -> None:
    known, text = known_to(page), (STUDIES / f"{page}.md").read_text()
    shown = [tuple(map(as_written, found)) for found in intervals_in(text)]
    assert len(shown) > 3 or f"{{include}} {page.replace('-', '_')}/found.md" in text
    assert [numbers for numbers in shown if numbers not in known] == []


def test_pages_include_the_tables_over_targets_that_there_are_and_these_are_of_the_published_studies() -> None:
    pages = [path.read_text() for path in STUDIES.glob("*.md") if path.stem in PAGES]
    included = {name for text in pages for name in re.findall(r"\{include\} over_targets/(\w+)\.md", text)}
    assert included == {path.stem for path in OVER_TARGETS}
    if included:
        run("tools.draw_claims", *sorted(included), "--check", cwd=ROOT)


def test_pages_include_what_their_studies_found() -> None:
    texts = {path.stem: path.read_text() for path in STUDIES.glob("*.md")}
    included = {name for text in texts.values() for name in re.findall(r"\{include\} (\S+)/found\.md", text)}
    assert included == {path.parent.relative_to(STUDIES).as_posix() for path in STUDIES.rglob("found.md")}
    if included:
        run("tools.draw_study", *sorted(str(STUDIES / name) for name in included), "--check", cwd=ROOT)


def test_published_studies_stay_small() -> None:
    assert sum(path.stat().st_size for path in STUDIES.rglob("*") if path.is_file()) < 6e6


def test_the_table_of_controls_is_of_the_published_studies() -> None:
    assert "{include} controls/table.md" in (STUDIES / "index.md").read_text()
    run("tools.draw_controls", "--check", cwd=ROOT)
