"""launch.track: a study in MLflow, in whatever order and however often the command is given."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from jaxseg.study import files
from jaxseg.study.mirror import mirror
from launch import mlflow_runs
from launch import track as track_command
from tests.commands import Command, make_command

# MLflow and SQLAlchemy deprecate what they use of each other; that concerns neither this code nor its users.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    monkeypatch.chdir(tmp_path)  # MLflow puts artifacts beside its store
    return make_command(monkeypatch, capsys, track_command.main)


def test_without_mlflow_the_command_says_how_to_get_it(
    command: Command, tiny_study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    status, out, err = command(f"--workdir={tiny_study}", "--to=mlflow")
    assert (status, out) == (2, "")
    assert "--to=mlflow needs MLflow, which cannot be imported here" in err
    assert "pip install -e '.[mlflow]'" in err


def test_a_folder_without_a_study_is_refused(command: Command, tmp_path: Path) -> None:
    status, _, err = command(f"--workdir={tmp_path}")
    assert status == 2
    assert f"no study in {tmp_path}: it has no study.json" in err


# ------------------------------------------------------------------------------------------------------- with MLflow


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new SQLite store of MLflow, which takes seconds to set up."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow_runs.connect(f"sqlite:///{path}", "another")
    return path


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> str:
    """A store of this test's own."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def held(store: str, experiment: str) -> dict[str, Any]:
    """The runs of an experiment by key, with the histories of their metrics."""
    place = mlflow_runs.connect(store, experiment)
    found = {}
    for run in place.client.search_runs([place.experiment], max_results=1000):
        histories = {
            name: sorted((one.step, one.value) for one in place.client.get_metric_history(run.info.run_id, name))
            for name in run.data.metrics
        }
        key = run.data.tags["jaxseg.run"]
        assert key not in found, "a run stands there twice"
        files_of = sorted(one.path for one in place.client.list_artifacts(run.info.run_id))
        found[key] = (run, histories, files_of)
    return found


def test_a_study_is_written_once_however_often_it_is_asked(command: Command, tiny_study: Path, store: str) -> None:
    arguments = (f"--workdir={tiny_study}", "--to=mlflow", f"--tracking_uri={store}")
    status, out, err = command(*arguments)
    assert (status, err) == (0, "")
    expected = mirror(tiny_study)
    values = sum(len(run.points) for run in expected.runs)
    assert out == f"mlflow: {store}, experiment tiny: 10 runs (10 new), {values} new values\n"
    first = held(store, "tiny")
    for run in expected.runs:
        made, histories, names = first[run.key]
        assert made.info.status == "FINISHED"
        assert made.data.params == run.params
        assert {name: made.data.tags[f"jaxseg.{name}"] for name in run.tags} == run.tags
        assert histories == {
            name: sorted((point.step, point.value) for point in run.points if point.name == name)
            for name in {point.name for point in run.points}
        }
        assert names == sorted(path.name for path in run.files)
        if run.parent is not None:
            assert made.data.tags["mlflow.parentRunId"] == first[run.parent][0].info.run_id

    status, out, err = command(*arguments)
    assert (status, err) == (0, "")
    assert out == f"mlflow: {store}, experiment tiny: 10 runs (0 new), 0 new values\n"
    again = held(store, "tiny")
    assert {key: entry[1:] for key, entry in again.items()} == {key: entry[1:] for key, entry in first.items()}
    assert {key: entry[0].info.run_id for key, entry in again.items()} == {
        key: entry[0].info.run_id for key, entry in first.items()
    }


def test_a_study_is_written_while_it_trains_and_completed_later(
    command: Command, tiny_study: Path, tmp_path: Path, store: str
) -> None:
    folder = tmp_path / "study"
    shutil.copytree(tiny_study, folder)
    shutil.rmtree(folder / "results")
    arguments = (f"--workdir={folder}", f"--tracking_uri={store}", "--experiment=mine", "--nopage")
    status, out, err = command(*arguments)
    assert (status, err) == (0, "")
    assert "not there yet: test scores of 6 of 6 networks: written by the stages evaluate and analyze" in out
    before = held(store, "mine")
    assert {run.info.status for run, _, _ in before.values()} == {"RUNNING"}
    shutil.copytree(tiny_study / "results", folder / "results")
    status, out, err = command(*arguments)
    assert (status, err) == (0, "")
    expected = mirror(folder, page=False)
    added = sum(point.name.count("test_") for run in expected.runs for point in run.points)
    assert f"10 runs (0 new), {added} new values" in out
    assert "not there yet" not in out
    after = held(store, "mine")
    assert {run.info.status for run, _, _ in after.values()} == {"FINISHED"}
    assert all(run.info.end_time for run, _, _ in after.values())
    for key, (_, histories, _) in before.items():
        assert histories.items() <= after[key][1].items()
    assert after["study"][2] == ["claims.csv", "comparisons.csv", "config.json", "study.json", "summary.csv"]
    # As while it is extended by seeds, whose tables are written again at the end.
    shutil.rmtree(folder / "results")
    assert command(*arguments)[0] == 0
    again = held(store, "mine")
    assert {run.info.status for run, _, _ in again.values()} == {"RUNNING"}
    assert {key: histories for key, (_, histories, _) in again.items()} == {
        key: histories for key, (_, histories, _) in after.items()
    }


def test_changed_files_are_replaced_and_two_studies_stand_side_by_side(
    command: Command, tiny_study: Path, tmp_path: Path, store: str
) -> None:
    folder = tmp_path / "study"
    shutil.copytree(tiny_study, folder)
    bound = files.read_json(folder / "data.json")
    files.write_json(folder / "data.json", bound | {"study": "another"})
    for workdir in (tiny_study, folder):
        assert command(f"--workdir={workdir}", f"--tracking_uri={store}")[0] == 0
    place = mlflow_runs.connect(store, "tiny")
    assert len(place.client.search_runs([place.experiment], max_results=1000)) == 20
    (folder / "report.html").write_text("<p>anew", encoding="utf-8")
    assert command(f"--workdir={folder}", f"--tracking_uri={store}")[0] == 0
    (whole,) = place.client.search_runs(
        [place.experiment], "tags.`jaxseg.study` = 'another' and tags.`jaxseg.run` = 'study'"
    )
    page = Path(place.client.download_artifacts(whole.info.run_id, "report.html", str(tmp_path)))
    assert page.read_text(encoding="utf-8") == "<p>anew"


def test_a_param_that_mlflow_keeps_is_told(
    command: Command, tiny_study: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (f"--workdir={tiny_study}", f"--tracking_uri={store}")
    assert command(*arguments)[0] == 0
    found = mirror(tiny_study)
    *others, last = found.runs
    changed = dataclasses.replace(last, params={**last.params, "init": "other"})
    monkeypatch.setattr(
        track_command, "mirror", lambda workdir, page, busy: dataclasses.replace(found, runs=(*others, changed))
    )
    status, out, err = command(*arguments)
    assert (status, err) == (0, "")
    assert f"note: MLflow keeps the first value of a param; 1 would have another one now: {last.key} init\n" in out
    assert held(store, "tiny")[last.key][0].data.params["init"] == last.params["init"]


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("file:{folder}/runs", "refused: The filesystem tracking backend"),
        ("nonsense://there", "refused: "),
        ("sqlite:////dev/null/mlflow.db", "/dev/null"),
        ("http://127.0.0.1:9", "MLflow at http://127.0.0.1:9 refused: "),
    ],
)
def test_a_store_that_mlflow_refuses_is_one_message(
    command: Command,
    tiny_study: Path,
    tmp_path: Path,
    store: str,
    monkeypatch: pytest.MonkeyPatch,
    uri: str,
    said: str,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    status, out, err = command(f"--workdir={tiny_study}", f"--tracking_uri={uri.format(folder=tmp_path)}")
    assert (status, out) == (2, "")
    assert said in err


def test_a_deleted_experiment_is_told(command: Command, tiny_study: Path, store: str) -> None:
    place = mlflow_runs.connect(store, "tiny")
    place.client.delete_experiment(place.experiment)
    status, _, err = command(f"--workdir={tiny_study}", f"--tracking_uri={store}")
    assert status == 2
    assert f"--experiment=tiny was deleted in {store}" in err
