"""A workdir that was edited, mixed up, or made by a stranger: what its record says is held against what is there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import jaxseg
from jaxseg import manifest
from jaxseg.report import write_report
from jaxseg.study import claims, files
from jaxseg.study.plan import source_networks
from jaxseg.study.run import STAGES, run_stages
from jaxseg.study.workdir import check_workdir
from jaxseg.types import UserError
from tests.tiny_study import changed, silent, tiny_config


@pytest.fixture
def workdir(tiny_study: Path, tmp_path: Path) -> Path:
    """A copy of a finished study, without its stores, to be spoilt."""
    return Path(shutil.copytree(tiny_study, tmp_path / "study", ignore=shutil.ignore_patterns("stores", "figures")))


def edit(workdir: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes study.json together with its checksum, as somebody does who means it."""
    record = files.read_json(workdir / "study.json")
    change(record)
    files.write_json(workdir / "study.json", record)


def run_of(record: dict[str, Any], arm: str, seed: int) -> dict[str, Any]:
    (run,) = (run for run in record["runs"] if (run["arm"], run["seed"], run["kind"]) == (arm, seed, "train"))
    return run


def on_run(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda record: run_of(record, "scratch", 0).update(fields)


def swap_runs(record: dict[str, Any]) -> None:
    """Two arms of one job change places."""
    one, other = run_of(record, "scratch", 0), run_of(record, "transfer", 0)
    one["index"], other["index"] = other["index"], one["index"]
    one["directory"], other["directory"] = other["directory"], one["directory"]


def swap_seeds(record: dict[str, Any]) -> None:
    """Two seeds of one arm change places."""
    one, other = run_of(record, "scratch", 0), run_of(record, "scratch", 1)
    one["index"], other["index"] = other["index"], one["index"]


def read_parameters(workdir: Path) -> None:
    jaxseg.load(workdir).arm("scratch").params(0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (on_run(directory="../other/train/train_0/chunk_0"), "cannot name a file or folder"),
        (on_run(directory="/etc"), "cannot name a file or folder"),
        (on_run(index=1), "two runs have index 1"),
        (swap_seeds, r"index 1 of .*hold the run scratch/n0_fold0/seed_1 there"),
        (on_run(index=-1), "hold nothing there"),
        (on_run(index=10**9), "hold nothing there"),
        (on_run(index="0"), r"runs\[\d\].index is '0' and not a whole number"),
        (on_run(index=True), "index is True and not a whole number"),
        (on_run(steps=float("inf")), "steps is inf and not a whole number"),
        (on_run(steps=4), r"has 4 steps, and its checkpoints .* go to 8"),
        (on_run(seed=7), "scratch/n0_fold0/seed_0 0 time"),
        (on_run(arm="transfer"), "scratch/n0_fold0/seed_0 0 time"),
        (swap_runs, "hold the run transfer/n0_fold0/seed_0 there"),
        (lambda record: record["runs"].append(run_of(record, "scratch", 0)), "two runs have index"),
        (lambda record: record["runs"].remove(run_of(record, "scratch", 1)), "seed_1 0 time"),
        (lambda record: record["arms"].update(other=record["arms"]["scratch"]), "has the arms"),
        (lambda record: record.update(name={"a": 1}), "name is an object and not a text"),
        (lambda record: record.update(runs={}), "runs is an object and not a list"),
        (lambda record: record["target"]["labels"].append("x"), "3 labels and 2 different label_values"),
        (lambda record: record["target"].update(channels=2), "2 channel"),
        (lambda record: record["stores"].update(target="../../elsewhere"), "cannot name a file or folder"),
    ],
)
def test_a_record_that_lies_is_refused_by_name(
    workdir: Path, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    read_parameters(workdir)
    edit(workdir, change)
    with pytest.raises(UserError, match=words) as told:
        read_parameters(workdir)
    assert "study.json" in str(told.value) or "stores" in str(told.value)


@pytest.mark.parametrize(
    "text", ["[" * 200_000, '{"a": ' * 100_000, "[1]", "{", "\x00", '{"runs": ' + "9" * 5000 + "}"]
)
@pytest.mark.parametrize("name", ["study.json", "config.json"])
def test_json_of_any_kind_is_a_sentence(workdir: Path, text: str, name: str) -> None:
    manifest.write(workdir / name, text.encode())
    with pytest.raises(UserError, match=name):
        jaxseg.load(workdir)


def test_source_networks_are_those_of_the_seed_asked_for(workdir: Path) -> None:
    config = changed(pretrain__from_workdir=str(workdir))
    (arm,) = (arm for arm in check_workdir(config, workdir.with_name("new")).arms if arm.name == "transfer")
    find = source_networks.locate_given(arm)
    key = next(run for run in files.read_json(workdir / "study.json")["runs"] if run["kind"] == "pretrain")
    wanted = source_networks.RunKey(key["arm"], 0, 0, 0)
    assert find(wanted).position == 0

    def lie(record: dict[str, Any]) -> None:
        pretrained = [run for run in record["runs"] if run["kind"] == "pretrain"]
        pretrained[0]["index"], pretrained[1]["index"] = 1, 0

    edit(workdir, lie)
    with pytest.raises(UserError, match=r"hold the run source/n0_fold0/seed_1 there"):
        source_networks.locate_given(arm)(wanted)


# ------------------------------------------------------------------------------------------------------------- links


def link_file(workdir: Path, victim: Path, name: str) -> None:
    (workdir / name).unlink(missing_ok=True)
    (workdir / name).symlink_to(victim / "secret.txt")


def link_folder(workdir: Path, victim: Path, name: str) -> None:
    shutil.move(workdir / name, victim / "moved")
    (workdir / name).symlink_to(victim / "moved", target_is_directory=True)


@pytest.mark.parametrize(
    ("link", "name"),
    [
        *((link_file, name) for name in (".lock", "study.json", "study.json.partial", "report.html")),
        *((link_file, name) for name in ("results/summary.csv.partial", "load_tables/transfer/n0_fold0.txt")),
        *((link_file, name) for name in ("train/train_0/chunk_0/metrics.jsonl", ".report.html.part")),
        *((link_folder, name) for name in ("results", "train", "load_tables/transfer", "train/train_0/chunk_0")),
    ],
)
def test_links_out_of_a_workdir_are_not_followed(
    workdir: Path, tmp_path: Path, link: Callable[..., None], name: str
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "secret.txt").write_text("secret")
    link(workdir, victim, name)
    before = {path: path.read_bytes() for path in victim.rglob("*") if path.is_file()}
    for use in (
        lambda: run_stages(tiny_config(), workdir, stages=STAGES, progress=silent),
        lambda: jaxseg.load(workdir),
        lambda: claims.read_study(workdir),
        lambda: write_report(workdir),
    ):
        with pytest.raises(UserError, match=rf"{name.replace('.', '[.]')} is a link to .*outside the workdir"):
            use()
    assert {path: path.read_bytes() for path in victim.rglob("*") if path.is_file()} == before


def test_a_pipe_in_a_workdir_is_not_waited_for(workdir: Path) -> None:
    (workdir / "config.json").unlink()
    os.mkfifo(workdir / "config.json")
    with pytest.raises(UserError, match=r"config\.json is a pipe"):
        jaxseg.load(workdir)


def test_a_workdir_may_lie_behind_a_link_and_hold_a_users_own_links(workdir: Path, tmp_path: Path) -> None:
    (workdir / "my_data").symlink_to(tmp_path)
    (workdir / "train" / "latest").symlink_to("train_0")
    (tmp_path / "short").symlink_to(workdir, target_is_directory=True)
    assert jaxseg.load(tmp_path / "short").arm("scratch").params(0)
