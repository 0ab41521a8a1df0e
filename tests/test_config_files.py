"""Every file in configs/ at reduced size: it builds, and takes two steps."""

import importlib
import itertools
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import auto, default, pairs, sources
from jaxseg import data, losses, optim, settings, train, trees
from jaxseg.models import MODELS
from jaxseg.study.plan.jobs import check_networks
from launch import cli
from tests import training_parts

FILES = sorted(path.stem for path in (Path(__file__).parent.parent / "configs").glob("*.py"))


def reduced(name):
    """Two levels of width 2 and 4 on 2-D patches of 8 voxels; all else as the file has it."""
    made = importlib.import_module(f"configs.{name}").get_config()
    made.arms = default.pick_arms("scratch")
    made.model.ndim = 2
    made.model.widths = (2, 4)
    for task in (made.source, made.target):
        task.patch, task.spacing_mm, task.train_cases, task.as_slices = (8, 8), "native", (0,), ""
        task.augment.flip = tuple(axis for axis in task.augment.flip if axis < 2)
    return settings.parse(made)


@pytest.mark.parametrize("name", FILES)
def test_two_steps_of_every_config_file(name):
    (arm,) = (study := reduced(name)).arms
    model = MODELS[arm.model.name](arm.model, training_parts.CLASSES, "native")  # XLA's convolution compiles faster
    sample = data.make_sample(study.target, batch=arm.train.batch)
    labels = optim.freeze_labels(training_parts.abstract_params(arm.model), arm.freeze)
    tx = optim.make_optimizer(arm.optim, labels, arm.train.steps)
    step = train.make_train_step(model, tx, losses.make_loss(arm.loss), sample, labels)
    state, run = (
        training_parts.make_state(arm.model, tx, 0),
        trees.take(training_parts.run_inputs(1, rate=arm.optim.lr), 0),
    )
    state = state.replace(opt_state=tx.init(state.params))  # that of a plateau does not begin at 0
    compiled, found = jax.jit(step), []
    for _ in range(2):
        state, metrics = compiled(state, run, training_parts.make_cohort(), {})
        found.append(float(metrics["loss"]))
    assert bool(state.alive)
    assert np.isfinite(found).all()
    moved = training_parts.bits(state.params)
    assert all(
        moved[path] != start for path, start in training_parts.bits(training_parts.random_params(arm.model)).items()
    )


@pytest.mark.parametrize(("source", "target"), [*itertools.combinations(pairs.SETS, 2)])
def test_every_pair_of_sets_is_a_study(source, target):
    study = settings.parse(pairs.get_config(f"{source},{target},somewhere"))
    check_networks(study)
    images = bool({source, target} & {*pairs.IMAGES})
    assert (study.model.ndim, study.target.data) == (2 if images else 3, f"somewhere/{target}")
    assert bool(study.target.as_slices) == (images and target not in pairs.IMAGES)
    assert study.train.eval_every <= study.train.steps / 50
    assert {arm.name: arm.train_cases for arm in study.arms}["prior"] == (0,)


def test_a_pair_may_be_studied_with_some_arms():
    made = pairs.get_config("cardiac_ed_mr,hippocampus_mr,somewhere,scratch+transfer+prior")
    assert [arm.name for arm in settings.parse(made).arms] == ["scratch", "transfer", "prior"]
    assert (made.arms.prior.train_cases, made.target.data) == ((0,), "somewhere/hippocampus_mr")


def test_two_sets_of_volumes_may_be_taken_slice_by_slice():
    study = settings.parse(pairs.get_config("hippocampus_mr,cardiac_ed_mr,somewhere,scratch+transfer,slices"))
    check_networks(study)
    (source,) = {arm.source for arm in study.arms if arm.source}
    assert (study.model.ndim, study.target.as_slices, source.as_slices) == (2, "axial", "axial")
    assert (study.target.patch, source.patch, study.train.batch) == ((64, 64), (40, 56), 4)
    with pytest.raises(ValueError, match="'slice' after the arms; give 'slices' or nothing"):
        pairs.get_config("hippocampus_mr,cardiac_ed_mr,somewhere,scratch,slice")


def test_the_paper_s_preset_is_their_setting():
    study = settings.parse(importlib.import_module("configs.paper").get_config())
    model = study.model
    assert (model.name, model.widths, model.norm, model.dropout) == ("multiscale_fcn", (14, 28, 56, 112), "none", 0.1)
    optim = study.optim
    assert (optim.name, optim.lr, optim.warmup_steps, optim.schedule) == ("adam", 1e-4, 0, "plateau")
    assert (optim.plateau_ratio, optim.plateau_factor) == (0.995, 0.9)
    assert (study.loss.name, study.loss.smooth) == ("dice", 1e-5)
    assert (study.train.batch, study.target.patch, study.target.foreground) == (1, (96, 96, 96), 0.0)
    assert 96 * (1 - study.evaluate.overlap) == 24


def test_a_report_is_named_after_the_folder_and_not_where_it_lies():
    assert auto.get_config("a/source,there/my_target/").name == "my_target"
    assert auto.get_config("synthetic:blobs").name == "synthetic:blobs"
    assert sources.get_config("there/my_target,a/source").name == "which start for my_target"


def test_every_source_is_an_arm_with_a_task_of_its_own():
    made = sources.get_config("hippocampus_mr,cardiac_ed_mr+other/heads+given:runs/import,somewhere")
    study = settings.parse(made)
    check_networks(study)
    arms = {arm.name: arm for arm in study.arms}
    own = ["transfer_cardiac_ed_mr", "transfer_heads", "given_import"]
    assert list(arms) == ["scratch", "scratch_b", "self_transfer", *own]
    assert study.target.train_cases == (16,)
    cardiac, heads, given = (arms[name] for name in own)
    assert (cardiac.source.data, cardiac.source.patch) == ("somewhere/cardiac_ed_mr", (64, 64, 8))
    assert (heads.source.data, heads.source.patch) == ("somewhere/other/heads", (32, 32, 32))
    assert (given.pretrain.from_workdir, given.pretrain.share) == ("runs/import", "one")
    assert arms["self_transfer"].source.data == "target"
    made = sources.get_config("nerve_us,hippocampus_mr+synthetic:blobs?n=9&shape=16x16")
    assert [settings.parse(made).model.ndim, *made.arms][::4] == [2, "transfer_hippocampus_mr"]
    assert "transfer_synthetic-blobs-n-9-shape-16x16" in made.arms
    made = sources.get_config("nerve_us,given:runs/import+ssl")  # no source whose images there would be
    assert list(made.arms)[3:] == ["given_import", "ssl_target"]


def test_sources_of_folders_may_be_taken_slice_by_slice():
    made = sources.get_config("here/target,cardiac_ed_mr+other/heads+a/b++c/d+ssl,somewhere,slices")
    study = settings.parse(made)
    check_networks(study)
    assert (study.model.ndim, study.target.as_slices) == (2, "axial")
    assert {arm.name: arm.source.as_slices for arm in study.arms} == dict.fromkeys(made.arms, "axial")
    images = sources.get_config("nerve_us,other/images,somewhere,slices")
    assert (images.target.as_slices, images.arms.transfer_images.source.as_slices) == ("", "axial")
    assert sources.get_config("nerve_us,other/images,somewhere").arms.transfer_images.source.as_slices == ""


def test_two_signs_pool_sets_to_one_source():
    made = sources.get_config("hippocampus_mr,cardiac_ed_mr++other/heads+cardiac_es_mr,somewhere")
    arms = {arm.name: arm.source for arm in settings.parse(made).arms}
    assert list(arms)[3:] == ["transfer_cardiac_ed_mr-heads", "transfer_cardiac_es_mr"]
    source = arms["transfer_cardiac_ed_mr-heads"]
    assert (source.data, source.patch) == ("somewhere/cardiac_ed_mr+somewhere/other/heads", (64, 64, 8))
    assert settings.parse(sources.get_config("hippocampus_mr,cardiac_ed_mr++nerve_us,somewhere")).model.ndim == 2


@pytest.mark.parametrize(
    ("study", "text"),
    [
        ("hippocampus_mr", "give TARGET,SOURCE"),
        ("hippocampus_mr,a+", "give TARGET,SOURCE"),
        ("hippocampus_mr,a++", "'a..' names no folder"),
        ("hippocampus_mr,given:", "'' names no folder; a source is a folder"),
        ("hippocampus_mr,a/b+c/b", "two sources would be the arm 'transfer_b'"),
        ("hippocampus_mr,a,somewhere,slice", "'slice' after the folder"),
    ],
)
def test_mistakes_in_a_list_of_sources_are_named(study, text):
    with pytest.raises(ValueError, match=text):
        sources.get_config(study)


@pytest.mark.parametrize("steps", [100, 600, 3000])
def test_the_study_of_the_claims_has_any_multiple_of_a_hundred_steps(steps):
    words = ["--config=configs/claims.py", f"--config.train.steps={steps}"]
    for arm in settings.parse(cli.parse_config(words)).arms:
        assert (arm.train.steps, arm.train.eval_every) == (steps, steps // 50)
