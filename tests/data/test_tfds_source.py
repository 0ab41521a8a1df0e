"""The examples of a TFDS dataset are decoded when they are new, and not to be listed again."""

from types import SimpleNamespace

import numpy as np
import pytest

from jaxseg import data
from jaxseg.data import digests
from jaxseg.data.formats import tfds_source
from jaxseg.types import UserError

TEXT = "tfds:made?labels=a&name=id&group=patient"


class Examples:
    """Examples in memory that count how often they are decoded."""

    def __init__(self, count=4):
        rng = np.random.default_rng(0)
        self.made = [
            {
                "image": rng.standard_normal((8, 8)).astype(np.float32),
                "label": rng.integers(0, 2, (8, 8), dtype=np.uint8),
                "id": f"scan {index}".encode(),
                "patient": f"P{index // 2}".encode(),
            }
            for index in range(count)
        ]
        self.decoded = 0

    def __len__(self):
        return len(self.made)

    def __getitem__(self, index):
        self.decoded += 1
        return self.made[index]


@pytest.fixture
def examples(tmp_path, monkeypatch):
    """A dataset of one file; its builder is a stand-in for TFDS's, which reads the same attributes."""
    found, folder = Examples(), tmp_path / "made"
    folder.mkdir()
    (folder / "part").write_bytes(b"1")
    features = {name: SimpleNamespace(shape=(None, None)) for name in ("image", "label", "id", "patient")}
    kind = SimpleNamespace(value="array_record")
    info = SimpleNamespace(name="made", file_format=kind, splits={"train": None}, features=features)
    builder = SimpleNamespace(info=info, data_path=folder, as_data_source=lambda split: found)
    monkeypatch.setattr(tfds_source, "_builder", lambda dataset, where: builder)
    return found


def test_examples_are_decoded_once_for_as_long_as_the_files_stay(examples, make_task, tmp_path):
    task, store = make_task(TEXT, patch=(8, 8)), tmp_path / "store"
    first = data.list_cases(task, ndim=2, store_dir=store)
    assert examples.decoded == 2 * len(examples), "once for names, once for checksums"
    assert [(case.name, case.group) for case in first.cases] == [(f"scan {i}", f"P{i // 2}") for i in range(4)]
    for example, case in zip(examples.made, first.cases, strict=True):
        assert case.image_sha256 == digests.of_array(example["image"])
        assert case.label_sha256 == digests.of_array(example["label"])
    examples.decoded = 0
    assert data.list_cases(task, ndim=2, store_dir=store) == first
    assert examples.decoded == 0
    (tmp_path / "made" / "part").write_bytes(b"other")
    examples.made[1]["patient"], examples.made[2]["image"][0, 0] = b"P7", 99
    changed = data.list_cases(task, ndim=2, store_dir=store)
    assert [one == other for one, other in zip(changed.cases, first.cases, strict=True)] == [True, False, False, True]


def test_a_patient_has_one_name_however_the_dataset_writes_it(examples, make_task, tmp_path):
    for example, group in zip(examples.made, (b"7 ", np.float32(7), np.int64(7), "7.0"), strict=True):
        example["patient"] = group
    found = data.list_cases(make_task(TEXT, patch=(8, 8)), ndim=2, store_dir=tmp_path / "store")
    assert [case.group for case in found.cases] == ["7"] * 4


def test_a_patient_that_is_no_number_is_none(examples, make_task, tmp_path):
    examples.made[2]["patient"] = np.float32("nan")
    with pytest.raises(UserError, match="the group of example 2, '' cannot be used, because it is empty"):
        data.list_cases(make_task(TEXT, patch=(8, 8)), ndim=2, store_dir=tmp_path / "store")


def test_a_damaged_memory_is_none(examples, make_task, tmp_path):
    task, store = make_task(TEXT, patch=(8, 8)), tmp_path / "store"
    first = data.list_cases(task, ndim=2, store_dir=store)
    memory = store / tfds_source.REMEMBERED
    memory.write_text(memory.read_text().replace("P1", "P9"))
    assert data.list_cases(task, ndim=2, store_dir=store) == first


def test_a_prepared_dataset_is_opened_without_its_examples(examples, make_task, tmp_path):
    task = make_task(TEXT, patch=(8, 8))
    prepared = data.prepare_task(task, ndim=2, store_dir=tmp_path / "store")
    assert [(case.patient, case.published) for case in prepared.cases] == [(f"P{i // 2}", True) for i in range(4)]
    examples.decoded = 0
    assert data.prepare_task(task, ndim=2, store_dir=tmp_path / "store").cases == prepared.cases
    assert examples.decoded == 0
