"""Networks are apart from patients under whatever name a set, a pool or a copy has them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from configs import default
from jaxseg import data, settings
from jaxseg.data.prepared.task import PreparedTask
from jaxseg.settings import StudySettings
from jaxseg.study.plan.apart import apart_from_target, same_patients, with_one_group_for_copies
from jaxseg.study.plan.binding import Draw
from jaxseg.study.plan.external import with_external_sets
from jaxseg.study.plan.tasks import Tasks, prepare_tasks
from jaxseg.types import UserError
from tests.image_sets import write_set
from tests.tiny_study import silent, tiny_config

Image = tuple[np.ndarray, np.ndarray]


def image(seed: int) -> Image:
    rng = np.random.default_rng(seed)
    label = np.zeros((16, 16, 1), np.uint8)
    label[3:9, 4:11], label[10:14, 10:14] = 1, 2
    return (rng.standard_normal(label.shape) + label).astype(np.float32), label


def scans(first: int, groups: dict[str, str], **copies: int) -> dict[str, Image]:
    """An image for each case, of which copies are those of another seed."""
    return {name: image(copies.get(name, first + place)) for place, name in enumerate(groups)}


def prepared(folder: Path, groups: dict[str, str], first: int, *, published: bool = True, **copies: int):
    """A set on disk, prepared with copies in one group."""
    write_set(folder, scans(first, groups, **copies), **({"groups": groups} if published else {}))
    return prepared_data(str(folder), folder.parent)


def prepared_data(text: str, folder: Path) -> PreparedTask:
    made = tiny_config()
    made.source.data = text
    task = settings.parse(made).source
    return with_one_group_for_copies(data.prepare_task(task, ndim=2, store_dir=folder / "stores"))


def held(target: PreparedTask, source: PreparedTask, *tested: str) -> set[str]:
    """The cases of a source that no network may see where these cases of the target are tested."""
    rest = tuple(record.name for record in target.cases if record.name not in tested)
    _, groups = apart_from_target(target, (data.Split(rest, (), tested),), source, same_data=False)
    return {record.name for record in source.cases if record.group in groups}


def test_a_part_of_a_pool_knows_a_patient_who_is_called_as_the_case(tmp_path: Path) -> None:
    target = prepared(tmp_path / "T", {"t1": "P01", "t2": "P02", "t3": "P03"}, 0)
    prepared(tmp_path / "A", {"P01": "P01", "P02": "P02", "P02b": "P02"}, 10)
    prepared(tmp_path / "B", {"P01": "P01", "other": "other"}, 20, published=False)
    source = prepared_data(f"{tmp_path}/A+{tmp_path}/B", tmp_path)
    assert held(target, source, "t1") == {"A.P01"}, "B publishes nothing: its P01 is anyone"
    assert held(target, source, "t2") == {"A.P02", "A.P02b"}


def test_a_case_that_a_part_leaves_out_of_its_groups_is_alone_in_the_pool_and_known_to_the_target(tmp_path: Path):
    target = prepared(tmp_path / "T", {"t1": "P01", "t2": "P02", "t3": "P03"}, 0)
    for place, name in enumerate("AB"):
        cases = scans(10 * place + 10, {"P01": "", "P02": "", "P02b": "", "q": ""})
        write_set(tmp_path / name, cases, groups={"P02b": "P02"})
    source = prepared_data(f"{tmp_path}/A+{tmp_path}/B", tmp_path)
    assert source.record("A.q").group != source.record("B.q").group
    assert source.record("A.P02").group == source.record("B.P02b").group == "P02"
    assert held(target, source, "t1") == {"A.P01", "B.P01"}


def test_groups_that_are_called_as_their_cases_are_published_all_the_same(tmp_path: Path) -> None:
    """One scan a patient, named by the patient: nothing but the entry in `groups` says that these are patients."""
    target = prepared(tmp_path / "T", {"t1": "P01", "t2": "P02", "t3": "P03"}, 0)
    source = prepared(tmp_path / "S", {"P01": "P01", "P02": "P02", "P09": "P09"}, 10)
    silent_one = prepared(tmp_path / "U", {"P01": "P01", "P02": "P02"}, 20, published=False)
    assert same_patients(target, source)
    assert held(target, source, "t1", "t2") == {"P01", "P02"}
    assert not same_patients(target, silent_one)
    assert not held(target, silent_one, "t1")


def test_copies_join_patients_who_keep_their_names(tmp_path: Path) -> None:
    """a2 of P1 is a copy of a1 of P0: the source's P0 and P1 are both the patients who are tested with a3 of P1."""
    target = prepared(tmp_path / "T", {"a1": "P0", "a2": "P1", "a3": "P1", "a4": "P2"}, 0, a2=0)
    source = prepared(tmp_path / "S", {"s0": "P0", "s1": "P1", "s2": "P2", "s3": "P3"}, 10)
    assert len({record.group for record in target.cases}) == 2
    assert held(target, source, "a1", "a2", "a3") == {"s0", "s1"}
    assert held(target, source, "a4") == {"s2"}


def test_copies_within_the_source_join_its_patients_too(tmp_path: Path) -> None:
    target = prepared(tmp_path / "T", {"t0": "P0", "t1": "P1", "t2": "P2"}, 0)
    source = prepared(tmp_path / "S", {"a1": "P0", "a2": "P1", "a3": "P1", "a4": "P2"}, 10, a2=10)
    assert held(target, source, "t1") == {"a1", "a2", "a3"}


def study_on(target: Path, tmp_path: Path, **fields: object) -> tuple[StudySettings, Tasks]:
    made = tiny_config()
    made.target.data = str(target)
    made.target.update(fields)
    study = settings.parse(made)
    return study, prepare_tasks(study, tmp_path / "stores", silent("prepare"))


@pytest.mark.parametrize("known", ["P0", "P1"])
def test_external_cases_of_a_patient_whom_networks_know_by_another_name_are_left_out(tmp_path: Path, known: str):
    groups = {"a1": "P0", "a2": "P1", "a3": "P1"} | {f"b{index}": f"Q{index}" for index in range(8)}
    write_set(tmp_path / "T", scans(0, groups, a2=0), groups=groups)
    write_set(tmp_path / "E", scans(50, {"e1": "", "e2": "", "e3": ""}), groups={"e1": known, "e2": "new", "e3": known})
    study, tasks = study_on(tmp_path / "T", tmp_path, val_cases=1, test_cases=1, test_data=(f"E={tmp_path / 'E'}",))
    assert "a1" not in tasks.splits[study.target][0].test, "the draw leaves the joined patient to training"
    made = with_external_sets(study, tasks, store_dir=tmp_path / "stores", progress=silent("prepare"), known={})
    assert made.external[0].cases == ("e2",)


def test_a_network_whose_runs_train_on_all_that_its_source_leaves_is_refused(tmp_path: Path) -> None:
    """Of 8 groups that the target leaves, its source holds out 4 and runs take 6: some is left, or none."""
    groups = {f"c{index}": f"P{index}" for index in range(10)}
    folder = write_set(tmp_path / "T", scans(0, groups), groups=groups)
    learned, refused = set(), 0
    for seed in range(6):
        made = tiny_config()
        made.base_seed, made.arms = seed, default.pick_arms("scratch", "self_transfer")
        made.target.update({"data": str(folder), "val_cases": 1, "test_cases": 1, "train_cases": (6,)})
        made.source.update({"val_cases": 2, "test_cases": 2})
        study = settings.parse(made)
        try:
            tasks = prepare_tasks(study, tmp_path / "stores", silent("prepare"))
        except UserError as error:
            refused += bool(re.search(r"\(self_transfer\): runs that .* all groups .*source\.val_cases", str(error)))
        else:
            ((task, networks),) = tasks.apart.items()
            learned |= {len(tasks.subset(task, Draw(0, *network))) for network in networks}
    assert refused
    assert learned
    assert min(learned) > 0
