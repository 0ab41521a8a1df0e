"""Studies that start from a network of someone else's: the import, what is refused, and what the study says of it."""

from __future__ import annotations

import json
import re
import shutil
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from markupsafe import Markup
from ml_collections import ConfigDict

import jaxseg
from configs import default
from jaxseg.report import page
from jaxseg.report.sections.arms import standfirst
from jaxseg.study import export, record, recording, source_folder
from jaxseg.study.claims import study_tables
from jaxseg.study.plan import source_networks
from jaxseg.study.plan.dry_run import describe
from jaxseg.study.run import STAGES, run_stages
from jaxseg.types import UserError
from launch import cli, import_weights
from tests.commands import Command, make_command
from tests.imports.weight_files import MODEL, documented_rules, foreign_tensors, write_safetensors
from tests.tiny_study import changed, silent

OTHER = "synthetic:tubes?n=9&shape=16x16"
Import = Callable[..., tuple[Path, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return make_command(monkeypatch, capsys, import_weights.main)


@pytest.fixture
def imported(command: Command, tmp_path: Path) -> Import:
    """Imports the network of the documented rules; gives the folder and what was said."""

    def run(*more: str, classes: int = 3) -> tuple[Path, str, str]:
        weights = write_safetensors(tmp_path / "mice.safetensors", foreign_tensors(classes))
        folder = tmp_path / "imports" / "mice"
        words = [f"--input={weights}", f"--rules={documented_rules(tmp_path)}", f"--output={folder}", *more]
        status, out, err = command(*words)
        assert status == 0, err
        return folder, out, err

    return run


def config_of(folder: Path, **fields: Any) -> ConfigDict:
    made = changed(pretrain__from_workdir=str(folder), pretrain__share="one", **fields)
    made.model.update(MODEL | {"blocks": (), "decoder_blocks": ()})
    made.arms = default.pick_arms("scratch", "transfer")
    return made


def test_an_import_says_what_became_of_everything_and_how_a_study_starts_from_it(imported: Import) -> None:
    folder, out, err = imported("--trained_on=mice", "--licence=MIT", "--origin=https://example.org")
    assert err == ""
    assert ["encoder/level_0/conv_0/kernel", "(3, 3, 1, 2)", "down0.conv0.weight"] in [
        re.split(r"  +", line) for line in out.splitlines()
    ]
    assert "ignored, counts batches, which nothing here needs: down0.norm0.num_batches_tracked, " in out
    shapes = [tuple(array.shape) for name, array in foreign_tensors().items() if "num_batches" not in name]
    total = sum(map(np.prod, shapes))
    assert f"{total} of {total} numbers of the network's parameters are the file's; 1 channel(s), 3 classes" in out
    options = [line.strip(" \\") for line in out.splitlines() if line.startswith("    --config.")]
    made = cli.parse_config(["--config=tests/tiny_study.py", *(option.replace("'", "") for option in options)])
    assert made.pretrain.from_workdir == str(folder)
    assert (made.pretrain.share, made.model.norm, tuple(made.model.widths)) == ("one", "batch", (2, 4))
    held = json.loads((folder / "import.json").read_text())
    assert held["checkpoint"]["licence"] == "MIT"
    assert len(held["checkpoint"]["sha256"]) == 64
    assert held["names"]["used"]["head/bias"] == "out.bias"


def test_the_file_is_listed_without_anything_being_written(command: Command, tmp_path: Path) -> None:
    weights = write_safetensors(tmp_path / "w.safetensors", {"net.a": np.ones((2, 3), np.float16)})
    status, out, _ = command(f"--input={weights}", "--list")
    assert (status, out.splitlines()[1:3]) == (0, ["tensor  shape   type", "net.a   (2, 3)  float16"])
    assert out.endswith("1 tensors, 6 numbers\n")
    assert list(tmp_path.iterdir()) == [weights]


def test_a_folder_that_is_not_empty_is_left_alone(imported: Import, command: Command, tmp_path: Path) -> None:
    folder, _, err = imported("--trained_on= ")
    assert "warning: what it was trained on is unknown (--trained_on)" in err
    words = [f"--input={tmp_path / 'mice.safetensors'}", f"--rules={tmp_path / 'rules.py'}", f"--output={folder}"]
    status, _, err = command(*words)
    assert (status, "is not empty; give a new folder" in err) == (2, True)


def test_an_import_that_was_interrupted_is_done_again(
    imported: Import, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*given: object) -> None:
        raise KeyboardInterrupt

    imported("--trained_on=mice")
    output = tmp_path / "again"
    words = [f"--input={tmp_path / 'mice.safetensors'}", f"--rules={tmp_path / 'rules.py'}", f"--output={output}"]
    with monkeypatch.context() as patched:
        patched.setattr(source_folder.files, "write_json", killed)
        assert command(*words)[0] == 130
    assert not output.exists()
    assert (tmp_path / ".again.partial" / "checkpoints").exists()
    assert command(*words)[0] == 0
    assert source_folder.read(output) is not None
    assert not (tmp_path / ".again.partial").exists()


def test_what_an_import_cannot_be_for_a_study(imported: Import, tmp_path: Path) -> None:
    folder, _, _ = imported("--trained_on=mice")
    for fields, text in (
        ({"pretrain__share": "per_seed"}, r"is an import, and so one network, .* set pretrain\.share = 'one' too"),
        ({"pretrain__from_arm": "scratch"}, r"is an import, which has no arms; leave pretrain\.from_arm"),
        (
            {"model__widths": (3, 6)},
            r"only \d+ of \d+ parameters .* differ in model\.widths = \(3, 6\) \(imported: \(2, 4\)\)\. Not matched",
        ),
    ):
        made = config_of(folder)
        made.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
        with pytest.raises(UserError, match=text):
            run_stages(made, tmp_path / "study", stages=[], progress=silent)
    made = config_of(folder)
    made.model.skips = False
    made.pretrain.min_loaded = 0.0
    with pytest.warns(
        UserWarning, match=r"arm 'transfer' has another network .* model\.skips = False \(imported: True\)"
    ):
        run_stages(made, tmp_path / "study", stages=[], progress=silent)
    made = config_of(folder, target__normalization="none")
    with pytest.warns(UserWarning, match=r"arm 'transfer': target\.normalization = 'none', .* by 'zscore'"):
        run_stages(made, tmp_path / "study", stages=[], progress=silent)


def test_networks_whose_study_is_not_there_may_have_seen_anything(imported: Import, tmp_path: Path) -> None:
    folder, _, _ = imported("--trained_on=mice")
    shutil.copytree(folder / "checkpoints", tmp_path / "networks")
    ready = run_stages(config_of(tmp_path / "networks"), tmp_path / "study", stages=[], progress=silent)
    made = source_networks.pretraining_of(ready.study.arms[1])
    assert made is not None
    assert made.checkpoint == record.Checkpoint(str(tmp_path / "networks"))


def test_controls_are_pretrained_by_the_study_itself(imported: Import, tmp_path: Path) -> None:
    folder, _, _ = imported("--trained_on=mice")
    made = config_of(folder)
    made.arms = default.pick_arms("scratch", "transfer", "self_transfer", "shuffled_source")
    made.arms.again = made.arms.transfer.copy_and_resolve_references()
    made.target.train_cases = (2,)  # the others are there to pretrain on
    ready = run_stages(made, tmp_path / "study", stages=[], progress=silent)
    assert "checkpoint mice.safetensors, trained on mice: transfer, again\n" in describe(ready)
    sources = {run.key.arm: run.source for job in ready.plan.of_kind("train") for run in job.runs}
    pretrained = {run.key for job in ready.plan.of_kind("pretrain") for run in job.runs}
    assert {sources["self_transfer"], sources["shuffled_source"]} == pretrained
    assert len(pretrained) == 2
    assert sources["transfer"] == sources["again"] not in pretrained
    made.arms.self_transfer.pretrain.from_workdir = str(folder)
    with pytest.raises(UserError, match=r"pretrain\.from_workdir = .* allowed: '' where source\.shuffle_labels or"):
        run_stages(made, tmp_path / "other", stages=[], progress=silent)


def test_an_import_that_was_changed_is_refused(imported: Import, tmp_path: Path) -> None:
    folder, _, _ = imported("--trained_on=mice")
    text = (folder / "import.json").read_text()
    for change, said in (
        (('"mice"', '"cats"'), "import.json is damaged"),
        (("SHA256SUMS", ""), r"it is no record of an import: format is 'one' and not a whole number"),
    ):
        (folder / "import.json").write_text(text.replace(*change))
        if change[0] == "SHA256SUMS":
            (folder / change[0]).unlink()
            (folder / "import.json").write_text(text.replace('"format": 1', '"format": "one"'))
        with pytest.raises(UserError, match=said):
            source_folder.read(folder)
    (folder / "import.json").write_text(text.replace('"format": 1', '"format": 9'))
    with pytest.raises(UserError, match="is of format 9, and this version of jaxseg reads 1"):
        source_folder.read(folder)
    (folder / "import.json").write_text(text)
    assert source_folder.read(folder)
    (folder / "import.json").write_text(text.replace('"params": "', '"params": "0'))
    with pytest.raises(UserError, match="the checkpoint beside it is not the one"):
        source_folder.read(folder)
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(UserError, match="no checkpoint of step 0"):
        source_folder.read(folder)


def test_a_study_from_an_import_speaks_of_this_checkpoint_and_of_what_it_may_have_seen(
    imported: Import, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, _ = imported("--trained_on=128 mice", classes=5)
    made = config_of(folder, analysis__cases=0, base_seed=3)
    made.arms.transfer.pretrain = {"min_loaded": 0.1}
    workdir = tmp_path / "study"
    run_stages(made, workdir, stages=STAGES, progress=silent)
    monkeypatch.setattr(page, "_draw", lambda chart, folder: Markup(""))
    page.write_report(workdir)
    held = record.read(workdir)
    assert held is not None
    assert held.arms["transfer"].pretrain.checkpoint.trained_on == "128 mice"
    assert held.arms["transfer"].pretrain.checkpoint.file == "mice.safetensors"
    assert {run.source.seed for run in held.runs if run.arm == "transfer"} == {3}
    (table,) = (workdir / "load_tables" / "transfer").glob("*.txt")
    lines = table.read_text().splitlines()
    fates = [line.split()[1] for line in lines if line.startswith("head/bias")]
    assert fates == ["re-initialised", "unused"]
    assert sum(" loaded " in line for line in lines) > 10
    claims = pd.read_csv(workdir / "results" / "claims.csv")
    seen = "this checkpoint was trained on 128 mice, as declared; that it has not seen the test cases is unchecked"
    answer = claims[claims["role"] == "answer"].iloc[0]["reason"]
    assert answer.startswith("This checkpoint on ")
    assert seen.capitalize().replace("the test", "the test") in answer
    judged = claims[(claims["role"] == "claim") & (claims["arm"] == "transfer")]
    assert len(judged)
    assert judged["reason"].str.contains(seen, regex=False).all()
    text = (workdir / "report.html").read_text()
    assert "Does starting from the checkpoint <b>mice.safetensors</b> help" in text
    assert text.count(f"† transfer: mice.safetensors: {seen}") >= 5
    assert "<sup title=" in text
    assert "licence unknown, trained on 128 mice" in text
    study = jaxseg.load(workdir)
    begun = {
        name: export.describe(study, study.arm(name), seed=0, kind="jax")["trained"]["started_from"]
        for name in study.arms
    }
    assert begun["scratch"] is None
    assert (begun["transfer"]["file"], begun["transfer"]["trained_on"]) == ("mice.safetensors", "128 mice")


def test_what_a_control_learned_is_not_taken_for_the_source_of_a_study(imported: Import, tmp_path: Path) -> None:
    """The control stands first and is trained here, and the network that the study is about is not."""
    folder, _, _ = imported("--trained_on=mice")
    made = config_of(folder)
    made.target.train_cases = (2,)
    given = {"from_workdir": str(folder), "share": "one"}
    made.arms = default.pick_arms("scratch", "self_transfer")
    made.arms.given = default.arm("pretrained", "none", pretrain=given)
    planned = run_stages(made, tmp_path / "study", stages=[], progress=silent)
    found = recording.planned_record(planned, 2)
    assert study_tables.read_record(found).source == "mice.safetensors"
    tables = types.SimpleNamespace(study=found, settings=planned.study, arms=found.arms)
    words = "Does starting from the checkpoint <b>mice.safetensors</b> help to segment <b>synthetic_blobs</b>?"
    assert words in standfirst(tables)
    made.arms.hearts = default.arm("pretrained", "none", source={"data": OTHER}, pretrain=default.OWN_SOURCE)
    planned = run_stages(made, tmp_path / "study", stages=[], progress=silent)
    found = recording.planned_record(planned, 2)
    assert found.source.name == "synthetic_tubes"
    tables.study = found
    assert "Does starting from one of <b>mice.safetensors and synthetic_tubes</b> help" in standfirst(tables)


def test_an_import_in_the_folder_of_a_study_is_no_network_of_that_study(imported: Import, tmp_path: Path) -> None:
    folder, _, _ = imported("--trained_on=mice")
    made = config_of(folder)
    made.arms = default.pick_arms("transfer")
    made.arms.hearts = default.arm("pretrained", "none", source={"data": OTHER}, pretrain=default.OWN_SOURCE)
    ready = run_stages(made, tmp_path, stages=[], progress=silent)
    recording.write_study(ready, None, 2)
    arm = ready.study.arms[0]
    assert (source_networks.given_source(arm), source_networks.given_task(arm)) == ("", None)
