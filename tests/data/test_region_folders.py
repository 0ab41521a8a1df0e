"""Regions in dataset.json (nnU-Net) and in settings: what is understood, what is refused, and what is prepared."""

import json

import numpy as np
import pytest

from jaxseg import data
from jaxseg.data import case_table
from jaxseg.data.cases import NamedRegion
from jaxseg.data.formats import layouts, sources
from jaxseg.data.prepared.listing import listing_of
from jaxseg.data.prepared.recipe import fingerprint, make_recipe
from jaxseg.data.volumes.resample import resize_labels
from jaxseg.regions import Regions
from jaxseg.settings import TaskSettings
from jaxseg.settings.task_schema import images_alone
from jaxseg.types import UserError

LABELS = {"background": 0, "whole": [1, 2, 7], "core": [2, 7], "spot": 7, "ignore": 9}
ORDER = [1, 2, 7]


def volumes():
    """Four cases of concentric boxes with the values 1, 2 and 7, and one voxel to ignore."""
    made = {}
    for index in range(4):
        label = np.zeros((9, 9, 8), np.uint8)
        label[1:8, 1:8, 1:7], label[2:7, 2:7, 2:6], label[4, 4, 3:5] = 1, 2, 7
        label[0, 0, 0] = 9
        image = np.random.default_rng(index).standard_normal(label.shape) + label
        made[f"case_{index}"] = (image.astype(np.float32), label)
    return made


@pytest.fixture
def folder(write_set, tmp_path):
    made = write_set(tmp_path / "set", volumes(), listed=False)
    return describe(made, labels=LABELS, regions_class_order=ORDER)


def describe(folder, **fields):
    path = folder / "dataset.json"
    tree = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in tree.items() if value != "leave out"}))
    return folder


def prepare(folder, make_task, tmp_path, **fields):
    return data.prepare_task(make_task(folder, **fields), ndim=3, store_dir=tmp_path / "stores")


def test_regions_of_a_folder_are_listed_in_its_order(folder):
    listing = layouts.read_folder(folder)
    assert listing.regions == (
        NamedRegion("whole", (1, 2, 7), 1),
        NamedRegion("core", (2, 7), 2),
        NamedRegion("spot", (7,), 7),
    )
    assert (listing.labels, listing.ignore, listing.warnings) == ((("1", 1), ("2", 2), ("7", 7)), 9, ())
    swapped = layouts.read_folder(describe(folder, labels={"spot": [7], **LABELS}, regions_class_order=[7, 1, 2]))
    assert [region.name for region in swapped.regions] == ["spot", "whole", "core"]
    assert "'whole' is written after 'spot', which is part of it" in swapped.warnings[0]


def test_an_order_without_regions_is_not_used_and_says_so(folder):
    labels = {"background": 0, "a": 1, "b": [2], "c": 7, "ignore": 9}
    listing = layouts.read_folder(describe(folder, labels=labels))
    assert listing.labels == (("a", 1), ("b", 2), ("c", 7))
    assert "`regions_class_order` of dataset.json is not used" in listing.warnings[0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"regions_class_order": "leave out"}, "`regions_class_order` is missing. It gives .* 'whole', 'core', 'spot'"),
        ({"regions_class_order": [1, 2]}, r"`regions_class_order` is \[1, 2\]; it must be a list of 3 whole numbers"),
        ({"regions_class_order": [1, 2, "x"]}, "must be a list of 3 whole numbers"),
        ({"regions_class_order": 7}, "must be a list of 3 whole numbers"),
        ({"regions_class_order": [1, 3, 7]}, "writes 3 where 'core' was predicted, which is made of 2, 7"),
        ({"regions_class_order": [1, 7, 7]}, "writes 7 for several regions"),
        ({"labels": LABELS | {"core": []}}, "the label 'core' has an empty list"),
        ({"labels": {"background": 0, "core": []}}, "the label 'core' has an empty list"),
        ({"labels": LABELS | {"core": [2, 2]}}, "the region 'core' names a value twice"),
        ({"labels": LABELS | {"core": [2, "x"]}}, "the label 'core' has the value .*, not a list of whole numbers"),
        ({"labels": LABELS | {"core": [0, 2]}}, "0 is background and part of no region"),
        ({"labels": LABELS | {"background": [0, 1]}}, "the label 'background' has the value"),
        ({"labels": LABELS | {"core": [2, 70000]}}, "must lie between 0 and 65535"),
        ({"labels": LABELS | {"ignore": [8, 9]}}, "the label `ignore` must have one value above 0"),
        ({"labels": LABELS | {"ignore": 7}}, "the value 7 of the label `ignore` is part of a region"),
        (
            {"labels": {"background": 0, "caf\u00e9": [1, 2], "cafe\u0301": [2, 7]}},
            "region name café is used more than once",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(folder, fields, message):
    with pytest.raises(UserError, match=message) as error:
        layouts.read_folder(describe(folder, **fields))
    assert str(error.value).startswith(str(folder / "dataset.json"))
    assert "\n" not in str(error.value)


def test_label_maps_are_stored_as_they_are(folder, make_task, tmp_path):
    task = prepare(folder, make_task, tmp_path)
    assert (task.labels, task.label_values) == (("whole", "core", "spot"), (1, 2, 7))
    assert task.regions == Regions(members=((1, 2, 3), (2, 3), (3,)), written=(1, 2, 3))
    assert (task.classes, task.outputs, task.ignore_index) == (4, 3, 4)
    assert task.class_names == ("1 (whole)", "2 (whole, core)", "7 (whole, core, spot)")
    case = data.load_case(task, "case_0")
    label = volumes()["case_0"][1]
    np.testing.assert_array_equal(case.label, np.select([label == v for v in (1, 2, 7, 9)], [1, 2, 3, 4]))
    whole, core, spot = ((np.isin(label, LABELS[name])).sum() for name in ("whole", "core", "spot"))
    assert case.record.voxels_per_label == ((label == 0).sum(), whole, core, spot)
    assert case.record.voxels_per_value == ((label == 0).sum(), whole - core, core - spot, spot)
    assert case_table(task)[0]["foreground_share"] == whole / (label < 9).sum()


def test_foreground_patches_are_drawn_by_region(folder, make_task, tmp_path):
    """As in nnU-Net: the smallest region is in every region that holds it, and so is drawn most often."""
    task = prepare(folder, make_task, tmp_path)
    cohort = data.load_cohort(task, ["case_0", "case_1"])
    label = volumes()["case_0"][1].ravel()
    for row, name in enumerate(("whole", "core", "spot")):
        positions = cohort.foreground[0, row, : cohort.num_foreground[0, row]]
        np.testing.assert_array_equal(positions, np.flatnonzero(np.isin(label, LABELS[name])))
    assert cohort.label.dtype == np.uint8


def test_settings_make_regions_of_labels(folder, make_task, tmp_path):
    describe(folder, labels={"background": 0, "ring": 1, "body": 2, "spot": 7, "ignore": 9})
    regions = (("all", ("ring", "body", "spot")), ("inner", ("body", "spot")))
    task = prepare(folder, make_task, tmp_path, regions=regions)
    assert (task.labels, task.label_values) == (("all", "inner"), (1, 2, 7))
    assert task.regions == Regions(members=((1, 2, 3), (2, 3)), written=(1, 2))
    part = prepare(folder, make_task, tmp_path, regions=(("inner", ("spot", "body")),))
    assert (part.label_values, part.regions) == ((2, 7), Regions(members=((2, 1),), written=(2,)))
    for wrong, message in (
        ((("all", ("ring", "bodi")),), "no label 'bodi'.* Did you mean 'body'"),
        ((("all", ("body", "spot")), ("b", ("body", "ring"))), "'all' and 'b' write the same label"),
    ):
        with pytest.raises(UserError, match=message):
            prepare(folder, make_task, tmp_path, regions=wrong)


def test_labels_choose_among_the_regions_of_a_folder(folder, make_task, tmp_path):
    task = prepare(folder, make_task, tmp_path, labels=("core", "spot"))
    assert (task.labels, task.label_values) == (("core", "spot"), (2, 7))
    assert task.regions == Regions(members=((1, 2), (2,)), written=(1, 2))
    with pytest.raises(UserError, match=r"labels: .* has no region 'spots'.* Did you mean 'spot'"):
        prepare(folder, make_task, tmp_path, labels=("spots",))
    with pytest.raises(UserError, match="has regions of its own, 'whole', 'core', 'spot'"):
        prepare(folder, make_task, tmp_path, regions=(("a", ("1",)),))


def test_images_alone_have_no_regions(folder, make_task, tmp_path):
    task = data.prepare_task(images_alone(make_task(folder)), ndim=3, store_dir=tmp_path / "stores")
    assert (task.labels, task.regions, task.outputs) == ((), None, 1)


def test_regions_that_a_coarse_grid_loses_are_named(folder, make_task, tmp_path):
    task = prepare(folder, make_task, tmp_path, spacing_mm=(4.0, 4.0, 4.0))
    case = data.load_case(task, "case_0")
    np.testing.assert_array_equal(case.label, resize_labels(case.reference, case.label.shape))
    assert any("too coarse for core, spot" in text for _, text in task.report.warnings)


def test_stores_of_labels_keep_their_names(write_set, tmp_path):
    """A store is found by the digest of its recipe, in which there is nothing of regions where there are none."""
    folder = write_set(tmp_path / "plain", volumes={"a": volumes()["case_0"]})
    source = sources.open_source(str(folder), ndim=3, cache=tmp_path)
    assert fingerprint(make_recipe(TaskSettings(data=str(folder)), source, 3), "identity") == "cc042ff745e21d50"
    assert "regions" not in listing_of(source).to_json()
