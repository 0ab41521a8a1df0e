"""launch.predict --score: tables of scores of label maps, and what they replace."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from jaxseg.study import files
from launch import predict as predict_command
from tests.commands import Command, content, make_command


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return make_command(monkeypatch, capsys)


def label_map(path: Path, value: int = 1, shape: tuple[int, ...] = (6, 6, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = np.zeros(shape, np.uint8)
    labels[1:4, 1:4] = value
    nib.save(nib.Nifti1Image(labels, np.eye(4)), path)


@pytest.fixture
def scored(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("a", "b", "c"):
        label_map(tmp_path / "pred" / f"{name}.nii.gz")
        label_map(tmp_path / "ref" / f"{name}.nii.gz")
    return tmp_path / "pred", tmp_path / "ref"


def test_scores_are_kept_where_one_file_is_bad(scored: tuple[Path, Path], command: Command) -> None:
    pred, ref = scored
    (ref / "b.nii.gz").write_bytes(b"no image")
    label_map(pred / "c.nii.gz", shape=(5, 6, 6))
    status, out, err = command(f"--score={pred}", f"--references={ref}")
    assert status == 2
    assert "dsc" in out
    assert "2 label map(s) could not be scored" in err
    assert "Resample the prediction" in err
    assert str(ref / "b.nii.gz") in err
    assert set(files.read_table(pred / "scores.csv")["case"]) == {"a"}
    assert {path.name for path in pred.iterdir()} == {"a.nii.gz", "b.nii.gz", "c.nii.gz", "scores.csv"}
    assert command(f"--score={pred}", f"--references={ref}")[0] == 2  # its own table is replaced


@pytest.mark.parametrize("name", ["pred/a.nii.gz", "ref/b.nii.gz", "notes.csv", "pred"])
def test_a_table_of_scores_replaces_no_other_file(scored: tuple[Path, Path], command: Command, name: str) -> None:
    pred, ref = scored
    (pred.parent / "notes.csv").write_text("mine\n")
    before = content(pred.parent)
    status, _, err = command(f"--score={pred}", f"--references={ref}", f"--output={pred.parent / name}")
    assert (status, err.count("error: ")) == (2, 1)
    assert content(pred.parent) == before


def test_a_table_of_a_study_is_not_replaced(scored: tuple[Path, Path], command: Command, tiny_study: Path) -> None:
    before = content(tiny_study)
    table = tiny_study / "results" / "cases.csv"
    status, _, err = command(f"--score={scored[0]}", f"--references={scored[1]}", f"--output={table}")
    assert status == 2
    assert "belongs to a study" in err
    assert content(tiny_study) == before


def test_means_are_printed_before_the_table_is_written(
    scored: tuple[Path, Path], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(predict_command.outputs.tempfile, "NamedTemporaryFile", full)
    status, out, err = command(f"--score={scored[0]}", f"--references={scored[1]}")
    assert status == 2
    assert "dsc" in out
    assert "cannot be written (No space left on device)" in err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ("--seeds=0", "--ensemble"),
            "--seeds and --ensemble would have no effect here: with --score no network predicts",
        ),
        (("--arm=transfer", "--input=nowhere"), "--arm and --input would have no effect"),
        (("--fold=3",), "--fold would have no effect here: with --references there are no folds"),
    ],
)
def test_flags_that_scores_do_not_read_are_refused(
    scored: tuple[Path, Path], command: Command, given: tuple[str, ...], said: str
) -> None:
    status, _, err = command(f"--score={scored[0]}", f"--references={scored[1]}", *given)
    assert status == 2
    assert said in err
    assert not (scored[0] / "scores.csv").exists()


def test_flags_of_references_are_refused_where_a_study_has_settings(
    scored: tuple[Path, Path], command: Command, tiny_study: Path
) -> None:
    status, _, err = command(f"--score={scored[0]}", f"--workdir={tiny_study}", "--unit=voxel", "--tolerance_mm=1")
    assert status == 2
    assert "--unit and --tolerance_mm would have no effect here: scores are computed by the study's settings" in err
    status, _, err = command(f"--workdir={tiny_study}", "--arm=scratch", f"--references={scored[1]}")
    assert status == 2
    assert "--references would have no effect here" in err


def test_label_maps_beside_those_of_seeds_are_named(scored: tuple[Path, Path], command: Command) -> None:
    pred, ref = scored
    for seed in (0, 1):
        label_map(pred / f"seed_{seed}" / "a.nii.gz")
    status, _, err = command(f"--score={pred}", f"--references={ref}")
    assert status == 0
    assert "3 files go with no reference and were not scored: " in err
    assert "pred/a.nii.gz beside the folders of seeds" in err
