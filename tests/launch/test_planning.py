"""`--stages=plan`: what it prints and writes, that the written config is a study's, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from jaxseg import settings
from jaxseg.study.plan import cost
from jaxseg.study.plan.jobs import check_networks
from jaxseg.study.proposal import network
from jaxseg.study.proposal.rules import propose
from launch import cli, planning
from tests.image_sets import write_set


@pytest.fixture
def quick(monkeypatch):
    """Speed and work by rule of thumb, and the root of the clone as the working directory's parent."""
    monkeypatch.setattr(cost, "measure_speed", lambda devices: cost.Speed(1e11, 1e10, 2e10))
    rough = lambda target, source, resources, **meter: propose(target, source, resources, meter=network.ROUGH)  # noqa: E731
    monkeypatch.setattr(planning, "propose", rough)


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    write_set(folder / "SOURCE")
    write_set(folder / "TARGET")
    return folder


def test_the_written_config_is_the_study_that_was_printed(command, quick, sets, tmp_path):
    config = f"--config=configs/auto.py:{sets}/SOURCE,{sets}/TARGET,scratch+transfer"
    workdir = tmp_path / "work"
    given = ["--config.num_seeds=3", "--config.target.val_cases=2"]
    status, _ = command(config, f"--workdir={workdir}", "--stages=plan", "--budget=30min", *given)
    assert status == 0
    assert [path.name for path in workdir.iterdir() if path.is_file()] == ["planned.py"]
    text = (workdir / "planned.py").read_text()
    made = cli.parse_config([f"--config={workdir}/planned.py"])
    study = settings.parse(made)
    check_networks(study)
    assert (study.num_seeds, study.target.val_cases) == (3, 2)
    assert [arm.name for arm in study.arms] == ["scratch", "transfer"]
    assert study.target.data == f"{sets}/TARGET"
    assert text.count("given on the command line") == 2
    assert "# images are taken whole\n    config.target.as_slices" in text


def test_nothing_is_overwritten_and_output_names_another_file(command, quick, sets, tmp_path):
    arguments = [f"--config=configs/auto.py:{sets}/TARGET", f"--workdir={tmp_path}", "--stages=plan"]
    (tmp_path / "planned.py").write_text("mine")
    status, said = command(*arguments)
    assert (status, (tmp_path / "planned.py").read_text()) == (2, "mine")
    assert "planned.py exists and is left as it is" in said
    status, _ = command(*arguments, f"--output={tmp_path}/other/plan.py")
    assert status == 0
    study = settings.parse(cli.parse_config([f"--config={tmp_path}/other/plan.py"]))
    assert [arm.name for arm in study.arms] == ["scratch"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--stages=plan", "--budget=soon"], "--budget = 'soon'; allowed: a time with its unit"),
        (["--stages=plan,train"], "--stages=plan stands alone"),
        (["--stages=plan", "--dry_run"], "--stages=plan stands alone"),
        (["--budget=2h"], "--budget and --output are for --stages=plan"),
        ([], r"config.source.patch = \(\); allowed: 3 sizes, .* --stages=plan chooses them"),
    ],
)
def test_what_is_refused(command, sets, tmp_path, options, said):
    status, text = command(f"--config=configs/auto.py:{sets}/TARGET", f"--workdir={tmp_path}/w", *options)
    assert status == 2
    assert re.search(said, text)


def test_an_empty_folder_and_one_without_cases(command, tmp_path):
    (tmp_path / "empty").mkdir()
    arguments = [f"--workdir={tmp_path}/w", "--stages=plan"]
    status, text = command(f"--config=configs/auto.py:{tmp_path}/empty", *arguments)
    assert status == 2
    assert "has no dataset.json" in text
    (tmp_path / "empty" / "dataset.json").write_text(
        json.dumps({"labels": {"0": "bg", "1": "a"}, "modality": {"0": "CT"}})
    )
    status, text = command(f"--config=configs/auto.py:{tmp_path}/empty", *arguments)
    assert status == 2
    assert "has no training cases" in text


def test_a_config_outside_of_packages_is_run_from_its_path(tmp_path):
    (tmp_path / "my-config.py").write_text("from configs import auto\nget_config = auto.get_config\n")
    lines = planning.as_config(
        planning.Proposal((), ()), (str(tmp_path / "my-config.py"), "DATA"), [], about="for 2h", command="command"
    )
    (tmp_path / "planned.py").write_text(lines)
    assert cli.parse_config([f"--config={tmp_path}/planned.py"]).target.data == "DATA"
