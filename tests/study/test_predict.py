"""Scores of whole cases on the training grid, and what becomes of probabilities on the case's own grid."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest

import jaxseg
from jaxseg import seeds, trees, validation
from jaxseg.data import PreparedTask, PrepareReport
from jaxseg.data.cases import CaseArrays, CaseRecord
from jaxseg.data.volumes import resample
from jaxseg.inference import largest_component
from jaxseg.logs import read_log
from jaxseg.metrics import calibration_error, dsc
from jaxseg.settings import Compute, EvaluateSettings
from jaxseg.study.plan.jobs import Program
from jaxseg.study.predict import case_maps, segment
from jaxseg.study.run import run_stages
from jaxseg.study.train.validate import counts_on_device, dsc_from_counts, make_counter
from tests import training_parts
from tests.tiny_study import silent, tiny_config

ALONE = {"patient": "case", "published": False}
"""A case that is a patient of its own."""


def scores_of(predictions: np.ndarray, label: np.ndarray) -> np.ndarray:
    counts = validation.count_overlaps(predictions.reshape(len(predictions), -1), label.ravel(), 3)
    whole = [np.stack([np.broadcast_to(part, len(predictions)) for part in parts], -1) for parts in counts]
    return dsc_from_counts(np.stack(whole, 1))


def test_dsc_of_all_runs_at_once_is_the_metric_of_each() -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, (5, 6, 7)).astype(np.uint8)
    predictions = rng.integers(0, 3, (4, 5, 6, 7))
    expected = [[dsc(prediction == k, label == k) for k in (1, 2)] for prediction in predictions]
    np.testing.assert_allclose(scores_of(predictions, label), expected, rtol=1e-12)


def test_a_label_that_the_reference_lacks_has_no_dsc() -> None:
    label = np.array([0, 1, 1, 0], np.uint8)
    np.testing.assert_array_equal(scores_of(np.array([[0, 1, 2, 2]]), label), [[2 / 3, np.nan]])


def test_voxels_of_unknown_label_count_for_nothing() -> None:
    known = np.array([0, 1, 1, 2], np.uint8)
    prediction = np.array([[0, 1, 2, 2]])
    extended = np.append(known, [3, 3]).astype(np.uint8)
    scores = scores_of(np.append(prediction, [[1, 2]], axis=1), extended)
    np.testing.assert_array_equal(scores, scores_of(prediction, known))


@pytest.mark.parametrize("strategy", ["loop", "vmap"])
def test_validation_counts_on_the_device_or_on_the_host_alike(strategy: str) -> None:
    """Where memory is short probabilities go to the host."""
    training: Any = None
    program = Program(
        training_parts.TASK,
        training_parts.MODEL,
        Compute(),
        training_parts.OPTIM,
        training_parts.LOSS,
        training,
        "none",
        channels=1,
        classes=3,
    )
    job: Any = SimpleNamespace(program=program, runs=range(3))
    rng = np.random.default_rng(0)
    cases: Any = [
        SimpleNamespace(
            image=rng.normal(size=(*shape, 1)).astype(np.float32), label=rng.integers(0, 4, shape).astype(np.uint8)
        )
        for shape in ((12, 10), (7, 21))
    ]
    plan = training_parts.plan_of(strategy)
    params = seeds.put(trees.stack([training_parts.random_params(seed=seed) for seed in range(3)]), plan)
    of_run, counts = np.array([[True, False], [True, True], [False, True]]), {}
    for device_bytes in (10**9, 10):
        count = make_counter(job, cases, of_run, settings_of(window_batch=3), plan, device_bytes=device_bytes)
        counts[device_bytes] = count(params, {})
    shapes = [case.label.shape for case in cases]
    assert counts_on_device(program, num_runs=3, shapes=shapes, plan=plan, device_bytes=10**9)
    assert not counts_on_device(program, num_runs=3, shapes=shapes, plan=plan, device_bytes=10)
    assert counts[10].shape == (3, 2, 2, 3)
    np.testing.assert_allclose(counts[10**9][of_run], counts[10][of_run], atol=1)
    assert (counts[10**9][of_run] > 0).any()
    if strategy == "loop":
        assert not counts[10**9][~of_run].any(), "runs one after another count the cases alone that are asked of them"


LABELS = ("rim", "core")


def prepared_of(ignore_index: int | None) -> PreparedTask:
    return PreparedTask(
        name="task",
        directory=Path("unused"),
        cases=(),
        labels=LABELS,
        label_values=(1, 2),
        channels=1,
        ndim=3,
        unit="mm",
        modality=("MR",),
        normalization=("none",),
        spacing_mm=None,
        report=PrepareReport((), ()),
        splits=None,
        ignore_index=ignore_index,
    )


def settings_of(**changes: object) -> EvaluateSettings:
    values = {
        **{"overlap": 0.5, "val_overlap": 0.5, "window_batch": 1, "flips": ()},
        **{"largest_component": (), "regions": (("both", LABELS),), "hd_definition": "pooled"},
        **{"surface_empty": "nan", "tolerance_mm": 0.0, "save_predictions": False},
    }
    return EvaluateSettings(**(values | changes))


@pytest.mark.parametrize("depth", [1, 4, 20])
@pytest.mark.parametrize("ignore_index", [None, 3])
def test_maps_and_calibration_from_slabs_are_those_of_the_whole_case(depth: int, ignore_index: int | None) -> None:
    """Two runs on a training grid of 11 planes, back on an own grid of 17; a box around the foreground counts."""
    rng = np.random.default_rng(0)
    shape, own = (11, 9, 8), (17, 14, 20)
    probabilities = rng.dirichlet((1, 1, 1), size=(2, *shape)).astype(np.float32)
    reference = np.zeros(own, np.uint8)
    reference[7:9, 6:8, 2:4], reference[9, 6:8, 2:4] = 1, 2
    if ignore_index:
        reference[8] = ignore_index
    spacing = (1.0, 1.0, 1.0)
    record = CaseRecord("case", "case", shape, spacing, own, spacing, (0, 0, 0), (), **ALONE)
    case = CaseArrays(record, np.zeros((*shape, 1), np.float32), np.zeros(shape, np.uint8), reference)
    parts = (probabilities[:, start : start + depth] for start in range(0, shape[0], depth))
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        maps = case_maps(parts, case, prepared_of(ignore_index), settings_of(), pool)

    whole = np.stack([resample.resize_linear(one, own) for one in probabilities])
    np.testing.assert_array_equal(maps.labels, whole.argmax(-1))
    box = (slice(7 - 5, 10 + 5), slice(6 - 5, 8 + 5), slice(0, 4 + 5))
    known = reference[box] != 3
    for run, errors in enumerate(maps.calibration_errors):
        assert set(errors) == {"rim", "core", "both"}
        for name, values in (("rim", [1]), ("core", [2]), ("both", [1, 2])):
            probability = whole[run][box][..., values].sum(-1)[known]
            expected = calibration_error(np.clip(probability, 0, 1), np.isin(reference[box][known], values))
            assert errors[name] == pytest.approx(expected, abs=1e-6)


def test_a_reference_without_any_label_has_no_calibration() -> None:
    record = CaseRecord("case", "case", (3, 3, 3), (1.0,) * 3, (3, 3, 3), (1.0,) * 3, (0, 0, 0), (), **ALONE)
    empty = np.zeros((3, 3, 3), np.uint8)
    case = CaseArrays(record, np.zeros((3, 3, 3, 1), np.float32), empty, empty)
    probabilities = np.full((1, 3, 3, 3, 3), 1 / 3, np.float32)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        maps = case_maps(iter([probabilities]), case, prepared_of(None), settings_of(), pool)
    assert all(math.isnan(value) for value in maps.calibration_errors[0].values())


def test_ensemble_and_entropy() -> None:
    """Two sure runs that disagree, two that agree: entropy ln 2 and 0; the mean decides, not the vote."""
    sure = np.eye(3)[[[0, 1], [1, 1]]]
    made = segment(iter([sure[:, :1], sure[:, 1:]]))
    np.testing.assert_array_equal(made.labels, [[0, 1], [1, 1]])
    np.testing.assert_allclose(made.entropy, [math.log(2), 0])
    votes = np.array([[[0.6, 0.4, 0.0]], [[0.0, 1.0, 0.0]], [[0.6, 0.4, 0.0]]])
    assert segment(iter([votes])).ensemble.tolist() == [1]
    flat = segment(iter([np.full((2, 4, 3), 1 / 3)]))
    np.testing.assert_allclose(flat.entropy, math.log(3))


def test_clean_up_keeps_the_largest_component_of_every_map() -> None:
    row = np.eye(2)[np.array([1, 1, 0, 1])]
    made = segment(iter([np.stack([row, row])]), clean=[1])
    np.testing.assert_array_equal(made.labels, [[1, 1, 0, 0]] * 2)
    np.testing.assert_array_equal(made.ensemble, largest_component(np.array([1, 1, 0, 1]), [1]))


def test_label_maps_of_files_carry_the_label_values_of_the_task(tiny_study: Path) -> None:
    arm = jaxseg.load(tiny_study).arm("scratch")
    assert arm.label_values == (1, 2)
    other = dataclasses.replace(arm, target=dataclasses.replace(arm.target, label_values=(7, 300)))
    image = nib.Nifti1Image(np.random.default_rng(0).normal(size=(16, 16, 1)).astype(np.float32), np.eye(4))
    (own,), (named,) = (each.predict(image, seeds=(0,)) for each in (arm, other))
    assert own.shape == (16, 16, 1)
    np.testing.assert_array_equal(named, np.array([0, 7, 300])[own])


@pytest.mark.slow
def test_a_study_mapped_as_on_accelerators_validates_as_one_on_a_processor(tiny_study: Path, tmp_path: Path) -> None:
    config = tiny_config()
    config.runtime.seed_map = "vmap"
    run_stages(config, tmp_path, stages=("prepare", "pretrain", "train"), progress=silent)
    ours, expected = (read_log(place / "train" / "train_0" / "chunk_0", 4) for place in (tmp_path, tiny_study))
    np.testing.assert_array_equal(ours.validated, expected.validated)
    assert ours.validated.sum() == 3
    np.testing.assert_allclose(ours.val_dsc, expected.val_dsc, atol=0.01)
