"""The page of a study that trains: it looks again by itself, escapes every name, and is no result."""

from __future__ import annotations

import datetime
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from jaxseg.report import live
from tests.report.tables_builder import NASTY
from tests.report.test_report_page import Page

ARMS = ("scratch", *NASTY[1:])
WRITTEN = datetime.datetime(2026, 5, 4, 3, 2, 1, tzinfo=datetime.UTC)


def look(**given: Any) -> live.Look:
    common: dict[str, Any] = {
        "name": "</title><script>alert(1)</script>",
        "stages": (("train", "now"), ("evaluate", "to come")),
        "doing": "train_0/0: training 4 of 8",
        "written": WRITTEN,
        "seconds": 61.0,
        "process": 4711,
        "host": "node<3>",
    }
    return live.Look(**(common | given))


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    """Two seeds of each arm, of which the last one of the last arm diverged."""
    keys = [{"arm": arm, "train_cases": 0, "fold": 0, "seed": seed} for arm in ARMS for seed in (0, 1)]
    curves = [
        {**key, "kind": "train", "quantity": quantity, "step": step, "value": 1 / (1 + step + key["seed"])}
        for key in keys
        for quantity in ("loss", "val_dsc")
        for step in (2, 4)
    ]
    runs = pd.DataFrame(curves)
    means = runs.groupby(["kind", "arm", "train_cases", "quantity", "step"], as_index=False)["value"].mean()
    networks = [
        {**key, "kind": "train", "lr": 1e-3, "step": 4, "steps": 8, "loss": 0.5, "val_step": 4, "value": 0.25}
        for key in keys
    ]
    job = {"directory": "train/train_0/chunk_0", "kind": "train", "n_runs": len(keys), "n_diverged": 1}
    return {
        "jobs": pd.DataFrame([{**job, "step": 4, "steps": 8, "saved": None}]),
        "networks": pd.DataFrame(networks).assign(diverged_at=[*[None] * (len(keys) - 1), 3]),
        "curve_runs": runs,
        "curve_means": means.assign(ci_low=math.nan, ci_high=math.nan),
    }


@pytest.fixture(scope="module")
def drawn(tables: dict[str, pd.DataFrame]) -> live.Drawn:
    return live.draw_curves(tables)


def _refresh(page: Page) -> list[str | None]:
    return [a["content"] for tag, a in page.elements if tag == "meta" and a.get("http-equiv") == "refresh"]


def test_a_running_study_is_shown_and_looked_at_again(
    tables: dict[str, pd.DataFrame], drawn: live.Drawn, tmp_path: Path
) -> None:
    live.write_live(tmp_path, look(left_here=83.0, left_training=7500.0, every=30.0), tables, drawn)
    page = Page((tmp_path / live.NAME).read_text(encoding="utf-8"))
    assert _refresh(page) == [str(live.REFRESH_SECONDS)]
    for words in (
        *("train_0/0: training 4 of 8", "1 min 23 s", "2 h 5 min", "50 %", "0 of 1 job done"),
        *("2026-05-04 03:02:01 UTC", "by about 2026-05-04 03:02:31 UTC", "ps -p 4711 on node<3>"),
        *("Nothing on this page is a result.", "1 network diverged", "seed 1 at step 3"),
    ):
        assert words in page.text, words
    assert page.text.count("diverged at step 3") == 1, "beside the network"
    assert {tag for tag, _ in page.elements} & {"script", "img"} == set()
    assert len([a for tag, a in page.elements if tag == "svg" and a.get("class") == "chart"]) == 2, "wide and narrow"
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert [path.name for path in tmp_path.iterdir()] == [live.NAME], "no figures, which are the report's"


@pytest.mark.parametrize(
    ("state", "said", "words"),
    [
        ("stopped", "stopped by SIGTERM", "The study was stopped. stopped by SIGTERM"),
        ("failed", "ValueError: <b>", "The study ended with an error. ValueError: <b>"),
        ("ended", "", "The stages that were asked for are done."),
    ],
)
def test_a_page_that_is_not_written_again_does_not_look_again(
    tmp_path: Path, state: live.State, said: str, words: str
) -> None:
    live.write_live(tmp_path, look(state=state, said=said, has_report=True), None, live.Drawn())
    page = Page((tmp_path / live.NAME).read_text(encoding="utf-8"))
    assert _refresh(page) == []
    assert words in page.text
    assert "Whether it is alive" not in page.text
    assert [a["href"] for tag, a in page.elements if tag == "a" and a.get("href") == "report.html"]


def test_the_page_of_a_finished_study_leads_to_its_report(tmp_path: Path) -> None:
    live.write_forward(tmp_path, "name")
    page = Page((tmp_path / live.NAME).read_text(encoding="utf-8"))
    assert _refresh(page) == ["0; url=report.html"]


def test_the_page_of_a_sweep_leads_to_those_of_its_points(tmp_path: Path) -> None:
    live.write_points(tmp_path, "<rates>", [tmp_path / "points" / name for name in ("lr=0.1", "lr=0.01,steps=8")])
    page = Page((tmp_path / live.NAME).read_text(encoding="utf-8"))
    links = [a["href"] for tag, a in page.elements if tag == "a" and str(a.get("href")).endswith(live.NAME)]
    assert links == ["points/lr=0.1/live.html", "points/lr=0.01,steps=8/live.html"]
    assert _refresh(page) == [str(live.REFRESH_SECONDS)]
    assert "<rates>" in page.text


def test_slurm_is_asked_for_a_job_of_slurm(tmp_path: Path) -> None:
    live.write_live(tmp_path, look(slurm_job="12_3"), None, live.Drawn())
    text = Page((tmp_path / live.NAME).read_text(encoding="utf-8")).text
    assert re.search(r"ask squeue --job=12_3\. ", text)
    assert "No curves yet." in text
