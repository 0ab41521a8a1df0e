"""Arms from config to tables: which leaves moved, which came from where, controls, rates, crossed ids, one program."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ml_collections import ConfigDict

from configs import default
from jaxseg import checkpoint, data, logs, settings, trees
from jaxseg.data.patches import residence
from jaxseg.data.volumes.resample import resize_labels
from jaxseg.report import write_report
from jaxseg.study import files
from jaxseg.study.api import load
from jaxseg.study.plan import planned
from jaxseg.study.plan.jobs import Plan, chunk_sizes, even_sizes, make_plan
from jaxseg.study.plan.tasks import training_cases
from jaxseg.study.run import STAGES, run_stages
from jaxseg.study.score import tables
from jaxseg.study.train import learning_rates
from jaxseg.study.train import stage as train_stage
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


def test_the_variance_of_crossed_arms_is_split_by_stream(study: Path) -> None:
    table = files.read_table(study / "results" / "variance.csv")
    sources = {arm: set(table.loc[table["arm"] == arm, "source"]) for arm in ("scratch", "crossed")}
    assert sources["scratch"] == {"seed", "group", "seed x group"}
    assert {"init", "order", "init x order", "group"} <= sources["crossed"]
    assert len(sources["crossed"]) == 7


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


# ------------------------------------------------------------------------------------------------- chunks and memory


def plan_of(made: ConfigDict, **more: Any) -> Plan:
    study = settings.parse(made)
    sizes = {arm.source: (1, 3) for arm in study.arms}
    given = {"target_size": (1, 3), "memory_bytes": 2**34, "devices": 1, "strategy": "loop"} | more
    return make_plan(study, source_sizes=sizes, **given)


def test_jobs_are_continued_with_the_runs_they_were_started_with() -> None:
    made = tiny_config()
    made.num_seeds = 5
    small_machine = plan_of(made, memory_bytes=30_000)
    assert all(len(sizes) > 1 for group, sizes in chunk_sizes(small_machine).items() if group != "pretrain")
    large = plan_of(made)
    assert chunk_sizes(large) == {"pretrain": (5,), "train_0": (10,), "train_1": (5,)}
    assert plan_of(made, chunk_sizes=chunk_sizes(small_machine)).jobs == small_machine.jobs
    # Sizes of another study are not taken.
    assert chunk_sizes(plan_of(made, chunk_sizes={"train_0": (3, 3)})) == chunk_sizes(large)


def test_a_job_that_has_not_begun_is_cut_as_asked(tiny_study: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "study"
    shutil.copytree(tiny_study, workdir)
    made = settings.from_json((workdir / "config.json").read_text())
    cut = planned.chunks_of(settings.parse(made), workdir)
    (runs,) = cut["train_0"]
    assert runs > 2
    made.runtime.seeds_per_chunk = "2"
    asked = settings.parse(made)
    assert planned.chunks_of(asked, workdir) == cut  # all have begun
    shutil.rmtree(workdir / "train" / "train_0" / "chunk_0" / "checkpoints")
    assert planned.chunks_of(asked, workdir) == cut | {"train_0": even_sizes(runs, 2)}
    (workdir / "train" / "train_0" / "chunk_1" / "checkpoints" / "0").mkdir(parents=True)
    assert planned.chunks_of(asked, workdir) == cut | {"train_0": (runs,)}


def test_an_arm_trains_with_its_own_sizes_and_tries_rates_for_these_alone() -> None:
    made = tiny_config()
    made.target.train_cases = (2, 4)
    made.arms = default.pick_arms("scratch", "frozen_random_encoder")
    made.arms.frozen_random_encoder.train_cases = (4,)
    made.optim.lr_grid, made.optim.lr_seeds = (1e-2, 1e-3), (70,)
    plan = plan_of(made)
    for kind, number in (("train", 2), ("select", 2)):
        keys = [run.key for job in plan.of_kind(kind) for run in job.runs]
        assert len(keys) == 3 * number
        assert {(key.arm, key.train_cases) for key in keys} == {
            ("scratch", 2), ("scratch", 4), ("frozen_random_encoder", 4)
        }  # fmt: skip


def test_rates_are_tried_with_the_largest_training_set_alone_where_that_is_asked_for() -> None:
    made = tiny_config()
    made.target.train_cases = (2, 4)
    made.arms = default.pick_arms("scratch", "frozen_random_encoder", "transfer")
    made.arms.frozen_random_encoder.train_cases = (2,)
    made.optim.lr_grid, made.optim.lr_seeds, made.optim.lr_sizes = (1e-2, 1e-3), (70,), "largest"

    def tried() -> set[tuple[str, int]]:
        return {run.key[:2] for job in plan_of(made).of_kind("select") for run in job.runs}

    assert tried() == {("scratch", 4), ("transfer", 4)}
    made.target.train_cases = (2, 4, 0)
    assert tried() == {("scratch", 0), ("transfer", 0)}
    made.optim.lr_choice = "per_arm"
    with pytest.raises(UserError, match=r"optim.lr_sizes = 'largest'; allowed: 'every', with optim.lr_choice"):
        settings.parse(made)


def test_a_shared_rate_is_that_of_sizes_and_arms_that_were_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    made = tiny_config()
    made.target.train_cases = (2, 4)
    made.arms = default.pick_arms("scratch", "frozen_random_encoder", "transfer")
    made.arms.transfer.optim = {"lr_grid": (), "lr": 7e-3}
    made.optim.lr_grid, made.optim.lr_seeds, made.optim.lr_sizes = (1e-2, 1e-3), (70,), "largest"
    made.arms.frozen_random_encoder.train_cases = (2,)
    table = pd.DataFrame([("scratch", 4, 0, 1e-2, False), ("scratch", 4, 0, 1e-3, True)])
    table.columns = [*learning_rates.VARIANT, "lr", "chosen"]
    monkeypatch.setattr(learning_rates, "is_done", lambda *_: True)
    monkeypatch.setattr(learning_rates, "rates_table", lambda *_: table)
    found = learning_rates.chosen_rates(Path(), plan_of(made), settings.parse(made).arms)
    assert found == {("scratch", 2, 0): 1e-3, ("scratch", 4, 0): 1e-3, ("frozen_random_encoder", 2, 0): 1e-3}


def test_images_leave_less_memory_for_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tiny_config()
    made.num_seeds = 5
    small_machine = plan_of(made, memory_bytes=30_000)
    study = settings.parse(made)
    held = dict.fromkeys((study.target, study.arms[1].source), 10**6)
    assert plan_of(made, memory_bytes=30_000 + 10**6, data_bytes=held).jobs == small_machine.jobs

    made.runtime.devices = "2"
    made.runtime.data_residence = "device"
    read = planned.prepare(settings.parse(made), tmp_path, silent(""))
    images, of_source = planned.data_bytes(read.study, read.tasks, devices=2).values()
    assert images == 2 * 6 * 16**2 * 3  # devices, training cases, voxels, float16 and uint8
    held = {read.study.target: images, read.study.arms[1].source: of_source}
    for enough in (0, 10**6):
        monkeypatch.setattr(planned, "memory_bytes", lambda devices, enough=enough: 60_000 + images + enough)
        expected = plan_of(made, memory_bytes=60_000 + images + enough, devices=2, data_bytes=held)
        assert chunk_sizes(planned.plan_jobs(read.study, read.tasks, None)) == chunk_sizes(expected)
    runtime = dataclasses.replace(read.study.runtime, data_residence="host")
    on_host = planned.data_bytes(dataclasses.replace(read.study, runtime=runtime), read.tasks, devices=2)
    assert on_host[read.study.target] == 3 * residence.SENT_BYTES + images // 2


def test_out_of_memory_halves_the_runs_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tiny_config()
    made.arms = default.pick_arms("scratch")
    made.num_seeds = 3
    fit, tried = train_stage.loop.fit, []

    def cramped(job: Any, progress: Any) -> None:
        tried.append(len(job.names))
        if len(job.names) > 2:
            job.directory.mkdir(parents=True)
            raise train_stage.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.")
        fit(job, progress)

    monkeypatch.setattr(train_stage.loop, "fit", cramped)
    with pytest.warns(UserWarning, match=r"train/train/chunk_0: out of memory with 3 runs at once; going on with 2"):
        run_stages(made, tmp_path / "study", stages=UNANALYSED, progress=silent)
    assert tried == [3, 2, 1]
    assert [(run["directory"], run["index"]) for run in entries(tmp_path / "study")] == [
        ("train/train/chunk_0", 0), ("train/train/chunk_0", 1), ("train/train/chunk_1", 0)
    ]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_stages(made, tmp_path / "study", stages=UNANALYSED, progress=silent)  # all is there
    assert tried == [3, 2, 1]
    made.runtime.seeds_per_chunk = "3"
    with pytest.raises(UserError, match=r"does not fit in memory with 3 run\(s\) .* lower runtime.seeds_per_chunk"):
        run_stages(made, tmp_path / "fixed", stages=UNANALYSED, progress=silent)


def test_seeds_that_would_be_one_run_are_refused() -> None:
    made = tiny_config()
    made.pretrain.share, made.vary = "one", "init"
    with pytest.raises(UserError, match=r"arm 'transfer': seeds 0 and 1 would be the same run: .*Add 'order' to vary"):
        plan_of(made)
    made.vary = "init,order"
    plan_of(made)
    made.vary, made.pretrain.share = "init", "per_seed"
    plan_of(made)
    made.pretrain.share, made.pretrain.min_loaded = "one", 0.1
    plan_of(made, target_size=(1, 4))  # the head begins anew with every seed
