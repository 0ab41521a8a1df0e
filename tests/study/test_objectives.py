"""Studies whose source networks learn without labels: who learns from what, validation, resuming, and refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import default
from jaxseg import checkpoint, settings, trees
from jaxseg.study import restore
from jaxseg.study.files import read_table
from jaxseg.study.plan.tasks import training_cases
from jaxseg.study.run import prepare, run_stages
from jaxseg.types import UserError
from tests.image_sets import save, write_set
from tests.tiny_study import put, silent, tiny_config

SYNTHETIC = "synthetic:blobs?n=9&shape=16x16"
IMAGES = {f"image_{index}": index for index in range(9)}
TRAINED = ("prepare", "pretrain", "train", "evaluate")


def two_dimensional(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = np.zeros((16, 16, 1), np.uint8)
    label[3:9, 4:11] = 1
    return (rng.standard_normal(label.shape) + label).astype(np.float32), label


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labelled source."""
    where = tmp_path_factory.mktemp("sources") / "labelled"
    return write_set(where, {name: two_dimensional(seed) for name, seed in IMAGES.items()}, labels=("a",))


def config(source: Path | str, **fields: object) -> ConfigDict:
    """The tiny study with as many runs on the same target, so that it shares its programs."""
    made = tiny_config()
    made.source.data = str(source)
    made.target.train_cases = (3,)
    made.arms = default.pick_arms("ssl_source", "ssl_target")
    with made.arms.unlocked():
        made.arms.ssl_target.source.val_cases = 1
    for path, value in fields.items():
        put(made, path.replace("__", "."), value)
    return made


@pytest.fixture(scope="module")
def study(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("objectives") / "study"
    run_stages(config(folder), workdir, stages=TRAINED, progress=silent)
    return workdir


def runs(workdir: Path, **wanted: object) -> list[dict]:
    found = json.loads((workdir / "study.json").read_text())["runs"]
    return [run for run in found if all(run[key] == value for key, value in wanted.items())]


def params(workdir: Path, run: dict, step: int) -> dict[str, np.ndarray]:
    return trees.flatten(checkpoint.read_seed(workdir / run["directory"] / "checkpoints", step, run["index"]))


def test_runs_start_from_all_of_their_source_network_but_its_head(study: Path) -> None:
    (source,) = runs(study, arm="source", seed=1)
    (run,) = runs(study, arm="ssl_source", seed=1)
    given, start, first = params(study, source, 8), params(study, run, 0), params(study, source, 0)
    assert {path.split("/")[0] for path in given} == {"encoder", "decoder", "restoration"}
    for path, value in start.items():
        if not path.startswith("head/"):
            np.testing.assert_array_equal(value, given[path], err_msg=path)
    assert start["head/kernel"].shape[-1] == 3
    assert all(not np.array_equal(first[path], given[path]) for path in given)
    table = (study / "load_tables" / "ssl_source" / "n3_fold0.txt").read_text()
    assert "head/kernel                    re-initialised" in table
    assert "restoration/kernel             unused" in table
    assert set(read_table(study / "results" / "cases.csv")["arm"]) == {"ssl_source", "ssl_target"}


def test_source_networks_are_validated_by_what_they_restore(folder: Path, study: Path) -> None:
    table = read_table(study / "results" / "pretrain_curves.csv")
    assert table["val_dsc"].isna().all()
    planned = prepare(settings.parse(config(folder)), study, silent("prepare"))
    job = next(job for job in planned.plan.of_kind("pretrain") if job.runs[0].key.arm == "source")
    (split,), task = planned.tasks.splits[job.program.task], planned.tasks.of(job)
    for seed in (0, 1):
        (run,) = runs(study, arm="source", seed=seed)
        network, own = job.program.network, trees.unflatten(params(study, run, 8))
        shares = []
        for name in split.val:
            patches = restore.validation_patches(task, name, job.program)
            wanted, weight = patches.label.image, patches.label.weight[..., None]
            error = np.square(np.asarray(network.apply({"params": own}, patches.image)) - wanted)
            spread = np.square(wanted - (wanted * weight).sum() / weight.sum())
            shares.append(np.clip(1 - (error * weight).sum() / (spread * weight).sum(), 0, 1))
        rows = table[(table["arm"] == "source") & (table["seed"] == seed)]
        assert list(rows.loc[rows["val_restored"].notna(), "step"]) == [0, 4, 8]
        np.testing.assert_allclose(rows["val_restored"].iloc[-1], np.mean(shares), atol=1e-5)


def test_neither_labels_nor_other_seeds_nor_an_interruption_change_a_source_network(
    folder: Path, study: Path, tmp_path: Path
) -> None:
    images = tmp_path / "labelled"  # of the same name, which a store is called by
    shutil.copytree(folder / "imagesTr", images)
    made = config(images, num_seeds=1, seed_ids=(1,))
    made.arms = default.pick_arms("ssl_source")

    class StopError(Exception):
        pass

    def stopping(title: str):
        def progress(what: str, done: int, total: int, note: str = "", runs: object = ()) -> None:
            if "pretrain" in title and what == "training" and done == 6:
                raise StopError

        return progress

    with pytest.raises(StopError):
        run_stages(made, tmp_path / "study", stages=("prepare", "pretrain"), progress=stopping)
    run_stages(made, tmp_path / "study", stages=("prepare", "pretrain"), progress=silent)
    (alone,), (among) = runs(tmp_path / "study", arm="source"), runs(study, arm="source", seed=1)[0]
    assert checkpoint.saved_steps(tmp_path / "study" / alone["directory"] / "checkpoints") == (0, 4, 8)
    found, expected = params(tmp_path / "study", alone, 8), params(study, among, 8)
    for path, value in found.items():
        np.testing.assert_array_equal(value, expected[path], err_msg=path)
    assert found.keys() == expected.keys()


def test_images_of_the_target_are_those_outside_of_every_split(tmp_path: Path) -> None:
    """Also where images have no label, or are copies of images that are tested on, and each seed draws its cases."""
    volumes = {f"case_{index:02d}": two_dimensional(index) for index in range(20)}
    target = write_set(tmp_path / "target", volumes, labels=("a",), listed=False)
    made = config(SYNTHETIC, target__data=str(target), vary="init,order,subset", target__bad_cases="skip")
    made.target.test_cases = 4
    tested = prepare(settings.parse(made), tmp_path / "first", silent("prepare")).tasks
    (split,) = next(iter(tested.splits.values()))
    shutil.copy(target / "imagesTr" / f"{split.test[0]}.nii.gz", target / "imagesTr" / "aa_copy.nii.gz")
    for index in (30, 31):
        save(target / "imagesTr" / f"case_{index}.nii.gz", two_dimensional(index)[0])
    planned = prepare(settings.parse(made), tmp_path / "study", silent("prepare"))
    (source,) = [task for task in planned.tasks.splits if task.data == "target"]
    (own,), (held,) = planned.tasks.splits[source], planned.tasks.splits[planned.study.target]
    assert held == split
    kept = {*own.train, *own.val, *own.test}
    assert not kept & {*held.val, *held.test, "aa_copy"}
    assert {"case_30", "case_31"} <= kept
    assert len(kept) == 20 + 2 - len(held.val) - len(held.test)
    cases = {
        (job.kind, run.key): {*training_cases(planned.tasks, job, run)} for job in planned.plan.jobs for run in job.runs
    }
    learned = {run.key for job in planned.plan.of_kind("pretrain") if job.program.task == source for run in job.runs}
    transferred = [run for job in planned.plan.of_kind("train") for run in job.runs if run.source in learned]
    started = {run.key: run.source for run in transferred}
    assert len({frozenset(cases["train", key]) for key in started}) > 1
    for key, network in started.items():
        assert cases["pretrain", network] == {*own.train} - cases["train", key], "all that the run does not see"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pretrain__objective": "restored"}, "config.pretrain.objective = 'restored'.*restore"),
        (
            {"arms__ssl_source__pretrain__from_workdir": "elsewhere"},
            r"pretrain.objective = 'restore'; allowed: 'labels' with pretrain.from_workdir.*\(arm 'ssl_source'\)",
        ),
        (
            {"source__shuffle_labels": True},
            r"config.source.shuffle_labels = True; allowed: False with pretrain.objective = 'restore'.*'ssl_source'",
        ),
    ],
)
def test_settings_that_contradict_the_objective_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings.parse(config(SYNTHETIC, **fields))


def test_a_target_of_which_nothing_is_left_over_is_refused_with_what_would_leave_some(tmp_path: Path) -> None:
    made = config(SYNTHETIC, target__train_cases=(0,))
    with pytest.raises(UserError, match=r"\(ssl_target\).* none is left to pretrain it on. Set target.train_cases"):
        prepare(settings.parse(made), tmp_path / "study", silent("prepare"))
