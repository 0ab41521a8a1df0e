"""launch.export: what it writes, what it refuses, and that others can read it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import jaxseg
from jaxseg.exports import formats, state_dict
from jaxseg.study import export
from jaxseg.types import UserError
from launch import export as export_command
from tests.commands import Command, make_command
from tests.optional import optional_module


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_study: Path) -> Command:
    made = make_command(monkeypatch, capsys, export_command.main)
    return lambda *arguments: made(f"--workdir={tiny_study}", *arguments)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def test_a_state_dict_is_read_by_its_own_library(command: Command, tiny_study: Path, tmp_path: Path) -> None:
    status, out, err = command("--arm=transfer", "--seed=1", f"--output={tmp_path / 'out'}")
    assert (status, err) == (0, "")
    assert "read back: its 11 tensors equal the study's parameters bit for bit" in out
    found = content(tmp_path / "out")
    assert set(found) == {"network.safetensors", "network.safetensors.json", "network.py"}
    assert found["network.py"] == state_dict.NETWORK.read_bytes()
    arm = jaxseg.load(tiny_study).arm("transfer")
    tensors = safetensors.numpy.load_file(tmp_path / "out" / "network.safetensors")
    kernel = arm.params(1)["decoder"]["level_0"]["conv_0"]["kernel"]
    np.testing.assert_array_equal(
        tensors["decoder.level_0.conv_0.conv.weight"], np.asarray(kernel).transpose(3, 2, 0, 1)
    )
    about = json.loads(found["network.safetensors.json"])
    assert about["network"]["widths"] == [2, 4]
    assert about["labels"] == ["background", *arm.target.labels]
    assert (about["trained"]["arm"], about["trained"]["seed"], about["trained"]["step"]) == ("transfer", 1, 8)
    assert about["preparation"]["normalization"] == ["zscore"]
    inside = formats.from_safetensors(found["network.safetensors"]).metadata
    assert inside.items() <= about.items()


def test_the_average_is_that_of_the_arm_and_of_the_step(tiny_study: Path) -> None:
    """An arm may have its own, and a start, or the best validated network, averages nothing."""
    study = jaxseg.load(tiny_study)
    arm = study.arm("transfer")
    train = dataclasses.replace(arm.settings.train, average=0.5)
    arm = dataclasses.replace(arm, settings=dataclasses.replace(arm.settings, train=train))
    averages = {
        step: export.describe(study, arm, seed=1, kind="jax", step=step)["trained"]["average"]
        for step in (None, 0, *train.scored_at, "best")
    }
    assert averages == {None: 0.5, 0: 0.0, **dict.fromkeys(train.scored_at, 0.5), "best": 0.0}


ELSEWHERE = """
import sys
import jax.export, numpy as np

program = jax.export.deserialize(bytearray(open("network.jax", "rb").read()))
np.save("probabilities.npy", program.call(np.load("windows.npy")))
assert not [name for name in sys.modules if name.startswith("jaxseg")]
"""


def test_a_program_runs_without_jaxseg(command: Command, tiny_study: Path, tmp_path: Path) -> None:
    status, out, err = command("--arm=scratch", "--seed=0", "--format=jax", f"--output={tmp_path / 'network.jax'}")
    assert (status, err) == (0, "")
    assert "read back: its probabilities on 2 windows of noise differ from jaxseg's by at most" in out
    written = content(tmp_path)
    assert set(written) == {"network.jax", "network.jax.json"}
    assert os.fsencode(state_dict.NETWORK.parent.parent) not in written["network.jax"]  # no folders of this machine
    windows = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)
    np.save(tmp_path / "windows.npy", windows)
    done = subprocess.run([sys.executable, "-c", ELSEWHERE], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    arm = jaxseg.load(tiny_study).arm("scratch")
    expected = [arm.predict(window, (0,), probabilities=True)[0] for window in windows]
    np.testing.assert_allclose(np.load(tmp_path / "probabilities.npy"), expected, atol=1e-5)


def test_an_earlier_step_has_the_weights_of_that_step(command: Command, tiny_study: Path, tmp_path: Path) -> None:
    status, _, err = command("--arm=scratch", "--seed=0", "--step=4", f"--output={tmp_path / 'at4.safetensors'}")
    assert (status, err) == (0, "")
    found = safetensors.numpy.load_file(tmp_path / "at4.safetensors")
    arm = jaxseg.load(tiny_study).arm("scratch")
    assert state_dict.difference(arm.params(0, 4), found, arm.settings.model) is None
    assert state_dict.difference(arm.params(0), found, arm.settings.model) is not None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--arm=other", "--seed=0"), "no arm 'other'. Arms: scratch, transfer"),
        (("--arm=scratch", "--seed=7"), "arm 'scratch' has no seed 7; its seeds are (0, 1)"),
        (("--arm=scratch",), "--seed is missing; for example --seed=0"),
        (("--arm=scratch", "--seed=0", "--fold=3"), "arm 'scratch' has no fold = 3"),
        (("--arm=scratch", "--seed=0", "--step=3"), "no checkpoint of step 3"),
        (("--arm=scratch", "--seed=0", "--step=best"), "holds no best parameters"),
        (("--arm=scratch", "--seed=0", "--step=last"), "--step=last: a step is a number, or best"),
    ],
)
def test_what_cannot_be_exported_is_said(
    command: Command, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    status, _, err = command(*arguments, f"--output={tmp_path / 'out'}")
    assert status == 2
    assert said in err
    assert not (tmp_path / "out").exists()


def test_a_name_of_another_format_is_refused(command: Command, tmp_path: Path) -> None:
    status, _, err = command("--arm=scratch", "--seed=0", "--format=jax", f"--output={tmp_path / 'a.safetensors'}")
    assert status == 2
    assert ".safetensors is the ending of --format=safetensors; with --format=jax a file's name ends in .jax" in err


def test_a_study_keeps_its_own_folders(command: Command, tiny_study: Path) -> None:
    status, _, err = command("--arm=scratch", "--seed=0", f"--output={tiny_study / 'results'}")
    assert status == 2
    assert "is part of the study" in err


def changed_weights(folder: Path) -> Path:
    path = folder / "network.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    return path


def changed_metadata(folder: Path) -> Path:
    path = folder / "network.safetensors.json"
    path.write_text(path.read_text().replace('"blobs 1"', '"liver"'), encoding="utf-8")
    return path


def changed_code(folder: Path) -> Path:
    (folder / "network.py").write_text("# notes\n", encoding="utf-8")
    return folder / "network.py"


def linked(folder: Path) -> Path:
    path = folder / "network.safetensors"
    path.rename(folder / "elsewhere")
    path.symlink_to(folder / "elsewhere")
    return path


@pytest.mark.parametrize("change", [changed_weights, changed_metadata, changed_code, linked])
def test_only_its_own_exports_are_replaced(command: Command, tmp_path: Path, change: Callable[[Path], Path]) -> None:
    def run(seed: int) -> tuple[int, str, str]:
        return command("--arm=scratch", f"--seed={seed}", f"--output={tmp_path}")

    assert run(0)[0] == 0
    first = content(tmp_path)
    assert run(1)[0] == 0
    assert content(tmp_path)["network.safetensors"] != first["network.safetensors"]
    path = change(tmp_path)
    before = content(tmp_path)
    status, _, err = run(0)
    assert status == 2
    assert f"--output: {path} is no export" in err or f"--output: {tmp_path}" in err
    assert content(tmp_path) == before


def test_a_run_that_diverged_is_refused_by_name(tiny_study: Path, tmp_path: Path) -> None:
    study = jaxseg.load(tiny_study)
    arm = study.arm("scratch")
    runs = {**arm.runs, 1: dataclasses.replace(arm.runs[1], diverged_at=4)}
    arm = dataclasses.replace(arm, runs=runs)
    with pytest.raises(UserError, match=r"arm 'scratch', seed 1 diverged at step 4: .*; seeds that did not: 0"):
        export.export_network(study, arm, seed=1, kind="safetensors", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_that_does_not_hold_what_was_written_is_said(
    tiny_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = jaxseg.load(tiny_study)
    write = export.outputs.write_file
    monkeypatch.setattr(
        export.outputs, "write_file", lambda path, content: write(path, content[:-1] + bytes([content[-1] ^ 1]))
    )
    with pytest.raises(UserError, match=r"does not hold what was written: .* has other values"):
        export.export_network(study, study.arm("scratch"), seed=0, kind="safetensors", output=tmp_path / "out")


def test_without_its_library_a_format_says_how_to_get_it(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    status, _, err = command("--arm=scratch", "--seed=0", f"--output={tmp_path / 'out'}")
    assert status == 2
    assert "--format=safetensors needs safetensors, which cannot be imported here" in err
    assert "pip install -e '.[import]'" in err


def test_pytorch_reads_its_file(command: Command, tmp_path: Path) -> None:
    torch = optional_module("torch")
    status, out, err = command("--arm=transfer", "--seed=0", "--format=torch", f"--output={tmp_path / 'a.pt'}")
    assert (status, err) == (0, "")
    assert "bit for bit, and PyTorch's logits on 2 windows of noise differ from jaxseg's by at most" in out
    found = torch.load(tmp_path / "a.pt", weights_only=True)
    about = json.loads((tmp_path / "a.pt.json").read_text(encoding="utf-8"))
    assert about["files"]["a.pt"] == hashlib.sha256((tmp_path / "a.pt").read_bytes()).hexdigest()
    assert found["metadata"]["trained"] == about["trained"]
