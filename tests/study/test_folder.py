"""Saved predictions and predictions made elsewhere: on the grids of their images, scored as the study scores."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

import jaxseg
from configs import default
from jaxseg import data, settings
from jaxseg.data.prepared import recipe
from jaxseg.metrics import LesionRule, case_metrics, dsc
from jaxseg.study import files
from jaxseg.study.run import STAGES, run_stages
from jaxseg.study.score.folder import score_folder, summarise
from jaxseg.types import UserError
from tests import image_sets
from tests.commands import Command, make_command
from tests.tiny_study import set_widths, silent, tiny_config

SHAPE = (9, 8, 7)
ANGLE = np.array([[0.9, -0.3, 0.1], [0.3, 0.9, -0.2], [-0.05, 0.2, 0.97]])
GRIDS = {
    "ras": np.diag([1.0, 1.5, 2.0, 1.0]),
    "las": np.diag([-1.0, 1.5, 2.0, 1.0]),
    "psr": np.array([[0, 0, 2.0, 5], [-1.0, 0, 0, 3], [0, 1.5, 0, -7], [0, 0, 0, 1]]),  # axes in another order
    "oblique": np.block([[ANGLE @ np.diag([1.0, -1.5, 2.0]), np.array([[-4.0], [3.0], [9.0]])], [np.eye(4)[3:]]]),
}
VALUES = {"small": 4, "large": 9}
"""Of the labels in the files; classes are 1 and 2."""


def write_case(folder: Path, name: str, affine: np.ndarray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    label = np.zeros(SHAPE, np.uint8)
    corner = rng.integers(0, 3, 3)
    label[tuple(slice(c, c + 5) for c in corner)] = 9
    label[tuple(slice(c + 1, c + 3) for c in corner)] = 4
    image = rng.normal(size=SHAPE).astype(np.float32) + label
    for part, array in (("imagesTr", image), ("labelsTr", label)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        written = nib.Nifti1Image(array, affine)
        written.set_sform(affine, 2)
        written.set_qform(affine, 2)
        nib.save(written, folder / part / f"{name}.nii.gz")


@pytest.fixture(scope="module")
def oriented(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A study of 3-D volumes in four orientations that keeps its predictions: the folder and the workdir."""
    folder = tmp_path_factory.mktemp("oriented") / "set"
    names = [f"{grid}_{index}" for grid in GRIDS for index in range(3)]
    for seed, name in enumerate(names):
        write_case(folder, name, GRIDS[name[:-2]], seed)
    description = {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", **{str(value): name for name, value in VALUES.items()}},
        "training": [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names],
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    config = tiny_config()
    config.target.data = str(folder)
    config.model.ndim = 3
    set_widths(config, 3)
    config.source.data = "synthetic:blobs?n=9&shape=8x8x8"
    config.target.patch = config.source.patch = (8, 8, 8)
    config.target.test_cases = 8
    # Resampled to cubes for the network: predictions come back by their probabilities.
    config.target.spacing_mm = "1.25, 1.25, 1.25"
    config.arms = default.pick_arms("scratch")
    config.optim.lr = 0.03
    config.evaluate.save_predictions = True
    config.evaluate.regions = "whole=small+large"
    workdir = folder.parent / "study"
    run_stages(config, workdir, stages=STAGES, progress=silent)
    return folder, workdir


def test_networks_are_analysed_where_the_images_are_not(
    oriented: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A workdir that was copied to another machine, its store in it, without the folder that it was prepared from."""
    folder, workdir = oriented
    copied = tmp_path / "study"
    shutil.copytree(workdir, copied)
    shutil.rmtree(copied / "analysis")
    (copied / "results" / "similarity.csv").unlink()
    config = settings.from_json((copied / "config.json").read_text())
    hidden = folder.with_name("hidden")
    folder.rename(hidden)
    try:
        run_stages(config, copied, stages=("analyze",), progress=silent)
        name = jaxseg.load(copied).cases("test")[0]
        assert jaxseg.load(copied).case(name).record.name == name
        unknown = tmp_path / "new"
        with pytest.raises(UserError, match=re.escape(str(folder))):
            run_stages(config, unknown, stages=("prepare",), progress=silent)
    finally:
        hidden.rename(folder)
    for name in ("similarity", "pairs", "claims"):
        assert (copied / "results" / f"{name}.csv").read_bytes() == (workdir / "results" / f"{name}.csv").read_bytes()


def test_a_case_is_as_the_networks_saw_it_whatever_became_of_its_file(
    oriented: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, workdir = oriented
    copied = tmp_path / "study"
    shutil.copytree(workdir, copied)
    study = jaxseg.load(copied)
    name = study.cases("test")[0]
    path, before = folder / "imagesTr" / f"{name}.nii.gz", study.case(name).image
    kept = path.read_bytes()
    image = nib.Nifti1Image.from_bytes(gzip.decompress(kept))
    nib.Nifti1Image(np.asarray(image.dataobj)[::-1] + 1, image.affine, image.header).to_filename(path)
    try:
        np.testing.assert_array_equal(study.case(name).image, before)
        shutil.rmtree(copied / "stores")
        with pytest.raises(UserError, match=rf"no longer what this study was trained on:\n.*image changed: {name}"):
            study.case(name)
        assert not (copied / "stores").exists() or not [*(copied / "stores").glob("*/*/*")]
    finally:
        path.write_bytes(kept)
    np.testing.assert_array_equal(study.case(name).image, before)
    shutil.rmtree(copied / "stores")
    monkeypatch.setattr(recipe, "FORMAT", recipe.FORMAT + 1)  # as a later version prepares it
    with pytest.raises(UserError, match="now gives another"):
        study.case(name)


def test_saved_predictions_overlay_their_images(oriented: tuple[Path, Path]) -> None:
    """In voxel coordinates the raw arrays give the scores of cases.csv; in world coordinates the affines agree."""
    folder, workdir = oriented
    cases = files.read_table(workdir / "results" / "cases.csv")
    assert {name[:-2] for name in cases["case"]} >= {"ras", "las", "oblique"}
    assert cases["dsc"].max() > 0.3, "networks that predict nothing would show nothing"
    for (seed, case), rows in cases.groupby(["seed", "case"]):
        path = workdir / "predictions" / "scratch" / "n0_fold0" / f"seed_{seed}" / f"{case}.nii.gz"
        predicted, image = nib.load(path), nib.load(folder / "imagesTr" / f"{case}.nii.gz")
        truth = np.asarray(nib.load(folder / "labelsTr" / f"{case}.nii.gz").dataobj)
        array = np.asarray(predicted.dataobj)
        assert set(np.unique(array)) <= {0, 4, 9}
        np.testing.assert_array_equal(predicted.affine, image.affine)
        for name in ("sform_code", "qform_code", "pixdim", "xyzt_units"):
            np.testing.assert_array_equal(predicted.header[name], image.header[name])
        for row in rows.itertuples():
            values = list(VALUES.values()) if row.label == "whole" else [VALUES[row.label]]
            assert dsc(np.isin(array, values), np.isin(truth, values)) == pytest.approx(row.dsc, nan_ok=True)


def test_regions_are_scored_beside_the_labels_and_stay_out_of_their_mean(oriented: tuple[Path, Path]) -> None:
    workdir = oriented[1]
    cases = files.read_table(workdir / "results" / "cases.csv")
    assert dict(zip(cases["label"], cases["region"], strict=True)) == {"small": False, "large": False, "whole": True}
    summary = files.read_table(workdir / "results" / "summary.csv").set_index(["label", "metric"])
    labels = cases[~cases["region"]].groupby(["seed", "case"])["dsc"].mean()
    assert summary.loc[("mean", "dsc"), "mean"] == pytest.approx(labels.groupby("case").mean().mean())
    assert ("whole", "hd95") in summary.index


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return make_command(monkeypatch, capsys)


def test_saved_predictions_score_as_in_the_study(oriented: tuple[Path, Path], command: Command, tmp_path: Path) -> None:
    folder, workdir = oriented
    saved = workdir / "predictions" / "scratch" / "n0_fold0"
    status, out, err = command(f"--score={saved}", f"--workdir={workdir}", f"--output={tmp_path / 'scores.csv'}")
    assert (status, err) == (0, "")
    assert "whole" in out
    scores, cases = files.read_table(tmp_path / "scores.csv"), files.read_table(workdir / "results" / "cases.csv")
    keys = ["seed", "case", "label"]
    of_the_run = ("arm", "train_cases", "fold", "init_id", "order_id", "subset_id", "calibration_error")
    shared = [c for c in cases.columns if c not in of_the_run]
    pd.testing.assert_frame_equal(
        scores[shared].sort_values(keys).reset_index(drop=True), cases[shared].sort_values(keys).reset_index(drop=True)
    )
    # The same against the folder itself, which knows of no test cases: those without a prediction are named.
    status, out, err = command(f"--score={saved / 'seed_0'}", f"--references={folder}", "--tolerance_mm=1")
    assert status == 0
    assert "4 cases have no prediction" in err
    alone = files.read_table(saved / "seed_0" / "scores.csv")
    first = scores[(scores["seed"] == 0) & ~scores["region"]]
    np.testing.assert_allclose(
        alone.sort_values(["case", "label"])["hd95"], first.sort_values(["case", "label"])["hd95"], rtol=1e-12
    )


def test_cases_that_a_seed_lacks_are_in_no_mean() -> None:
    dsc = {(0, "a"): 0.2, (0, "b"): 0.8, (1, "b"): 0.8, (0, "c"): 0.8, (1, "c"): 0.6}
    fixed = {"arm": "x", "train_cases": 0, "fold": 0, "label": "mass", "status": "ok", "unit": "mm"}
    rows = [{**fixed, "seed": s, "case": c, "group": "p" if c in "ab" else c, "dsc": v} for (s, c), v in dsc.items()]
    found = summarise(pd.DataFrame(rows), confidence=0.95, metrics=("dsc",)).set_index("label").loc["mass"]
    assert (found["mean"], found["n_cases"], found["n_groups"]) == (pytest.approx(0.75), 2, 2)


def test_what_cannot_be_scored_is_named(oriented: tuple[Path, Path], command: Command, tmp_path: Path) -> None:
    folder, _ = oriented
    reference = nib.load(folder / "labelsTr" / "las_0.nii.gz")
    labels = np.asarray(reference.dataobj)

    def scored(array: np.ndarray, affine: np.ndarray, name: str = "las_0") -> tuple[int, str]:
        place = tmp_path / "given"
        place.mkdir(exist_ok=True)
        for old in place.iterdir():
            old.unlink()
        nib.save(nib.Nifti1Image(array, affine), place / f"{name}.nii.gz")
        status, _, err = command(f"--score={place}", f"--references={folder}")
        return status, err

    assert scored(labels, reference.affine)[0] == 0
    for array, affine, words in (
        (labels[1:], reference.affine, "Resample the prediction"),
        (labels, reference.affine + 0.7 * np.eye(4, k=3), "voxels away"),
        (labels + 1, reference.affine, "holds the value(s) 1, 5, 10"),
    ):
        status, err = scored(array, affine)
        assert (status, err.count("error:")) == (2, 1)
        assert words in err
    status, err = scored(labels, reference.affine, name="other")
    assert status == 2
    assert "no file is named as a case" in err
    assert command(f"--score={tmp_path / 'nowhere'}", f"--references={folder}")[0] == 2
    assert command(f"--score={folder}")[0] == 2


@pytest.mark.parametrize("turned", [False, True])
def test_slices_of_a_two_dimensional_task_are_measured_in_the_plane(tmp_path: Path, turned: bool) -> None:
    """Pixels of 0.5 x 0.5 mm in slices that are 5 mm thick; lesions are at least 1 mm^2, which is 4 pixels."""
    wanted, said = np.zeros((2, 9, 8), np.uint8)
    wanted[1:3, 1:3] = wanted[6, 6] = said[1:4, 1:3] = said[6, 5:7] = 1
    axis, spacing = (0, (5.0, 0.5, 0.5)) if turned else (2, (0.5, 0.5, 5.0))
    affine = np.diag([*spacing, 1.0])
    ref, pred = (np.expand_dims(array, axis) for array in (wanted, said))
    folder = image_sets.write_set(
        tmp_path / "set", {"case": (ref.astype(np.float32), ref)}, labels=("a",), affine=affine
    )
    image_sets.save(tmp_path / "said" / "case.nii.gz", pred, affine)
    options = {"unit": "mm", "hd_definition": "pooled", "surface_empty": "diagonal", "tolerance_mm": 1.0}
    options |= {"lesions": LesionRule(("a",), min_volume=1.0)}
    truth = data.open_references(str(folder), ndim=2, cache=tmp_path)
    (row,) = score_folder(tmp_path / "said", truth, wanted=None, options=options, progress=silent("")).cases.to_dict(
        "records"
    )
    own = {"labels": ("a",), "spacing_mm": (0.5, 0.5), **options}
    (expected,) = case_metrics(said, wanted, **own)  # type: ignore[arg-type]
    assert {name: row[name] for name in expected} == expected
    assert (row["volume_ref"], row["volume_pred"]) == (5 * 0.25, 8 * 0.25)
    assert (row["lesions_found"], row["lesions_missed"], row["lesions_predicted"]) == (1, 0, 1)


def test_the_test_part_of_a_set_gives_its_label_maps_and_not_its_images(tmp_path: Path) -> None:
    """Images of whole numbers can be read as label maps, in which every intensity is a label."""
    label = np.zeros((6, 6, 6), np.uint8)
    label[2:4, 2:4, 2:4] = 1
    image = np.random.default_rng(0).integers(0, 5, label.shape).astype(np.int16)
    folder = image_sets.write_set(tmp_path / "set", {"case": (image, label)}, labels=("liver",))
    for part in ("images", "labels"):
        shutil.copytree(folder / f"{part}Tr", folder / f"{part}Ts")
    truth = data.open_references(str(folder / "imagesTs"), ndim=3, cache=tmp_path)
    assert truth.labels == (("liver", 1),)
    options = {"unit": "mm", "hd_definition": "pooled", "surface_empty": "diagonal", "tolerance_mm": 1.0}
    scored = score_folder(folder / "labelsTs", truth, wanted=None, options=options, progress=silent(""))
    assert scored.cases["dsc"].tolist() == [1.0]
    with pytest.raises(UserError, match=r"dataset\.json"):
        data.open_references(str(folder / "imagesTr"), ndim=3, cache=tmp_path)


def test_references_that_changed_since_training_are_refused(
    oriented: tuple[Path, Path], command: Command, tmp_path: Path
) -> None:
    folder, workdir = oriented
    name = jaxseg.load(workdir).cases("test")[0]
    path = folder / "labelsTr" / f"{name}.nii.gz"
    content = path.read_bytes()
    nib.save(nib.Nifti1Image(np.zeros_like(nib.load(path).dataobj), nib.load(path).affine), path)
    try:
        status, _, err = command(f"--score={folder / 'labelsTr'}", f"--workdir={workdir}", f"--output={tmp_path / 's'}")
        assert status == 2
        assert f"1 case(s) whose label map changed: {name}" in err
        assert "--references" in err
    finally:
        path.write_bytes(content)


def test_a_folder_of_label_maps_is_a_reference(command: Command, oriented: tuple[Path, Path], tmp_path: Path) -> None:
    labels = oriented[0] / "labelsTr"
    status, _, _ = command(f"--score={labels}", f"--references={labels}", f"--output={tmp_path / 's.csv'}")
    assert status == 0
    scores = files.read_table(tmp_path / "s.csv")
    assert set(scores["label"]) == {"4", "9"}
    assert (scores["dsc"] == 1).all()
    assert (scores["hd95"] == 0).all()


def test_ensemble_and_entropy_come_from_the_mean_probabilities(
    oriented: tuple[Path, Path], command: Command, tmp_path: Path
) -> None:
    folder, workdir = oriented
    image = folder / "imagesTr" / "oblique_0.nii.gz"
    options = (f"--workdir={workdir}", "--arm=scratch", f"--input={image}", f"--output={tmp_path}")
    assert command(*options, "--ensemble", "--uncertainty")[0] == 0
    arm = jaxseg.load(workdir).arm("scratch")
    with pytest.warns(data.ImageWarning, match="sform and qform disagree"):  # as the command says on stderr
        made, _ = arm.segment(str(image))
    entropy = nib.load(tmp_path / "entropy" / "oblique_0.nii.gz")
    np.testing.assert_array_equal(entropy.affine, nib.load(image).affine)
    values = np.asarray(entropy.dataobj)
    assert values.dtype == np.float32
    assert 0 <= values.min() < values.max() <= np.log(3)
    canonical = np.asarray(nib.as_closest_canonical(entropy).dataobj)
    np.testing.assert_array_equal(canonical, made.entropy.astype(np.float32))
    written = nib.as_closest_canonical(nib.load(tmp_path / "oblique_0.nii.gz"))
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.array([0, *arm.label_values])[made.ensemble])
    # Where both seeds agree so does their mean.
    agree = made.labels[0] == made.labels[1]
    np.testing.assert_array_equal(made.ensemble[agree], made.labels[0][agree])
