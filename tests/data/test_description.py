"""dataset.json and splits_final.json are written by hand: what is meant is read, what is wrong is one sentence."""

import json

import pytest

from jaxseg.data.formats import description, layouts
from jaxseg.types import UserError


@pytest.fixture
def folder(write_set, tmp_path):
    return write_set(tmp_path / "set", listed=False)


def describe(folder, **fields):
    path = folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


@pytest.mark.parametrize(
    "labels",
    [
        {"0": "background", "8": "b", "3": "a"},
        {"background": 0, "a": 3, "b": 8},
        {"background": "0", "a": "3", "b": "8"},
        {"background": 0.0, "a": 3.0, "b": 8.0},
        {"background": 0, "a": [3], "b": [8]},
        {"a": 3, "b": " 8 "},
    ],
)
def test_labels_are_understood_however_their_values_are_written(folder, labels):
    assert layouts.read_folder(describe(folder, labels=labels)).labels == (("a", 3), ("b", 8))


def test_names_that_are_numbers_are_names_where_that_is_plain(folder):
    assert layouts.read_folder(describe(folder, labels={"0": "background", "1": "2"})).labels == (("2", 1),)
    assert layouts.read_folder(describe(folder, labels={"0": "0", "1": "1"})).labels == (("1", 1),)
    with pytest.raises(UserError, match="either side could be the value"):
        layouts.read_folder(describe(folder, labels={"0": "0", "1": "2", "2": "1"}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels": ["background", "a"]}, "`labels` must map values to names"),
        ({"labels": {"background": 0, "a": {"value": 1}}}, "the label 'a' has the value {'value': 1}, not a whole"),
        ({"labels": {"background": 0, "a": 1.5}}, "the label 'a' has the value 1.5, not a whole number"),
        ({"labels": {"background": 0, "a": True}}, "the label 'a' has the value True"),
        ({"labels": {"background": 0, "a": float("inf")}}, "the label 'a' has the value inf"),
        ({"labels": {"background": 0, "a": "one"}}, "the label 'a' has the value 'one', not a whole number"),
        ({"labels": {"background": 0, "a": None}}, "the label 'a' has the value None"),
        ({"labels": {"background": 1, "a": 0}}, "the label 'background' has the value 1; 0 is background"),
        ({"labels": {"background": 0, "a": 1, "ignore": 0}}, "`ignore` must have one value above 0"),
        ({"labels": {"background": 0, "a": 1, "ignore": 1}}, "the label value 1 is used more than once"),
        ({"labels": {"background": 0, "a": -1}}, "between 0 and 65535"),
        ({"labels": {"background": 0}}, "nothing but background"),
        ({"modality": {}}, "`modality` .* must name each channel"),
        ({"modality": [{"name": "T1"}]}, "`modality` must name each channel in text, got an object"),
        ({"channel_names": {"0": None}}, "`channel_names` must name each channel in text, got null"),
        ({"groups": ["a"]}, "`groups` must map cases to patients, got a list"),
        ({"groups": {"case_0": None}}, "`groups` must give a name for 'case_0', got null"),
        ({"groups": {"case_0": ["p1"]}}, "`groups` must give a name for 'case_0', got a list"),
        ({"groups": {"case_0": float("nan")}}, "`groups` must give a name for 'case_0'"),
        ({"name": ["x"]}, "`name` must be text, got a list"),
        ({"file_ending": ".mgz"}, "`file_ending` is '.mgz', which is not read. Allowed are .nii.gz, "),
        ({"training": 20}, "`training` must be a list of cases, got a number"),
        ({"training": {"a": "b"}}, "`training` must be a list of cases, got an object"),
        ({"training": [{"image": "x", "label": "y"}, 7]}, "`training`, entry 1, must be an object .* it is a number"),
        ({"training": [{"image": 7, "label": "y"}]}, "`training`, entry 0, must name its image as a path"),
        ({"training": [{"image": "x", "label": "y", "fold": "0"}]}, "`training`, entry 0, has the fold '0'"),
        ({"validation": ["imagesTr/case_0.nii.gz"]}, "under `validation` and none under `training`"),
        ({"dataset": {"a": "b"}}, "`dataset`, case 'a', must be an object"),
    ],
)
def test_a_field_of_the_wrong_kind_is_named_with_its_file(folder, fields, message):
    with pytest.raises(UserError, match=message) as error:
        layouts.read_folder(describe(folder, **fields))
    assert str(folder / "dataset.json") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["dataset.json", "splits_final.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as JSON"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        ('{"labels": "\u00e9"}'.encode("latin-1"), "not UTF-8 text"),
        ('{"labels": "x"}'.encode("utf-16"), "not UTF-8 text"),
        (b'{"labels": {"a": 1, "a": 2}}', "gives 'a' twice"),
        (b'{"numTraining": ' + b"9" * 5000 + b"}", "cannot be read as JSON"),
        (b'"text"', "must hold a"),
    ],
)
def test_a_file_that_is_no_json_is_one_sentence(folder, name, content, message):
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        layouts.read_folder(folder)
    assert str(error.value).startswith(str(folder / name))
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": [], "val": []}, "it holds an object"),
        (["x"], "fold 0 is text"),
        ([{"train": ["case_0"], "val": ["case_1"]}, {"train": ["case_0"]}], "`val` of fold 1 is missing"),
        ([{"train": "case_0", "val": ["case_1"]}], "`train` of fold 0 is no list of names"),
        ([{"train": [["case_0"]], "val": ["case_1"]}], "`train` of fold 0 is no list of names"),
    ],
)
def test_splits_of_another_form_are_named(folder, splits, message):
    (folder / "splits_final.json").write_text(json.dumps(splits))
    with pytest.raises(UserError, match=message):
        layouts.read_folder(folder)


def test_two_equal_values_for_a_key_do_no_harm(tmp_path):
    (tmp_path / "x.json").write_text('{"a": 1, "a": 1}')
    assert description.read_json(tmp_path / "x.json") == {"a": 1}


@pytest.mark.parametrize("written", [7, 7.0, "7", "7.0", " 7", "7\t"])
def test_a_patient_has_one_name_however_it_is_written(folder, written):
    groups = {"case_0": written, "case_1": "P1 ", "case_2": 7.5, "case_3": 1e9}
    cases = layouts.read_folder(describe(folder, groups=groups)).cases
    assert [case.patient for case in cases] == ["7", "P1", "7.5", "1000000000"]


def test_a_patient_of_blanks_is_none(folder):
    with pytest.raises(UserError, match="the group '' cannot be used, because it is empty"):
        layouts.read_folder(describe(folder, groups={"case_0": "  "}))


def test_a_label_of_value_zero_that_is_no_background_is_named(folder):
    listing = layouts.read_folder(describe(folder, labels={"0": "liver", "1": "a", "2": "b"}))
    assert listing.warnings[0] == "the label value 0, 'liver', is background and is not segmented"


def test_what_is_there_is_told_where_it_is_not_what_is_needed(folder, tmp_path):
    with pytest.raises(UserError, match=r"is a file and not a folder; give the folder, .*set"):
        layouts.read_folder(folder / "dataset.json")
    for part in ("images", "labels"):
        (folder / f"{part}Tr").rename(folder / part)
    with pytest.raises(
        UserError, match=r"it holds dataset\.json, images/, labels/\. Images are looked for in imagesTr/"
    ):
        layouts.read_folder(folder)
    (folder / "dataset.json").unlink()
    with pytest.raises(UserError, match=r"has no dataset\.json; it holds images/, labels/"):
        layouts.read_folder(folder)
