"""The accuracy benchmark: what it trains with, how it scores the plain loop, what a row of its table says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from configs import default
from jaxseg import settings
from tests.conftest import ROOT
from tests.image_sets import save
from tests.programs import run

FORMER = ROOT / "benchmarks" / "defaults_0.1.json"


@pytest.fixture(scope="module")
def planned() -> dict[str, dict]:
    """The configs of every set, by contestant."""
    return json.loads(
        run("benchmarks.accuracy", "sets", "x", "--dry_run", f"--former={FORMER}", "--seeds=2", "--steps=100")
    )


def test_the_defaults_are_what_is_trained(planned: dict[str, dict]) -> None:
    usual = json.loads(settings.to_json(default.get_config()))
    assert len(planned) == 4
    for name, contestants in planned.items():
        made = contestants["default"]
        rate = {"lr": 3e-3} if name == "hippocampus_mr" else {}  # its preset states a rate of its own
        assert made["optim"] == usual["optim"] | rate
        assert made["loss"] == usual["loss"]
        assert made["target"]["normalization"] == usual["target"]["normalization"]
        assert made["target"]["augment"] == usual["target"]["augment"]
        assert (made["num_seeds"], made["train"]["steps"], made["target"]["data"]) == (2, 100, f"sets/{name}")


def test_the_former_defaults_are_those_of_0_1(planned: dict[str, dict]) -> None:
    made = planned["hippocampus_mr"]["former"]
    assert (made["optim"]["lr"], made["loss"]["smooth"], made["evaluate"]["overlap"]) == (1e-3, 1.0, 0.5)
    assert (made["target"]["augment"]["flip"], made["target"]["augment"]["gamma"]) == ([0], 0.2)


def test_a_row_holds_means_over_groups_and_paired_differences(tmp_path: Path) -> None:
    # One patient, p, has a case of both labels and one of x alone; another, q, has one of x.
    labels = {"one": ("x", "y"), "two": ("x",), "three": ("x",)}
    groups = {"one": "p", "two": "p", "three": "q"}
    scores = {("one", "x"): 0.5, ("one", "y"): 0.5, ("two", "x"): 0.7, ("three", "x"): 0.6, ("three", "y"): 0.0}
    sets, work = tmp_path / "sets" / "lung_tumour_ct", tmp_path / "work" / "lung_tumour_ct"
    (work / "default" / "results").mkdir(parents=True)
    guess = np.zeros((4, 4), np.uint8)
    guess[0], guess[3] = 1, 3  # of each label four voxels, two of them among the four of the reference
    for case, present in labels.items():
        reference = np.zeros((4, 4, 1), np.uint8)
        reference[:2, :2] = 1
        reference[2:, 2:] = 3 * ("y" in present)
        save(sets / "labelsTr" / f"{case}.nii.gz", reference)
    (sets / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "x", "3": "y"}}))
    rows = [
        {"seed": seed, "group": groups[case], "case": case, "label": label, "dsc": score}
        | {"status": "ok" if label in labels[case] else "spurious"}
        for seed in (0, 1)
        for (case, label), score in scores.items()
    ]
    pd.DataFrame(rows).to_csv(work / "default" / "results" / "cases.csv", index=False)
    prepared = pd.DataFrame({"case": list(groups), "group": list(groups.values()), "fold_0": "test"})
    prepared.to_csv(work / "default" / "results" / "prepared_target.csv", index=False)
    for seed in (0, 1):
        np.savez(work / f"plain_{seed}.npz", **dict.fromkeys(groups, guess))

    options = ("--sets=lung_tumour_ct", "--seeds=2", "--finished")
    printed = run("benchmarks.accuracy", tmp_path / "sets", tmp_path / "work", *options).splitlines()
    name, size, ours, plain, difference = printed[-1].strip("| ").split(" | ")
    assert (name, size) == ("lung_tumour_ct", "2 x 2")
    # Ours: p has (0.5 + 0.7) / 2, q has 0.6. The plain loop has 0.5 everywhere.
    assert [cell.split()[0] for cell in (ours, plain, difference)] == ["0.6000", "0.5000", "+0.1000"]
    assert difference.endswith("[+0.1000, +0.1000]")
