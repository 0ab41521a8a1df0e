"""The command that writes what a published study found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from jaxseg.study import files
from tests.programs import run, start
from tests.report.tables_builder import write_claims, write_workdir


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is published of a study of three arms and two training set sizes."""
    made = write_workdir(
        tmp_path_factory.mktemp("made") / "study", arms=("scratch", "transfer", "scratch_b"), sizes=(4, 0), seeds=8
    )
    folder = tmp_path_factory.mktemp("studies") / "here_to_there"
    for name in ("claims", "summary", "comparisons"):
        (folder / "results").mkdir(parents=True, exist_ok=True)
        shutil.copy(write_claims(made) / "results" / f"{name}.csv", folder / "results")
    shutil.copy(made / "study.json", folder)
    return folder


def test_a_page_gets_the_answer_means_claims_and_controls(study: Path) -> None:
    assert run("tools.draw_study", str(study)).split() == [str(study / "found.md")]
    text = (study / "found.md").read_text()
    claims = files.read_table(study / "results" / "claims.csv")
    answer = claims.loc[claims["role"] == "answer", "reason"].iloc[0]
    assert text.startswith(f"> {answer}\n")
    rows = {cells[0]: cells[1:] for cells in (line.strip("| ").split(" | ") for line in text.splitlines())}
    assert rows["arm"] == ["4 training cases", "all training cases"]
    summary = files.read_table(study / "results" / "summary.csv").query("label == 'mean' and metric == 'dsc'")
    pairs = files.read_table(study / "results" / "comparisons.csv").query("label == 'mean' and metric == 'dsc'")
    for place, size in enumerate((4, 0)):
        of_size = summary[summary["train_cases"] == size].set_index("arm")["mean"]
        own = pairs[(pairs["train_cases"] == size) & (pairs["arm_a"] == "transfer")].iloc[0]
        assert rows["scratch"][place] == f"{of_size['scratch']:.3f}"
        assert rows["transfer"][place] == (
            f"{of_size['transfer']:.3f}, {own['mean_diff']:+.3f} [{own['ci_low']:.3f}, {own['ci_high']:.3f}]"
        )
    judged = claims[claims["role"] == "claim"].drop_duplicates("claim").set_index("claim")["verdict"]
    assert set(judged.index) == {"C1", "C4b"}
    assert all(rows[claim][1] == f"**{verdict}**" for claim, verdict in judged.items())
    of_control = claims[(claims["role"] == "control") & (claims["arm"] == "scratch_b")]
    assert f"| scratch_b | {of_control['claim'].iloc[0]} | {of_control['verdict'].iloc[0]} |" in text
    assert text.splitlines()[-1].startswith("Not asked here: ")


def test_an_answer_of_a_declared_look_says_what_its_limits_are(study: Path, tmp_path: Path) -> None:
    shutil.copytree(study, tmp_path / "looked")
    path = tmp_path / "looked" / "results" / "claims.csv"
    files.read_table(path).assign(confidence=0.9946).to_csv(path, index=False)
    run("tools.draw_study", str(tmp_path / "looked"))
    line = (tmp_path / "looked" / "found.md").read_text().splitlines()[2]
    assert line.startswith("Brackets in this answer hold limits of 99.46 %")


def test_a_study_that_was_published_anew_is_told_from_its_text(study: Path, tmp_path: Path) -> None:
    shutil.copytree(study, tmp_path / "again")
    run("tools.draw_study", str(tmp_path / "again"))
    run("tools.draw_study", str(tmp_path / "again"), "--check")
    summary = files.read_table(tmp_path / "again" / "results" / "summary.csv")
    summary["mean"] += 0.1
    summary.to_csv(tmp_path / "again" / "results" / "summary.csv", index=False)
    done = start("tools.draw_study", str(tmp_path / "again"), "--check")
    assert (done.returncode, "found.md" in done.stderr) == (1, True)


def test_a_folder_that_is_no_study_is_refused(tmp_path: Path) -> None:
    done = start("tools.draw_study", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == f"{tmp_path} holds no published study: fill it with `python -m tools.publish_study`\n"


def test_the_code_that_trained_is_named_beside_that_which_judged(study: Path, tmp_path: Path) -> None:
    shutil.copytree(study, tmp_path / "judged")
    path = tmp_path / "judged" / "study.json"
    record = json.loads(path.read_text())
    made = {"versions": record["versions"], "device": record["device"], "git_commit": "a" * 40}
    path.write_text(json.dumps(record | {"git_commit": "b" * 40, "trained_on": [made]}))
    run("tools.draw_study", str(tmp_path / "judged"))
    assert f"jaxseg {'a' * 7}, judged by {'b' * 7}, jax" in (tmp_path / "judged" / "found.md").read_text()


def test_controls_of_all_studies_are_counted_and_listed(study: Path, tmp_path: Path) -> None:
    folder = tmp_path / "studies" / "here_to_there"
    shutil.copytree(study, folder)
    path = folder / "results" / "comparisons.csv"
    table = files.read_table(path)
    placebo = (table["arm_a"] == "scratch_b") & (table["label"] == "mean") & (table["metric"] == "dsc")
    sure = table[placebo & (table["train_cases"] == 4)].assign(
        arm_a="self_transfer", mean_diff=0.02, ci_low=0.01, ci_high=0.03
    )
    unsure = sure.assign(train_cases=0, ci_low=-0.01)
    loud = table[placebo & (table["train_cases"] == 4)].assign(mean_diff=0.02, ci_low=0.001, ci_high=0.04)
    pd.concat([table[~placebo], sure, unsure, loud]).to_csv(path, index=False)
    run("tools.draw_controls", f"--studies={tmp_path / 'studies'}")
    text = (tmp_path / "studies" / "controls" / "table.md").read_text()
    assert text.startswith("The positive control is found in 1 of 2 comparisons, and the placebo is quiet in 0 of 1.")
    cells = [row.strip("| ").split(" | ")[2:] for row in text.splitlines()[4:]]
    size = cells[1][1]
    assert cells == [
        ["`self_transfer`", "4", "+0.020 [0.010, 0.030]", "found"],
        ["`self_transfer`", size, "+0.020 [-0.010, 0.030]", "**not found**"],
        ["`scratch_b`", "4", "+0.020 [0.001, 0.040]", "**not quiet**"],
    ]
    assert int(size) > 4
