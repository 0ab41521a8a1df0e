"""Writes a study to MLflow: runs are found again by their tags, and only what is not there yet is added."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from jaxseg.study.mirror import Mirror, MirroredRun, State
from jaxseg.types import UserError

_PREFIX = "jaxseg."
"""Start of the names of our tags, by which a search finds the runs of a study."""
_STATUS: dict[State, str] = {"running": "RUNNING", "finished": "FINISHED", "failed": "FAILED"}
_METRICS, _OTHERS = 1000, 100
"""What MLflow takes in one request: metrics, and params or tags."""
_VALUE = 5000
"""Characters of a value, which older servers cut or refuse beyond this."""
_Item = TypeVar("_Item")


class Written(NamedTuple):
    """What a call added."""

    runs: int
    points: int
    changed: tuple[str, ...]
    """Params that MLflow has with another value, and keeps."""


class Place(NamedTuple):
    """An experiment on an MLflow server or in its store."""

    client: Any
    uri: str
    experiment: str
    """Id of the experiment."""


def connect(tracking_uri: str | None, experiment: str) -> Place:
    """Opens an experiment, and creates it if it is new.

    Raises:
        UserError: If MLflow is not installed, its server or store refuses, or the experiment was deleted.
    """
    # MLflow reports its use to its makers unless told otherwise; where a study runs is nobody's business. Of a server
    # that does not answer it would otherwise be sure only after minutes. It would also print two lines for every run
    # that ends.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    try:
        import mlflow
    except ImportError as error:
        raise UserError(
            f"--to=mlflow needs MLflow, which cannot be imported here ({error}); install it with "
            f"pip install -e '.[mlflow]'"
        ) from None
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # not each step of setting up a store
    uri = tracking_uri or mlflow.get_tracking_uri()
    with refusals(uri):
        client = mlflow.MlflowClient(uri)
        found = client.get_experiment_by_name(experiment)
        if found is not None and found.lifecycle_stage != "active":
            raise UserError(
                f"--experiment={experiment} was deleted in {uri}; restore it there, or give another --experiment"
            )
        return Place(client, uri, client.create_experiment(experiment) if found is None else found.experiment_id)


@contextlib.contextmanager
def refusals(uri: str) -> Iterator[None]:
    """Turns what MLflow refuses into a message.

    Raises:
        UserError: If MLflow, or what its store needs, raises an error.
    """
    from mlflow.exceptions import MlflowException

    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(
            f"MLflow at {uri} needs {error.name}, which is not installed; pip install -e '.[mlflow]' has what its "
            f"SQLite store and its servers need"
        ) from None
    except MlflowException as error:
        said = str(error).strip().splitlines()[0]
        raise UserError(
            f"MLflow at {uri} refused: {said} What was written so far stays, and the same command goes on from it"
        ) from None


def write(place: Place, mirror: Mirror) -> Written:
    """Adds what the experiment lacks of a study, and updates states, tags and files.

    Raises:
        UserError: If MLflow refuses.
    """
    with refusals(place.uri):
        known = _known_runs(place, mirror.study)
        ids: dict[str, str] = {}
        new, points, changed = 0, 0, []
        for run in mirror.runs:
            found = known.get(run.key)
            if found is None:
                parent = {} if run.parent is None else {"mlflow.parentRunId": ids[run.parent]}
                found = place.client.create_run(place.experiment, tags=_tags(run) | parent, run_name=run.title)
                new += 1
            ids[run.key] = found.info.run_id
            points += _write_points(place.client, run, found)
            changed += _write_rest(place.client, run, found)
    return Written(new, points, tuple(changed))


def _known_runs(place: Place, study: str) -> dict[str, Any]:
    """The runs of a study that the experiment holds, by key."""
    found: dict[str, Any] = {}
    token = None
    while True:
        page = place.client.search_runs(
            [place.experiment], f"tags.`{_PREFIX}study` = '{study}'", max_results=1000, page_token=token
        )
        found |= {run.data.tags.get(f"{_PREFIX}run", ""): run for run in page}
        token = page.token
        if not token:
            return found


def _tags(run: MirroredRun) -> dict[str, str]:
    return {f"{_PREFIX}run": run.key} | {f"{_PREFIX}{name}": value[:_VALUE] for name, value in run.tags.items()}


def _write_points(client: Any, run: MirroredRun, found: Any) -> int:
    """Adds the values that a run lacks; returns how many."""
    from mlflow.entities import Metric

    # MLflow appends whatever it is given, so that a value is compared with its history first.
    names = {point.name for point in run.points} & set(found.data.metrics)
    held = {
        (name, entry.step, entry.value)
        for name in names
        for entry in client.get_metric_history(found.info.run_id, name)
    }
    now = int(time.time() * 1000)
    lacking = [Metric(name, value, now, step) for name, step, value in run.points if (name, step, value) not in held]
    for part in _parts(lacking, _METRICS):
        client.log_batch(found.info.run_id, metrics=part)
    return len(lacking)


def _write_rest(client: Any, run: MirroredRun, found: Any) -> list[str]:
    """Writes params, tags, files and the state of a run; returns the params that MLflow has otherwise."""
    from mlflow.entities import Param, RunTag

    run_id, held = found.info.run_id, found.data
    params = {name: value[:_VALUE] for name, value in run.params.items()}
    for part in _parts([Param(name, value) for name, value in params.items() if name not in held.params], _OTHERS):
        client.log_batch(run_id, params=part)
    tags = [RunTag(name, value) for name, value in _tags(run).items() if held.tags.get(name) != value]
    for part in _parts(tags, _OTHERS):
        client.log_batch(run_id, tags=part)
    for path in run.files:
        client.log_artifact(run_id, str(path))
    status = _STATUS[run.state]
    if found.info.status != status:
        if run.state == "running":
            client.update_run(run_id, status=status)
        else:
            client.set_terminated(run_id, status=status)
    return [f"{run.key} {name}" for name, value in params.items() if held.params.get(name, value) != value]


def _parts(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))
