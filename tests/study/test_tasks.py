"""Who trains on what, what intensity statistics have seen, and what the prepare stage leaves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

import jaxseg
from configs import default
from jaxseg import data, settings
from jaxseg.study.files import read_table
from jaxseg.study.plan.tasks import prepare_tasks, training_cases
from jaxseg.study.run import prepare, run_stages
from jaxseg.types import UserError
from tests.image_sets import write_set
from tests.tiny_study import put, silent, tiny_config


def two_dimensional(seed: int, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """A noisy one-slice volume and its label."""
    rng = np.random.default_rng(seed)
    label = np.zeros((16, 16, 1), np.uint8)
    label[3:9, 4:11], label[10:14, 10:14] = 1, 2
    return (scale * (rng.standard_normal(label.shape) + label)).astype(np.float32), label


def on_folders(target: Path, source: Path | None = None, **fields: object) -> ConfigDict:
    made = tiny_config()
    made.target.data, made.source.data = str(target), str(source or target)
    for task in (made.target, made.source):
        task.update(fields)
    return made


def with_folds(folder: Path) -> Path:
    """The folder, with a list of folds that test three cases each."""
    names = sorted(path.name.removesuffix(".nii.gz") for path in (folder / "labelsTr").iterdir())
    folds = [{"val": names[at : at + 3], "train": names[:at] + names[at + 3 :]} for at in range(0, len(names), 3)]
    (folder / "splits_final.json").write_text(json.dumps(folds))
    return folder


def patients_of(prepared: data.PreparedTask, names: tuple[str, ...]) -> set[str]:
    return {prepared.record(name).group for name in names}


# ------------------------------------------------------------------------------------------------------------ leakage


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("folds", [1, 2])
def test_sources_with_the_targets_patients_never_see_those_it_is_tested_on(
    tmp_path: Path, folds: int, listed: bool
) -> None:
    """As the end-diastolic and end-systolic sets: other names, the same patients, maybe the same published folds."""
    patients = [f"p{index:02d}" for index in range(12)]
    folders = {
        phase: write_set(
            tmp_path / phase,
            {f"{name}_{phase}": two_dimensional(index) for index, name in enumerate(patients)},
            groups={f"{name}_{phase}": name for name in patients},
        )
        for phase in ("ed", "es")
    }
    if listed:
        folders = {phase: with_folds(folder) for phase, folder in folders.items()}
    made = on_folders(folders["es"], folders["ed"], val_cases=1, test_cases=3)
    made.target.folds = folds
    study = settings.parse(made)
    tasks = prepare_tasks(study, tmp_path / "stores", silent("prepare"))
    (source,) = tasks.splits[study.source]
    seen = patients_of(tasks.prepared[study.source], (*source.train, *source.val))
    held = set()
    for split in tasks.splits[study.target]:
        parts = [patients_of(tasks.prepared[study.target], names) for names in (split.train, split.val, split.test)]
        assert sum(map(len, parts)) == len(set.union(*parts))
        held |= parts[1] | parts[2]
    assert len(held) >= 4
    assert seen
    assert not seen & held


@pytest.mark.parametrize(("vary", "share"), [("init", "per_seed"), ("init,fold", "one"), ("init,fold", "per_seed")])
def test_a_source_that_equals_the_target_never_learns_what_other_folds_test(
    tmp_path: Path, vary: str, share: str
) -> None:
    volumes = {f"case_{index}": two_dimensional(index) for index in range(8)}
    made = on_folders(write_set(tmp_path / "set", volumes), val_cases=1, test_cases=0, folds=2)
    made.vary, made.pretrain.share = vary, share
    study = settings.parse(made)
    assert study.source == study.target
    if (vary, share) == ("init,fold", "per_seed"):  # each network is of the fold of its own seed
        prepare(study, tmp_path / "study", silent("prepare"))
        return
    with pytest.raises(UserError, match=r"source of 'transfer' has the data and all settings.*data = 'target'"):
        prepare(study, tmp_path / "study", silent("prepare"))


def test_a_source_whose_patients_are_all_tested_in_some_fold_is_refused(tmp_path: Path) -> None:
    volumes = {f"case_{index}": two_dimensional(index) for index in range(8)}
    made = on_folders(write_set(tmp_path / "set", volumes), val_cases=1, test_cases=0)
    made.target.folds = 4
    made.source.labels = ("a",)
    with pytest.raises(UserError, match=r"same patients as the target.*Set target\.folds to 1"):
        prepare_tasks(settings.parse(made), tmp_path / "stores", silent("prepare"))


def test_equal_case_names_without_groups_are_doubtful(tmp_path: Path) -> None:
    folders = [
        write_set(tmp_path / name, {f"case_{index}": two_dimensional(index + first) for index in range(6)})
        for name, first in (("one", 0), ("two", 10))
    ]
    study = settings.parse(on_folders(*folders, val_cases=1, test_cases=1))
    tasks = prepare_tasks(study, tmp_path / "stores", silent("prepare"))
    ((case, text),) = tasks.prepared[study.source].report.warnings
    assert case == ""
    assert "6 case name(s) with the target one" in text
    assert not tasks.prepared[study.target].report.warnings
    assert len(tasks.splits[study.source][0].train) == 4, "nothing is held out on such evidence"


def test_copies_of_the_targets_images_under_other_names_are_the_targets_patients(tmp_path: Path) -> None:
    images = [two_dimensional(index) for index in range(12)]
    target = write_set(tmp_path / "one", {f"case_{index}": volume for index, volume in enumerate(images[:8])})
    source = write_set(
        tmp_path / "two", {f"scan_{index}": volume for index, volume in enumerate(images)}, suffix=".nii"
    )
    study = settings.parse(on_folders(target, source, val_cases=2, test_cases=2))
    tasks = prepare_tasks(study, tmp_path / "stores", silent("prepare"))
    (split,), (other,) = tasks.splits[study.target], tasks.splits[study.source]
    held = {name.removeprefix("case_") for name in (*split.val, *split.test)}
    used = {name.removeprefix("scan_") for part in (other.train, other.val, other.test) for name in part}
    assert used == {str(index) for index in range(12)} - held
    ((case, text), *_) = tasks.prepared[study.source].report.warnings
    assert case == ""
    assert text.startswith("8 of its images are images of the target one, such as scan_0, which is case_0 there")


@pytest.mark.parametrize("spelling", ["link", "dots"])
def test_one_folder_under_two_names_is_one(tmp_path: Path, spelling: str) -> None:
    folder = write_set(tmp_path / "one", {f"case_{index}": two_dimensional(index) for index in range(12)})
    (tmp_path / "link").symlink_to(folder)
    other = tmp_path / "link" if spelling == "link" else tmp_path / "two" / ".." / "one"
    (tmp_path / "two").mkdir()
    study = settings.parse(on_folders(folder, other, val_cases=1, test_cases=2))
    tasks = prepare_tasks(study, tmp_path / "stores", silent("prepare"))
    (split,), (source,) = tasks.splits[study.target], tasks.splits[study.source]
    assert not {*split.val, *split.test} & {*source.train, *source.val, *source.test}


def test_copies_within_a_task_are_one_patient(tmp_path: Path) -> None:
    volumes = {f"case_{index}": two_dimensional(index) for index in range(8)}
    volumes |= {f"again_{index}": two_dimensional(index) for index in range(0, 8, 2)}
    study = settings.parse(on_folders(write_set(tmp_path / "set", volumes), val_cases=2, test_cases=3))
    prepared = prepare_tasks(study, tmp_path / "stores", silent("prepare")).prepared[study.target]
    for index in range(0, 8, 2):
        assert prepared.record(f"again_{index}").group == prepared.record(f"case_{index}").group
    assert len({record.group for record in prepared.cases}) == 8
    ((case, text),) = [warning for warning in prepared.report.warnings if "copies" in warning[1]]
    assert case == ""
    assert text.startswith("4 of its 12 cases hold the same image as another case, such as case_0 as again_0")


def test_a_task_of_copies_alone_cannot_be_split_and_says_why(tmp_path: Path) -> None:
    volumes = {f"case_{index}": two_dimensional(0) for index in range(8)}
    study = settings.parse(on_folders(write_set(tmp_path / "set", volumes), val_cases=2, test_cases=2))
    with pytest.raises(
        UserError, match=r"1 group\(s\) of cases cannot be split[^\n]*\n *7 of its 8 cases hold the same image"
    ):
        prepare_tasks(study, tmp_path / "stores", silent("prepare"))


def test_intensity_statistics_of_a_fold_have_seen_its_training_cases_alone(tmp_path: Path) -> None:
    volumes = {f"case_{index}": two_dimensional(index) for index in range(9)}
    windows, tested = [], []
    for name, change in (("one", None), ("two", "case_4")):
        if change:
            volumes[change] = two_dimensional(4, scale=100.0)
        made = on_folders(write_set(tmp_path / name, volumes, modality={"0": "CT"}), normalization="auto", val_cases=1)
        made.target.folds = 3
        made.arms = ConfigDict({"scratch": made.arms.scratch})
        study = settings.parse(made)
        ready = prepare(study, tmp_path / "work", silent("prepare"))
        fitted = ready.tasks.fitted[study.target]
        windows.append([part.windows for part in fitted])
        tested.append([change_is_out(split) for split in ready.tasks.splits[study.target]])
        for job in ready.plan.jobs:
            folds = {run.key.fold for run in job.runs}
            assert folds == {job.program.fold}
            assert ready.tasks.of(job) is fitted[job.program.fold]
    assert len(set(windows[0])) == 3
    assert tested[0] == tested[1]
    assert [one == other for one, other in zip(*windows, strict=True)] == tested[0]
    assert sum(tested[0]) >= 1
    assert not all(tested[0])


def change_is_out(split: data.Split) -> bool:
    return "case_4" not in split.train


def test_folds_whose_images_are_the_same_share_their_jobs(tmp_path: Path) -> None:
    made = tiny_config()
    made.target.folds = 2
    ready = prepare(settings.parse(made), tmp_path, silent("prepare"))
    assert {job.program.fold for job in ready.plan.jobs} == {None}


# ------------------------------------------------------------------------------------------------------ prepare stage


def test_the_prepare_stage_alone_leaves_a_table_and_a_picture_of_every_task(tmp_path: Path) -> None:
    volumes = {f"case_{index}": two_dimensional(index) for index in range(8)}
    volumes["case_3"] = volumes["case_3"][0], np.zeros_like(volumes["case_3"][1])
    folder = write_set(tmp_path / "set", volumes)
    (folder / "imagesTr" / "case_6.nii.gz").write_bytes(b"")
    made = on_folders(folder, bad_cases="skip", val_cases=1)
    made.source.data = "synthetic:blobs?n=9&shape=16x16"
    made.target.train_cases = (2, 0)
    made.vary = "init,order,subset"
    told: list[str] = []
    workdir = tmp_path / "work"
    run_stages(made, workdir, stages=("prepare",), progress=silent, tell=told.append)

    assert not (workdir / "train").exists()
    for role in ("target", "source"):
        assert (workdir / "figures" / f"contact_{role}.png").read_bytes().startswith(b"\x89PNG")
    table = read_table(workdir / "results" / "prepared_target.csv").set_index("case")
    assert len(table) == 8
    assert table.loc["case_6", "status"].startswith("refused: ")
    assert table.loc["case_3", "warnings"] == "it holds none of the labels"
    assert table.loc["case_0", "labels"] == "a, b"
    assert table.loc["case_0", "own_shape"] == "16x16"
    record = json.loads((workdir / "study.json").read_text())
    (split,) = record["target"]["splits"]
    for part in ("train", "val", "test"):
        assert sorted(table.index[table["fold_0"] == part]) == split[part]
    assert table["fold_0"].notna().sum() == 7
    draws = {entry["subset_id"]: entry["cases"] for entry in record["target"]["subsets"]}
    assert sorted(draws) == [0, 1]
    for cases in draws.values():
        assert len(cases) == 2
        assert set(cases) < set(split["train"])
    text = "\n".join(told)
    assert "target: set, 7 cases" in text
    assert "refused: case_6: " in text
    assert "warning: case_3: it holds none of the labels" in text
    assert "contact_source.png" in text
    assert len(jaxseg.load(workdir).table("prepared_source")) == 9

    told.clear()
    run_stages(made, workdir, stages=("prepare",), progress=silent, tell=told.append)
    assert not told, "pictures of the same store are not drawn again"


def test_draws_of_training_cases_differ_between_seeds_only_where_subsets_vary(tmp_path: Path) -> None:
    counts = {}
    for vary in ("init", "init,subset"):
        made = tiny_config()
        made.target.train_cases, made.vary, made.num_seeds = (2, 4), vary, 6
        ready = prepare(settings.parse(made), tmp_path, silent("prepare"))
        drawn = {}
        for job in ready.plan.of_kind("train"):
            for run in job.runs:
                drawn[run.subset_id, run.key.train_cases] = set(training_cases(ready.tasks, job, run))
        for draw, size in drawn:
            if size == 2:
                assert drawn[draw, 2] < drawn[draw, 4]
        counts[vary] = len({tuple(sorted(cases)) for cases in drawn.values() if len(cases) == 2})
    assert counts["init"] == 1
    assert counts["init,subset"] > 1


# ------------------------------------------------------------------------------------------------------ rotating folds


def rotating(folder: Path, **fields: object) -> ConfigDict:
    """A study whose seeds are tested on one fold each; its source is other images of the same patients."""
    patients = [f"p{index:02d}" for index in range(12)]
    phases = {
        phase: write_set(
            folder / phase,
            {f"{name}_{phase}": two_dimensional(index) for index, name in enumerate(patients)},
            groups={f"{name}_{phase}": name for name in patients},
        )
        for phase in ("ed", "es")
    }
    made = on_folders(phases["es"], phases["ed"], val_cases=1, test_cases=0)
    made.target.folds, made.source.test_cases, made.num_seeds, made.vary = 4, 1, 6, "init,order,fold"
    made.arms = default.pick_arms("scratch", "transfer", "scratch_b")
    for path, value in fields.items():
        put(made, path.replace("__", "."), value)
    return made


def test_where_folds_rotate_every_case_is_tested_and_no_network_has_seen_what_its_seed_is_tested_on(
    tmp_path: Path,
) -> None:
    study = settings.parse(rotating(tmp_path))
    planned = prepare(study, tmp_path / "study", silent("prepare"))
    tasks, splits = planned.tasks, planned.tasks.splits
    folds: dict[str, dict[int, int]] = {}
    tested: set[str] = set()
    for job in planned.plan.of_kind("train"):
        for run in job.runs:
            folds.setdefault(run.key.arm, {})[run.key.seed % 1000] = run.key.fold
            tested |= set(splits[study.target][run.key.fold].test)
            if run.source is None:
                continue
            target, source = splits[study.target][run.key.fold], splits[study.source][run.source.fold]
            held = patients_of(tasks.prepared[study.target], (*target.val, *target.test))
            assert not held & patients_of(tasks.prepared[study.source], (*source.train, *source.val))
            assert run.source.seed == run.key.seed
    assert folds["scratch"] == folds["transfer"] == folds["scratch_b"] == {seed: seed % 4 for seed in range(6)}
    assert tested == {record.name for record in tasks.prepared[study.target].cases}, "every case is tested by some seed"
    sources = [run.key for job in planned.plan.of_kind("pretrain") for run in job.runs]
    assert sorted(key.seed for key in sources) == list(range(6)), "no more source networks than seeds"


def test_a_network_that_all_seeds_share_is_apart_from_every_fold(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"every one of them is held out in some of its 4 fold\(s\)"):
        prepare(settings.parse(rotating(tmp_path, pretrain__share="one")), tmp_path / "study", silent("prepare"))


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("vary", ["init,order,fold", "init,order,subset,fold", "init,order,subset"])
def test_a_source_that_is_the_target_leaves_out_what_the_runs_of_each_network_train_on(
    tmp_path: Path, vary: str, listed: bool
) -> None:
    made = rotating(tmp_path, vary=vary, target__train_cases=(2, 3))
    if listed:
        with_folds(Path(made.target.data))
    made.target.folds = made.target.folds if "fold" in vary else 1
    made.arms = default.pick_arms("scratch", "self_transfer")
    study = settings.parse(made)
    planned = prepare(study, tmp_path / "study", silent("prepare"))
    tasks = planned.tasks
    (source,) = [task for task in tasks.splits if task.data == "target"]
    learned = {
        run.key: {*training_cases(tasks, job, run)} for job in planned.plan.of_kind("pretrain") for run in job.runs
    }
    for job in planned.plan.of_kind("train"):
        for run in job.runs:
            if run.source is not None:
                held = tasks.splits[study.target][run.key.fold]
                own = {*training_cases(tasks, job, run)}
                assert not learned[run.source] & {*own, *held.val, *held.test}
                assert learned[run.source] >= {*tasks.splits[source][run.source.fold].train} - own - {*held.train}
    if "subset" in vary:
        everything = set().union(*learned.values())
        assert any(everything - names for names in learned.values()), "a network learns from the cases of other seeds"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target__folds": 1, "target__test_cases": 2}, "config.vary = 'init,order,fold'"),
        ({"pretrain__runs_per_source": 2}, "pretrain.runs_per_source = 2.* 1 where vary holds 'fold'"),
        ({"vary": "init,fold,folds"}, "vary names 'folds'"),
        ({"num_seeds": 3}, r"config.num_seeds = 3; allowed: seeds that test every fold.* mod 4, and none on fold 3"),
        ({"seed_ids": (0, 4, 9, 12)}, r"config.seed_ids = \(0, 4, 9, 12\); .* none on fold 2, 3"),
        (
            {"optim__lr_grid": (0.1, 0.3), "optim__lr_seeds": (9001, 9002), "optim__lr_choice": "per_arm"},
            r"config.optim.lr_seeds = \(9001, 9002\); allowed: seeds that try every fold.* none on fold 0, 3",
        ),
    ],
)
def test_folds_rotate_where_that_means_something(tmp_path: Path, fields: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings.parse(rotating(tmp_path, **fields))


def test_trials_that_reach_every_fold_and_a_shared_rate_go_with_rotating_folds(tmp_path: Path) -> None:
    rates = {"optim__lr_grid": (0.1, 0.3), "optim__lr_seeds": (9001, 9002)}
    settings.parse(rotating(tmp_path, **rates, seed_ids=(8, 5, 2, 11)))
    settings.parse(
        rotating(tmp_path, **rates | {"optim__lr_seeds": (9000, 9001, 9002, 9003)}, optim__lr_choice="per_arm")
    )


def test_nested_sources_serve_consecutive_seeds(tmp_path: Path) -> None:
    made = tiny_config()
    made.num_seeds, made.pretrain.runs_per_source = 4, 2
    planned = prepare(settings.parse(made), tmp_path / "study", silent("prepare"))
    transferred = [run for job in planned.plan.of_kind("train") for run in job.runs if run.source is not None]
    assert {run.key.seed: run.source.seed for run in transferred} == {0: 0, 1: 0, 2: 1, 3: 1}
    assert [run.key.seed for job in planned.plan.of_kind("pretrain") for run in job.runs] == [0, 1]
