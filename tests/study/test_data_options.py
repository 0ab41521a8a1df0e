"""Whole small studies whose data stays on the host, or whose volumes are taken slice by slice."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import jaxseg
from configs import default
from jaxseg import trees
from jaxseg.data.patches import residence
from jaxseg.study.run import run_stages
from tests.image_sets import write_set
from tests.tiny_study import silent, tiny_config


def test_a_study_trains_to_the_same_bits_with_its_data_on_the_host(
    tiny_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So little that the two steps of a compiled call are sent one by one.
    monkeypatch.setattr(residence, "SENT_BYTES", 2000)
    made = tiny_config()
    made.arms = default.pick_arms("scratch")
    made.runtime.data_residence = "host"
    run_stages(made, tmp_path / "host", stages=("train",), progress=silent)
    here, there = (jaxseg.load(workdir).arm("scratch") for workdir in (tmp_path / "host", tiny_study))
    for seed in there.seeds:
        expected = trees.flatten(there.params(seed))
        assert expected
        for path, leaf in trees.flatten(here.params(seed)).items():
            np.testing.assert_array_equal(leaf, expected[path], err_msg=path)


def test_a_2d_network_segments_thick_stacks_slice_by_slice(tmp_path: Path) -> None:
    volumes = {}
    for index in range(5):
        label = np.zeros((12, 14, 4 + index % 2), np.uint8)
        label[3:8, 4:10, 1:3] = 1
        image = np.random.default_rng(index).standard_normal(label.shape) + 2 * label
        volumes[f"case_{index}"] = image.astype(np.float32), label
    affine = np.diag([-1.0, 1.0, 8.0, 1.0])
    folder = write_set(tmp_path / "set", volumes, labels=("a",), affine=affine)
    made = tiny_config()
    made.num_seeds = 1
    made.arms = default.pick_arms("scratch")
    made.target.data, made.target.as_slices = str(folder), "axial"
    made.target.val_cases = made.target.test_cases = 1
    workdir = tmp_path / "work"
    run_stages(made, workdir, stages=("prepare", "train", "evaluate"), progress=silent)
    study = jaxseg.load(workdir)
    (case,) = json.loads((workdir / "study.json").read_text())["target"]["splits"][0]["test"]
    arm = study.arm("scratch")
    (predicted,) = arm.predict(folder / "imagesTr" / f"{case}.nii.gz")
    stored = np.asarray(nib.load(folder / "labelsTr" / f"{case}.nii.gz").dataobj)
    assert predicted.shape == stored.shape
    # The score of the table is that of the volume on its own grid.
    table = study.table("cases")
    both = 2 * np.sum((predicted == 1) & (stored == 1)) / (np.sum(predicted == 1) + np.sum(stored == 1))
    np.testing.assert_allclose(table["dsc"], both, rtol=1e-6)
    (layer, *_) = arm.layers
    activations = arm.activations(folder / "imagesTr" / f"{case}.nii.gz", layers=(layer,))[layer]
    assert activations.shape[:-1] == (1, 8, 8)
