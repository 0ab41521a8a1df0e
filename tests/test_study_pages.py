"""Numbers on the pages of studies are those of the tables beside them."""

import functools
import json
import re
from pathlib import Path

import pandas as pd
import pytest

from jaxseg.report import write_report
from jaxseg.study import claims
from tests.conftest import ROOT
from tests.programs import run
from tests.report.tables_builder import write_workdir

STUDIES = ROOT / "docs" / "studies"
FOLDERS = {
    "cardiac-to-hippocampus": ("cardiac_to_hippocampus", "cardiac_to_hippocampus_gpu"),
    "ed-to-es": ("ed_to_es", "ed_to_es_slices"),
    "hippocampus-encoder": ("hippocampus_encoder*", "cardiac_to_hippocampus_gpu"),
    "harder-tasks": ("harder_tasks", "harder_tasks/*"),
    "across-studies": ("../studies", "*", "harder_tasks/*"),
    "which-start": ("which_start/*",),
}
"""Where a page's tables are, if not in the folder of its name."""
PAGES = sorted({path.stem for path in STUDIES.glob("*.md")} - {"index", "sharing", "rejudged"})
INTERVAL = re.compile(r"([+-]?\d+(?:\.\d+)?)[^|\[\]0-9]{0,60}?\[([+-]?\d+(?:\.\d+)?), ([+-]?\d+(?:\.\d+)?)\]")


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
    names, found = [estimate, "ci_low", "ci_high"], set()
    for value, low, high in pd.read_csv(path, usecols=names)[names].dropna().drop_duplicates().to_numpy():
        ways = [(value, low, high), (-value, -high, -low)]
        if low > 0:  # times fewer steps, times more
            ways.append((1 / value, 1 / high, 1 / low))
        found |= {tuple(written(number, digits) for number in way) for way in ways for digits in range(5)}
    return found


def test_verdicts_then_and_now_are_what_the_command_prints() -> None:
    table = claims.rejudge({name: STUDIES / name for name in ("hippocampus_encoder", "hippocampus_to_cardiac")})
    page = (STUDIES / "rejudged.md").read_text().splitlines()
    assert set(claims.as_markdown(table).splitlines()) <= set(page)


@pytest.mark.parametrize("page", PAGES)
def test_every_interval_of_a_page_is_in_its_tables(page: str) -> None:
    folders = [place for name in FOLDERS.get(page, (page.replace("-", "_"),)) for place in STUDIES.glob(name)]
    tables = [path for place in folders for path in (*place.glob("results/*.csv*"), *place.glob("*.csv"))]
    known = set().union(*map(intervals_of, tables))
    text = (STUDIES / f"{page}.md").read_text()
    shown = [tuple(map(as_written, match.groups())) for match in INTERVAL.finditer(text)]
    assert len(shown) > 3
    assert [numbers for numbers in shown if numbers not in known] == []


def test_figures_are_drawn_from_what_is_kept(tiny_study: Path, tmp_path: Path) -> None:
    kept, gains = tmp_path / "kept", tmp_path / "gains.svg"
    run("tools.publish_study", tiny_study, kept, "--without_page", "--compress_above=2000")
    printed = run("tools.draw_studies", kept)
    made = sorted((kept / "figures").iterdir())
    assert sorted(line.partition(":")[0] for line in printed.splitlines()) == [str(path) for path in made]
    assert {"differences.svg", "learning_curves.svg"} <= {path.name for path in made}
    for path in made:
        assert path.read_bytes() == (tiny_study / "figures" / path.name).read_bytes()
    run("tools.draw_studies", f"--gains={gains}", kept, kept)
    assert "transfer, all cases" in gains.read_text()


def test_a_summary_keeps_results_and_no_place_of_the_machine(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    workdir = write_workdir(tmp_path / "study", arms=("scratch", "transfer"), seeds=3, n_cases=5)
    write_report(workdir)
    config = json.loads((workdir / "config.json").read_text())
    config["source"] = {"data": "/home/someone/sets/hearts+/media/disk/heads", "unit": "mm"}
    config["pretrain"] = {"from_workdir": "/home/someone/import"}
    (workdir / "config.json").write_text(json.dumps(config))
    run("tools.publish_study", workdir, kept, "--summary")
    found = json.loads((kept / "config.json").read_text())
    assert found["source"] == {"data": "PATH/hearts+PATH/heads", "unit": "mm"}
    assert found["pretrain"] == {"from_workdir": "PATH/import"}
    results = {path.name for path in (kept / "results").iterdir()}
    assert {"comparisons.csv", "summary.csv"} <= results
    assert not {"cases.csv", "curves.csv", "similarity.csv"} & results
    for path in (*kept.glob("results/*"), *kept.glob("figures/*")):
        assert path.read_bytes() == (workdir / path.relative_to(kept)).read_bytes()
    assert (kept / "figures" / "differences.svg").exists()


@pytest.mark.parametrize(("sizes", "largest"), [((4, 16), 16), ((4, 16, 0), 0)])
def test_of_several_sizes_the_largest_is_drawn(tmp_path: Path, sizes: tuple[int, ...], largest: int) -> None:
    workdir = write_workdir(tmp_path / "study", arms=("scratch", "transfer"), sizes=sizes, seeds=3, n_cases=5)
    write_report(workdir)
    figures = {path.name: path.read_bytes() for path in (workdir / "figures").glob("learning_curves_n*.svg")}
    run("tools.draw_studies", workdir)
    drawn = (workdir / "figures" / "learning_curves.svg").read_bytes()
    assert drawn == figures[f"learning_curves_n{largest}.svg"]
    assert len(set(figures.values())) == len(sizes)


def test_published_studies_stay_small() -> None:
    assert sum(path.stat().st_size for path in STUDIES.rglob("*") if path.is_file()) < 30e6
