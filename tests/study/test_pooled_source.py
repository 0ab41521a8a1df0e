"""A study whose source is pooled from two sets, from the plan to the page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from configs import default
from jaxseg import settings
from jaxseg.report import write_report
from jaxseg.reserved import MEAN
from jaxseg.study import record
from jaxseg.study.files import read_table
from jaxseg.study.plan import preparation
from jaxseg.study.plan.tasks import prepare_tasks
from jaxseg.study.proposal.fingerprint import take_fingerprint
from jaxseg.study.proposal.images import normalization
from jaxseg.study.run import STAGES, run_stages
from jaxseg.study.score import detection
from jaxseg.types import UserError
from launch import planning
from tests.image_sets import write_set
from tests.report.page_numbers import Tables, read_words, unknown_numbers
from tests.tiny_study import silent, tiny_config


def pictures(count: int, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images of one slice, each with two labels."""
    made = {}
    for index in range(count):
        rng = np.random.default_rng(seed + index)
        label = np.zeros((16, 16, 1), np.uint8)
        label[3:9, 4:11], label[10:14, 10:14] = 1, 2
        made[f"case_{index}"] = ((rng.standard_normal(label.shape) + label).astype(np.float32), label)
    return made


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets with one label in common, of which B is CT."""
    folder = tmp_path_factory.mktemp("sets")
    write_set(folder / "A", pictures(7, 0), labels=("organ", "vessel"))
    write_set(folder / "B", pictures(5, 50), labels=("organ", "tumour"), modality={"0": "CT"})
    return folder


@pytest.fixture(scope="module")
def finished(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a whole study."""
    made = tiny_config()
    made.source.data = f"{folders}/A+{folders}/B"
    made.source.normalization = "auto"
    made.analysis.cases = 0
    made.evaluate.regions = "whole=blobs 1+blobs 2"
    made.evaluate.lesions = "blobs 1, whole"
    made.evaluate.lesion_min_volume = 2.0
    made.arms = default.pick_arms("scratch", "transfer")
    workdir = tmp_path_factory.mktemp("pooled") / "study"
    run_stages(made, workdir, stages=STAGES, progress=silent)
    write_report(workdir)
    return workdir


def test_a_pooled_source_is_prepared_trained_recorded_and_shown(finished: Path) -> None:
    found = record.read(finished)
    assert found is not None
    assert found.source is not None
    assert found.source.parts == (("A", 7, ("organ", "vessel")), ("B", 5, ("organ", "tumour")))
    assert found.source.normalization == ("zscore", "dataset")
    assert [len(windows) for windows in found.source.windows] == [2]
    for names in found.source.splits[0].train, found.source.splits[0].val, found.source.splits[0].test:
        assert {name[0] for name in names} == {"A", "B"}
    table = read_table(finished / "results" / "prepared_source.csv")
    assert dict(table["part"].value_counts()) == {"A": 7, "B": 5}
    curves = read_table(finished / "results" / "pretrain_curves.csv")
    assert curves["loss"].dropna().between(0.1, 5).all()
    page = (finished / "report.html").read_text()
    assert "A (7 cases, labels: organ, vessel) and B (5 cases, labels: organ, tumour), pooled" in page
    scores = read_table(finished / "results" / "cases.csv")
    assert set(scores["arm"]) == {"scratch", "transfer"}


def test_lesions_are_counted_compared_and_shown(finished: Path) -> None:
    results = finished / "results"
    cases = read_table(results / "cases.csv")
    counts = cases[["lesions_found", "lesions_missed", "lesions_predicted", "lesions_spurious"]]
    assert (counts.notna().all(axis=1) == cases["label"].isin(["blobs 1", "whole"])).all()
    assert counts.max().max() > 0
    found = read_table(results / "detection.csv")
    assert tuple(found) == detection.SUMMARY_COLUMNS
    assert set(found["label"]) == {"blobs 1", "whole", MEAN}
    own = cases[(cases["arm"] == "scratch") & (cases["label"] == "whole")]
    of_arm = found[(found["arm"] == "scratch") & (found["label"] == "whole")].set_index("metric")["mean"]
    assert of_arm["lesions_spurious"] == pytest.approx(own.groupby("seed")["lesions_spurious"].mean().mean())
    compared = read_table(results / "detection_differences.csv")
    assert tuple(compared) == detection.COMPARISON_COLUMNS
    assert set(compared["arm_a"]) == {"transfer"}
    page = (finished / "report.html").read_text()
    assert "How many lesions (blobs 1) does each arm find?" in page
    assert "Lesions: paired differences to scratch" in page
    words, tables = read_words(finished / "report.html"), Tables(finished)
    assert {found: bad for found in words if (bad := unknown_numbers(found, tables))} == {}


def test_a_part_that_changed_is_told_by_name(finished: Path, folders: Path) -> None:
    made = settings.from_tree(json.loads((finished / "config.json").read_text()))
    changed = folders / "B" / "dataset.json"
    before = changed.read_text()
    description = json.loads(before)
    description["labels"] = {"background": 0, "tumour": 1, "organ": 2}
    changed.write_text(json.dumps(description))
    with pytest.raises(UserError, match=r"labels of the part B: .*'organ', 1.* before, .*'organ', 2.* now"):
        run_stages(made, finished, stages=[], progress=silent)
    changed.write_text(before)
    run_stages(made, finished, stages=[], progress=silent)


def test_cases_of_the_target_in_a_part_are_held_out(folders: Path, tmp_path: Path) -> None:
    made = tiny_config()
    write_set(tmp_path / "target", pictures(9, 100), labels=("organ", "vessel"))
    made.target.data = str(tmp_path / "target")
    made.source.data = f"{folders}/A+{tmp_path}/target"
    study = settings.parse(made)
    tasks = prepare_tasks(study, tmp_path / "stores", silent("prepare"))
    ((own,), (split,)) = (tasks.splits[task] for task in (study.target, study.source))
    used = {*split.train, *split.val, *split.test}
    assert len(used) == 7 + len(own.train)
    assert not {f"target.{name}" for name in (*own.val, *own.test)} & used
    lines = preparation.summary("source", tasks.prepared[study.source], tasks.splits[study.source])
    assert lines[1:3] == ["  part A: 7 cases, labels organ, vessel", "  part target: 9 cases, labels organ, vessel"]
    assert any("9 of its images are images of the target" in line for line in lines)
    write_set(tmp_path / "other", pictures(9, 200), labels=("organ", "vessel"))
    made.source.data = f"{folders}/A+{tmp_path}/other"
    study = settings.parse(made)
    told = prepare_tasks(study, tmp_path / "stores", silent("prepare")).prepared[study.source].report.warnings
    assert any("it shares 9 case name(s) with the target" in text for _, text in told)


def test_a_pooled_target_is_refused(folders: Path, tmp_path: Path) -> None:
    made = tiny_config()
    made.target.data = f"{folders}/A+{folders}/B"
    with pytest.raises(UserError, match="pools several sets, which only a source may be"):
        run_stages(made, tmp_path / "study", stages=[], progress=silent)
    with pytest.raises(UserError, match="pools several sets, which only a source may be"):
        planning.plan(made, tmp_path, seconds=60.0, speed=1.0)


def test_parts_are_looked_at_together_and_normalised_apart(folders: Path, tmp_path: Path) -> None:
    found = take_fingerprint(f"{folders}/A+{folders}/B", cache=tmp_path, progress=silent("look"))
    assert (found.cases, found.parts, found.classes) == (12, 2, 4)
    assert {label.name: label.present for label in found.labels} == {"organ": 1.0, "vessel": 1.0, "tumour": 1.0}
    assert normalization(found)[0] == "auto"
