"""Source networks that were trained elsewhere: where they may lie, and which are refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import default
from jaxseg import settings, trees
from jaxseg.report import write_report
from jaxseg.study import files, record, recording, typed_json
from jaxseg.study.plan import planned, seen, source_networks
from jaxseg.study.plan.tasks import prepare_tasks
from jaxseg.study.run import STAGES, prepare, run_stages
from jaxseg.types import UserError
from tests.image_sets import make_volume, write_set
from tests.study.test_arms import entries, params_of
from tests.study.test_tasks import two_dimensional
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


def phase_of(folder: Path, phase: str, first: int, **more: Any) -> Path:
    """Images of one phase of the heart, of the same twelve patients in every phase."""
    cases = {f"p{index:02d}_{phase}": two_dimensional(first + index) for index in range(12)}
    return write_set(folder / phase, cases, **{"groups": {name: name[:3] for name in cases}} | more)


def bound_study(made: ConfigDict, workdir: Path) -> planned.PlannedStudy:
    """A study that is about to train: what its networks will have seen is recorded."""
    ready = planned.bind(prepare(settings.parse(made), workdir, silent("prepare")), "digest", 2)
    recording.write_study(ready, None, 2)
    return ready


def test_networks_that_know_other_images_of_patients_who_are_tested_here_are_refused(tmp_path: Path) -> None:
    """As end diastole and end systole: other names and other voxels, the same patients."""
    first = tiny_config()
    first.source.data = str(phase_of(tmp_path, "ed", 0))
    bound_study(first, tmp_path / "first")
    made = given_config(tmp_path / "first")
    made.target.data, made.base_seed = str(phase_of(tmp_path, "es", 50)), 5
    example = r"such as (p\d\d)_es \(\1_ed there, of the patient \1\)"
    with pytest.raises(UserError, match=rf"trained on other images of the patients of \d case\(s\) that .*, {example}"):
        run_stages(made, tmp_path / "second", stages=[], progress=silent)


def test_networks_of_the_same_split_and_of_patients_whom_no_set_names_are_accepted(tmp_path: Path) -> None:
    first = tiny_config()
    first.target.data = str(phase_of(tmp_path, "ed", 0))
    bound_study(first, tmp_path / "first")
    for base_seed, groups in ((first.base_seed, None), (5, {})):
        made = given_config(tmp_path / "first", from_arm="scratch")
        folder = tmp_path / str(base_seed)
        made.target.data = str(phase_of(folder, "es", 50, **({} if groups is None else {"groups": groups})))
        made.base_seed = base_seed
        study = settings.parse(made)
        planned._check_given_networks(study, prepare_tasks(study, folder / "stores", silent("prepare")))
    past = seen.past_of(str(tmp_path / "first"), "scratch")
    assert {patient for known in past.sets for patient in known.patients if patient.startswith("p")}


def test_the_record_knows_patients_as_the_prepared_source_does(tmp_path: Path) -> None:
    """A pooled source has its parts' names before those of cases, but for patients whom a part names."""
    one = phase_of(tmp_path, "one", 0, groups={f"p{index:02d}_one": f"p{index:02d}" for index in range(4)})
    two = phase_of(tmp_path, "two", 50, groups={})
    for data in (str(one), f"{one}+{two}"):
        made = tiny_config()
        made.source.data = data
        ready = bound_study(made, tmp_path / "studies" / str(len(data)))
        (split,), prepared = ready.tasks.splits[ready.study.source], ready.tasks.prepared[ready.study.source]
        known = seen._seen_of(ready.bound().tasks["source"])
        learned = {prepared.record(name).patient: name for name in (*split.val, *split.train)}
        assert known.patients.keys() == learned.keys()
        assert known.published == {record.patient for record in prepared.cases if record.published}
        assert {part for _, part in known.patients.values()} == {"train", "val"}


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


def test_a_network_that_diverged_is_no_start(tiny_study: Path, tmp_path: Path) -> None:
    """Its last sound weights are hardly trained: an arm that starts from them shows nothing of its source."""
    shutil.copytree(tiny_study, tmp_path / "given")
    found = record.read(tmp_path / "given")
    assert found is not None
    runs = [
        dataclasses.replace(run, diverged_at=3) if (run.kind, run.seed) == ("pretrain", 1) else run
        for run in found.runs
    ]
    record.write(tmp_path / "given", dataclasses.replace(found, runs=tuple(runs)))
    with pytest.raises(UserError, match=r"seed 1 diverged at step 3, and is no start; set seed_ids \(or base"):
        run_stages(given_config(tmp_path / "given"), tmp_path / "study", stages=[], progress=silent)
    one = given_config(tmp_path / "given", share="one")
    assert run_stages(one, tmp_path / "study", stages=[], progress=silent).plan.of_kind("train")


def test_runs_are_left_out_whose_source_network_diverged(tmp_path: Path) -> None:
    """Images of 1e30 without norms: no source network survives, and all that starts from one is said to be lost."""
    volumes = {f"c{i}": make_volume(i, (12, 12, 8)) for i in range(8)}
    write_set(tmp_path / "target", volumes)
    write_set(tmp_path / "source", {case: (image * 1e30, label) for case, (image, label) in volumes.items()})
    made = tiny_config()
    made.model.norm, made.source.normalization, made.source.foreground = "none", "none", 0.0
    made.source.data, made.target.data = str(tmp_path / "source"), str(tmp_path / "target")
    for task in (made.source, made.target):
        task.as_slices, task.patch, task.val_cases, task.test_cases = "axial", (8, 8), 2, 2
    made.arms = default.pick_arms("scratch", "transfer")
    workdir = tmp_path / "study"
    with pytest.warns(
        UserWarning, match=r"transfer/n0_fold0/seed_0, .*: the source network diverged, so that there is"
    ):
        run_stages(made, workdir, stages=("prepare", "pretrain", "train", "evaluate", "analyze"), progress=silent)
    found = record.read(workdir)
    assert found is not None
    assert {(run.arm, run.diverged_at) for run in found.runs} == {("source", 0), ("scratch", None), ("transfer", 0)}
    reasons = {entry.case: entry.reason for entry in found.exclusions}
    assert reasons["source/n0_fold0/seed_0"] == "diverged at step 0"
    assert reasons["transfer/n0_fold0/seed_1"] == "its source network diverged"
    assert set(files.read_table(workdir / "results" / "cases.csv")["arm"]) == {"scratch"}
    text = write_report(workdir).read_text(encoding="utf-8")
    assert "Of these, 2 had no start, as the source network diverged." in text


@pytest.mark.parametrize(("labels", "warned"), [(("c", "a"), True), (("x", "y"), False), (("a", "c"), False)])
def test_labels_and_channels_in_another_order_are_warned_of(
    labels: tuple[str, str], warned: bool, tmp_path: Path
) -> None:
    prepared = types.SimpleNamespace(labels=("a", "c"), regions=None, modality=("T1", "T2"), channels=2)
    source = types.SimpleNamespace(labels=labels, regions=None, modality=("T1", "T2"), channels=2)
    made = tiny_config()
    made.arms = default.pick_arms("scratch", "transfer", "transfer_encoder", "mean_var")
    study = settings.parse(made)
    tasks = {study.target: prepared, next(arm.source for arm in study.arms if arm.name == "transfer"): source}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        source_networks.warn_of_orders(study, tasks)
    told = [str(warning.message) for warning in caught]
    assert bool(told) == warned
    if warned:
        assert "the outputs of its source are c, a, the target's a, c: the head is loaded in their order" in told[0]
        assert told[0].startswith("arm transfer:")
    source.modality = ("T2", "T1")
    source.labels = prepared.labels
    with pytest.warns(UserWarning, match="channels of its source are T2, T1, the target's T1, T2"):
        source_networks.warn_of_orders(study, tasks)
