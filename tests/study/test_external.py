"""External test sets: added after a study was trained, apart from what it tests on itself, unknown to its networks."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from jaxseg import manifest, settings
from jaxseg.data.formats import sources, synthetic
from jaxseg.report import write_report
from jaxseg.settings import TaskSettings
from jaxseg.study import files, record
from jaxseg.study.plan.external import entries_of, with_external_sets
from jaxseg.study.plan.planned import PlannedStudy
from jaxseg.study.plan.tasks import prepare_tasks
from jaxseg.study.run import run_stages
from jaxseg.study.score import comparisons, tables
from jaxseg.study.score import stage as score_stage
from jaxseg.types import UserError
from tests.study.test_given_networks import bound_study, given_config, phase_of
from tests.tiny_study import changed, silent, tiny_config

ELSEWHERE = "synthetic:blobs?n=4&shape=16x16&seed=5&relatedness=0.6&noise=0.6"
LATER = ("evaluate", "analyze", "report")


def write_case(folder: Path, part: str, name: str, image: np.ndarray, label: np.ndarray) -> None:
    for kind, array in (("images", image.astype(np.float32)), ("labels", label.astype(np.uint8))):
        (folder / f"{kind}{part}").mkdir(parents=True, exist_ok=True)
        end = "_0000" if kind == "images" else ""
        nib.Nifti1Image(array[..., None], np.eye(4)).to_filename(folder / f"{kind}{part}" / f"{name}{end}.nii.gz")


def write_folder(folder: Path, data: str, *, part: str = "Tr", values: tuple[int, int] = (1, 2), **names: str) -> Path:
    """A synthetic set as a folder in nnU-Net's layout, with other values for its two labels where these are given."""
    source = sources.open_source(data, ndim=2, cache=folder)
    labels = {"background": 0, **dict(zip((name for name, _ in source.listing.labels), values, strict=True))}
    labels = {names.get(name.replace(" ", "_"), name): value for name, value in labels.items()}
    folder.mkdir(parents=True, exist_ok=True)
    description = {"channel_names": {"0": "synthetic"}, "labels": labels, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(description))
    for case in source.listing.cases:
        raw = source.read(case)
        label = np.array([0, *values])[raw.label]
        write_case(folder, part, f"{part}_{case.name}", raw.image[..., 0], label)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four cases from elsewhere with label values 7 and 3, and a copy of a training image of the tiny study."""
    folder = write_folder(tmp_path_factory.mktemp("external") / "hospital b", ELSEWHERE, values=(7, 3))
    task = synthetic.parse("blobs?n=10&shape=16x16")
    image, label = synthetic.make_case(task, 0)
    write_case(folder, "Tr", "copy", image[..., 0], np.array([0, 7, 3])[label])
    return folder


@pytest.fixture(scope="module")
def extended(tiny_study: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished tiny study, to which external sets were added."""
    workdir = tmp_path_factory.mktemp("study") / "study"
    shutil.copytree(tiny_study, workdir)
    run_stages(changed(target__test_data=sets(folder)), workdir, stages=LATER, progress=silent)
    return workdir


def sets(folder: Path) -> tuple[str, ...]:
    return (f"B={folder}", f"made={ELSEWHERE}")


def table(workdir: Path, name: str) -> pd.DataFrame:
    return files.read_table(workdir / "results" / f"{name}.csv")


def test_sets_are_added_without_training_again_and_change_nothing_else(tiny_study: Path, extended: Path) -> None:
    for path in tiny_study.rglob("train/**/*"):
        # What lists files, or the tables that were made of networks, has one more.
        if path.is_file() and path.name not in (manifest.NAME, score_stage.NETWORKS):
            assert (extended / path.relative_to(tiny_study)).read_bytes() == path.read_bytes(), path
    for name in ("cases", "summary", "comparisons", "claims", "seed_scores", "worst_cases", "variance", "planning"):
        pd.testing.assert_frame_equal(table(extended, name), table(tiny_study, name), check_exact=True)


def test_a_set_is_scored_by_every_run_on_labels_of_the_same_name(extended: Path, folder: Path) -> None:
    cases = table(extended, "external_cases")
    assert dict(cases.groupby("test_set").size()) == {"B": 3 * 2 * 4 * 2, "made": 3 * 2 * 4 * 2}
    # The same images once as a folder with other label values, once as they are made: the same scores.
    b, made = (cases[cases["test_set"] == name].drop(columns="test_set") for name in ("B", "made"))
    made = made.assign(case="Tr_" + made["case"], group=b["group"].to_numpy())
    pd.testing.assert_frame_equal(b.reset_index(drop=True), made.reset_index(drop=True))
    assert cases["dsc"].nunique() > 10


def test_what_the_networks_know_is_left_out_by_name(extended: Path, tiny_study: Path) -> None:
    assert "copy" not in set(table(extended, "external_cases")["case"])
    found = record.read(extended)
    assert found is not None
    assert [(one.name, len(one.cases)) for one in found.external] == [("B", 4), ("made", 4)]
    (lost,) = [item for item in found.exclusions if item.case == "B: copy"]
    assert lost.reason.startswith("it holds the same image as ")


def test_gains_elsewhere_have_the_estimators_of_the_studys_own_cases(extended: Path) -> None:
    cases, found = table(extended, "external_cases"), table(extended, "external_comparisons")
    own = found[(found["test_set"] == "B") & (found["metric"] == "dsc") & (found["label"] == "mean")]
    made = comparisons.comparisons(
        cases[cases["test_set"] == "B"],
        ["scratch", "transfer", "frozen_random_encoder"],
        confidence=0.95,
        rng=np.random.default_rng(0),
    )
    made = made[(made["metric"] == "dsc") & (made["label"] == "mean")]
    for name in ("arm_a", "mean_diff", "ci_low", "ci_high", "n_groups"):
        assert list(own[name]) == list(made[name]), name


def test_the_page_shows_them_beside_the_studys_own(extended: Path, tiny_study: Path) -> None:
    text = write_report(extended).read_text(encoding="utf-8")
    assert 'id="elsewhere"' in text
    assert "On B:" in text
    assert "On its own test cases:" in text
    assert "none of it is a verdict" in text
    assert 'id="elsewhere"' not in (tiny_study / "report.html").read_text(encoding="utf-8")


def test_a_set_whose_folder_is_gone_or_whose_store_is_damaged(extended: Path, folder: Path, tmp_path: Path) -> None:
    """The store is enough; a damaged one is prepared anew where the folder is, and an edited set is another set."""
    workdir, moved = tmp_path / "study", tmp_path / "b"
    shutil.copytree(extended, workdir)
    shutil.copytree(folder, moved)
    config = changed(target__test_data=(f"B={moved}",))
    (before,) = planned(config, workdir).tasks.external
    shutil.move(moved, tmp_path / "elsewhere")
    assert planned(config, workdir).tasks.external[0].cases == before.cases
    shutil.move(tmp_path / "elsewhere", moved)
    store = next(before.prepared.directory.rglob("*.array_record*"))
    store.write_bytes(store.read_bytes()[:-9])
    with pytest.warns(UserWarning, match="is prepared anew"):
        assert planned(config, workdir).tasks.external[0].mark == before.mark
    (moved / "labelsTr" / "copy.nii.gz").unlink()
    (moved / "imagesTr" / "copy_0000.nii.gz").unlink()
    assert planned(config, workdir).tasks.external[0].mark != before.mark


def planned(config: object, workdir: Path) -> PlannedStudy:
    return run_stages(config, workdir, stages=(), progress=silent)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("synthetic:blobs?n=2&shape=16x16&channels=2&seed=5", r"'blobs'.*has 2 channel\(s\)"),
        ("one=synthetic:blobs?n=2&shape=16x16&labels=1&seed=5", r"'one'.* no label 'blobs 2', which the target has"),
        ("synthetic:blobs?n=10&shape=16x16", "networks of the study know all of its 10 cases.*holds the same image"),
        ("synthetic:blob?n=2", "external test set 'blob': .*blobs"),
        ("internal=synthetic:blobs?n=2&shape=16x16&seed=5", "'internal' stands for the target's own test cases"),
    ],
)
def test_a_set_that_cannot_be_used_is_refused_by_name(given: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"config\.target\.test_data.*{message}"):
        planned(changed(target__test_data=(given,)), tmp_path)


def test_sets_have_the_names_of_their_folders_or_those_that_they_are_given(tmp_path: Path) -> None:
    texts = ("A=x/a=b", str(tmp_path / "x=y" / "site c"), "synthetic:tubes?n=3", "imagesTs")
    found = entries_of(TaskSettings(data=str(tmp_path), test_data=texts), {})
    assert found == [("A", "x/a=b"), ("site c", texts[1]), ("tubes", texts[2])]
    with pytest.raises(UserError, match="'c' is the name of two sets"):
        entries_of(TaskSettings(data="", test_data=("a/c", "b/c")), {})


def test_labelled_cases_of_the_targets_own_test_folder_are_a_set_unless_switched_off(tmp_path: Path) -> None:
    """Of the same patients, those that the target trains or validates on are left out."""
    folder = write_folder(tmp_path / "target", "synthetic:blobs?n=10&shape=16x16")
    write_folder(folder, ELSEWHERE, part="Ts")
    (folder / "labelsTs" / "Ts_blobs_0003.nii.gz").unlink()
    description = json.loads((folder / "dataset.json").read_text())
    description["groups"] = {f"Tr_blobs_{index:04d}": f"patient {index}" for index in range(10)}
    (folder / "dataset.json").write_text(json.dumps(description))
    off = planned(changed(target__data=str(folder), target__test_data=()), tmp_path / "study")
    assert off.tasks.external == ()
    (split,) = off.tasks.splits[off.study.target]
    same = zip(
        ("Ts_blobs_0000", "Ts_blobs_0001", "Ts_blobs_0002"), (part[0] for part in vars(split).values()), strict=True
    )
    description["groups"] |= {name: description["groups"][theirs] for name, theirs in same}
    (folder / "dataset.json").write_text(json.dumps(description))
    made = planned(changed(target__data=str(folder)), tmp_path / "study")
    (external,) = made.tasks.external
    assert [name for name, _ in external.left_out] == ["Ts_blobs_0000", "Ts_blobs_0001"], "train and val"
    assert external.cases == ("Ts_blobs_0002",)
    assert all("trains or is validated on images of its patient" in reason for _, reason in external.left_out)
    told = [text for _, text in external.prepared.report.warnings]
    assert "1 image(s) of imagesTs/ have no label: Ts_blobs_0003_0000" in told
    told = [text for _, text in made.tasks.prepared[made.study.target].report.warnings]
    assert not any("are not used" in text or "`groups`" in text for text in told)


def test_a_test_folder_of_another_set_is_not_the_targets_own(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "target", "synthetic:blobs?n=10&shape=16x16")
    write_folder(folder, ELSEWHERE, part="Ts")
    other = write_folder(tmp_path / "other", ELSEWHERE.replace("seed=5", "seed=6"), part="Ts")
    made = planned(changed(target__data=str(folder), target__test_data=(str(other / "imagesTs"),)), tmp_path / "study")
    assert [external.name for external in made.tasks.external] == ["imagesTs"]
    told = [text for _, text in made.tasks.prepared[made.study.target].report.warnings]
    assert any("are not used" in text for text in told)


def test_a_folder_may_have_a_name_that_looks_like_an_entry_with_one(tmp_path: Path) -> None:
    (tmp_path / "site=B" / "set").mkdir(parents=True)
    with contextlib.chdir(tmp_path):
        found = entries_of(TaskSettings(data="", test_data=("site=B/set", "site=C/set")), {})
    assert found == [("set", "site=B/set"), ("site", "C/set")]


def test_cases_of_patients_whom_given_networks_know_by_other_images_are_left_out(tmp_path: Path) -> None:
    first = tiny_config()
    first.source.data = str(phase_of(tmp_path, "ed", 0))
    bound = bound_study(first, tmp_path / "first")
    (source,) = bound.tasks.splits[bound.study.source]
    made = given_config(tmp_path / "first")
    made.target.test_data = (f"es={phase_of(tmp_path, 'es', 50, labels=('blobs 1', 'blobs 2'))}",)
    study, stores = settings.parse(made), {"store_dir": tmp_path / "stores", "progress": silent("prepare")}
    (external,) = with_external_sets(study, prepare_tasks(study, **stores), known={}, **stores).external
    assert {name[:3] for name in external.cases} == {name[:3] for name in source.test}
    assert external.left_out[0][1] == (
        f"the networks that arm transfer starts from were trained or validated on images of its patient "
        f"{external.left_out[0][0][:3]}"
    )


def test_where_folds_rotate_all_seeds_are_compared_on_the_external_cases(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    keys = [(arm, seed, case) for arm in ("scratch", "transfer") for seed in range(4) for case in range(3)]
    rows = [
        {
            **{"test_set": "B", "arm": arm, "seed": seed, "train_cases": 0, "fold": seed % 2, "case": f"c{case}"},
            **{"group": f"c{case}", "label": "blob", "status": "ok", "unit": "mm", "dsc": rng.uniform()},
            **dict.fromkeys(("hd95", "assd", "nsd"), 1.0),
        }
        for arm, seed, case in keys
    ]
    files.write_table(tmp_path / "external_cases.csv", pd.DataFrame(rows))
    study = settings.parse(changed(vary="init,order,fold", target__folds=2, target__test_cases=0))
    found = tables.external_tables(study, tmp_path)["external_comparisons"]
    assert found is not None
    assert set(found["n_seeds"]) == {4}
    assert set(found["fold"]) == {0}


def rows_of_folds(folds: int, cases: int, *, of_seeds: int | None = None) -> list[dict[str, object]]:
    """Rows of networks of all folds on the same cases: those of fold 0 alone find case 0, and something in the last."""
    rng = np.random.default_rng(0)
    members = {"seed": range(of_seeds)} if of_seeds else {"n_members": [3]}
    (name, numbers), rows = next(iter(members.items())), []
    for arm, number, fold, case in itertools.product(("scratch", "transfer"), numbers, range(folds), range(cases)):
        empty = case == cases - 1
        status = (
            "spurious" if empty and fold == 0 else "both_empty" if empty else "missed" if case == 0 < fold else "ok"
        )
        dsc = {"missed": 0.0, "spurious": 0.0, "both_empty": np.nan, "ok": rng.uniform()}[status]
        keys = {"test_set": "B", "arm": arm, name: number, "train_cases": 0, "fold": fold, "case": f"c{case}"}
        more = {"group": f"g{case // 2}", "label": "blob", "status": status, "unit": "mm", "dsc": dsc}
        rows.append({**keys, **more, **dict.fromkeys(("hd95", "assd", "nsd"), np.nan if empty else 1.0)})
    return rows


def test_a_case_that_networks_of_every_fold_are_tested_on_counts_once(tmp_path: Path) -> None:
    """5 folds, 4 seeds: four in five predictions of case 0 miss the label, and one in five of case 9 invents it."""
    cases = pd.DataFrame(rows_of_folds(5, 10, of_seeds=4))
    files.write_table(tmp_path / "external_cases.csv", cases)
    found = tables.external_tables(settings.parse(changed(target__folds=5, target__test_cases=0)), tmp_path)
    summary, differences = found["external_summary"], found["external_comparisons"]
    assert summary is not None
    assert differences is not None
    together = summary[(summary["fold"] == -1) & (summary["arm"] == "transfer") & (summary["metric"] == "dsc")]
    counts = ["n_seeds", "n_groups", "n_cases", "n_missed", "n_spurious", "n_absent"]
    assert together[counts].to_numpy().tolist() == [[4, 5, 9, 3.2, 0.8, 4]] * 2
    every = summary[(summary["fold"] >= 0) & (summary["arm"] == "transfer") & (summary["label"] == "blob")]
    of_folds = every[every["metric"] == "dsc"]
    assert set(of_folds["n_cases"]) == {9}
    for name in ("n_missed", "n_spurious", "n_absent"):
        assert together[name].iloc[0] == pytest.approx(of_folds[name].mean()), name
    held = cases[(cases["arm"] == "transfer") & cases["status"].isin(["ok", "missed"])]
    means = held.groupby(["seed", "group"])["dsc"].mean().unstack("group").mean(axis=1)
    assert together["mean"].iloc[0] == pytest.approx(means.mean()), "as it was"
    row = differences[(differences["fold"] == -1) & (differences["metric"] == "dsc")].iloc[0]
    assert row[["n_cases", "n_groups", "n_missed_a", "n_missed_b", "n_spurious_a"]].tolist() == [9, 5, 3.2, 3.2, 0.8]
    # A run without a value in one fold leaves a case out in that fold alone, and the note counts it once.
    gone = (cases["case"] == "c1") & (cases["seed"] == 0) & (cases["fold"] < 2)
    files.write_table(tmp_path / "external_cases.csv", cases.assign(dsc=cases["dsc"].mask(gone)))
    found = tables.external_tables(settings.parse(changed(target__folds=5, target__test_cases=0)), tmp_path)
    row = found["external_comparisons"].query("fold == -1 and metric == 'dsc'").iloc[0]  # type: ignore[union-attr]
    assert "1 cases without a value for every run left out" in row["note"]


def test_ensembles_count_a_case_once_whatever_the_number_of_folds(tmp_path: Path) -> None:
    files.write_table(tmp_path / "ensemble_cases.csv", pd.DataFrame(rows_of_folds(5, 10)))
    found = tables.ensemble_tables_of(settings.parse(changed(target__folds=5, target__test_cases=0)), tmp_path)
    summary, differences = found["ensemble_summary"], found["ensemble_comparisons"]
    assert summary is not None
    assert differences is not None
    row = summary[(summary["fold"] == -1) & (summary["metric"] == "dsc")].iloc[0]
    assert row[["n_groups", "n_cases", "n_missed"]].tolist() == [5, 9, 0.8]
    assert differences[differences["fold"] == -1].iloc[0][["n_groups", "n_cases"]].tolist() == [5, 9]
