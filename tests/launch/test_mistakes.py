"""The user's mistakes: exit status 2, one message that names the mistake, no traceback, nothing lost."""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from launch import cli
from launch import study as study_command

CONFIG = "--config=tests/tiny_study.py"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Decathlon folder of six sound cases."""
    rng = np.random.default_rng(0)
    names = [f"case_{index}" for index in range(6)]
    for name in names:
        label = np.zeros((16, 16, 1), np.uint8)
        label[4:10, 5:11] = 1
        image = rng.normal(size=label.shape).astype(np.float32) + label
        for part, array in (("imagesTr", image), ("labelsTr", label)):
            (tmp_path / "task" / part).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "task" / part / f"{name}.nii.gz")
    description = {
        "name": "task",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "organ"},
        "tensorImageSize": "2D",
        "training": [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in names],
    }
    (tmp_path / "task" / "dataset.json").write_text(json.dumps(description))
    return tmp_path / "task"


def remove_label(folder: Path) -> None:
    (folder / "labelsTr" / "case_2.nii.gz").unlink()


def strange_value(folder: Path) -> None:
    label = np.zeros((16, 16, 1), np.uint8)
    label[3, 3] = 7
    nib.save(nib.Nifti1Image(label, np.eye(4)), folder / "labelsTr" / "case_2.nii.gz")


def other_shape(folder: Path) -> None:
    nib.save(nib.Nifti1Image(np.ones((16, 12, 1), np.uint8), np.eye(4)), folder / "labelsTr" / "case_2.nii.gz")


def truncate(folder: Path) -> None:
    path = folder / "imagesTr" / "case_2.nii.gz"
    whole = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(whole)[: path.stat().st_size // 2])


@pytest.mark.parametrize("spoil", [remove_label, strange_value, other_shape, truncate])
def test_a_spoilt_case_is_named(
    spoil: Callable[[Path], None], command: Callable[..., tuple[int, str]], folder: Path, tmp_path: Path
) -> None:
    spoil(folder)
    status, message = command(CONFIG, f"--workdir={tmp_path / 'work'}", f"--config.target.data={folder}")
    assert status == 2, message
    assert message.startswith("error: ")
    assert "case_2" in message
    assert "case_1" not in message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--config.target.data=does/not/exist", "does/not/exist"),
        ("--config.train.stepz=3", "did you mean config.train.steps?"),
        ("--config.num_seeds=0", "config.num_seeds = 0"),
        ("--config.target.patch=(7, 8)", "(6, 8) or (8, 8)"),
        ("--config.vary=init,ordr", "'order'"),
        ("--config.runtime.devices=99", "runtime.devices = 99"),
        ("--config.train.steps=many", "config.train.steps"),
        ("--stages=prepare,trian", "'train'"),
        ("--stages=", "--stages is empty; allowed: some of prepare"),
        ("surplus", "surplus"),
    ],
)
def test_a_wrong_argument_is_named(
    argument: str, expected: str, command: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    status, message = command(CONFIG, f"--workdir={tmp_path / 'work'}", argument)
    assert status == 2, message
    assert expected in message
    assert "Traceback" not in message


def test_flags_that_are_needed(command: Callable[..., tuple[int, str]]) -> None:
    status, message = command("--workdir=somewhere")
    assert (status, "--config is missing" in message) == (2, True)
    status, message = command(CONFIG)
    assert (status, "--workdir is missing" in message) == (2, True)
    status, message = command("--config=configs/absent.py", "--workdir=somewhere")
    assert (status, "configs/absent.py" in message) == (2, True)


def test_a_workdir_of_another_config_keeps_what_it_has(
    command: Callable[..., tuple[int, str]], tiny_study: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "study"
    shutil.copytree(tiny_study, workdir)
    before = {path: path.read_bytes() for path in sorted(workdir.rglob("*")) if path.is_file() and path.name != ".lock"}
    status, message = command(CONFIG, f"--workdir={workdir}", "--config.optim.lr=0.5")
    assert status == 2, message
    assert "config.optim.lr: 0.001 in the workdir, 0.5 asked for" in message
    after = {path: path.read_bytes() for path in sorted(workdir.rglob("*")) if path.is_file() and path.name != ".lock"}
    assert before == after


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("hippo,nerve_us", "no set 'hippo'; sets: hippocampus_mr, cardiac_ed_mr,"),
        ("hippocampus_mr,nerve_us,x,scrach", "pick_arms: no arm 'scrach'; named arms: scratch,"),
    ],
)
def test_what_a_config_file_says_of_its_argument(argument: str, text: str, command, tmp_path: Path):
    status, errors = command(f"--config=configs/pairs.py:{argument}", f"--workdir={tmp_path / 'study'}")
    assert status == 2
    assert errors.startswith(f"error: flag --config=configs/pairs.py:{argument}: {text}")
    assert "Traceback" not in errors


def test_a_dry_run_trains_nothing_and_claims_nothing(command: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    workdir = tmp_path / "work"
    status, _ = command(CONFIG, f"--workdir={workdir}", "--dry_run")
    assert status == 0
    assert not (workdir / "train").exists()
    assert not (workdir / "config.json").exists()


def test_a_pilot_is_looked_at_before_training(command: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    workdir = f"--workdir={tmp_path / 'work'}"
    for more, text in (
        (["--dry_run", f"--pilot={tmp_path / 'none'}"], "no study in "),
        ([f"--pilot={tmp_path}"], "--pilot looks ahead and trains nothing; give --dry_run with it"),
    ):
        status, message = command(CONFIG, workdir, *more)
        assert status == 2
        assert text in message
        assert message.count("\n") == 1


def test_anything_else_is_status_1_with_a_traceback(
    command: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(study_command.study_run, "run_stages", fail)
    status, message = command(CONFIG, f"--workdir={tmp_path}")
    assert status == 1
    assert "Traceback" in message


def test_help_names_every_flag(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cli.signal, "signal", lambda signum, handler: None)
    monkeypatch.setattr(sys, "argv", ["launch.study", "--help"])
    with pytest.raises(SystemExit) as stopped:
        cli.run(study_command.main)
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Runs a whole study")
    for name in ("config", "workdir", "dry_run", "pilot", "stages", "coordinator", "config.FIELD"):
        assert f"--{name} " in shown, name
