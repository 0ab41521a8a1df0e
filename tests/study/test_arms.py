"""Arms from config to tables: which leaves moved, which came from where, controls, rates, crossed ids, one program."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import default
from jaxseg import checkpoint, data, logs, settings, trees
from jaxseg.data.volumes.resample import resize_labels
from jaxseg.report import write_report
from jaxseg.study import files
from jaxseg.study.api import load
from jaxseg.study.plan.tasks import training_cases
from jaxseg.study.run import STAGES, run_stages
from jaxseg.study.score import tables
from jaxseg.study.train import learning_rates
from jaxseg.types import UserError
from tests.tiny_study import silent, tiny_config

ENCODER, HEAD, NOTHING, ALL = r"^encoder/", r"^head/", r"$^", r"."
# What of each arm stays as it was, and what comes from its source. Other ways to freeze: tests/test_train.py; to start:
# tests/test_transfer.py.
ARMS = {
    "scratch": (NOTHING, NOTHING),
    "transfer": (NOTHING, ALL),
    "frozen_random_encoder": (ENCODER, NOTHING),
    "frozen_pretrained_encoder": (ENCODER, ALL),
    "transfer_encoder": (NOTHING, ENCODER),
    "transfer_decoder": (NOTHING, r"^decoder/"),
    "shuffled_source": (NOTHING, ALL),
    "self_transfer": (NOTHING, ALL),
    "shared_encoder": (ENCODER, ALL),
    "crossed": (NOTHING, NOTHING),
}


UNANALYSED = tuple(stage for stage in STAGES if stage != "analyze")


def arms_config() -> ConfigDict:
    made = tiny_config()
    made.train.eval_every = 2
    made.target.train_cases = (2,)
    made.target.data = "synthetic:blobs?n=14&shape=16x16"
    own = {"shared_encoder", "crossed"}
    made.arms = default.pick_arms(*(name for name in ARMS if name not in own), "prior", config=made)
    made.arms.shared_encoder = default.arm("pretrained", "encoder", pretrain={"share": "one"})
    grid = {"lr_grid": (1e-2, 1e-4), "lr_seeds": (70, 71)}
    made.arms.crossed = default.arm("random", "none", cross="init,order", optim=grid)
    return made


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("arms") / "study"
    # Analyses of so many arms take longer than their training; they have a test of their own.
    run_stages(arms_config(), workdir, stages=UNANALYSED, progress=silent)
    tables.write_comparisons(settings.parse(arms_config()), workdir)
    return workdir


@pytest.mark.slow
def test_every_arm_can_be_analysed_and_shown(study: Path, tmp_path: Path) -> None:
    """Minutes of compiling: controls, crossed ids, a shared source and an arm without networks in all analyses."""
    workdir = tmp_path / "study"
    shutil.copytree(study, workdir)
    run_stages(arms_config(), workdir, stages=("analyze",), progress=silent)
    assert set(ARMS) == set(files.read_table(workdir / "results" / "filters.csv")["arm"])
    assert write_report(workdir).stat().st_size > 0
    spread = files.read_table(workdir / "results" / "variability.csv").query("arm == 'crossed'")
    assert len(spread) > 5
    assert spread["value"].notna().any()
    assert spread[["ci_low", "ci_high"]].isna().all(axis=None)
    assert set(spread["n_seeds"]) == {1}


def test_the_variance_of_crossed_arms_is_split_by_stream(study: Path) -> None:
    table = files.read_table(study / "results" / "variance.csv")
    sources = {arm: set(table.loc[table["arm"] == arm, "source"]) for arm in ("scratch", "crossed")}
    assert sources["scratch"] == {"seed", "group", "seed x group"}
    assert {"init", "order", "init x order", "group"} <= sources["crossed"]
    assert len(sources["crossed"]) == 7
    for name, arm in (("summary", "arm"), ("comparisons", "arm_a")):
        rows = files.read_table(study / "results" / f"{name}.csv").query(f"{arm} == 'crossed'")
        assert len(rows) > 0
        assert rows[["ci_low", "ci_high"]].isna().all(axis=None)
        assert set(rows["n_seeds"]) == {1}


def entries(workdir: Path, **wanted: Any) -> list[dict[str, Any]]:
    record = json.loads((workdir / "study.json").read_text())
    return [run for run in record["runs"] if all(run[key] == value for key, value in wanted.items())]


def params_of(workdir: Path, entry: dict[str, Any], step: int) -> dict[str, np.ndarray]:
    place = workdir / entry["directory"] / "checkpoints"
    return trees.flatten(checkpoint.read_seed(place, step, entry["index"]))


@pytest.mark.parametrize("arm", ARMS)
def test_what_moves_and_what_comes_from_the_source(arm: str, study: Path) -> None:
    stays, taken = ARMS[arm]
    runs = entries(study, kind="train", arm=arm)
    assert len(runs) == (4 if arm == "crossed" else 2)
    for run in runs:
        start, end = (params_of(study, run, step) for step in (0, run["steps"]))
        moved = {path for path in start if not np.array_equal(start[path], end[path])}
        assert moved == {path for path in start if not re.search(stays, path)}
        if taken == NOTHING:
            assert run["source"] is None
            continue
        (given,) = entries(study, kind="pretrain", arm=run["source"]["arm"], seed=run["source"]["seed"])
        assert given["seed"] == (0 if arm == "shared_encoder" else run["seed"])
        source = params_of(study, given, given["steps"])
        same = {path for path in start if np.array_equal(start[path], source[path])}
        # Biases and norms start the same in every network: only kernels tell where they come from.
        kernels = {path for path in start if path.endswith("kernel")}
        assert same & kernels == {path for path in kernels if re.search(taken, path)}


def test_controls_have_source_networks_of_their_own(study: Path) -> None:
    sources = {arm: entries(study, kind="train", arm=arm)[0]["source"]["arm"] for arm in
               ("transfer", "transfer_encoder", "shuffled_source", "self_transfer")}  # fmt: skip
    assert sources["transfer"] == sources["transfer_encoder"]
    assert len(set(sources.values())) == 3


def test_frozen_weights_of_one_source_are_kept_once(study: Path) -> None:
    run, other = entries(study, kind="train", arm="shared_encoder")
    place = study / run["directory"] / "checkpoints"
    own = trees.flatten(checkpoint.read_own_params(place, 8, [0, 1]))
    shared = trees.flatten(checkpoint.read_shared(place, 8))
    assert {path.split("/")[0] for path in own} == {"decoder", "head"}
    assert {path.split("/")[0] for path in shared} == {"encoder"}
    first, second = (params_of(study, entry, 8) for entry in (run, other))
    for path, leaf in shared.items():
        assert leaf.shape == first[path].shape
        np.testing.assert_array_equal(first[path], second[path])
    assert load(study).arm("shared_encoder").predict(np.zeros((16, 16, 1), np.float32)).shape == (2, 16, 16)


def test_fully_trained_arms_are_one_program_and_the_rest_as_few_as_may_be(study: Path) -> None:
    groups: dict[str, set[str]] = {}
    for run in entries(study, kind="train"):
        groups.setdefault(run["directory"], set()).add(run["arm"])
    everything = {"scratch", "transfer", "transfer_encoder", "transfer_decoder", "shuffled_source", "self_transfer"}
    assert everything | {"crossed"} in groups.values()
    assert {"frozen_random_encoder", "frozen_pretrained_encoder"} in groups.values()
    assert len(groups) == 3


def test_the_prior_has_rows_as_every_arm_has(study: Path) -> None:
    cases = files.read_table(study / "results" / "cases.csv")
    prior, scratch = (cases[cases["arm"] == arm].reset_index(drop=True) for arm in ("prior", "scratch"))
    keys = ["seed", "train_cases", "fold", "case", "group", "label", "unit"]
    assert prior[keys].equals(scratch[keys])
    assert prior["dsc"].between(0, 1).all()
    # The same training cases for all seeds, as subset is not varied: the same prior.
    by_seed = [part["dsc"].to_numpy() for _, part in prior.groupby("seed")]
    np.testing.assert_array_equal(by_seed[0], by_seed[1])
    assert not (study / "train" / "prior").exists()
    with pytest.raises(UserError, match="arm 'prior' has no network"):
        load(study).arm("prior")
    assert "prior" in set(files.read_table(study / "results" / "summary.csv")["arm"])
    assert "prior" not in set(files.read_table(study / "results" / "curves.csv")["arm"])


def test_a_source_that_is_the_target_sees_none_of_its_runs_cases(study: Path) -> None:
    ready = run_stages(arms_config(), study, stages=[], progress=silent)
    (own,) = [task for task in ready.tasks.splits if task.data == "target"]
    (split,) = ready.tasks.splits[own]
    target = ready.tasks.splits[ready.study.target][0]
    held = {*target.val, *target.test}
    trained = data.nested_subset(ready.tasks.prepared[own], target.train, 2, seed=0)
    assert not {*split.train, *split.val} & held
    (job,) = [job for job in ready.plan.of_kind("pretrain") if job.program.task == own]
    for run in job.runs:
        learned = {*training_cases(ready.tasks, job, run)}
        assert learned
        assert not learned & {*trained}
    everything = arms_config()
    everything.target.train_cases = (0,)
    with pytest.raises(UserError, match=r"runs that start from one network train on all .*Set target.train_cases"):
        run_stages(everything, study.parent / "other", stages=[], progress=silent)


def test_shuffled_labels_fit_no_image(study: Path) -> None:
    ready = run_stages(arms_config(), study, stages=[], progress=silent)
    (task,) = [task for task in ready.tasks.splits if task.shuffle_labels]
    prepared, names = ready.tasks.prepared[task], ready.tasks.splits[task][0].train
    plain, shuffled = (data.build_cohort(prepared, names, shuffle_labels=on) for on in (False, True))
    np.testing.assert_array_equal(plain.image, shuffled.image)
    cases = [data.load_case(prepared, name).label for name in names]
    for index, case in enumerate(cases):
        here = slice(int(plain.offsets[index]), int(plain.offsets[index]) + case.size)
        np.testing.assert_array_equal(plain.label[here], case.ravel())
        given = np.asarray(shuffled.label[here])
        others = [position for position, other in enumerate(cases)
                  if np.array_equal(resize_labels(other, case.shape).ravel(), given)]  # fmt: skip
        assert others
        assert index not in others
        for label in range(shuffled.foreground.shape[1]):
            points = np.asarray(shuffled.foreground[index, label, : int(shuffled.num_foreground[index, label])])
            assert (given[points] == label + 1).all()
    with pytest.raises(UserError, match="shuffle_labels needs at least two"):
        data.build_cohort(prepared, names[:1], shuffle_labels=True)


def test_a_rate_is_chosen_on_trials_of_seeds_of_its_own(study: Path) -> None:
    table = files.read_table(study / "results" / "rates.csv")
    assert table["lr"].tolist() == [1e-4, 1e-2]
    assert table["n_seeds"].tolist() == [2, 2]
    assert table["val_dsc"].idxmax() == table["chosen"].idxmax()
    assert table["chosen"].sum() == 1
    (best,) = table["lr"][table["chosen"]]
    assert {run["lr"] for run in entries(study, kind="train", arm="crossed")} == {best}
    assert {run["lr"] for run in entries(study, kind="train", arm="scratch")} == {1e-3}
    trials = entries(study, kind="select")
    assert sorted((run["lr"], run["seed"]) for run in trials) == [(1e-4, 70), (1e-4, 71), (1e-2, 70), (1e-2, 71)]
    assert not {run["seed"] for run in trials} & set(files.read_table(study / "results" / "cases.csv")["seed"])


def test_a_trial_is_validated_where_its_score_is_taken(study: Path) -> None:
    (job,) = {run["directory"] for run in entries(study, kind="select")}
    log = logs.read_log(study / job, 4)
    assert log.step[log.validated].tolist() == [0, 4, 6, 8]


@pytest.mark.parametrize(
    ("steps", "every", "first"), [(500, 10, 480), (500, 100, 300), (8, 4, 0), (7, 2, 4), (9, 10, 0)]
)
def test_only_the_last_scores_of_a_trial_are_made(steps: int, every: int, first: int) -> None:
    train = dataclasses.replace(settings.parse(tiny_config()).train, steps=steps, eval_every=every)
    program = SimpleNamespace(train=train, optim=SimpleNamespace(schedule="constant"))
    assert learning_rates.validate_from(program) == first
    scored = [stop for stop in range(every, steps, every) if stop >= first] + [steps]
    assert len(scored) >= min(learning_rates.LAST, len(range(every, steps, every)) + 1)
    program.optim.schedule = "plateau"
    assert learning_rates.validate_from(program) == 0


def test_crossed_runs_share_weights_by_init_and_batches_by_order(study: Path) -> None:
    runs = {(run["init_id"], run["order_id"]): run for run in entries(study, kind="train", arm="crossed")}
    assert set(runs) == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert {run["seed"] for run in runs.values()} == {1000000000, 1000001000, 1001000000, 1001001000}
    assert {run["subset_id"] for run in runs.values()} == {0}
    starts = {ids: params_of(study, run, 0)["head/kernel"] for ids, run in runs.items()}
    ends = {ids: params_of(study, run, 8)["head/kernel"] for ids, run in runs.items()}
    np.testing.assert_array_equal(starts[0, 0], starts[0, 1])
    assert not np.array_equal(starts[0, 0], starts[1, 0])
    assert len({end.tobytes() for end in ends.values()}) == 4
    # A run whose ids are all one seed's starts as that seed does.
    scratch = next(run for run in entries(study, kind="train", arm="scratch") if run["seed"] == 1)
    np.testing.assert_array_equal(starts[1, 1], params_of(study, scratch, 0)["head/kernel"])
    cases = files.read_table(study / "results" / "cases.csv")
    crossed = cases[cases["arm"] == "crossed"]
    assert {*zip(crossed["init_id"], crossed["order_id"], strict=True)} == set(runs)


def test_an_arm_trained_beside_others_has_the_bits_it_has_alone(study: Path, tmp_path: Path) -> None:
    made = arms_config()
    made.arms = ConfigDict({name: made.arms[name] for name in ("transfer", "frozen_pretrained_encoder")})
    run_stages(made, tmp_path / "alone", stages=["prepare", "pretrain", "train"], progress=silent)
    for arm in ("transfer", "frozen_pretrained_encoder"):
        for alone, beside in zip(*(entries(place, kind="train", arm=arm) for place in (tmp_path / "alone", study)),
                                 strict=True):  # fmt: skip
            ours, theirs = params_of(tmp_path / "alone", alone, 8), params_of(study, beside, 8)
            for path, leaf in ours.items():
                np.testing.assert_array_equal(leaf, theirs[path], err_msg=f"{arm} {path}")
