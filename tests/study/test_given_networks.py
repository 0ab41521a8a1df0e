"""Source networks that were trained elsewhere: where they may lie, and which are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import default
from jaxseg import settings, trees
from jaxseg.study import typed_json
from jaxseg.study.plan import seen, source_networks
from jaxseg.study.run import STAGES, run_stages
from jaxseg.types import UserError
from tests.study.test_arms import entries, params_of
from tests.tiny_study import silent, tiny_config


def given_config(where: Path, *, share: str = "per_seed", **fields: Any) -> ConfigDict:
    made = tiny_config()
    made.arms = ConfigDict({"transfer": default.arm("pretrained", "none")})
    made.pretrain.from_workdir = str(where)
    made.pretrain.share = share
    for name, value in fields.items():
        made.pretrain[name] = value
    return made


def test_networks_of_another_study_that_changed_since_are_refused(tiny_study: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_study, tmp_path / "given")
    made = given_config(tmp_path / "given")
    run_stages(made, tmp_path / "study", stages=("train",), progress=silent)
    run_stages(made, tmp_path / "study", stages=("train",), progress=silent)  # the same networks: nothing to do
    job = Path("train") / "pretrain" / "chunk_0"
    other = tiny_config()
    other.arms = default.pick_arms("transfer")
    other.source.foreground = 0.25  # trains other networks of the same names
    run_stages(other, tmp_path / "other", stages=("pretrain",), progress=silent)
    shutil.rmtree(tmp_path / "given" / job)
    shutil.copytree(tmp_path / "other" / job, tmp_path / "given" / job)
    with pytest.raises(UserError, match=r"source networks of arm 'transfer'.*no longer.*seed\(s\) 0, 1"):
        run_stages(made, tmp_path / "study", stages=STAGES, progress=silent)


def test_networks_that_were_trained_on_cases_which_are_tested_here_are_refused(
    tiny_study: Path, tmp_path: Path
) -> None:
    made = given_config(tiny_study, from_arm="scratch")
    made.base_seed = 5  # another split of the same images
    with pytest.raises(
        UserError, match=r"were trained on \d case\(s\) that this study validates or tests on, such as blobs"
    ):
        run_stages(made, tmp_path / "study", stages=[], progress=silent)


def test_networks_of_an_arm_know_the_images_of_its_source_too(tiny_study: Path, tmp_path: Path) -> None:
    """Those of scratch do not."""
    made = given_config(tiny_study, from_arm="scratch")
    made.target.data, made.base_seed = tiny_config().source.data, 5  # another split than that study has
    run_stages(made, tmp_path / "study", stages=[], progress=silent)
    made.pretrain.from_arm = "transfer/n0_fold0"
    with pytest.raises(UserError, match=r"were trained on \d case\(s\) that this study validates or tests on"):
        run_stages(made, tmp_path / "study", stages=[], progress=silent)
    (tiny_study_copy := tmp_path / "moved").mkdir()
    for name in ("data.json", "study.json", "SHA256SUMS"):
        shutil.copy(tiny_study / name, tiny_study_copy)
    assert seen.past_of(str(tiny_study_copy), "scratch").images.keys() > set()  # without its config, all that there is
    assert {*seen.past_of(str(tiny_study), "transfer").images} == {
        *seen.past_of(str(tiny_study_copy), "scratch").images
    }


def test_networks_remember_those_that_their_source_networks_began_with(tiny_study: Path, tmp_path: Path) -> None:
    made = given_config(tiny_study)  # its source networks
    made.target.data = "synthetic:blobs?n=10&shape=16x16&seed=7"
    run_stages(made, tmp_path / "second", stages=("train",), progress=silent)
    again = given_config(tmp_path / "second", from_arm="transfer")
    again.target.data, again.base_seed = tiny_config().source.data, 5
    with pytest.raises(UserError, match=r"'transfer'\): its networks were trained on \d case"):
        run_stages(again, tmp_path / "third", stages=[], progress=silent)
    shutil.copytree(tiny_study / "train" / "pretrain", tmp_path / "lost")
    made = given_config(tmp_path / "lost" / "chunk_0" / "checkpoints")  # of which nothing is known
    run_stages(made, tmp_path / "fourth", stages=("train",), progress=silent)
    given = ready_arm(given_config(tmp_path / "fourth", from_arm="transfer"))
    checkpoint = source_networks.pretraining_of(given).checkpoint
    assert checkpoint is not None
    assert checkpoint.file == str(tmp_path / "lost" / "chunk_0" / "checkpoints")


def ready_arm(made: ConfigDict) -> settings.ArmSettings:
    return settings.parse(made).arms[0]


def test_networks_of_another_study_or_of_any_checkpoint_are_sources(tiny_study: Path, tmp_path: Path) -> None:
    entry = next(run for run in entries(tiny_study, kind="train", arm="scratch") if run["seed"] == 1)
    folder = tiny_study / entry["directory"] / "checkpoints"
    wanted = {
        "own": (given_config(tiny_study), next(iter(entries(tiny_study, kind="pretrain", seed=1))), 8),
        "arm": (given_config(tiny_study, from_arm="scratch"), entry, 8),
        "folder": (given_config(folder, from_arm="scratch/n0_fold0"), entry, 8),
        "start": (given_config(folder / "0", from_arm="scratch"), entry, 0),
    }
    for name, (made, given, step) in wanted.items():
        ready = run_stages(made, tmp_path / name, stages=[], progress=silent)
        (job,) = ready.plan.jobs
        task = source_networks.given_task(ready.study.arms[0])
        assert source_networks.pretraining_of(ready.study.arms[0]).checkpoint is None  # what they have seen is recorded
        known = json.loads((tiny_study / "study.json").read_text())["source" if name == "own" else "target"]
        assert typed_json.to_tree(task) == known
        where = source_networks.locate(ready.workdir, ready.plan, ready.study.arms[0])
        source = trees.flatten(source_networks.read_source(where, job.runs[1]))
        for path, leaf in params_of(tiny_study, given, step).items():
            np.testing.assert_array_equal(source[path], leaf, err_msg=f"{name} {path}")


@pytest.mark.parametrize(
    ("fields", "seeds", "text"),
    [
        ({}, (0, 7), r"no source network of seed 7; it has \[0, 1\]; set seed_ids"),
        ({"from_arm": "scrach"}, (0, 1), r"no networks 'scrach'; set pretrain.from_arm to one of .*scratch/n0_fold0"),
    ],
)
def test_networks_that_are_not_there(fields: dict, seeds: tuple, text: str, tiny_study: Path, tmp_path: Path) -> None:
    made = given_config(tiny_study, **fields)
    made.seed_ids = seeds
    with pytest.raises(UserError, match=text):
        run_stages(made, tmp_path / "study", stages=[], progress=silent)


def test_a_folder_without_networks(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither a study .* nor checkpoints; name the workdir"):
        run_stages(given_config(tmp_path), tmp_path / "study", stages=[], progress=silent)


def test_a_transfer_that_loads_too_little_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    made = tiny_config()
    made.pretrain.min_loaded = 1.0
    made.source.data = "synthetic:blobs?n=9&shape=16x16&seed=1&labels=1"
    with pytest.raises(UserError, match=r"arm 'transfer': only \d+ of \d+ parameters .*head/bias"):
        run_stages(made, tmp_path / "study", stages=STAGES, progress=silent)
    assert not (tmp_path / "study" / "train").exists()
