"""launch.predict: what it writes over, what it goes on after, and what it says."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import jax
import nibabel as nib
import numpy as np
import pytest

import jaxseg
from jaxseg import data
from jaxseg.data.formats.files import reading, writing
from jaxseg.types import UserError
from launch import predict as predict_command
from tests.commands import Command, content, make_command


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return make_command(monkeypatch, capsys)


def put(path: Path, seed: int = 0, shape: tuple[int, ...] = (16, 16, 1), code: int = 1) -> Path:
    """An image of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(np.random.default_rng(seed).normal(size=shape).astype(np.float32), np.eye(4))
    image.set_sform(np.eye(4), code)
    image.set_qform(np.eye(4), code)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for index in range(3):
        put(tmp_path / "images" / f"x{index}.nii.gz", index)
    return tmp_path / "images"


# ------------------------------------------------------------------------------------------------ what is written over


def same_folder(images: Path) -> Path:
    return images


def other_spelling(images: Path) -> Path:
    return images / ".." / "images"


def linked_folder(images: Path) -> Path:
    (images.parent / "link").symlink_to(images, target_is_directory=True)
    return images.parent / "link"


def linked_file(images: Path) -> Path:
    (images.parent / "out").mkdir()
    (images.parent / "out" / "x1.nii.gz").symlink_to(images / "x1.nii.gz")
    return images.parent / "out"


def hard_link(images: Path) -> Path:
    (images.parent / "out").mkdir()
    os.link(images / "x1.nii.gz", images.parent / "out" / "x1.nii.gz")
    return images.parent / "out"


def references(images: Path) -> Path:
    put(images.parent / "labels" / "x2.nii.gz", 9)
    return images.parent / "labels"


def other_format(images: Path) -> Path:
    (images.parent / "out").mkdir()
    (images.parent / "out" / "x0.nii.gz").write_text("notes")
    return images.parent / "out"


def broken_link(images: Path) -> Path:
    (images.parent / "out").mkdir()
    (images.parent / "out" / "x0.nii.gz").symlink_to(images.parent / "nowhere.nii.gz")
    return images.parent / "out"


def folder_of_that_name(images: Path) -> Path:
    (images.parent / "out" / "x0.nii.gz").mkdir(parents=True)
    return images.parent / "out"


def a_file(images: Path) -> Path:
    (images.parent / "out").write_text("notes")
    return images.parent / "out"


def below_a_file(images: Path) -> Path:
    return a_file(images) / "deeper"


def data_set(images: Path) -> Path:
    (images.parent / "set" / "labelsTr").mkdir(parents=True)
    (images.parent / "set" / "dataset.json").write_text("{}")
    return images.parent / "set" / "labelsTr"


@pytest.mark.parametrize(
    "output",
    [
        *(same_folder, other_spelling, linked_folder, linked_file, hard_link, references, other_format, broken_link),
        *(folder_of_that_name, a_file, below_a_file, data_set),
    ],
)
def test_nothing_but_an_earlier_prediction_is_written_over(
    tiny_study: Path, images: Path, command: Command, output: Callable[[Path], Path]
) -> None:
    place = output(images)
    before = content(images.parent)
    status, _, err = command(
        f"--workdir={tiny_study}", "--arm=scratch", f"--input={images}", f"--output={place}", "--ensemble"
    )
    assert (status, err.count("error: --output")) == (2, 1)
    assert content(images.parent) == before


def test_a_study_keeps_its_own_files(tiny_study: Path, images: Path, command: Command) -> None:
    before = content(tiny_study)
    for name in ("predictions", "results", "train/new"):
        status, _, err = command(
            f"--workdir={tiny_study}", "--arm=scratch", f"--input={images}", f"--output={tiny_study / name}"
        )
        assert status == 2
        assert "is part of the study" in err
    assert content(tiny_study) == before


def test_the_same_command_replaces_its_own_predictions_unless_they_were_corrected(
    tiny_study: Path, images: Path, command: Command, tmp_path: Path
) -> None:
    options = (f"--workdir={tiny_study}", "--arm=scratch", f"--input={images}", f"--output={tmp_path / 'out'}")
    for _ in range(2):
        status, out, err = command(*options, "--ensemble", "--uncertainty")
        assert (status, err) == (0, "")
        assert "label maps of 3 image(s)" in out
        found = content(tmp_path / "out")
        assert set(found) == {f"{place}x{index}.nii.gz" for index in range(3) for place in ("", "entropy/")}
    corrected = nib.load(tmp_path / "out" / "x1.nii.gz")
    labels = np.asarray(corrected.dataobj).copy()
    labels[3, 3] = 1 - labels[3, 3].clip(max=1)
    nib.save(nib.Nifti1Image(labels, corrected.affine, corrected.header), tmp_path / "out" / "x1.nii.gz")
    before = content(tmp_path / "out")
    status, _, err = command(*options, "--ensemble", "--uncertainty")
    assert status == 2
    assert "x1.nii.gz was not written by jaxseg, or has been changed since" in err
    assert content(tmp_path / "out") == before


def test_networks_that_diverged_are_refused_by_name(
    tiny_study: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = jaxseg.load(tiny_study)
    arm = study.arm("scratch")
    lost = dataclasses.replace(arm, runs=arm.runs | {1: dataclasses.replace(arm.runs[1], diverged_at=0)})
    monkeypatch.setattr(predict_command.selection, "chosen", lambda: (study, lost))
    options = (f"--input={tmp_path / 'nothing'}", f"--output={tmp_path / 'out'}")
    status, _, err = command(*options)
    assert (status, "runs of arm 'scratch' diverged: seed 1 at step 0." in err) == (2, True)
    assert "give --seeds=0, or --allow_diverged" in err
    assert "give another --arm, or --allow_diverged" in command(*options, "--seeds=1")[2]
    for accepted in ("--seeds=0", "--allow_diverged"):
        assert "nothing does not exist" in command(*options, accepted)[2]


def test_writing_a_prediction_replaces_no_other_file(images: Path, tmp_path: Path, tiny_study: Path) -> None:
    arm = jaxseg.load(tiny_study).arm("scratch")
    made, geometry = arm.segment(images / "x0.nii.gz")
    before = content(images)
    for write, values in ((data.write_prediction, made.ensemble), (data.write_map, made.entropy)):
        with pytest.raises(UserError, match="is not replaced"):
            write(values, geometry, images / "x0.nii.gz")
        for _ in range(2):
            write(values, geometry, tmp_path / f"{write.__name__}.nii.gz")
    assert content(images) == before
    assert writing.is_own(tmp_path / "write_map.nii.gz")


def test_probabilities_are_written_class_by_class(
    tiny_study: Path, images: Path, command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = (f"--workdir={tiny_study}", "--arm=scratch", f"--input={images}", f"--output={out}")
    assert command(*options, "--ensemble", "--probabilities")[0] == 0
    folders = sorted((out / "probabilities").iterdir())
    assert [folder.name for folder in folders] == ["0_background", "1_blobs_1", "2_blobs_2"]
    written = np.stack([np.asarray(nib.load(folder / "x0.nii.gz").dataobj) for folder in folders])
    np.testing.assert_allclose(written.sum(0), 1, atol=1e-5)
    np.testing.assert_array_equal(written.argmax(0), np.asarray(nib.load(out / "x0.nii.gz").dataobj))


# --------------------------------------------------------------------------------------------- what it goes on after


def test_bad_images_are_named_after_the_others_are_written(
    tiny_study: Path, images: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truncated = put(images / "cut.nii.gz", 5, shape=(16, 16, 1))
    truncated.write_bytes(truncated.read_bytes()[:-40])
    (images / "empty.nii.gz").write_bytes(b"")
    put(images / "two.nii.gz", shape=(16, 16, 1, 2))
    put(images / "deep.nii.gz", shape=(16, 16, 5))
    put(images / "twice.nii.gz")
    put(images / "twice.nii")
    open_image = reading.open_image

    def refused(path: str) -> object:
        if path.endswith("locked.nii.gz"):
            raise PermissionError(13, "Permission denied", path)
        return open_image(path)

    put(images / "locked.nii.gz")
    monkeypatch.setattr(reading, "open_image", refused)  # the superuser of containers may read everything
    out = tmp_path / "out"
    status, told, err = command(
        f"--workdir={tiny_study}", "--arm=scratch", f"--input={images}", f"--output={out}", "--ensemble"
    )
    assert status == 2
    assert "label maps of 3 image(s)" in told
    assert "6 of 9 image(s) were not predicted, 3 were" in err
    for name, words in (
        ("cut", "truncated or damaged"),
        ("empty", "is empty"),
        ("two", "it has 2 channel(s), and the network was trained on 1"),
        ("deep", "several slices"),
        ("locked", "Permission denied"),
        ("twice", "twice.nii, twice.nii.gz"),
    ):
        (line,) = (line for line in err.splitlines() if line.startswith(f"  {name}: "))
        assert words in line
    assert set(content(out)) == {f"x{index}.nii.gz" for index in range(3)}


def test_an_image_that_does_not_fit_in_memory_does_not_end_the_others(
    tiny_study: Path, images: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment = predict_command.Arm.segment

    def short_of_memory(arm: predict_command.Arm, image: list[str], *given: object, **options: object) -> object:
        if image[0].endswith("x0.nii.gz"):
            raise MemoryError
        if image[0].endswith("x1.nii.gz"):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes")
        return segment(arm, image, *given, **options)

    monkeypatch.setattr(predict_command.Arm, "segment", short_of_memory)
    status, _, err = command(
        f"--workdir={tiny_study}", "--arm=scratch", f"--input={images}", f"--output={tmp_path / 'out'}"
    )
    assert status == 2
    assert err.count("does not fit in memory with 2 network(s)") == 2
    assert set(content(tmp_path / "out")) == {"seed_0/x2.nii.gz", "seed_1/x2.nii.gz"}


def test_other_channels_in_every_image_are_told_before_any_work(
    tiny_study: Path, command: Command, tmp_path: Path
) -> None:
    put(tmp_path / "images" / "x.nii.gz", shape=(16, 16, 1, 3))
    status, _, err = command(
        f"--workdir={tiny_study}", "--arm=scratch", f"--input={tmp_path / 'images'}", f"--output={tmp_path / 'out'}"
    )
    assert status == 2
    assert "x: it has 3 channel(s), and the network was trained on 1" in err
    assert not (tmp_path / "out").exists()


def test_numbered_files_with_several_channels_are_cases(tmp_path: Path) -> None:
    for index in (1, 2):
        put(tmp_path / f"BRATS_{index:04d}.nii.gz", shape=(4, 4, 4, 2))
    for channel in (0, 1):
        put(tmp_path / f"y_{channel:04d}.nii.gz", shape=(4, 4, 4))
    put(tmp_path / "z_0001.nii.gz", shape=(4, 4, 4))
    found = data.find_images(tmp_path, 2)
    assert [(case.name, len(case.images)) for case in found.cases] == [("BRATS_0001", 1), ("BRATS_0002", 1), ("y", 2)]
    ((name, reason),) = found.refused
    assert name == "z"
    assert "z_0000" in reason


def test_doubts_about_an_image_are_told_as_in_the_preparation(
    tiny_study: Path, command: Command, tmp_path: Path
) -> None:
    put(tmp_path / "images" / "nocode.nii.gz", code=0)
    constant = nib.Nifti1Image(np.full((16, 16, 1), 5, np.float32), np.eye(4))
    nib.save(constant, tmp_path / "images" / "flat.nii.gz")
    holes = np.random.default_rng(0).normal(size=(16, 16, 1)).astype(np.float32)
    holes[:2] = np.nan
    nib.save(nib.Nifti1Image(holes, np.eye(4)), tmp_path / "images" / "holes.nii.gz")
    status, _, err = command(
        f"--workdir={tiny_study}", "--arm=scratch", f"--input={tmp_path / 'images'}", f"--output={tmp_path / 'out'}"
    )
    assert status == 0
    for line in ("warning: nocode: the header gives no orientation", "warning: flat: channel 0 is constant (5)",
                 "warning: holes: 32 voxels are NaN"):  # fmt: skip
        assert line in err
    arm = jaxseg.load(tiny_study).arm("scratch")
    with pytest.warns(data.ImageWarning, match="channel 0 is constant"):
        arm.predict(constant)


def test_images_that_are_none_are_sentences_in_python_too(tiny_study: Path) -> None:
    arm = jaxseg.load(tiny_study).arm("scratch")
    for image, words in (
        (nib.MGHImage(np.zeros((16, 16, 1), np.float32), np.eye(4)), "is a MGHImage"),
        (nib.Nifti1Image(np.zeros((16, 16, 1, 2), np.float32), np.eye(4)), "it has 2 channel"),
        (nib.Nifti1Image(np.zeros((16, 16, 4), np.float32), np.eye(4)), "several slices"),
        ([], "no file was given"),
        (None, "is a NoneType"),
    ):
        with pytest.raises(UserError, match=words):
            arm.predict(image)


def test_seeds_are_named_once(tiny_study: Path, images: Path, command: Command, tmp_path: Path) -> None:
    status, _, err = command(
        f"--workdir={tiny_study}", "--arm=scratch", f"--input={images}", f"--output={tmp_path / 'o'}", "--seeds=0,0"
    )
    assert status == 2
    assert "names a seed twice" in err
