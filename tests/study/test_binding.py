"""A study belongs to its data as it was at its first training step, and to its own checkpoints."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from ml_collections import ConfigDict

import jaxseg
from configs import default
from jaxseg import checkpoint, manifest, settings
from jaxseg.study import files
from jaxseg.study.plan.binding import RECORD, read_binding
from jaxseg.study.plan.planned import prepare
from jaxseg.study.run import STAGES, run_stages
from jaxseg.types import UserError
from tests.image_sets import save, write_set
from tests.study.test_tasks import two_dimensional
from tests.tiny_study import silent, tiny_config

CASES = [f"case_{index:02d}" for index in range(10)]
GROUPS = {name: f"patient_{index // 2}" for index, name in enumerate(CASES)}


def on_folder(folder: Path) -> ConfigDict:
    made = tiny_config()
    made.target.data = str(folder)
    made.target.normalization = "dataset"
    made.target.train_cases = (2,)
    made.vary = "init,order,subset"
    made.analysis.cases = 0
    made.train.steps = 4
    made.arms = default.pick_arms("scratch")
    return made


def write_original(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    write_set(folder, {name: two_dimensional(i) for i, name in enumerate(CASES)}, listed=False, groups=GROUPS)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of images, and a workdir whose networks were trained on it and not yet scored."""
    place = tmp_path_factory.mktemp("bound")
    write_original(place / "set")
    run_stages(on_folder(place / "set"), place / "study", stages=("prepare", "pretrain", "train"), progress=silent)
    return place / "set", place / "study"


@pytest.fixture
def data_and_workdir(trained: tuple[Path, Path], tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """The same with a workdir of one's own; the data is put back afterwards."""
    data, workdir = trained
    shutil.copytree(workdir, tmp_path / "study")
    yield data, tmp_path / "study"
    write_original(data)


def image(data: Path, name: str) -> Path:
    return data / "imagesTr" / f"{name}.nii.gz"


def label(data: Path, name: str) -> Path:
    return data / "labelsTr" / f"{name}.nii.gz"


def edit(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    found = nib.load(path)
    save(path, change(np.asarray(found.dataobj)).astype(found.get_data_dtype()), found.affine)


def add(data: Path) -> None:
    pixels, labels = two_dimensional(99)
    save(image(data, "case_98"), pixels)
    save(label(data, "case_98"), labels)


def add_first(data: Path) -> None:
    for place in (image, label):
        shutil.copy(place(data, "case_00"), place(data, "aaa"))


def remove(data: Path) -> None:
    image(data, "case_03").unlink()
    label(data, "case_03").unlink()


def rename(data: Path) -> None:
    for place in (image, label):
        place(data, "case_03").rename(place(data, "case_33"))


def edit_unnoticed(data: Path) -> None:
    """A label is changed and the file keeps its size and its time of change, as a careful copy would."""
    path = label(data, "case_05")
    before, content = path.stat(), nib.load(path)
    save(path.with_name("raw.nii"), np.asarray(content.dataobj) * 0, content.affine)
    raw = path.with_name("raw.nii").read_bytes()
    path.with_name("raw.nii").unlink()
    path.write_bytes(raw)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def describe(data: Path, **fields: object) -> None:
    path = data / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a case added": (add, r"1 case\(s\) added: case_98"),
    "a copy added": (add_first, r"1 case\(s\) added: aaa"),
    "a case removed": (remove, r"1 case\(s\) removed: case_03"),
    "a case renamed": (rename, r"1 case\(s\) added: case_33\n +1 case\(s\) removed: case_03"),
    "an image edited": (lambda data: edit(image(data, "case_04"), lambda a: a + 1), "image changed: case_04"),
    "a label edited": (lambda data: edit(label(data, "case_05"), lambda a: a[::-1]), "label map changed: case_05"),
    "a label edited and its time put back": (edit_unnoticed, "label map changed: case_05"),
    "cases regrouped": (lambda data: describe(data, groups=GROUPS | {"case_01": "patient_9"}), "regrouped: case_01"),
    "groups dropped": (lambda data: describe(data, groups={}), r"10 case\(s\) regrouped: case_00, .* and 5 more"),
    "labels renamed": (
        lambda data: describe(data, labels={"0": "background", "1": "a", "2": "c"}),
        "labels: .*'b'.*'c'",
    ),
    "another modality": (lambda data: describe(data, modality={"0": "CT"}), "channels: .*MRI.*CT"),
}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("stages", [STAGES, ("evaluate",)], ids=["all", "evaluate"])
def test_data_that_changed_after_training_is_refused_by_name(
    what: str, stages: tuple[str, ...], data_and_workdir: tuple[Path, Path]
) -> None:
    data, workdir = data_and_workdir
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    change, named = CHANGES[what]
    change(data)
    with pytest.raises(UserError, match=named) as caught:
        run_stages(on_folder(data), workdir, stages=stages, progress=silent)
    assert "no longer what this study was trained on" in str(caught.value)
    assert "new --workdir" in str(caught.value)
    results = {path: content for path, content in before.items() if "stores" not in path.parts}
    assert all(path.read_bytes() == content for path, content in results.items())


def put_elsewhere(data: Path, place: Path) -> Path:
    return Path(shutil.copytree(data, place / "copy"))


def touch(data: Path, place: Path) -> Path:
    for path in data.rglob("*.nii.gz"):
        os.utime(path)
    return data


def link(data: Path, place: Path) -> Path:
    (place / "link").symlink_to(data)
    return place / "link" / ".." / "link"


@pytest.mark.parametrize("change", [put_elsewhere, touch, link])
def test_the_same_data_under_another_name_is_the_same(
    change: Callable[[Path, Path], Path], data_and_workdir: tuple[Path, Path], tmp_path: Path
) -> None:
    data, workdir = data_and_workdir
    other = change(data, tmp_path)
    known = read_binding(workdir)
    tasks = prepare(settings.parse(on_folder(other)), workdir, silent("prepare")).tasks
    (split,) = tasks.splits[next(iter(tasks.prepared))]
    assert split == known.tasks["target"].splits[0]
    assert len(list((workdir / "stores").glob("*/prepared_cases"))) == 1, "nothing is prepared again"


def test_the_record_holds_what_later_stages_use(data_and_workdir: tuple[Path, Path]) -> None:
    data, workdir = data_and_workdir
    known = read_binding(workdir)
    task = known.tasks["target"]
    assert {case.name: case.group for case in task.listing.cases} == GROUPS
    assert task.voxels.keys() == GROUPS.keys()
    assert len(set(task.voxels.values())) == len(CASES)
    assert len(task.subsets) == 2, "each seed draws its own two cases"
    # Another split than the seed would draw: what is recorded is used, not what the code would draw today.
    (split,) = task.splits
    swapped = json.loads((workdir / RECORD).read_text())
    part = swapped["tasks"]["target"]["splits"][0]
    part["val"], part["test"] = part["test"], part["val"]
    files.write_json(workdir / RECORD, swapped)
    tasks = prepare(settings.parse(on_folder(data)), workdir, silent("prepare")).tasks
    (used,) = tasks.splits[next(iter(tasks.prepared))]
    assert (used.train, used.val, used.test) == (split.train, split.test, split.val)
    (fitted,) = tasks.fitted[next(iter(tasks.prepared))]
    assert fitted.windows == task.windows[0]


def lose(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [lose, empty])
def test_a_record_that_was_lost_is_made_anew_if_the_data_is_what_it_was(
    harm: Callable[[Path], None], data_and_workdir: tuple[Path, Path]
) -> None:
    data, workdir = data_and_workdir
    known = read_binding(workdir)
    harm(workdir / RECORD)
    with pytest.warns(UserWarning, match=r"data\.json was lost; it is made anew"):
        run_stages(on_folder(data), workdir, stages=("evaluate",), progress=silent)
    assert read_binding(workdir) == known


def test_a_record_that_was_lost_is_not_made_from_other_data(data_and_workdir: tuple[Path, Path]) -> None:
    data, workdir = data_and_workdir
    lose(workdir / RECORD)
    add(data)
    with pytest.raises(UserError, match=r"data\.json is damaged.*put the data back"):
        run_stages(on_folder(data), workdir, stages=STAGES, progress=silent)


@pytest.mark.parametrize("harm", [lose, empty])
def test_a_config_that_was_lost_is_known_by_its_digest(
    harm: Callable[[Path], None], data_and_workdir: tuple[Path, Path]
) -> None:
    data, workdir = data_and_workdir
    kept = (workdir / "config.json").read_bytes()
    harm(workdir / "config.json")
    other = on_folder(data)
    other.optim.lr = 0.5
    with pytest.raises(UserError, match=r"config\.json is damaged.*give the config that the study was started with"):
        run_stages(other, workdir, stages=STAGES, progress=silent)
    with pytest.warns(UserWarning, match=r"config\.json was lost"):
        run_stages(on_folder(data), workdir, stages=("evaluate",), progress=silent)
    assert (workdir / "config.json").read_bytes() == kept


def test_a_workdir_whose_manifest_was_lost_goes_on(data_and_workdir: tuple[Path, Path]) -> None:
    data, workdir = data_and_workdir
    known = read_binding(workdir)
    path = workdir / manifest.NAME
    path.write_text(path.read_text()[:20])  # a line that is none, so that no file is listed
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        run_stages(on_folder(data), workdir, stages=("evaluate",), progress=silent)
    text = "\n".join(str(warning.message) for warning in told)
    for said in ("config.json is what was asked for", "data.json was lost", "study.json is damaged"):
        assert said in text
    assert read_binding(workdir) == known
    assert manifest.check(workdir) == {}


def test_a_job_of_another_study_is_not_taken_for_this_ones(data_and_workdir: tuple[Path, Path], tmp_path: Path) -> None:
    data, workdir = data_and_workdir
    other = tmp_path / "other"
    made = on_folder(data)
    made.optim.lr = 0.5
    run_stages(made, other, stages=("train",), progress=silent)
    job = Path("train") / "train" / "chunk_0"
    shutil.rmtree(workdir / job)
    shutil.copytree(other / job, workdir / job)
    with pytest.raises(UserError, match=r"chunk_0/checkpoints/4 belongs to another study.*Remove the folder"):
        run_stages(on_folder(data), workdir, stages=STAGES, progress=silent)
    shutil.rmtree(workdir / job)
    run_stages(on_folder(data), workdir, stages=("train",), progress=silent)
    assert checkpoint.saved_steps(workdir / job / "checkpoints")[-1] == 4


def test_a_workdir_of_an_older_version_is_refused_with_that_version(trained: tuple[Path, Path], tmp_path: Path) -> None:
    data, _ = trained
    files.write_json(tmp_path / "study" / "study.json", {"versions": {"jaxseg": "0.1.0"}, "runs": []})
    with pytest.raises(UserError, match=r"made by jaxseg 0\.1\.0.*in that version"):
        run_stages(on_folder(data), tmp_path / "study", stages=STAGES, progress=silent)
    with pytest.raises(UserError, match=r"made by jaxseg 0\.1\.0"):
        jaxseg.load(tmp_path / "study")
