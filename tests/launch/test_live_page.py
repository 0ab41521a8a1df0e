"""The page that follows a study costs next to nothing, ends nothing, and says how the study ended."""

from __future__ import annotations

import shutil
import signal
import warnings
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pytest
from markupsafe import Markup

from jaxseg import hosts
from jaxseg.loop import Interrupted
from jaxseg.report import live as page
from jaxseg.report.blocks import Chart
from jaxseg.study.run import STAGES
from jaxseg.types import UserError
from launch import live, terminal
from launch.pace import Pace
from tests.tiny_study import silent


class Clock:
    """Seconds that pass only as they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def workdir(tiny_study: Path, tmp_path: Path) -> Path:
    """What the page reads of a study: no results."""
    shutil.copy(tiny_study / "study.json", tmp_path)
    for path in (tiny_study / "train").glob("*/*/metrics.jsonl"):
        place = tmp_path / path.relative_to(tiny_study)
        place.parent.mkdir(parents=True)
        shutil.copy(path, place)
    return tmp_path


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> str:
    """The picture of curves that take no time to draw."""
    picture = "<svg><title>curves</title></svg>"

    def draw(tables: Mapping[str, pd.DataFrame]) -> page.Drawn:
        assert set(tables["curve_runs"]["kind"]) == {"train", "pretrain"}
        return page.Drawn((Chart("curves", lambda **_: None, "", ""),), {"curves": Markup(picture)})  # type: ignore[arg-type, return-value]

    monkeypatch.setattr(page, "draw_curves", draw)
    return picture


def _text(workdir: Path) -> str:
    return (workdir / page.NAME).read_text(encoding="utf-8")


def test_a_page_takes_less_than_a_hundredth_of_the_time(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, written, drawn = Clock(), [], []

    def write(*given: object) -> None:
        clock.now += 0.04
        written.append(clock.now)

    def draw(tables: object) -> page.Drawn:
        clock.now += 0.9  # more than the first drawing is taken to need
        drawn.append(clock.now)
        return page.Drawn()

    monkeypatch.setattr(page, "write_live", write)
    monkeypatch.setattr(page, "draw_curves", draw)
    follower = live.LivePage(workdir, "x", STAGES, clock)
    progress = follower.watch(silent)("train_0/0 (4 runs)")
    for step in range(600):
        clock.now += 1.0
        follower._measured = -1  # as if every report brought new rows
        progress("training", step, 600)
        if clock.now > 150:
            assert 0.04 * (len(written) - 1) + 0.9 * len(drawn) <= 0.01 * clock.now
    assert len(written) > 30
    assert len(drawn) > 3
    assert written[0] <= 1.1, "there is a page from the start"


@pytest.mark.usefixtures("cheap")
def test_a_page_that_cannot_be_written_is_one_warning(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    clock = Clock()
    follower = live.LivePage(workdir, "x", STAGES, clock)

    def train() -> None:
        for step in range(9):
            clock.now += 100.0
            follower.watch(silent)("train_0/0")("training", step, 9)

    with follower.following():
        monkeypatch.setattr(page, "write", full)
        with pytest.warns(
            UserWarning, match=r"live\.html cannot be written .*No space left.*goes on without it"
        ) as told:
            train()
        assert len(told) == 1
        monkeypatch.undo()
    assert "url=report.html" in _text(workdir), "once it can be written, it is"


def test_a_study_that_never_had_its_workdir_leaves_no_page(tmp_path: Path) -> None:
    follower = live.LivePage(tmp_path, "x", STAGES)
    with pytest.raises(UserError), follower.following():
        raise UserError("workdir is in use by another process")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("first", [True, False])
def test_the_first_host_writes_alone_and_nobody_for_a_plan(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    monkeypatch.setattr(hosts, "is_first", lambda: first)
    follower = live.LivePage(workdir, "x", () if first else STAGES)
    with follower.following():
        follower.watch(silent)("prepare")("preparing", 1, 2)
    assert not (workdir / page.NAME).exists()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (Interrupted(signal.SIGTERM, "saved step 4"), "The study was stopped. stopped by SIGTERM; saved step 4"),
        (UserError("no memory for it"), "The study ended with an error. UserError: no memory for it"),
    ],
)
def test_a_study_that_ends_early_says_so_with_all_its_curves(
    workdir: Path, cheap: str, error: BaseException, words: str
) -> None:
    clock = Clock()
    follower = live.LivePage(workdir, "x", STAGES, clock)

    def train() -> None:
        with follower.following():
            follower.watch(silent)("train_0/0 (4 runs)")("compiling", 0, 8)
            assert f'http-equiv="refresh" content="{page.REFRESH_SECONDS}"' in _text(workdir)
            assert "train (now), evaluate (to come)" in _text(workdir)
            assert cheap not in _text(workdir)
            raise error

    with pytest.raises(type(error)):
        train()
    text = _text(workdir)
    assert words in text
    assert 'http-equiv="refresh"' not in text
    assert "train (not finished), evaluate (to come)" in text
    assert cheap in text
    assert warnings.showwarning.__module__ != live.__name__


@pytest.mark.usefixtures("cheap")
def test_warnings_stand_on_the_page(workdir: Path) -> None:
    follower = live.LivePage(workdir, "x", ["prepare", "train"])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with follower.following():
            follower.watch(silent)("train_0/0 (4 runs)")("training", 2, 8)
            warnings.warn("case_3 is <doubtful>", stacklevel=1)
            warnings.warn("an old name", DeprecationWarning, stacklevel=1)
    assert len(told) == 2, "they are shown elsewhere too"
    text = _text(workdir)
    assert "case_3 is &lt;doubtful&gt;" in text
    assert "an old name" not in text
    assert "prepare (done), train (done)" in text


def test_what_is_left_is_told_from_what_was_done_without_compiling() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.reached("compiling", 0, 100)
    clock.now = 50.0
    pace.reached("training", 10, 100)
    assert pace.left != pace.left, "one report tells no pace"
    clock.now = 54.0
    pace.reached("validating", 10, 100)
    clock.now = 60.0
    pace.reached("training", 30, 100)
    assert (pace.seconds_each, pace.left) == (0.5, 35.0)
    pace.reached("scoring", 1, 8)
    assert pace.left != pace.left, "something else has a pace of its own"


def test_lines_say_what_is_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    monkeypatch.setattr(terminal, "Pace", lambda: Pace(clock))
    monkeypatch.setattr(terminal.time, "monotonic", clock)
    progress = terminal.make_progress()("train_0/0")
    for done in (2, 4, 8):
        clock.now += 20.0
        progress("training", done, 8, "loss 0.5")
    assert capsys.readouterr().out.splitlines() == [
        "train_0/0: training 2/8  loss 0.5",
        "train_0/0: training 4/8  loss 0.5, 40 s left",
        "train_0/0: training 8/8  loss 0.5",
    ]
