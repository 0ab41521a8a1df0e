"""The command that judges claims over several studies."""

from __future__ import annotations

import gzip
import html
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from absl import flags

from jaxseg import manifest
from jaxseg.report.sections.targets import GAIN_LABEL
from jaxseg.study import claims, files
from jaxseg.types import UserError
from launch import verdicts
from tests.report.tables_builder import write_claims, write_workdir


@pytest.fixture
def kept(tiny_study: Path, tmp_path: Path) -> Path:
    """Two studies of other targets in one folder, the second with a compressed table, and a target made noisy."""
    for name, target, noise in (("a", "blobs", 0.0), ("b", "rings", 0.0), ("noisy", "blobs", 0.5)):
        (tmp_path / name).mkdir()
        shutil.copytree(tiny_study / "results", tmp_path / name / "results")
        record = json.loads((tiny_study / "study.json").read_text())
        record["target"] |= {"name": target, "noise": noise}
        files.write_json(tmp_path / name / "study.json", record)
    table = tmp_path / "b" / "results" / "cases.csv"
    manifest.write(table.with_name("cases.csv.gz"), gzip.compress(table.read_bytes()))
    manifest.remove(table)
    return tmp_path


def run(*arguments: str) -> None:
    flags.FLAGS.unparse_flags()
    flags.FLAGS(["launch.verdicts", *arguments])
    verdicts.main()


def test_verdicts_are_printed_and_written(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(f"--studies={kept}/[ab],{kept}/noisy", f"--table={kept}/verdicts.csv")
    shown = capsys.readouterr().out
    assert "to rings" in shown
    assert "noise levels of blobs: 0.5" in shown
    assert "C4b no gain at full size: undecided" in shown
    assert "lacks 0.25, 1.0, 2.0" in " ".join(shown.split())
    studies = {name: claims.read_target_study(kept / name) for name in "ab"}
    expected = claims.over_studies(studies, noisy={0.5: claims.read_study(kept / "noisy")})
    written = files.read_table(kept / "verdicts.csv")
    pd.testing.assert_series_equal(written["verdict"], expected["verdict"], check_dtype=False)
    beside = files.read_table(kept / "over_targets.csv")
    assert set(beside["role"]) <= {"study", "mean", "prediction", "tau", "slope"}


def test_gains_are_drawn_beside_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arms = ("scratch", "transfer")
    workdir = write_claims(write_workdir(tmp_path / "study", arms=arms, seeds=8))
    run(f"--studies={workdir}", f"--table={tmp_path}/verdicts.csv")
    assert f"figure: {tmp_path}/over_targets.svg" in capsys.readouterr().out
    target = json.loads((workdir / "study.json").read_text())["target"]["name"]
    assert f">{html.escape(target)}<" in (tmp_path / "over_targets.svg").read_text()
    (tmp_path / "over_targets.svg").write_text("mine")
    with pytest.raises(UserError, match=r"over_targets\.svg holds something else"):
        run(f"--studies={workdir}", f"--table={tmp_path}/verdicts.csv")


def test_nothing_is_replaced_but_the_files_of_an_earlier_command(
    kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    studies = f"--studies={kept}/[ab]"
    for name in ("over_targets.csv", "over_targets.svg"):
        with pytest.raises(UserError, match="what is written beside the verdicts has this name"):
            run(studies, f"--table={tmp_path}/{name}")
    # What is published of a study has no manifest, and its claims.csv the columns of the verdicts.
    published = tmp_path / "published"
    shutil.copytree(kept / "a" / "results", published)
    (published / manifest.NAME).unlink()
    before = (published / "claims.csv").read_bytes()
    with pytest.raises(UserError, match=r"claims\.csv holds something else"):
        run(studies, f"--table={published}/claims.csv")
    assert (published / "claims.csv").read_bytes() == before
    (tmp_path / "over_targets.csv").write_text("claim,of mine\n")
    with pytest.raises(UserError, match=r"over_targets\.csv holds something else"):
        run(studies, f"--table={tmp_path}/verdicts.csv")
    (tmp_path / "over_targets.csv").unlink()
    for _ in range(2):
        run(studies, f"--table={tmp_path}/verdicts.csv")
    assert (tmp_path / "verdicts.csv").read_text() != (tmp_path / "over_targets.csv").read_text()


def test_an_earlier_figure_is_replaced_and_another_is_not(tmp_path: Path) -> None:
    workdir = write_claims(write_workdir(tmp_path / "study", arms=("scratch", "transfer"), seeds=8))
    for _ in range(2):
        run(f"--studies={workdir}", f"--table={tmp_path}/verdicts.csv")
    drawn = (tmp_path / "over_targets.svg").read_text().replace(GAIN_LABEL, "mine")
    (tmp_path / "over_targets.svg").write_text(drawn)
    with pytest.raises(UserError, match=r"over_targets\.svg holds something else"):
        run(f"--studies={workdir}", f"--table={tmp_path}/verdicts.csv")


def test_verdicts_then_and_now_stand_beside_each_other(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        record = json.loads((kept / name / "study.json").read_text())
        files.write_json(kept / name / "study.json", record | {"rule_version": 1})
    run("--rejudge", f"--studies={kept}/[ab]", f"--table={kept}/rejudged.csv")
    shown = capsys.readouterr().out
    assert "| study | claim | verdict then | verdict now, exploratory | reason |" in shown
    table = files.read_table(kept / "rejudged.csv")
    assert set(table["study"]) == {"a", "b"}
    assert table["claim"].nunique() == 13
    judged = table[table["now"] != "not asked"]
    assert judged["exploratory"].str.contains("begun under version 1").all()
    run("--norejudge", f"--studies={kept}/[ab]")


def test_folders_without_studies_are_refused(kept: Path) -> None:
    for word, message in (
        (f"{kept}/c*", "no folder"),
        (f"{kept}/noisy", "without"),
        (f"{kept}/a/results", "no study"),
    ):
        with pytest.raises(UserError, match=message):
            run(f"--studies={word}")


def test_an_unfinished_study_is_named(kept: Path) -> None:
    for name in ("claims", "cases"):
        manifest.remove(kept / "a" / "results" / f"{name}.csv")
    with pytest.raises(UserError, match=r"no claims\.csv in .*a/results: not judged yet"):
        run(f"--studies={kept}/[ab]")


def test_studies_of_one_name_are_told_apart() -> None:
    assert verdicts.names([Path("x/a"), Path("y/b")]) == ["a", "b"]
    assert verdicts.names([Path("x/a"), Path("y/a")]) == ["x/a", "y/a"]
