r"""Runs one study at every point of a grid, or of a list, of settings, and puts their tables side by side.

    python -m launch.sweep --config=configs/quickstart.py --workdir=runs/rates \
        --grid 'optim.lr=1e-3;1e-4' --grid 'target.train_cases=(4,);(8,)'

The same command goes on where it was stopped and leaves finished points alone. docs/launching.md says which --cluster
to use when.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from jaxseg import settings, workdirs
from jaxseg.manifest import DamagedError
from jaxseg.report import live, write_sweep_report
from jaxseg.settings import StudySettings
from jaxseg.settings.parse import GROWING
from jaxseg.study import files, sweep
from jaxseg.study.plan.binding import read_binding
from jaxseg.study.plan.planned import waves_of
from jaxseg.study.workdir import check_workdir, read_config
from jaxseg.types import UserError
from launch import cli, places, sweep_jobs, terminal

_TABLES_SECONDS = 300.0
_CONFIG = cli.config_flag()
_WORKDIR = cli.workdir_flag()
_DRY_RUN = cli.dry_run_flag()
_GRID = flags.DEFINE_multi_string("grid", [], "An axis of the grid: 'optim.lr=1e-3;1e-4'. Repeat it for more axes.")
_POINT = flags.DEFINE_multi_string(
    "point", [], "A point of a list: 'optim.lr=1e-4;train.steps=2000'. With --grid each is crossed with the grid."
)
_CLUSTER = flags.DEFINE_enum(
    "cluster",
    "local",
    ["local", "slurm", "debug", "slurm_local"],
    "local: processes on this machine. slurm: a job array. debug: in this process, up to the first error. slurm_local: "
    "what slurm would do, on this machine, to try it out.",
)
_PARALLEL = flags.DEFINE_integer("parallel", 1, "Points at once; those on one machine share its devices.", 1)
_RETRY = flags.DEFINE_bool("retry_failed", False, "Run points that failed before again.")
_WAIT = flags.DEFINE_bool("wait", False, "With --cluster=slurm: wait for the jobs instead of returning.")
_SLURM = flags.DEFINE_list(
    "slurm", [], "With --cluster=slurm: parameters for submitit, e.g. partition=gpu,gpus_per_node=1,timeout_min=600."
)


def make_points(words: Sequence[str], folder: Path) -> list[tuple[sweep.Point, list[str]]]:
    """Makes and checks the points, each with the command line of its config.

    Raises:
        UserError: If the grid has a mistake, the config of some point is wrong, or two points are the same.
    """
    made = sweep.make_points(_GRID.value, _POINT.value)
    varied = list(dict.fromkeys(field for overrides in made for field, _ in overrides))
    points: list[tuple[sweep.Point, list[str]]] = []
    seen: dict[str, sweep.Overrides] = {}
    for overrides in made:
        # A field that only other points vary keeps the value that the command gives to all.
        own = {f"config.{field}" for field, _ in overrides}
        base = [word for word in words if _flag(word) not in own]
        line = [*base, *(f"--config.{field}={value}" for field, value in overrides)]
        config = cli.parse_config(line)
        placed = "config.runtime.store_dir" in map(_flag, line)
        if not placed and not config.runtime.store_dir:  # data is prepared once for all points
            line.insert(len(base), f"--config.runtime.store_dir={folder / 'stores'}")
            config = cli.parse_config(line)
        point = sweep.make_point(folder, overrides, {field: _at(config, field) for field in varied})
        try:
            _check_seeds(check_workdir(config, point.workdir), point.workdir)
        except UserError as error:
            raise UserError(f"point {point.name}: {error}") from error
        if point.name in seen:
            raise UserError(f"--point and --grid name {point.name} twice: {seen[point.name]} and {overrides}")
        seen[point.name] = overrides
        points.append((point, line))
    return points


def _flag(word: str) -> str:
    return word.split("=")[0].lstrip("-")


def _at(config: Any, field: str) -> Any:
    for name in field.split("."):
        config = config[name]
    return config


def _check_seeds(study: StudySettings, workdir: Path) -> None:
    """Refuses fewer seeds than a point has, over which its process would fail."""
    with contextlib.suppress(DamagedError):  # the study makes the record anew, and checks then
        bound = read_binding(workdir)
        waves_of(study, workdir, () if bound is None else bound.waves)


def is_outgrown(workdir: Path, config: Any) -> bool:
    """Returns whether a finished study is asked for more than it was made with, such as more seeds."""
    try:
        saved = read_config(workdir)
    except DamagedError:
        return True  # what it was made with is unknown; the study writes it anew
    asked = settings.from_json(settings.to_json(config))  # as it would be saved, with tuples for lists
    return saved is not None and any(_growing(saved, field) != _growing(asked, field) for field in GROWING)


def _growing(config: Any, field: str) -> Any:
    """The value of a field that may grow; None where the config is older than the field."""
    try:
        return _at(config, field)
    except KeyError:
        return None


def main() -> None:
    """Runs the points that are not done, then writes the tables and the page over all that are."""
    cli.require(_CONFIG.value, "config", "configs/quickstart.py")
    place = cli.require(_WORKDIR.value, "workdir", "runs/sweep")
    if not _CLUSTER.value.startswith("slurm"):
        cli.refuse(("wait", "slurm"), "they are for --cluster=slurm")
    else:
        places.on_this_machine(place, f"--cluster={_CLUSTER.value}, whose jobs all see the same folder,")
    with places.working(place) as work:
        failed = run_points(work.folder)
    if failed:
        raise SystemExit(1)


def run_points(folder: Path) -> int:
    """Runs the points of a sweep in its folder; returns how many failed."""
    workdirs.check_links(folder)
    points = make_points(cli.config_words(sys.argv), folder)
    todo = ["new", "interrupted", *(["failed"] if _RETRY.value else [])]
    commands, outgrown = [], []
    for point, words in points:
        argv = [sys.executable, "-m", "launch.study", *words, f"--workdir={point.workdir}"]
        command = sweep_jobs.Command(point.name, point.workdir, tuple(argv))
        state = sweep_jobs.state_of(point)
        if state == "done" and (lost := sweep.lost_results(point.workdir)):
            outgrown.append(command)
            state = f"done before, writes anew what is damaged or gone: {lost}"
        elif state == "done" and is_outgrown(point.workdir, cli.parse_config(words)):
            outgrown.append(command)
            state = "done before, goes on with what is new"
        terminal.say(f"{point.name}: {state}")
        if state in todo or command in outgrown:
            commands.append(command)
    terminal.say(f"{len(points)} points, {len(commands)} to run\n")
    if _DRY_RUN.value:
        return 0
    for command in outgrown:
        sweep_jobs.reopen(command)
    folder.mkdir(parents=True, exist_ok=True)
    live.write_points(folder, cli.load_config(_CONFIG).name, [point.workdir for point, _ in points])
    try:
        if _CLUSTER.value == "debug":
            configs = {point.name: cli.parse_config(words) for point, words in points}
            sweep_jobs.run_here(commands, configs)
        elif _CLUSTER.value == "local":
            sweep_jobs.run_processes(commands, parallel=_PARALLEL.value)
        else:
            local = _CLUSTER.value == "slurm_local"
            wait = local or _WAIT.value
            sweep_jobs.submit(commands, folder, parallel=_PARALLEL.value, given=_SLURM.value, local=local, wait=wait)
    finally:
        failed = report([point for point, _ in points], folder)
    if failed:
        terminal.say(f"{failed} of {len(points)} points failed; --retry_failed runs them again", error=True)
    return failed


def report(points: list[sweep.Point], folder: Path) -> int:
    """Writes the tables and the page, prints the states of the points, and returns how many failed."""
    with files.locked(folder, seconds=_TABLES_SECONDS):  # of several commands in this folder, one writes at a time
        sweep.write_sweep(folder, cli.load_config(_CONFIG).name, points)
        page = write_sweep_report(folder)
        states = Counter(point.state for point in points)
        if states["done"] == len(points):
            live.write_forward(folder, cli.load_config(_CONFIG).name)
    terminal.say(f"\n{', '.join(f'{count} {state}' for state, count in states.items())}")
    for point in points:
        if point.state == "failed":
            terminal.say(sweep_jobs.describe_failure(point))
    terminal.say(f"tables: {(folder / 'results').absolute()}\nreport: {page.absolute()}")
    return states["failed"]


if __name__ == "__main__":
    cli.run(main)
