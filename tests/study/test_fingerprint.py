"""Fingerprints of image sets, and the sizes of structures in label maps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jaxseg.study.proposal.fingerprint import take_fingerprint
from jaxseg.study.proposal.grid import view
from jaxseg.study.proposal.images import flips, foreground
from jaxseg.study.proposal.structures import measure_label
from jaxseg.types import UserError
from tests.image_sets import make_volume, save, write_set


def told(*args, **kwargs):
    pass


def taken(folder: Path, **options):
    return take_fingerprint(str(folder), cache=folder.parent / "cache", progress=told, **options)


def test_a_ball_is_as_thick_as_it_is_long():
    grid = np.indices((24, 24, 24)) - 12
    inside = (grid**2).sum(axis=0) <= 8**2
    found = measure_label(inside, (0.5, 0.5, 0.5))
    assert found.extent_mm == (8.5, 8.5, 8.5)
    assert found.thickness_mm == pytest.approx(8.0, abs=0.5)
    assert found.share == pytest.approx(inside.mean())


def test_a_plate_is_as_thin_as_its_slices():
    inside = np.zeros((20, 20, 10), bool)
    inside[2:18, 2:18, 4:6] = True
    found = measure_label(inside, (1.0, 1.0, 3.0))
    assert found.extent_mm == (16.0, 16.0, 6.0)
    assert found.thickness_mm == pytest.approx(6.0)


@pytest.mark.parametrize("slices", [1, 2, 3, 4])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 0.7, 5.0)])
def test_slabs_of_any_number_of_voxels_have_their_thickness(slices: int, spacing: tuple[float, ...]):
    """Across thick slices a distance to the centre of the next one is up to half a slice too long, on either side."""
    inside = np.zeros((60, 60, 8), bool)
    inside[2:58, 2:58, 2 : 2 + slices] = True
    assert measure_label(inside, spacing).thickness_mm == pytest.approx(slices * spacing[2])
    turned = np.zeros((60, 60, 30), bool)
    turned[4 : 4 + slices, 2:58, 2:28] = True
    assert measure_label(turned, spacing).thickness_mm == pytest.approx(slices * spacing[0])


def test_a_large_ball_of_thick_slices_is_as_thick_as_it_is_long():
    grid = (np.indices((64, 64, 16)) - np.array([32, 32, 8]).reshape(3, 1, 1, 1)) * np.array([1, 1, 5]).reshape(
        3, 1, 1, 1
    )
    inside = (grid**2).sum(axis=0) <= 30**2
    assert measure_label(inside, (1.0, 1.0, 5.0)).thickness_mm == pytest.approx(60.0, abs=2.5)


def test_of_many_components_one_speaks_for_most_voxels():
    inside = np.zeros((40, 40), bool)
    inside[0:10, 0:10] = inside[20:30, 20:30] = True
    inside[35:37, 35:39] = inside[15, ::3] = True  # crumbs
    assert measure_label(inside, (2.0, 2.0)).extent_mm == (20.0, 20.0)
    inside[:] = False
    inside[0:6, 0:6] = True  # the largest has 36 of 196 voxels; most lie in squares of 16
    for corner in range(0, 40, 8):
        inside[10:14, corner : corner + 4] = inside[20:24, corner : corner + 4] = True
    assert measure_label(inside, (2.0, 2.0)).extent_mm == (8.0, 8.0)
    assert measure_label(np.zeros((4, 4), bool), (1.0, 1.0)) is None


def test_large_structures_are_measured_on_every_second_voxel():
    inside = np.ones((200, 200, 100), bool)
    assert measure_label(inside, (1.0, 1.0, 1.0)).extent_mm == (200.0, 200.0, 100.0)


def test_volumes(tmp_path):
    rng = np.random.default_rng(0)
    volumes = {}
    for index in range(4):
        label = np.zeros((12, 10, 8), np.uint8)
        label[2:8, 2:6, 2:4] = 1
        volumes[f"case_{index}"] = ((rng.random(label.shape) + 1).astype(np.float32) * 10**index, label)
    folder = write_set(
        tmp_path / "set", volumes, affine=np.diag([1.0, 2.0, 3.0, 1.0]), groups={"case_0": "p", "case_1": "p"}
    )
    found = taken(folder)
    assert (found.cases, found.groups, found.read, found.ndim) == (4, 3, 4, 3)
    assert (found.shape, found.spacing_mm) == ((12.0, 10.0, 8.0), (1.0, 2.0, 3.0))
    (part,) = found.labels
    assert (part.name, part.present, part.extent_mm) == ("a", 1.0, (6.0, 8.0, 6.0))
    assert part.share == pytest.approx(6 * 4 * 2 / 960)
    assert (found.missing, found.classes) == (("b",), 3)
    assert found.channels[0].scales > 100
    assert taken(folder, labels=("a",)).missing == ()
    with pytest.raises(UserError, match="no label 'c'; it has 'a', 'b'"):
        taken(folder, labels=("c",))


def test_images_of_one_slice_have_two_axes(tmp_path):
    image = np.random.default_rng(0).random((9, 7, 1)).astype(np.float32)
    label = np.zeros((9, 7, 1), np.uint8)
    label[2:5, 2:5] = 1
    found = taken(write_set(tmp_path / "set", {f"case_{i}": (image, label) for i in range(2)}, modality={"0": "photo"}))
    assert (found.shape, found.labels[0].extent_mm) == ((9.0, 7.0), (3.0, 3.0))
    assert found.in_voxels


@pytest.mark.parametrize(("axis", "turned"), [(0, ()), (1, (0,)), (2, (0,))])
def test_a_slice_knows_which_of_its_axes_runs_from_left_to_right(tmp_path, axis, turned):
    shape = [9, 7]
    shape.insert(axis, 1)
    image, label = make_volume(1, shape=tuple(shape))
    found = taken(write_set(tmp_path / "set", {f"case_{i}": (image, label) for i in range(2)}, modality={"0": "MRI"}))
    assert found.axes == tuple(other for other in range(3) if other != axis)
    assert flips(found, view(found))[0] == turned


def test_images_with_other_channels_than_are_named_are_left_out(tmp_path):
    folder = write_set(tmp_path / "set", modality={"0": "T1", "1": "T2"})
    with pytest.raises(UserError, match=r"its image has 1 channel\(s\) and dataset.json names 2"):
        taken(folder)


def test_synthetic_tasks_of_either_kind(tmp_path):
    found = take_fingerprint("synthetic:blobs?n=3&shape=12x12", cache=tmp_path, progress=told)
    assert (found.ndim, found.cases) == (2, 3)
    assert take_fingerprint("synthetic:blobs?n=3&shape=8x8x8", cache=tmp_path, progress=told).ndim == 3


def test_images_without_labels(tmp_path):
    """A folder of images alone, and one whose labels play no part, as its images without one count."""
    for index in range(3):
        save(tmp_path / "bare" / f"case_{index}.nii.gz", make_volume(index)[0])
    labelled = write_set(tmp_path / "set")
    save(labelled / "imagesTr" / "case_9.nii.gz", make_volume(9)[0])
    for folder, cases in ((tmp_path / "bare", 3), (labelled, 5)):
        found = taken(folder, labelled=False)
        assert (found.cases, found.groups, found.shape) == (cases, cases, (10.0, 9.0, 8.0))
        assert (found.labels, found.missing, found.listed) == ((), (), ())
        assert foreground(found)[0] == 0.0
    with pytest.raises(UserError, match=r"has no dataset\.json"):
        taken(tmp_path / "bare")


def test_folds_that_the_data_lists(tmp_path):
    folder = write_set(tmp_path / "set")
    names = [f"case_{index}" for index in range(4)]
    folds = [{"train": names[1:], "val": names[:1]}, {"train": names[:2], "val": names[2:]}]
    (folder / "splits_final.json").write_text(json.dumps(folds))
    assert taken(folder).listed == (1, 2)


def test_cases_that_cannot_be_read_are_left_out_unless_none_is_left(tmp_path):
    folder = write_set(tmp_path / "set")
    damaged = sorted((folder / "labelsTr").iterdir())
    damaged[0].write_bytes(b"no image")
    assert taken(folder).read == 3
    for path in damaged:
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"none of 4 cases .* can be read:\n  case_0: "):
        taken(folder)
