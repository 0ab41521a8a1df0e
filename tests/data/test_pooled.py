"""Pooled sources: parts keep their own values, normalisation and labels, and every set holds cases of each."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import data
from jaxseg.data.formats import pooled, sources
from jaxseg.data.patches import residence
from jaxseg.data.prepared.recipe import Recipe, fingerprint
from jaxseg.streams import step_key, stream_key
from jaxseg.types import PartialLabel, RunInputs, UserError

SHAPE = (10, 9, 1)


def volumes_of(volume_of, count, seed, **more):
    """Images of one slice with two labels each, and their values."""
    made = {f"case_{index}": volume_of(seed + index, shape=SHAPE, **more) for index in range(count)}
    for _, label in made.values():
        label[0, 0], label[-1, -1] = 1, 2
    return made


@pytest.fixture(scope="module")
def parts(write_set, volume_of, tmp_path_factory):
    """Two sets that share the label `organ`, each with another value for it; B is CT."""
    folder = tmp_path_factory.mktemp("parts")
    write_set(folder / "A", volumes_of(volume_of, 5, 0), labels=("organ", "vessel"), modality={"0": "MRI"})
    write_set(folder / "B", volumes_of(volume_of, 4, 50), labels=("tumour", "organ"), modality={"0": "CT"})
    return folder / "A", folder / "B"


@pytest.fixture(scope="module")
def prepare(make_task, tmp_path_factory):
    store = tmp_path_factory.mktemp("stores")

    def prepare(folder, **changes):
        return data.prepare_task(make_task(folder, patch=(8, 8), **changes), ndim=2, store_dir=store)

    return prepare


@pytest.fixture(scope="module")
def both(parts, prepare):
    return prepare(f"{parts[0]}+{parts[1]}", normalization="auto")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", ["a"]),
        ("a+b", ["a+b"]),
        ("./a+./b", ["./a", "./b"]),
        ("a/+b", ["a/", "b"]),
        ("c+++a", ["c++", "a"]),
        ("x+y", ["x", "y"]),
        ("synthetic:blobs?n=3+a", ["synthetic:blobs?n=3", "a"]),
        ("tfds:a?labels=left+right", ["tfds:a?labels=left+right"]),
        ("tfds:a?labels=left+right+b", ["tfds:a?labels=left+right", "b"]),
        ("tfds:a+b?labels=left", ["tfds:a+b?labels=left"]),
    ],
)
def test_what_exists_under_a_name_with_the_sign_is_not_split(text, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "a+b", "c++"):
        (tmp_path / name).mkdir()
    assert list(pooled.split_data(text, sources.SCHEMES)) == expected
    assert sources.is_pooled(text) == (len(expected) > 1)
    assert sources.is_elsewhere(text) == (text == "x+y")


def test_labels_are_joined_by_name_whatever_their_values(parts, both, prepare):
    assert both.labels == ("organ", "vessel", "tumour")
    assert [record.name for record in both.cases][4:6] == ["A.case_4", "B.case_0"]
    alone = [prepare(folder, normalization=how) for folder, how in zip(parts, ("zscore", "dataset"), strict=True)]
    classes = ((0, 1, 2), (0, 3, 1))
    fitted = data.fit_intensity(both, [record.name for record in both.cases])
    for part, (task, table) in enumerate(zip(alone, classes, strict=True)):
        task = data.fit_intensity(task, [record.name for record in task.cases])
        for record in task.cases:
            own, found = data.load_case(task, record.name), data.load_case(fitted, f"{'AB'[part]}.{record.name}")
            np.testing.assert_array_equal(found.label, np.array(table)[own.label])
            np.testing.assert_array_equal(found.image, own.image)
            assert (found.record.part, found.record.voxels_sha256) == (part, own.record.voxels_sha256)
    assert both.normalization == ("zscore", "dataset")
    assert [both.annotated(record) for record in (both.cases[0], both.cases[-1])] == [
        (True, True, True, False),
        (True, True, False, True),
    ]
    assert both.is_partial
    assert both.part_table() == [("A", 5, ("organ", "vessel")), ("B", 4, ("organ", "tumour"))]


def test_a_choice_of_labels_that_all_parts_have_is_not_partial(parts, prepare):
    chosen = prepare(f"{parts[0]}+{parts[1]}", labels=("organ",))
    assert not chosen.is_partial
    assert data.load_cohort(chosen, [record.name for record in chosen.cases]).annotated is None
    with pytest.raises(UserError, match=r"the part B of .* annotates none of vessel; it has tumour, organ"):
        prepare(f"{parts[0]}+{parts[1]}", labels=("vessel",))


def test_cases_bring_what_they_annotate_wherever_their_voxels_are(both, make_task):
    task, names = make_task("unused", patch=(4, 4)), [record.name for record in both.cases]
    fitted = data.fit_intensity(both, names)
    resident, host = data.build_cohort(fitted, names), data.load_cohort(fitted, names)
    runs = RunInputs(cases=jnp.asarray([0, 8], jnp.int32), num_cases=jnp.int32(2), rate=jnp.float32(1))
    roots = jnp.stack([stream_key(jnp.uint32(3), "order")])
    one = jax.tree.map(lambda leaf: leaf[None], runs)
    send, _ = residence.make_send(task, batch=6, cohort=host, roots=roots, runs=one)
    boxes = jax.tree.map(lambda leaf: leaf[0, 0], send(0, 1).boxes)
    sample, key = jax.jit(data.make_sample(task, batch=6)), step_key(roots[0], 0, "sample")
    found = sample(key, resident, runs)
    assert isinstance(found.label, PartialLabel)
    assert {tuple(row) for row in np.asarray(found.label.annotated).tolist()} == {
        both.annotated(both.cases[0]),
        both.annotated(both.cases[-1]),
    }
    for mask, labels in zip(np.asarray(found.label.annotated), np.asarray(found.label.label), strict=True):
        assert mask[labels].all()
    sent = sample(key, residence.without_voxels(host), RunInputs(runs.cases, runs.num_cases, runs.rate, boxes))
    jax.tree.map(np.testing.assert_array_equal, found, sent)
    donated = data.load_cohort(fitted, names, shuffle_labels=True)
    for index, mask in enumerate(donated.annotated):
        here = slice(int(donated.offsets[index]), int(donated.offsets[index]) + int(np.prod(donated.shapes[index])))
        assert mask[np.unique(donated.label[here])].all()
    assert not np.array_equal(donated.annotated, host.annotated)


@pytest.mark.parametrize(("folds", "test_cases"), [(1, 0), (1, 3), (2, 0)])
def test_every_set_holds_cases_of_each_part(both, folds, test_cases):
    sizes = {"val_cases": 2, "test_cases": test_cases, "folds": folds, "seed": 0}
    splits = [data.split_cases(both, fold=fold, **sizes) for fold in range(folds)]
    for split in splits:
        for names in (split.train, split.val, split.test):
            assert {name[0] for name in names} == {"A", "B"}
    tested = [name for split in splits for name in split.test]
    assert sorted(tested) == sorted({*tested})
    assert len(tested) == (test_cases or (2 if folds == 1 else len(both.cases)))
    with pytest.raises(UserError, match="val_cases = 1 is fewer than the 2 parts"):
        data.split_cases(both, fold=0, **sizes | {"val_cases": 1})
    with pytest.raises(UserError, match="no case of the part B is left"):
        data.split_cases(both, fold=0, exclude_groups=[f"B.case_{index}" for index in range(4)], **sizes)


def test_patients_with_a_name_of_their_own_are_one_in_all_parts(write_set, volume_of, prepare, tmp_path):
    for seed, name in enumerate("AB"):
        groups = {f"case_{index}": f"patient {index // 2}" for index in range(6)}
        write_set(tmp_path / name, volumes_of(volume_of, 8, 100 * seed), groups=groups)
    task = prepare(f"{tmp_path}/A+{tmp_path}/B")
    patients = {record.name: record.group for record in task.cases}
    assert patients["A.case_1"] == patients["B.case_0"] == "patient 0"
    assert (patients["A.case_7"], patients["B.case_7"]) == ("A.case_7", "B.case_7")
    split = data.split_cases(task, val_cases=2, test_cases=4, folds=1, fold=0, seed=0)
    groups = [{patients[name] for name in names} for names in (split.train, split.val, split.test)]
    assert sum(map(len, groups)) == len(set.union(*groups)) == len(set(patients.values()))
    shared = {name: group for name, group in patients.items() if group.startswith("patient")}
    only = dataclasses.replace(task, cases=tuple(record for record in task.cases if record.name in shared))
    split = data.split_cases(only, val_cases=1, test_cases=2, folds=1, fold=0, seed=0)
    assert [{name[0] for name in names} for names in (split.train, split.val, split.test)] == [{"A", "B"}] * 3


def test_what_changed_is_told_part_by_part(write_set, volume_of, make_task, tmp_path):
    for seed, name in enumerate("AB"):
        write_set(tmp_path / name, volumes_of(volume_of, 2, seed), labels=("organ", "vessel"))
    task = make_task(f"{tmp_path}/A+{tmp_path}/B", patch=(8, 8))
    before = data.list_cases(task, ndim=2, store_dir=tmp_path / "store")
    description = json.loads((tmp_path / "B" / "dataset.json").read_text())
    description["labels"] = {"organ": 2, "vessel": 1}
    (tmp_path / "B" / "dataset.json").write_text(json.dumps(description))
    (tmp_path / "A" / "labelsTr" / "case_1.nii.gz").write_bytes(
        (tmp_path / "A" / "labelsTr" / "case_0.nii.gz").read_bytes()
    )
    now = data.list_cases(task, ndim=2, store_dir=tmp_path / "store")
    assert [(a.name, b.labels == a.labels) for a, b in zip(before.parts, now.parts, strict=True)] == [
        ("A", True),
        ("B", False),
    ]
    changed = [a.name for a, b in zip(before.cases, now.cases, strict=True) if a != b]
    assert changed == ["A.case_1"]
    assert data.prepared.listing.from_json(json.loads(json.dumps(now.to_json()))) == now


def test_the_store_of_a_source_that_is_not_pooled_keeps_its_name():
    fields = {"ndim": 3, "labels": (("a", 1),), "known": (0, 1), "ignore": None, "modality": ("MRI",)}
    recipe = Recipe(**fields, normalization=("zscore",), spacing_mm=None, clip=(), noise=0.0)
    assert fingerprint(recipe, "inputs") == "81d728939679a7ad"


def test_mistakes_are_told(parts, write_set, volume_of, make_task, prepare, tmp_path):
    one, other = parts
    for text, message in (
        (f"{one}+{one}/../A", "with itself"),
        (f"target+{one}", "'target' stands for"),
        (f"{one}+", "has an empty part"),
        (f"{one}+{tmp_path}/none", "does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            prepare(text)
    write_set(tmp_path / "two", volumes_of(volume_of, 2, 0), modality={"0": "T1", "1": "T2"})
    with pytest.raises(UserError, match=r"A 1 \(MRI\), two 2 \(T1, T2\)"):
        prepare(f"{one}+{tmp_path}/two")
    more = volumes_of(volume_of, 3, 0, classes=4)
    more["case_0"][1][1, 1] = 7
    write_set(tmp_path / "C", more, labels=("Organ", "b", "c"))
    with pytest.raises(UserError, match=r"C\.case_0: its label holds the value\(s\) 7"):
        prepare(f"{one}+{tmp_path}/C")
    with pytest.raises(UserError, match=r"pools 2 sets, which only a source may; give each of them as a set"):
        data.prepare_task(
            make_task(f"{one}+{other}", patch=(8, 8)), ndim=2, store_dir=tmp_path / "store", like=prepare(one)
        )
    told = [text for _, text in prepare(f"{one}+{tmp_path}/C", bad_cases="skip").report.warnings]
    assert any(text.startswith("the labels 'organ' of A and 'Organ' of C are two classes") for text in told)


def test_folds_that_a_part_lists_are_not_used_in_silence(write_set, volume_of, prepare, parts, tmp_path):
    write_set(tmp_path / "listed", volumes_of(volume_of, 3, 0), labels=("organ", "vessel"))
    folds = [{"train": ["case_0", "case_1"], "val": ["case_2"]}]
    (tmp_path / "listed" / "splits_final.json").write_text(json.dumps(folds))
    told = [text for _, text in prepare(f"{parts[0]}+{tmp_path}/listed").report.warnings]
    assert "listed: the folds that it lists are not used, as a pooled source is split part by part" in told
