"""A study of regions that overlap, from an nnU-Net folder to the page, and transfers between regions and labels."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import jaxseg
from configs import default
from jaxseg import data, regions, settings
from jaxseg.manifest import DamagedError
from jaxseg.regions import Regions
from jaxseg.report import write_report
from jaxseg.settings import ModelSettings
from jaxseg.study import export, files, record, source_folder
from jaxseg.study.plan import source_networks
from jaxseg.study.plan.jobs import find, make_plan
from jaxseg.study.plan.planned import prepare
from jaxseg.study.plan.program import TaskSize
from jaxseg.study.predict import cleaned_up
from jaxseg.study.proposal.fingerprint import take_fingerprint
from jaxseg.study.record import Checkpoint
from jaxseg.study.run import STAGES, run_stages
from jaxseg.study.score import prior
from jaxseg.study.score.folder import score_folder
from jaxseg.study.train.start import load_tables
from jaxseg.types import UserError
from tests import image_sets
from tests.networks import draw_params, shapes_of
from tests.tiny_study import changed, silent

LABELS = {"background": 0, "whole tumour": [1, 2, 4], "tumour core": [2, 4], "enhancing": 4, "ignore": 6}
NAMES = ("whole tumour", "tumour core", "enhancing")
NESTED = Regions(members=((1, 2, 3), (2, 3), (3,)), written=(1, 2, 3))


def write_folder(folder: Path, cases: int = 10, first: int = 0) -> Path:
    """An nnU-Net folder (version 2) of pictures with discs in discs, each with a corner that is to be ignored."""
    grid = np.stack(np.meshgrid(np.arange(16), np.arange(16), indexing="ij"))
    for index in range(first, first + cases):
        rng = np.random.default_rng(index)
        far = np.sqrt(((grid - rng.integers(5, 11, 2)[:, None, None]) ** 2).sum(0))
        label = np.select([far < 1.5, far < 3, far < 5], [4, 2, 1]).astype(np.uint8)
        image = (label + 0.3 * rng.standard_normal(label.shape)).astype(np.float32)
        label[:2, :2] = 6
        image_sets.save(folder / "imagesTr" / f"case_{index}_0000.nii.gz", image[..., None])
        image_sets.save(folder / "labelsTr" / f"case_{index}.nii.gz", label[..., None])
    described = {"channel_names": {"0": "MRI"}, "labels": LABELS, "regions_class_order": [1, 2, 4]}
    described |= {"numTraining": cases, "file_ending": ".nii.gz", "name": "discs"}
    (folder / "dataset.json").write_text(json.dumps(described))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("regions") / "Dataset001_discs")


def config_of(folder: Path, *arms: str, **fields: object) -> object:
    made = changed(target__data=str(folder), train__steps=40, train__average=0.1, optim__lr=2e-2, **fields)
    made.arms = default.pick_arms(*arms)
    return made


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole study whose source has as many classes as the target has regions."""
    workdir = tmp_path_factory.mktemp("study") / "runs"
    made = config_of(folder, "scratch", "transfer", "prior", evaluate__save_predictions=True)
    run_stages(made, workdir, stages=STAGES, progress=silent)
    write_report(workdir)
    return workdir


def test_tables_and_page_name_the_regions(finished: Path) -> None:
    cases = files.read_table(finished / "results" / "cases.csv")
    assert set(cases["label"]) == set(NAMES)
    assert not cases["region"].any(), "regions are what is segmented, and not unions beside labels"
    assert len(cases) == 3 * 2 * 2 * 3, "arms x seeds x test cases x regions"
    networks = cases[cases["arm"] != "prior"]
    assert networks["calibration_error"].between(0, 1).all()
    summary = files.read_table(finished / "results" / "summary.csv")
    assert set(summary["label"]) == {"mean", *NAMES}
    page = (finished / "report.html").read_text()
    assert "overlapping regions: whole tumour, tumour core, enhancing" in page
    assert all(name in page for name in NAMES)
    shown = json.loads((finished / "results" / "examples.json").read_text())
    assert shown[0]["label_names"] == [
        "1 (whole tumour)",
        "2 (whole tumour, tumour core)",
        "4 (whole tumour, tumour core, enhancing)",
    ]
    curves = files.read_table(finished / "results" / "curves.csv")
    assert curves["val_dsc"].max() > 0.5, "they learn"


def test_scores_are_those_of_each_region_s_mask_in_the_saved_label_map(finished: Path, folder: Path) -> None:
    study = jaxseg.load(finished)
    cases = study.table("cases")
    for row in cases[(cases["arm"] == "transfer") & (cases["seed"] == 1)].to_dict("records"):
        saved = finished / "predictions" / "transfer" / "n0_fold0" / "seed_1" / f"{row['case']}.nii.gz"
        found, truth = (
            np.asarray(nib.load(path).dataobj) for path in (saved, folder / "labelsTr" / f"{row['case']}.nii.gz")
        )
        assert set(np.unique(found)) <= {0, 1, 2, 4}
        said, inside = (np.isin(array, LABELS[row["label"]]) & (truth != 6) for array in (found, truth))
        np.testing.assert_allclose(row["dsc"], 2 * (said & inside).sum() / (said.sum() + inside.sum()))
    truth, wanted, options = study.references()
    scored = score_folder(
        finished / "predictions" / "transfer" / "n0_fold0", truth, wanted=wanted, options=options, progress=silent("")
    )
    again = scored.cases.sort_values(["seed", "case", "label"])
    before = cases[cases["arm"] == "transfer"].sort_values(["seed", "case", "label"])
    np.testing.assert_allclose(again["dsc"], before["dsc"])
    np.testing.assert_allclose(again["hd95"], before["hd95"])


def test_a_finished_study_predicts_label_values(finished: Path, folder: Path) -> None:
    arm = jaxseg.load(finished).arm("scratch")
    image = str(folder / "imagesTr" / "case_0_0000.nii.gz")
    assert (arm.target.labels, arm.target.regions, arm.label_values) == (NAMES, NESTED, (1, 2, 4))
    found = arm.predict(image)
    chances = arm.predict(image, probabilities=True)
    assert chances.shape == (2, 16, 16, 3)
    assert (chances.sum(-1) > 1).any(), "chances of regions do not exclude each other"
    expected = np.array([0, 1, 2, 4])[regions.decide(chances, NESTED)]
    np.testing.assert_array_equal(found[..., 0], expected)
    made, _ = arm.segment(image)
    mean = chances.mean(0)
    bits = -(mean * np.log(mean) + (1 - mean) * np.log1p(-mean)).sum(-1)
    np.testing.assert_allclose(made.entropy, bits, rtol=1e-3, atol=1e-5)


def test_an_equal_number_of_outputs_is_no_head_to_take(finished: Path) -> None:
    table = (finished / "load_tables" / "transfer" / "n0_fold0.txt").read_text()
    fate = {line.split()[0]: line.split()[1] for line in table.splitlines()[1:] if len(line.split()) > 3}
    assert fate["head/kernel"] == "re-initialised"
    assert fate["decoder/level_0/conv_0/kernel"] == "loaded"


def test_an_export_says_what_its_outputs_are(finished: Path) -> None:
    study = jaxseg.load(finished)
    about = export.describe(study, study.arm("scratch"), seed=0, kind="jax")
    assert about["labels"] == list(NAMES)
    assert about["network"]["classes"] == 3
    assert about["regions"]["label_values"] == [[1, 2, 4], [2, 4], [4]]
    assert about["regions"]["regions_class_order"] == [1, 2, 4]


def test_networks_of_regions_are_given_to_other_studies(finished: Path, folder: Path, tmp_path: Path) -> None:
    """Of regions to regions with their head, of regions to labels without it."""
    fields = {"pretrain__from_workdir": str(finished), "pretrain__from_arm": "scratch"}
    same = prepare(settings.parse(config_of(folder, "transfer", **fields)), tmp_path / "same", silent(""))
    (job,) = same.plan.jobs
    assert (job.program.classes, job.program.regions) == (3, NESTED)
    (table,) = load_tables(same.study, tmp_path, same.plan, job).values()
    assert {row.path: row.status for row in table}["head/kernel"] == "loaded"
    labels = settings.parse(changed(**fields, arms=default.pick_arms("transfer")))
    other = prepare(labels, tmp_path / "labels", silent(""))
    (table,) = load_tables(labels, tmp_path, other.plan, other.plan.jobs[0]).values()
    assert {row.path: row.status for row in table}["head/kernel"] == "re-initialised"


@pytest.mark.parametrize("init", ["transfer", "mean_var"])
def test_a_source_of_regions_is_planned_for_a_target_of_labels(init: str) -> None:
    study = settings.parse(changed(arms=default.pick_arms("scratch", init)))
    plan = make_plan(
        study,
        target_size=(1, 3),
        source_sizes={study.source: TaskSize(1, 3, NESTED)},
        memory_bytes=2**30,
        devices=1,
        strategy="loop",
    )
    run = next(run for job in plan.of_kind("train") for run in job.runs if run.source is not None)
    source = find(plan, run.source)[0].program
    assert (source.regions, source.network.overlapping, source.map_classes) == (NESTED, True, 4)
    assert {job.program.regions for job in plan.of_kind("train")} == {None}


def test_the_prior_knows_regions() -> None:
    """Where most cases have a region, it is predicted; the ring around it belongs to the larger one."""
    maps = [np.array([[0, 1, 2, 2, 1, 0]]), np.array([[0, 1, 2, 1, 1, 0]]), np.array([[0, 0, 2, 2, 1, 0]])]
    nested = Regions(members=((1, 2), (2,)), written=(1, 2))
    scores = prior.fit_prior(maps, nested.members, overlapping=True)
    assert scores.shape == (1, 6, 2)
    assert regions.decide(scores, nested).tolist() == [[0, 1, 2, 2, 1, 0]]


def test_of_regions_components_are_cleaned_by_name() -> None:
    label = np.array([3, 0, 1, 3, 3])
    assert cleaned_up(label, [3], NESTED).tolist() == [2, 0, 1, 3, 3]
    assert cleaned_up(label, [], NESTED) is label


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": LABELS | {"tumour core": [2, 4, 5]}}, "'whole tumour'|'tumour core' .* label value 5 among others"),
        ({"labels": LABELS | {"mean": 4}, "regions_class_order": [1, 2, 4, 4]}, "writes 4 for several regions"),
        ({"labels": {"background": 0, "mean": [1, 2], "b": [2, 4]}, "regions_class_order": [1, 4]}, "reserved"),
        ({"evaluate__regions": "a=enhancing"}, r"config\.evaluate\.regions adds unions of labels"),
    ],
)
def test_what_a_study_cannot_do_with_regions_is_refused(
    folder: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    fields = {name: value for name, value in change.items() if "__" in name}
    copy = tmp_path / "copy"
    copy.mkdir()
    for part in ("imagesTr", "labelsTr"):
        (copy / part).symlink_to(folder / part)
    described = json.loads((folder / "dataset.json").read_text())
    more = {name: value for name, value in change.items() if "__" not in name}
    if "labels" in more and "ignore" not in more["labels"]:  # type: ignore[operator]
        more["labels"] = {**more["labels"], "ignore": 6}  # type: ignore[dict-item]
    (copy / "dataset.json").write_text(json.dumps(described | more))
    with pytest.raises(UserError, match=message):
        prepare(settings.parse(config_of(copy, "scratch", **fields)), tmp_path / "runs", silent(""))


def test_an_import_of_regions_gives_its_head_to_regions_alone(tmp_path: Path) -> None:
    model = ModelSettings(ndim=2, widths=(2, 4))
    shapes = shapes_of(model, (8, 8), channels=1, classes=3)
    names = source_folder.Names(used={}, ignored={}, unused=(), missing=())
    for outputs in ("classes", "regions"):
        made = source_folder.ImportRecord(
            checkpoint=Checkpoint("w"), rules="r", rules_sha256="", channels=1, classes=3, names=names, outputs=outputs
        )
        source_folder.write(tmp_path / outputs, made, model, draw_params(shapes))
        fields = {"pretrain__from_workdir": str(tmp_path / outputs), "pretrain__share": "one"}
        study = settings.parse(changed(arms=default.pick_arms("transfer"), **fields))
        for overlaps in (False, True):
            (given,) = source_networks.given_shapes(study, overlaps=overlaps).values()
            assert ("head" in given.shapes) == (overlaps == (outputs == "regions"))


def test_a_fingerprint_measures_the_regions(folder: Path, tmp_path: Path) -> None:
    found = take_fingerprint(str(folder), cache=tmp_path, progress=silent(""))
    whole, core, spot = found.labels
    assert (whole.name, core.name, spot.name, found.classes) == (*NAMES, 3)
    assert whole.share > core.share > spot.share > 0
    some = take_fingerprint(str(folder), labels=("tumour core",), cache=tmp_path, progress=silent(""))
    assert (some.labels, some.classes) == ((core,), 1)


def test_label_maps_are_scored_by_the_regions_of_their_references(folder: Path, tmp_path: Path) -> None:
    """Without a study: a perfect map, and one that takes the core for its rim."""
    truth = data.open_references(str(folder), ndim=3, cache=tmp_path)
    label = np.asarray(nib.load(folder / "labelsTr" / "case_0.nii.gz").dataobj)
    known = np.where(label == 6, 0, label).astype(np.uint8)
    image_sets.save(tmp_path / "said" / "case_0.nii.gz", known)
    image_sets.save(tmp_path / "said" / "case_1.nii.gz", np.zeros_like(known))
    options = {"unit": "mm", "hd_definition": "pooled", "surface_empty": "diagonal", "tolerance_mm": None}
    wanted = ("case_0", "case_1")
    rows = score_folder(tmp_path / "said", truth, wanted=wanted, options=options, progress=silent("")).cases
    assert rows["label"].tolist() == [*NAMES, *NAMES]
    assert rows["dsc"].tolist() == [1, 1, 1, 0, 0, 0]
    image_sets.save(tmp_path / "said" / "case_0.nii.gz", np.where(known == 4, 2, known).astype(np.uint8))
    rows = score_folder(tmp_path / "said", truth, wanted=wanted, options=options, progress=silent("")).cases
    assert rows["dsc"].tolist()[:3] == [1, 1, 0]


def test_an_external_set_has_the_target_s_regions(folder: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(folder, whole)
    elsewhere = write_folder(tmp_path / "elsewhere", cases=3, first=100)
    for part in ("images", "labels"):
        shutil.copytree(elsewhere / f"{part}Tr", whole / f"{part}Ts")
    study = settings.parse(config_of(whole, "scratch", target__test_data=("imagesTs", str(elsewhere))))
    own, other = prepare(study, tmp_path / "runs", silent("")).tasks.external
    for made in (own, other):
        assert (made.fitted[0].labels, made.fitted[0].regions) == (NAMES, NESTED)
    described = json.loads((elsewhere / "dataset.json").read_text())
    described["labels"]["tumour core"] = [1, 2]
    (elsewhere / "dataset.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match=r"'elsewhere': .* its regions are not made as the target's are"):
        prepare(study, tmp_path / "again", silent(""))


@pytest.mark.parametrize(
    "broken",
    [
        Regions(members=((1, 2, 3), (2, 3)), written=(1, 2)),
        Regions(members=((1, 2, 4), (2, 3), (3,)), written=(1, 2, 3)),
        Regions(members=((1, 2, 3), (), (3,)), written=(1, 2, 3)),
        Regions(members=((1, 2, 3), (2, 3), (3,)), written=(1, 1, 3)),
    ],
)
def test_a_record_whose_regions_do_not_fit_is_refused(finished: Path, tmp_path: Path, broken: Regions) -> None:
    whole = record.read(finished)
    assert whole is not None
    target = dataclasses.replace(whole.target, regions=broken)
    record.write(tmp_path, dataclasses.replace(whole, target=target))
    with pytest.raises(DamagedError, match="target has 3 labels, 3 label_values, and regions that do not fit them"):
        record.read(tmp_path)


def test_settings_make_regions_of_any_data(tmp_path: Path) -> None:
    made = changed(target__regions="all=blobs 1+blobs 2, small=blobs 2", arms=default.pick_arms("scratch"))
    planned = prepare(settings.parse(made), tmp_path, silent(""))
    task = planned.tasks.prepared[planned.study.target]
    assert (task.labels, task.regions) == (("all", "small"), Regions(members=((1, 2), (2,)), written=(1, 2)))
    assert {job.program.classes for job in planned.plan.jobs} == {2}
    cohort = data.load_cohort(task, [task.cases[0].name])
    assert cohort.num_foreground.shape == (1, 2)
