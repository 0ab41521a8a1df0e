"""Names that data brings along are checked where they enter: folders, JSON files, TFDS datasets, stores, archives."""

import io
import json
import os
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds

from jaxseg import data
from jaxseg.data import names
from jaxseg.data.formats import decathlon, image_files, layouts
from jaxseg.data.prepared import store
from jaxseg.types import UserError

HOSTILE = {
    "": "is empty",
    " ": "is empty",
    "../../x": "path separator",
    "/abs/x": "path separator",
    "a\\..\\b": "path separator",
    "..": "begins with a dot",
    ".hidden": "begins with a dot",
    "a\tb": "control character \\t",
    "a\nb": "control character \\n",
    "esc\x1b[31mred": "control character \\x1b",
    "a\x7fb": "control character \\x7f",
    "a\x9b31mb": "control character \\x9b",
    "a\u2028b": "control character \\u2028",
    "\u202egpj": "control character \\u202e",
    "caf\udce9": "not valid UTF-8",
    "x" * 241: "241 bytes long; at most 240",
    "\u00e9" * 121: "242 bytes long",
    "=1+1": "begins with =",
    "+cmd|' C": "begins with +",
    "-1+1": "begins with -",
    "@SUM(1)": "begins with @",
    " =1": "begins with =",
    "\uff1d1": "begins with =",
    "-inf": "begins with -",
}
HARMLESS = [
    "case_01",
    "-5",
    "+1.5",
    "Пациент 1",
    "ß — scan #2",
    "a b.c",
    "x" * 240,
    "<b>",
    "[bold]x",
    "100% {x}_^~$y$",
    "a=b",
]


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_names_that_could_do_harm_have_a_reason(name):
    assert HOSTILE[name] in names.problem(name)
    with pytest.raises(UserError) as error:
        names.check(name, "the label", "set/dataset.json", file=True)
    assert str(error.value).startswith("set/dataset.json: the label '")
    assert str(error.value).isprintable()


@pytest.mark.parametrize("name", HARMLESS, ids=ascii)
def test_other_names_are_taken_as_they_are(name):
    assert names.check(name, "the label", "x", file=True) == name


def test_only_names_of_files_are_without_slashes():
    assert names.check("prostate/uterus", "the label", "x") == "prostate/uterus"
    for name in ("/etc/x", "a/../../x", "a\\..\\x"):
        with pytest.raises(UserError, match="reads as a path to another folder"):
            names.check(name, "the label", "x")


# ------------------------------------------------------------------------------------------------------------- folder


def rename(folder, old, new):
    for part in ("imagesTr", "labelsTr"):
        os.rename(folder / part / f"{old}.nii.gz", os.fsencode(folder / part) + b"/" + os.fsencode(f"{new}.nii.gz"))


@pytest.mark.parametrize("name", ["=1+1", "esc\x1b[31mred", "a\nb", "caf\udce9", "x" * 241], ids=ascii)
def test_a_case_whose_name_could_do_harm_is_refused_and_stops_no_other(make_task, write_set, tmp_path, name):
    folder = write_set(tmp_path / "set", listed=False)
    rename(folder, "case_1", name)
    prepared = data.prepare_task(make_task(folder, bad_cases="skip"), ndim=3, store_dir=tmp_path / "store")
    assert [record.name for record in prepared.cases] == ["case_0", "case_2", "case_3"]
    ((shown, reason),) = prepared.report.refused
    assert HOSTILE.get(name, "control character \\n") in reason
    assert (shown + reason).isprintable()
    with pytest.raises(UserError, match=r"its name .*; rename its files"):
        data.prepare_task(make_task(folder), ndim=3, store_dir=tmp_path / "store")
    with pytest.raises(UserError, match="its name cannot be used"):
        image_files.list_images(folder / "imagesTr", 1)


def test_a_name_of_240_bytes_is_prepared_and_predicted(make_task, write_set, tmp_path):
    folder, name = write_set(tmp_path / "set", listed=False), "n" * 240
    rename(folder, "case_1", name)
    prepared = data.prepare_task(make_task(folder), ndim=3, store_dir=tmp_path / "store")
    geometry = data.case_geometries(str(folder), ndim=3, cache=tmp_path)(prepared.record(name))
    data.write_prediction(data.load_case(prepared, name).label, geometry, tmp_path / f"{name}.nii.gz")
    assert (tmp_path / f"{name}.nii.gz").exists()
    assert data.write_contact_sheet(prepared, tmp_path / "sheet.png").exists()


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"labels": {"0": "background", "1": "=HYPERLINK(1)"}}, "the label '=HYPERLINK(1)'"),
        ({"labels": {"background": 0, "../../x": 1}}, "the label '../../x'"),
        ({"labels": {"background": 0, "a\x1b[2J": 1}}, "the label 'a\\x1b[2J'"),
        ({"name": "<img> \x1b[2J"}, "the task name '<img> \\x1b[2J'"),
        ({"groups": {"case_0": "@x"}}, "the group '@x'"),
        ({"groups": {"case_0": ""}}, "the group ''"),
        ({"modality": {"0": "M\nR"}}, "the channel 'M\\nR'"),
    ],
)
def test_names_in_dataset_json_are_checked(write_set, tmp_path, fields, what):
    folder = write_set(tmp_path / "set")
    path = folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(UserError) as error:
        layouts.read_folder(folder)
    assert f"{path}: {what} cannot be used" in str(error.value)


def test_a_mapping_of_names_to_files_cannot_name_a_path(write_set, tmp_path):
    folder = write_set(tmp_path / "set", listed=False)
    path = folder / "dataset.json"
    files = {"images": ["imagesTr/case_0.nii.gz"], "label": "labelsTr/case_0.nii.gz"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dataset": {"../../x": files, "fine": files}}))
    listing = layouts.read_folder(folder)
    assert [case.name for case in listing.cases] == ["fine"]
    assert listing.refused == (("../../x", "its name holds a path separator; files are named by it; rename its files"),)


# ------------------------------------------------------------------------------------- TFDS datasets, stores, archives


@pytest.fixture
def make_dataset(tmp_path):
    """Writes a TFDS dataset whose examples have these names and groups."""

    def make(*examples):
        class Named(tfds.core.GeneratorBasedBuilder, skip_registration=True):
            """Small cubes."""

            name = "named"
            VERSION = tfds.core.Version("1.0.0")
            pkg_dir_path = None

            def _info(self):
                cube = tfds.features.Tensor(shape=(6, 6, 6), dtype=np.uint8)
                text = tfds.features.Tensor(shape=(), dtype=np.object_)
                features = {"image": cube, "label": cube, "id": text, "who": text}
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
                )

            def _split_generators(self, dl_manager):
                return {"train": self._generate_examples()}

            def _generate_examples(self):
                label = np.zeros((6, 6, 6), np.uint8)
                label[2:4, 2:4, 2:4] = 1
                for index, (name, group) in enumerate(examples):
                    yield index, {"image": label * 9, "label": label, "id": name, "who": group}

        builder = Named(data_dir=str(tmp_path / "tfds"), file_format="array_record")
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=1))
        return f"tfds:{builder.data_path}?labels=cube&name=id&group=who"

    return make


def test_names_of_examples_cannot_leave_the_workdir(make_task, make_dataset, tmp_path):
    text = make_dataset((b"../../../x", b"p"), (b"/abs/x", b"p"), (b"caf\xe9", b"p"), (b"fine", b"p"))
    prepared = data.prepare_task(make_task(text, bad_cases="skip"), ndim=3, store_dir=tmp_path / "store")
    assert [record.name for record in prepared.cases] == ["fine"]
    assert [name for name, _ in prepared.report.refused] == ["../../../x", "/abs/x", "caf\\udce9"]
    with pytest.raises(UserError, match=r"/abs/x: its name holds a path separator"):
        data.prepare_task(make_task(text), ndim=3, store_dir=tmp_path / "store")


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([(b"a", b"=x")], "the group of example 0, '=x' cannot be used"),
        ([(b"a", b"p"), (b"a", b"p")], "several examples have the name 'a'"),
    ],
)
def test_groups_and_double_names_of_examples_are_refused(make_task, make_dataset, tmp_path, examples, message):
    with pytest.raises(UserError, match=message):
        data.prepare_task(make_task(make_dataset(*examples)), ndim=3, store_dir=tmp_path / "store")


@pytest.mark.parametrize("field", ["name", "group"])
def test_names_in_a_store_are_checked_too(make_task, write_set, tmp_path, monkeypatch, field):
    task = make_task(write_set(tmp_path / "set"))
    data.prepare_task(task, ndim=3, store_dir=tmp_path / "store")
    read = store.read_metadata

    def altered(*arguments, **more):
        notes = read(*arguments, **more)
        return notes | {"cases": [*notes["cases"][:3], notes["cases"][3] | {field: "/abs/../../x"}]}

    monkeypatch.setattr(store, "read_metadata", altered)
    with pytest.raises(
        UserError, match=rf"the {'case' if field == 'name' else field} '/abs/\.\./\.\./x'.*prepared again"
    ):
        data.prepare_task(task, ndim=3, store_dir=tmp_path / "store")


@pytest.mark.parametrize(
    "members", [["T/" + "n" * 300], ["T/x", "T/x/y"], ["T/x", "T/x"], ["T/a\x1bb"], ["T\\..\\..\\x"]], ids=ascii
)
def test_archives_whose_names_make_no_folder_are_refused_whole(tmp_path, members):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ["T/dataset.json", *members]:
            info = tarfile.TarInfo(name)
            info.size = 2
            tar.addfile(info, io.BytesIO(b"{}"))
    with pytest.raises(UserError, match=r"x\.tar holds '"):
        decathlon.unpack(tmp_path / "x.tar", "T", tmp_path / "out" / "T")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["x.tar"]
