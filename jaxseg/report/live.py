"""The page of a study that still trains: how far it is, curves, and the last validation of every network.

Nothing on it is a result. Test cases are scored and claims judged once, when all networks are trained.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd
from markupsafe import Markup

from jaxseg.report.blocks import (
    Block,
    Cell,
    Chart,
    Fold,
    KeyFigure,
    Missing,
    Notice,
    Prose,
    Section,
    Strip,
    Styles,
    Table,
    TableGroup,
    arm_name,
    described,
    first_then_fold,
    sentence,
)
from jaxseg.report.charts.style import BASELINE_ARM, WIDE_INCHES, arm_styles, to_svg
from jaxseg.report.page import inlined, render, write
from jaxseg.report.sections import figures
from jaxseg.report.tables import Variant, rows_of, variants_of
from jaxseg.text import MISSING, cases, count, duration, number, plural

NAME = "live.html"
REFRESH_SECONDS = 20
"""How often a browser reads the page again while the study runs."""
State = Literal["running", "ended", "stopped", "failed"]

_NO_RESULT = (
    "<b>Nothing on this page is a result.</b> It shows training losses and scores on validation cases, of networks "
    "that are not finished. Test cases are scored and the study's questions answered once, when everything is trained. "
    "A study that is stopped or changed because of what is seen here loses that answer."
)
_KINDS = {
    "pretrain": "source networks",
    "select": "trials of learning rates",
    "train": "networks of the arms",
}
_VALIDATED = {"train": "Validation DSC", "pretrain": "Validation DSC", "restore": "Restored in validation"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Look:
    """What the process that runs a study says of itself at one moment."""

    name: str
    """The study's name."""
    state: State = "running"
    said: str = ""
    """Why the process stopped, where it did."""
    stages: tuple[tuple[str, str], ...]
    """Each stage that was asked for, with `done`, `now` or `to come`."""
    doing: str = ""
    """What is being done, and how far it is."""
    left_here: float = math.nan
    """Seconds until that is done; NaN if unknown."""
    left_training: float = math.nan
    """Seconds until all networks are trained; NaN if unknown."""
    written: datetime.datetime
    """The time of writing, with its zone."""
    every: float = math.nan
    """Seconds after which the page is expected to be written again; NaN if unknown."""
    seconds: float
    """Seconds since the process began."""
    process: int
    host: str
    slurm_job: str = ""
    warnings: tuple[str, ...] = ()
    has_report: bool = False
    """Whether there is a report, of what was finished before."""


class Drawn(NamedTuple):
    """The figures of a page."""

    charts: tuple[Chart, ...] = ()
    pictures: Mapping[str, Markup] = {}
    """Each figure by its stem."""


def draw_curves(tables: Mapping[str, pd.DataFrame]) -> Drawn:
    """Draw the curves so far, which takes most of a page's time.

    Args:
        tables: The tables of `jaxseg.study.live.curve_tables` and `progress_tables`.
    """
    charts = tuple(_charts(tables["curve_runs"], tables["curve_means"], _styles(tables)))
    return Drawn(charts, {chart.stem: inlined(chart, to_svg(chart.draw(width=WIDE_INCHES))) for chart in charts})


def _styles(tables: Mapping[str, pd.DataFrame]) -> Styles:
    return arm_styles(list(dict.fromkeys(tables["networks"]["arm"])))


def write_live(workdir: Path, look: Look, tables: Mapping[str, pd.DataFrame] | None, drawn: Drawn) -> None:
    """Write `live.html`, whole or not at all.

    Args:
        workdir: The folder of the study.
        look: What the process says of itself.
        tables: The tables of `jaxseg.study.live.progress_tables`; None if there is no plan yet.
        drawn: The curves, perhaps of an earlier moment.
    """
    styles = {} if tables is None else _styles(tables)
    sections = list(_sections(look, tables, styles, drawn.charts))
    refresh = _refresh() if look.state == "running" else ""
    kind = "study in progress" if look.state == "running" else "unfinished study"
    text = render(look.name, kind, _lead(look), sections, drawn.pictures, refresh=refresh)
    write(workdir / NAME, text.encode("utf-8"))


def write_forward(workdir: Path, name: str) -> None:
    """Write a `live.html` that leads a browser on to `report.html`, since the study is finished."""
    words = Prose(Markup('Everything is done; the page is <a href="report.html">report.html</a>.'))
    sections = [Section("end", "Finished", (words,))]
    text = render(name, "finished", "All is done.", sections, {}, refresh="0; url=report.html")
    write(workdir / NAME, text.encode("utf-8"))


def write_points(folder: Path, name: str, workdirs: Sequence[Path]) -> None:
    """Write the `live.html` of a sweep, which leads to those of its points.

    Args:
        folder: The folder of the sweep.
        name: The sweep's name.
        workdirs: The workdirs of the points, below the folder.
    """
    rows = []
    for workdir in workdirs:
        link = Markup('<a href="{}/{}">{}</a>').format(workdir.relative_to(folder), NAME, workdir.name)
        rows.append((Cell(link),))
    caption = "Each point has a page of its own as soon as it begins, which leads to its report when it is finished."
    table = Table(caption, ("Point",), (TableGroup("", tuple(rows)),))
    lead = f"{plural(len(rows), 'point')}. When all are done, this page leads to the report over them."
    text = render(name, "sweep in progress", lead, [Section("points", "Points", (table,))], {}, refresh=_refresh())
    write(folder / NAME, text.encode("utf-8"))


def _refresh() -> str:
    return str(REFRESH_SECONDS)


def _lead(look: Look) -> str:
    if look.state == "running":
        return look.doing or "The study begins."
    ends = {
        "ended": "The stages that were asked for are done.",
        "stopped": "The study was stopped.",
        "failed": "The study ended with an error.",
    }
    return sentence("{how} {said}", how=ends[look.state], said=look.said)


def _sections(
    look: Look, tables: Mapping[str, pd.DataFrame] | None, styles: Styles, charts: Sequence[Chart]
) -> Iterator[Section]:
    yield Section("now", "Now" if look.state == "running" else "At the end", tuple(_now(look, tables)))
    none_yet = Missing(
        "No curves yet. Drawing them may take a hundredth of the time so far, so that they come a little later."
    )
    curves = tuple(first_then_fold("Other learning curves", charts)) if charts else (none_yet,)
    yield Section("curves", "Learning curves", curves)
    if tables is not None:
        yield Section("networks", "Networks", tuple(_networks(tables["networks"], styles)))
        yield Section("jobs", "Jobs", (_jobs(tables["jobs"]),))
    if look.warnings:
        yield Section("warnings", "Warnings", tuple(Prose(words) for words in look.warnings))


def _now(look: Look, tables: Mapping[str, pd.DataFrame] | None) -> Iterator[Block]:
    running = look.state == "running"
    if running and tables is not None:
        yield Strip(tuple(_key_figures(look, tables["jobs"])))
    if tables is not None:
        yield from _lost(tables["networks"])
    yield Notice(sentence(_NO_RESULT))
    facts: dict[str, object] = {
        "Stages": ", ".join(f"{stage} ({state})" for stage, state in look.stages),
        "Last written": sentence(
            "<b>{when}</b>, after {spent}", when=_moment(look.written), spent=duration(look.seconds)
        ),
        "Written again": _again(look) if running else "",
        "Process": f"{look.process} on {look.host}" + (f", Slurm job {look.slurm_job}" if look.slurm_job else ""),
        "Whether it is alive": _alive(look) if running else "",
        "Report": Markup('<a href="report.html">report.html</a>, of what was finished before')
        if look.has_report
        else "",
    }
    rows = tuple((Cell(name), Cell(words)) for name, words in facts.items() if words)  # type: ignore[arg-type]
    yield Table("", (), (TableGroup("", rows),), text_columns=(0, 1))


def _key_figures(look: Look, jobs: pd.DataFrame) -> Iterator[KeyFigure]:
    n_steps, n_done = (int((jobs["n_runs"] * jobs[column]).sum()) for column in ("steps", "step"))
    n_finished = int((jobs["step"] == jobs["steps"]).sum())
    if math.isfinite(look.left_here):
        yield KeyFigure(duration(look.left_here), "left of what is being done", "at the pace so far")
    if math.isfinite(look.left_training):
        yield KeyFigure(duration(look.left_training), "left until all networks are trained", "at the same pace")
    if n_steps:
        share = f"{100 * n_done // n_steps} %"
        yield KeyFigure(share, "of all training steps", f"{n_finished} of {plural(len(jobs), 'job')} done")


def _lost(networks: pd.DataFrame) -> Iterator[Block]:
    lost = [row for row in rows_of(networks) if pd.notna(row.diverged_at)]
    if lost:
        names = "; ".join(f"{_named(row)} at step {count(row.diverged_at)}" for row in lost)
        yield Notice(sentence("<b>{n} diverged</b>: {names}.", n=plural(len(lost), "network"), names=names))


def _named(row: Any) -> str:
    rate = f", rate {row.lr:g}" if row.kind == "select" else ""
    return f"{row.arm} ({cases(row.train_cases)}, fold {row.fold}{rate}), seed {row.seed}"


def _moment(when: datetime.datetime) -> str:
    return when.strftime("%Y-%m-%d %H:%M:%S %Z")


def _again(look: Look) -> str:
    if not math.isfinite(look.every):
        return f"as soon as there is more to show; a browser looks every {REFRESH_SECONDS} s"
    due = look.written + datetime.timedelta(seconds=look.every)
    return f"by about {_moment(due)}; a browser looks every {REFRESH_SECONDS} s"


def _alive(look: Look) -> Markup:
    asked = f"squeue --job={look.slurm_job}" if look.slurm_job else f"ps -p {look.process}"
    return sentence(
        "A page cannot know. If the time above is long past, ask <code>{asked}</code>{where}. A process that is gone "
        "has lost what it measured since the last save; the same command goes on from there.",
        asked=asked,
        where="" if look.slurm_job else f" on {look.host}",
    )


def _charts(runs: pd.DataFrame, means: pd.DataFrame, styles: Styles) -> Iterator[Chart]:
    """The arms' curves, those with the most training cases first, then the source networks'."""
    for kind, title in (
        ("train", ""),
        ("pretrain", "Source networks: "),
        ("restore", "Source networks without labels: "),
    ):
        of_kind, means_of_kind = runs[runs["kind"] == kind], means[means["kind"] == kind]
        for variant in reversed(variants_of(of_kind)) if len(of_kind) else ():
            own = of_kind[of_kind["train_cases"] == variant.train_cases]
            averaged = means_of_kind[means_of_kind["train_cases"] == variant.train_cases]
            yield _chart(f"{kind}_n{variant.train_cases}", title, own, averaged, styles, variant, _VALIDATED[kind])


def _chart(
    stem: str, title: str, runs: pd.DataFrame, means: pd.DataFrame, styles: Styles, variant: Variant, validated: str
) -> Chart:
    heading = figures.titles([variant])[variant]
    last = means[means["quantity"] == "loss"].groupby("arm")["step"].max()
    return Chart(
        stem,
        partial(
            figures.learning_curves,
            runs,
            means,
            styles,
            baseline=BASELINE_ARM if BASELINE_ARM in styles else None,
            target_dsc=None,
            validated=validated,
        ),
        described(
            f"{title}Training loss and validation scores so far, trained on {heading}",
            [(arm, last[arm]) for arm in styles if arm in last],
            lambda row: f"{row[0]} up to step {count(row[1])}",
        ),
        f"{title}Training loss and validation score up to step {count(last.max())}, trained on {heading}: mean over "
        "networks (thick) and every network (thin). Arms may be at different steps. Diverged networks are left out of "
        "the mean.",
    )


def _networks(networks: pd.DataFrame, styles: Styles) -> Iterator[Block]:
    tables = [
        _networks_of(kind, networks[networks["kind"].isin(of_kind)], styles)
        for kind, of_kind in (("train", ["train"]), ("select", ["select"]), ("pretrain", ["pretrain", "restore"]))
        if networks["kind"].isin(of_kind).any()
    ]
    yield from tables[:1]
    yield from (Fold(table.caption, (table,)) for table in tables[1:])


def _networks_of(kind: str, networks: pd.DataFrame, styles: Styles) -> Table:
    several_folds, several_rates = networks["fold"].nunique() > 1, kind == "select"
    groups = []
    key: Any
    for key, own in networks.groupby(["arm", "train_cases"], sort=False):
        heading = sentence("{arm}, {cases}", arm=arm_name(key[0], styles), cases=cases(key[1]))
        groups.append(
            TableGroup(heading, tuple(_network_row(row, several_folds, several_rates) for row in rows_of(own)))
        )
    caption = f"The {_KINDS[kind]}: loss of the last steps and last validation score."
    return Table(caption, ("Network", "Step", "Loss", "Validation", "At step", "State"), tuple(groups), (0, 5))


def _network_row(row: Any, several_folds: bool, several_rates: bool) -> tuple[Cell, ...]:
    name = f"seed {row.seed}" + (f", fold {row.fold}" if several_folds else "")
    name += f", rate {row.lr:g}" if several_rates else ""
    state = "to come" if row.step == 0 else "trains" if row.step < row.steps else "trained"
    if pd.notna(row.diverged_at):
        state = f"diverged at step {count(row.diverged_at)}"
    at = count(row.val_step) if pd.notna(row.val_step) else MISSING
    return Cell(name), _step(row), Cell(number(row.loss)), Cell(number(row.value)), Cell(at), Cell(state)


def _step(row: Any) -> Cell:
    return Cell(count(row.step), f"of {count(row.steps)}")


def _jobs(jobs: pd.DataFrame) -> Table:
    rows = []
    for row in rows_of(jobs):
        saved = MISSING if pd.isna(row.saved) else f"step {count(row.saved)}"
        rows.append((Cell(row.directory), Cell(_KINDS[row.kind]), Cell(count(row.n_runs)), _step(row), Cell(saved)))
    head = ("Job", "What it trains", "Networks", "Step", "Saved")
    caption = "Jobs in the order in which they train. If the process is lost, a job goes on from what is saved."
    return Table(caption, head, (TableGroup("", tuple(rows)),), text_columns=(0, 1))
