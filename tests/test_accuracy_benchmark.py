"""The accuracy benchmark: what it trains with, how it scores the plain loop, what a row of its table says."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from configs import default
from docs import accuracy_benchmark


@pytest.mark.parametrize("name", accuracy_benchmark.SETS)
def test_the_defaults_are_what_is_trained(name: str) -> None:
    made = accuracy_benchmark.make_config(Path("sets"), name, 2, 100, former=False)
    usual = default.get_config()
    if name == "hippocampus_mr":  # has a preset, which states a rate of its own
        usual.optim.lr = 3e-3
    for section in ("optim", "loss"):
        assert made[section] == usual[section]
    assert made.target.normalization == usual.target.normalization
    assert made.target.augment == usual.target.augment
    assert (made.num_seeds, made.train.steps, made.target.data) == (2, 100, f"sets/{name}")


def test_the_former_defaults_are_those_of_0_1() -> None:
    made = accuracy_benchmark.make_config(Path("sets"), "hippocampus_mr", 2, 100, former=True)
    assert (made.optim.lr, made.loss.smooth, made.evaluate.overlap) == (1e-3, 1.0, 0.5)
    assert (made.target.augment.flip, made.target.augment.gamma) == ((0,), 0.2)


def test_a_plain_run_is_scored_by_label_value_where_the_reference_holds_the_label(tmp_path: Path) -> None:
    folder = tmp_path / "sets" / "lung_tumour_ct"
    (folder / "labelsTr").mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "2": "tumour"}}))
    reference = np.zeros((4, 4, 1), np.uint8)
    reference[:2, :2] = 2
    for case, label in (("full", reference), ("empty", 0 * reference)):
        nibabel.save(nibabel.Nifti1Image(label, np.eye(4)), folder / "labelsTr" / f"{case}.nii.gz")
    prepared = pd.DataFrame({"case": ["full", "empty"], "group": ["p", "q"], "fold_0": "test"})
    (tmp_path / "default" / "results").mkdir(parents=True)
    prepared.to_csv(tmp_path / "default" / "results" / "prepared_target.csv", index=False)
    guess = np.zeros((4, 4), np.uint8)
    guess[0, :] = 2  # four voxels, two of them among the four of the reference
    np.savez(tmp_path / "plain_3.npz", full=guess, empty=guess)

    asked = argparse.Namespace(steps=1, torch_lr=1e-3, torch_python="absent")
    scores = accuracy_benchmark.plain(tmp_path / "sets", "lung_tumour_ct", tmp_path, 3, asked)
    assert scores.to_dict("records") == [{"seed": 3, "group": "p", "case": "full", "label": "tumour", "dsc": 0.5}]


def test_a_row_holds_means_over_groups_and_paired_differences() -> None:
    # Group a has two cases, of two labels and of one; both seeds of `plain` are lower by 0.1 everywhere.
    cases = [("a", "1", "x", 0.5), ("a", "1", "y", 0.7), ("a", "2", "x", 0.8), ("b", "3", "x", 0.9)]
    table = pd.DataFrame([(seed, *case) for seed in (0, 1) for case in cases])
    table.columns = [*("seed", "group", "case", "label", "dsc")]
    lower = table.assign(dsc=table["dsc"] - 0.1)
    written = accuracy_benchmark.row("set", {"default": table, "plain": lower})
    name, size, ours, plain, difference = written.strip("| ").split(" | ")
    assert (name, size) == ("set", "2 x 2")
    assert [cell.split()[0] for cell in (ours, plain, difference)] == ["0.8000", "0.7000", "+0.1000"]
    assert difference.endswith("[+0.1000, +0.1000]")
