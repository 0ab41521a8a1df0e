"""Sweeps a study over several points of a grid of settings, each in its own workdir, with tables over all points.

A point is the fields in which it differs from the sweep's config. This module names points, remembers how each went,
and puts their tables together; running them is the launcher's.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import re
import socket
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from jaxseg import manifest, workdirs
from jaxseg.manifest import DamagedError
from jaxseg.study import claims, files, record
from jaxseg.types import UserError

Overrides = tuple[tuple[str, str], ...]
"""Dotted fields of the config, with their values as on a command line."""

STATES = ("new", "submitted", "running", "interrupted", "failed", "done")
RECORD = "sweep.json"
"""File in the sweep's folder with its points, and in a point's workdir with how that point went."""
LOG = "sweep.log"
"""File in a point's workdir with what its processes printed."""
CLAIM = ".sweep.lock"
"""In a point's workdir: held by the process that runs it from before it starts, so that no other launcher starts it."""
POINTS = "points"
"""The folder of the points' workdirs."""
NAME_LENGTH = 120
_SUM = "sha256"
"""In a note: the checksum of its other entries."""


def parse_axis(text: str) -> list[Overrides]:
    """Parses one axis of a grid.

    >>> parse_axis("optim.lr=1e-3;1e-4")
    [(('optim.lr', '1e-3'),), (('optim.lr', '1e-4'),)]

    Raises:
        UserError: If there is no field, no value, or a value twice.
    """
    field, equals, values = text.partition("=")
    given = [value.strip() for value in values.split(";")]
    if not field.strip() or not equals or not all(given):
        raise UserError(f"--grid={text!r} is not FIELD=VALUE;VALUE...; for example --grid='optim.lr=1e-3;1e-4'")
    if len(set(given)) < len(given):
        raise UserError(f"--grid={text!r} names a value twice")
    return [((_field(field), value),) for value in given]


def parse_point(text: str) -> Overrides:
    """Parses one point of a list.

    >>> parse_point("optim.lr=1e-4; train.steps=2000")
    (('optim.lr', '1e-4'), ('train.steps', '2000'))

    Raises:
        UserError: If an entry has no field or no value, or a field is given twice.
    """
    pairs = [entry.partition("=") for entry in text.split(";")]
    if not all(field.strip() and value.strip() for field, _, value in pairs):
        raise UserError(
            f"--point={text!r} is not FIELD=VALUE;FIELD=VALUE...; for example --point='optim.lr=1e-4;train.steps=2000'"
        )
    point = tuple((_field(field), value.strip()) for field, _, value in pairs)
    if len({field for field, _ in point}) < len(point):
        raise UserError(f"--point={text!r} sets a field twice")
    return point


def _field(name: str) -> str:
    return name.strip().removeprefix("--").removeprefix("config.")


def make_points(axes: Sequence[str], points: Sequence[str]) -> list[Overrides]:
    """Combines the axes' values, each combination with every point of the list if there is one.

    The last axis varies fastest.

    Raises:
        UserError: If nothing varies, a field is on two axes, or one of the texts has a mistake.
    """
    choices = [parse_axis(text) for text in axes]
    if points:
        choices.insert(0, [parse_point(text) for text in points])
    if not choices:
        raise UserError("nothing to vary: give --grid='FIELD=VALUE;VALUE' or --point='FIELD=VALUE;FIELD=VALUE'")
    fields = [list(dict.fromkeys(field for choice in axis for field, _ in choice)) for axis in choices]
    for field, count in pd.Series(list(itertools.chain(*fields))).value_counts().items():
        if count > 1:
            raise UserError(f"{field} is varied twice; put all of its values into one --grid, or in --point alone")
    return [tuple(itertools.chain(*combination)) for combination in itertools.product(*choices)]


def point_name(values: Mapping[str, Any]) -> str:
    """Names a point's folder, whatever other points there are and however its numbers were written.

    >>> point_name({"optim.lr": 1e-3, "target.train_cases": (8, 16)})
    'optim.lr=0.001,target.train_cases=8-16'
    """
    words = [f"{field}={_word(value)}" for field, value in values.items()]
    name = re.sub(r"[^A-Za-z0-9.,=+_-]+", "_", ",".join(words))
    exact = ",".join(f"{field}={value!r}" for field, value in values.items())
    # Characters that a folder cannot carry, or its length, must not make two points one.
    if len(name) > NAME_LENGTH or any(_lossy(value) for value in values.values()):
        name = f"{name[:NAME_LENGTH].rstrip('.,=')}-{hashlib.sha256(exact.encode()).hexdigest()[:8]}"
    return name


def _word(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if isinstance(value, tuple):
        return "-".join(map(_word, value)) if value else "none"
    return str(value)


def _lossy(value: Any) -> bool:
    if isinstance(value, tuple):
        return any(isinstance(item, tuple | str) or _lossy(item) for item in value)
    return isinstance(value, str) and not re.fullmatch(r"[A-Za-z0-9._+]+", value)


# ------------------------------------------------------------------------------------------------- how a point went


@dataclasses.dataclass(frozen=True)
class Point:
    """A point of a sweep."""

    name: str
    overrides: Overrides
    """The overrides as they were given."""
    values: dict[str, Any]
    """The value in the point's config of every field that the sweep varies."""
    workdir: Path

    @property
    def record(self) -> dict[str, Any]:
        """What is known about how the point went; empty for a new one."""
        return read_record(self.workdir)

    @property
    def state(self) -> str:
        """Returns one of `STATES`; a point whose process vanished was interrupted."""
        state = self.record.get("state", "new")
        if is_worked_on(self.workdir):
            return "running"
        return "interrupted" if state == "running" else state


def make_point(sweep: Path, overrides: Overrides, values: Mapping[str, Any]) -> Point:
    """Makes a point in a sweep's folder; `values` covers all fields that the sweep varies."""
    name = point_name({field: values[field] for field, _ in overrides})
    return Point(name, overrides, dict(values), workdirs.inside(sweep, POINTS, name))


def is_worked_on(workdir: Path) -> bool:
    """Returns whether a process works in a point's workdir, or is about to."""
    return files.is_locked(workdir) or files.is_locked(workdir, CLAIM)


def read_record(workdir: Path) -> dict[str, Any]:
    """Reads what a point's workdir says about how it went; empty for a new one.

    A damaged record costs little: the point counts as interrupted, and a finished study stays finished.
    """
    record = read_note(workdir / RECORD)
    if record is None:
        warnings.warn(f"{workdir / RECORD} is damaged; the point counts as interrupted", stacklevel=2)
        return {"state": "interrupted"}
    return record


def write_state(workdir: Path, state: str, **more: Any) -> None:
    """Notes the state of a point, beside what was noted before."""
    note = {"state": state, "host": socket.gethostname(), "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    write_note(workdir / RECORD, read_record(workdir) | note | more)


def write_note(path: Path, note: Mapping[str, Any]) -> None:
    """Writes a launcher's note, whole or not at all.

    The note holds its own checksum, since the manifest of a point's workdir belongs to the study that runs there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps({**note, _SUM: _sum(note)}, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


def read_note(path: Path) -> dict[str, Any] | None:
    """Reads a launcher's note: empty if there is none, None if it is damaged."""
    try:
        note = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        return None
    if not isinstance(note, dict) or note.pop(_SUM, None) != _sum(note):
        return None
    return note


def _sum(note: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(note, sort_keys=True).encode()).hexdigest()


def last_lines(log: Path, count: int | None = None) -> list[str]:
    """Returns what the last process that wrote a log printed, without empty lines: all of it, or the last lines."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    begun = max((index for index, line in enumerate(lines) if line.startswith("$ ")), default=-1)
    return lines[begun + 1 :] if count is None else lines[begun + 1 :][-count:]


def failure(log: Path, status: int) -> str:
    """Returns in one line what a failed process said at the end of its log."""
    lines = last_lines(log)
    told = [line for line in lines if line.startswith("error: ")]
    if told and (status == 2 or (status == 1 and told[-1] == lines[-1])):
        return told[-1].removeprefix("error: ")
    last = f": {lines[-1].strip()}" if lines else ""
    return f"killed by signal {-status}{last}" if status < 0 else f"exit status {status}{last}"


# ------------------------------------------------------------------------------------------------------- the tables


def lost_results(workdir: Path) -> str:
    """Names the tables of a finished study that are damaged or gone; empty if all are as they were written."""
    results = workdir / "results"
    if not (workdir / record.NAME).exists():
        return ""
    if not files.was_written(results / "cases.csv"):
        return "results/"
    try:
        return ", ".join(f"results/{name}" for name in sorted(manifest.check(results)))
    except DamagedError as error:
        return f"results/{error.path.name}"


def write_sweep(sweep: Path, name: str, points: Sequence[Point]) -> None:
    """Writes the list of points and every table over all points that are done.

    A table is put together from the points that have it: `results/<table>.csv` of the sweep is theirs one under the
    other, with the point and the swept fields as the first columns. `results/points.csv` has one row a point.
    """
    fields = list(points[0].values)
    rows = []
    for point in points:
        noted = point.record
        rows.append(
            {
                **_columns(point, fields),
                "state": point.state,
                "seconds": noted.get("seconds"),
                "attempts": noted.get("attempts", 0),
                "message": noted.get("message") if point.state == "failed" else None,
                "workdir": str(point.workdir.relative_to(sweep)),
            }
        )
    done = [point for point in points if point.state == "done"]
    tables = dict.fromkeys(path.name for point in done for path in sorted((point.workdir / "results").glob("*.csv")))
    made = {"points.csv": pd.DataFrame(rows)}
    for table in tables:
        if table.startswith("prepared_"):
            continue  # about the data of a point, not about its results
        parts = []
        for point in done:
            path = point.workdir / "results" / table
            if path.exists():
                part = files.read_table(path)
                lead = pd.DataFrame([_columns(point, fields)] * len(part), index=part.index)
                parts.append(pd.concat([lead, part], axis=1))
        made[table] = pd.concat(parts, ignore_index=True)
    for stale in (sweep / "results").glob("*.csv"):
        manifest.remove(stale)  # of other points, from an earlier command
    for table, whole in made.items():
        files.write_table(sweep / "results" / table, whole)
    _write_claims(sweep, done)
    files.write_json(
        sweep / RECORD,
        {
            "name": name,
            "fields": fields,
            "points": [{"name": point.name, "overrides": dict(point.overrides)} for point in points],
        },
    )


def _write_claims(sweep: Path, done: Sequence[Point]) -> None:
    """Verdicts over all points, where these are studies of several targets or of one at several levels of noise."""
    judged = [point for point in done if (point.workdir / "results" / "claims.csv").exists()]
    told = {point.name: claims.read_target_study(point.workdir) for point in judged}
    names, levels = claims.made_noisy({name: study.record for name, study in told.items()})
    if names and (levels or len({told[name].record.target for name in names}) > 1):
        places = {point.name: point.workdir for point in judged}
        noisy = {level: claims.read_study(places[name]) for level, name in levels.items()}
        studies = {name: told[name] for name in names}
        table = claims.over_studies(studies, noisy=noisy)
        files.write_table(sweep / "results" / "claims_over_studies.csv", table)
        files.write_table(sweep / "results" / "over_targets.csv", claims.target_table(studies, noisy=noisy))


def _columns(point: Point, fields: Sequence[str]) -> dict[str, Any]:
    """A point's name and its value of every swept field, as columns."""
    return {"point": point.name} | {
        field: str(point.values[field]) if isinstance(point.values[field], tuple) else point.values[field]
        for field in fields
    }
