"""Keeps a page of a study that runs, `live.html` in its workdir, which a browser reads again by itself.

The page takes at most a hundredth of the time: it is written again when it is worth it, and a page that cannot be
written is a warning.
"""

from __future__ import annotations

import contextlib
import datetime
import math
import os
import re
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from jaxseg import hosts
from jaxseg.loop import Interrupted
from jaxseg.report import live as page
from jaxseg.study import live, record, run
from jaxseg.study.record import StudyRecord
from jaxseg.types import Progress, RunLine
from launch.pace import Pace

DRAWING_SHARE, WRITING_SHARE = 0.0075, 0.0025
"""The most of a study's time that the curves of its page, and all the rest of it, may take."""
_A_WRITING, _A_DRAWING = 0.05, 0.5
"""Seconds that they are taken to need before it is known. The first page of all does not count: what it takes longer
than others, loading its template, comes once and before anything trains."""
_MOST_WARNINGS = 20
_STAGE = {"select": "train"}
"""The stage of a title of progress whose first word is not the stage itself."""
_TRAINING = ("pretrain", "train")


class LivePage:
    """The page of a study that this process runs; it begins once the study has its workdir to itself.

    Args:
        workdir: The folder of the study.
        name: The study's name.
        stages: The stages that were asked for; without any, nothing is written.
        clock: Seconds of a clock that only goes forward.
    """

    def __init__(
        self, workdir: Path, name: str, stages: Sequence[str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._workdir, self._name, self._stages, self._clock = workdir, name, tuple(stages), clock
        self._asked = bool(stages) and hosts.is_first()
        self._began = self._written = clock()
        self._begun = False
        self._stage, self._doing, self._pace = "prepare", "", Pace(clock)
        self._warnings: list[str] = []
        self._study: tuple[int, StudyRecord] | None = None
        self._drawn, self._measured = page.Drawn(), 0
        self._writing, self._drawing = 0.0, 0.0  # seconds in all
        self._wrote, self._drew, self._drew_now = _A_WRITING, _A_DRAWING, 0.0  # the last time
        self._pages = 0
        self._every = math.nan
        self._broken = False

    def watch(self, make: Callable[[str], Progress]) -> Callable[[str], Progress]:
        """Wraps what makes the progress of each title, so that the page hears of it too."""
        if not self._asked:
            return make

        def titled(title: str) -> Progress:
            told, pace = make(title), Pace(self._clock)
            word = re.split(r"[^a-z]", title, maxsplit=1)[0]
            stage = _STAGE.get(word, word)

            def progress(what: str, done: int, total: int, note: str = "", runs: Sequence[RunLine] = ()) -> None:
                told(what, done, total, note, runs)
                pace.reached(what, done, total)
                self._begun, self._stage, self._pace = True, stage, pace
                self._doing = f"{title}: {what} {done} of {total}" + (f"; {note}" if note else "")
                self._write_if_cheap()

            return progress

        return titled

    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        """Notes warnings meanwhile, and writes at the end how the study ended."""
        if not self._asked:
            yield
            return
        show = warnings.showwarning

        def heard(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
            if category is UserWarning:
                self._note(str(message))
            show(message, category, *where, **more)

        warnings.showwarning = heard
        try:
            yield
        except Interrupted as error:
            self._end("stopped", str(error))
            raise
        except BaseException as error:
            self._end("failed", f"{type(error).__name__}: {str(error).strip()}")
            raise
        else:
            self._end("ended", "")
        finally:
            warnings.showwarning = show

    def _note(self, line: str) -> None:
        if line not in self._warnings:
            self._warnings = [*self._warnings, line][-_MOST_WARNINGS:]

    def _end(self, state: page.State, said: str) -> None:
        if not self._begun:
            return
        if state == "ended" and "report" in self._stages:
            self._guarded(lambda: page.write_forward(self._workdir, self._name))
        else:
            self._guarded(lambda: self._write(state, said))

    def _write_if_cheap(self) -> None:
        """Writes the page where its share of the time so far allows it, with new curves where theirs does."""
        now = self._clock()
        so_far = now - self._began
        if self._pages and self._writing + self._wrote > WRITING_SHARE * so_far:
            return
        self._every = 2 * (now - self._written) if self._pages else math.nan
        self._guarded(lambda: self._write("running", "", draw=self._drawing + self._drew <= DRAWING_SHARE * so_far))
        self._written = self._clock()

    def _write(self, state: page.State, said: str, *, draw: bool = True) -> None:
        """Writes the page and notes how long that took, also where it failed."""
        began, self._drew_now = self._clock(), 0.0
        try:
            study = self._read_study()
            jobs = () if study is None else live.read_jobs(self._workdir, study)
            tables = None if study is None else live.progress_tables(jobs)
            if draw and tables is not None:
                self._draw(jobs, tables)
            page.write_live(self._workdir, self._look(state, said, tables), tables, self._drawn)
        finally:
            self._pages += 1
            if self._pages > 1:
                self._wrote = self._clock() - began - self._drew_now
                self._writing, self._drawing = self._writing + self._wrote, self._drawing + self._drew_now

    def _draw(self, jobs: Sequence[live.LiveJob], tables: Mapping[str, pd.DataFrame]) -> None:
        """Draws the curves anew, if there is more to draw."""
        measured = sum(len(job.log.step) for job in jobs)
        if measured == self._measured:
            return
        began, self._measured = self._clock(), measured
        try:
            self._drawn = page.draw_curves({**tables, **live.curve_tables(jobs)})
        finally:
            self._drew = self._drew_now = self._clock() - began

    def _look(self, state: page.State, said: str, tables: Mapping[str, pd.DataFrame] | None) -> page.Look:
        return page.Look(
            name=self._name,
            state=state,
            said=said,
            stages=tuple(self._stage_states(state)),
            doing=self._doing,
            left_here=self._pace.left,
            left_training=math.nan if tables is None else self._left_training(tables["jobs"]),
            written=datetime.datetime.now().astimezone(),
            every=self._every,
            seconds=self._clock() - self._began,
            process=os.getpid(),
            host=socket.gethostname(),
            slurm_job=os.environ.get("SLURM_JOB_ID", ""),
            warnings=tuple(self._warnings),
            has_report=(self._workdir / "report.html").exists(),
        )

    def _read_study(self) -> StudyRecord | None:
        """The study's record, which is read again only when it was written again."""
        try:
            changed = (self._workdir / record.NAME).stat().st_mtime_ns
        except FileNotFoundError:
            return None
        if self._study is None or self._study[0] != changed:
            found = record.read(self._workdir)
            self._study = None if found is None else (changed, found)
        return None if self._study is None else self._study[1]

    def _left_training(self, jobs: pd.DataFrame) -> float:
        """Seconds until all jobs are trained, if steps of all networks take as long as those of the present job."""
        job = live.current_job(jobs)
        if self._stage not in _TRAINING or job is None:
            return math.nan
        return self._pace.seconds_each / job.n_runs * live.run_steps_left(jobs)

    def _stage_states(self, state: page.State) -> Iterator[tuple[str, str]]:
        asked = [stage for stage in run.STAGES if stage in self._stages]
        for stage in asked:
            done = run.STAGES.index(stage) < run.STAGES.index(self._stage) or state == "ended"
            now = "now" if state == "running" else "not finished"
            yield stage, "done" if done else now if stage == self._stage else "to come"

    def _guarded(self, write: Callable[[], None]) -> None:
        """Keeps a page that cannot be written from ending the study, and says so once."""
        try:
            write()
        except Exception as error:
            if not self._broken:
                self._broken = True
                warnings.warn(
                    f"{self._workdir / page.NAME} cannot be written ({type(error).__name__}: {error}); the study goes "
                    f"on without it",
                    stacklevel=2,
                )
