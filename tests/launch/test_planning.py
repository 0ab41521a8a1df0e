"""`--stages=plan`: what it prints and writes, that the written config is a study's, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from configs import auto, default
from jaxseg import settings
from jaxseg.study.plan import cost
from jaxseg.study.plan.jobs import check_networks
from jaxseg.study.proposal import network
from jaxseg.study.proposal.machine import read_budget
from jaxseg.study.proposal.rules import propose
from jaxseg.types import UserError
from launch import cli, planning
from tests.data.test_splits import prepared_with, split
from tests.image_sets import make_volume, save, write_set
from tests.study.test_proposal import found, proposed


@pytest.fixture
def quick(monkeypatch):
    """Speed and work by rule of thumb, and the root of the clone as the working directory's parent."""
    monkeypatch.setattr(cost, "measure_speed", lambda devices: cost.Speed(1e11, 1e10, 2e10))
    rough = lambda *images, **more: propose(*images, **{**more, "meter": network.ROUGH})  # noqa: E731
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


FAST = cost.Speed(1e11, 1e10, 2e10)


def planned(config, tmp_path, *, seconds=600.0, **fixed):
    """The notes of a plan, with fields that the command line set, and the study."""
    for field, value in fixed.items():
        section, name = field.split("__")
        config[section][name] = value
    names = [field.replace("__", ".") for field in fixed]
    made, _, _ = planning.plan(config, tmp_path, fixed=names, seconds=seconds, speed=FAST)
    return made.notes, settings.parse(config)


def test_runs_of_a_given_length_take_their_share_of_the_budget(quick, sets, tmp_path):
    """Eight source networks, 24 runs, and 8 of scratch_long, which are as long as both."""
    data = f"{sets}/SOURCE,{sets}/TARGET,scratch+transfer+scratch_b+scratch_long"
    notes, study = planned(auto.get_config(data), tmp_path, seconds=60.0)
    free, total = study.train.steps, 8 * (study.train.steps * 6)
    assert not any("cannot be kept" in note for note in notes)
    assert study.arms[-1].train.steps == 2 * free
    _, study = planned(auto.get_config(data), tmp_path, seconds=60.0, pretrain__steps=free // 2)
    assert 8 * (4 * study.train.steps + 2 * study.pretrain.steps) == pytest.approx(total, rel=0.05)
    notes, study = planned(auto.get_config(data), tmp_path, seconds=60.0, train__steps=10 * free)
    assert study.pretrain.steps == 10 * free
    assert any("cannot be kept" in note and "give more time, or fewer steps" in note for note in notes)


@pytest.mark.parametrize(
    ("field", "value"), [("train__accumulate", 8), ("model__name", "multiscale_fcn"), ("target__patch", (32, 32, 32))]
)
def test_what_the_config_file_sets_counts_as_on_the_command_line(quick, monkeypatch, sets, tmp_path, field, value):
    """A step of the other network takes ten times as long; a patch is what a plan chooses, whatever the file says."""

    def work(program):
        factor = 10 if program.model.name == "multiscale_fcn" else 1
        return cost.Work(*(factor * part for part in network.ROUGH.work(program)))

    meter = network.Meter(work, network.ROUGH.size)
    monkeypatch.setattr(planning, "propose", lambda *images, **more: propose(*images, **{**more, "meter": meter}))
    monkeypatch.setattr(planning, "count_steps", lambda study, *images: 8 * study.train.steps)

    def made():
        return auto.get_config(f"{sets}/TARGET")

    section, name = field.split("__")
    in_file = made()
    in_file[section][name] = value
    plain, by_file, by_word = (
        planned(config, tmp_path, seconds=60.0, **fixed)[1]
        for config, fixed in ((made(), {}), (in_file, {}), (made(), {field: value}))
    )
    assert by_word.train.steps < plain.train.steps
    assert by_file == (plain if field == "target__patch" else by_word)


def test_a_source_without_labels_is_planned_where_no_arm_needs_them(quick, sets, tmp_path):
    for index in range(3):
        save(tmp_path / "bare" / f"case_{index}.nii.gz", make_volume(index)[0])
    config = auto.get_config(f"{tmp_path}/bare,{sets}/TARGET,ssl_source")
    config.source.labels = ("a",)  # which counts for other arms
    _, study = planned(config, tmp_path)
    assert study.arms[-1].source.patch == study.source.patch
    with pytest.raises(UserError, match=r"bare has no dataset\.json"):
        planned(auto.get_config(f"{tmp_path}/bare,{sets}/TARGET,ssl_source+transfer"), tmp_path)


def test_a_source_of_an_arm_is_planned_from_its_own_images(quick, sets, tmp_path):
    volumes = {f"case_{i}": make_volume(i, shape=(24, 20, 6), classes=3) for i in range(4)}
    other = write_set(sets / "set-2", volumes, affine=np.diag([0.9, 0.9, 6.0, 1.0]), modality={"0": "CT"})
    config = auto.get_config(f"{sets}/SOURCE,{sets}/TARGET,scratch+transfer+self_transfer")
    name = "transfer_set-2"
    config.arms[name] = default.arm("pretrained", "none", source={"data": str(other)})
    made, _, found = planning.plan(config, tmp_path, seconds=600.0, speed=FAST)
    study = settings.parse(config)
    arms = {arm.name: arm.source for arm in study.arms}
    assert set(found) == {"source", f"arms.{name}.source"}
    assert (arms[name].normalization, arms["transfer"].normalization) == ("dataset", "zscore")
    assert (arms[name].patch, arms["transfer"].patch) == (made.value(f"arms.{name}.source.patch"), study.source.patch)
    assert arms["self_transfer"].patch == study.target.patch
    data = f"{sets}/SOURCE,{sets}/TARGET,scratch+transfer+self_transfer"
    (tmp_path / "mine.py").write_text(
        "from configs import auto, default\n\n\ndef get_config():\n"
        f"    config = auto.get_config({data!r})\n"
        f"    config.arms[{name!r}] = default.arm('pretrained', 'none', source={{'data': {str(other)!r}}})\n"
        "    return config\n"
    )
    base, given = (str(tmp_path / "mine.py"), ""), [(f"arms.{name}.seed_offset", 0)]
    (tmp_path / "planned.py").write_text(planning.as_config(made, base, given, about="for 2h", command="command"))
    assert settings.parse(cli.parse_config([f"--config={tmp_path}/planned.py"])) == study


def test_sources_are_those_of_the_arms_that_train_them(sets):
    config = auto.get_config(f"{sets}/SOURCE,{sets}/TARGET,scratch+transfer+shuffled_source+self_transfer+prior")
    config.pretrain.from_workdir = "runs/elsewhere"  # which these two arms set aside
    assert planning.source_sections(config) == {"shuffled_source": "source"}
    config.pretrain.from_workdir, config.arms.transfer.pretrain = "", {"from_workdir": "runs/elsewhere"}
    assert planning.source_sections(config) == {"shuffled_source": "source"}


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 5, 6, 9])
def test_few_groups_are_noted_with_folds_that_they_can_be_split_into(groups):
    made = proposed(found((64, 64, 64), (1.0,) * 3, cases=18, groups=groups))
    assert made.value("target.val_cases") == 1
    (note,) = (note for note in made.notes if f"{groups} groups" in note)
    advice = re.search(r"folds=(\d) every case is tested once, at \1 times", note)
    assert ("too few to split" in note) == (advice is None) == (groups < 3)
    cases = prepared_with([f"group {case % groups}" for case in range(18)])
    if advice is None:
        with pytest.raises(UserError):
            split(cases, val_cases=1)
    else:
        tested = [split(cases, val_cases=1, folds=int(advice[1]), fold=fold).test for fold in range(int(advice[1]))]
        assert sorted(sum(tested, ())) == [case.name for case in cases.cases]
    assert not proposed(found((64, 64, 64), (1.0,) * 3)).notes


@pytest.mark.parametrize(
    ("fixed", "listed", "said"),
    [
        ({}, (), "and about a fifth of its cases, or .*, are tested on: intervals will be wide. With .*"),
        ({"target__folds": 3}, (), "and every case is tested once: intervals will be wide"),
        ({"target__test_cases": 2}, (), "and 2 of its 12 cases, or .*, are tested on: intervals will be wide"),
        ({"target__folds": 3, "target__test_cases": 2}, (), "and 2 cases of each fold, .*: intervals will be wide"),
        ({}, (3, 4), "and 1 of the 2 folds that the data lists is used: .*folds=2 all of these are used, at 2 .*"),
        ({}, (3,), "and 1 of the 1 folds that the data lists is used: intervals will be wide"),
        ({"target__folds": 2}, (3, 4), "and 2 of the 2 folds that the data lists are used: intervals will be wide"),
        ({"target__folds": 7}, (), "which can be split into 6 folds at most; give --config.target.folds=6"),
    ],
)
def test_a_note_on_few_groups_says_what_is_tested(fixed, listed, said):
    images = dataclasses.replace(found((64, 64, 64), (1.0,) * 3, cases=12, groups=6), listed=listed)
    assert any(re.fullmatch(f"the target has 6 groups of cases, {said}", n) for n in proposed(images, **fixed).notes)


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


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90min", 5400), ("2h", 7200), ("1h30min", 5400), ("1.5d", 129600), ("300 s", 300), ("2H", 7200)],
)
def test_budgets(text, seconds):
    assert read_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "two hours", "2 hours", "2h and more", "-2h", "10s", "h"])
def test_texts_that_are_no_budget(text):
    with pytest.raises(UserError, match="--budget"):
        read_budget(text)
