"""Several launchers in one sweep's folder, launchers that are killed, and records of points that are damaged."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest

from jaxseg.study import files, sweep
from jaxseg.types import UserError
from launch import sweep_jobs
from tests.conftest import ROOT
from tests.launch.test_sweep_jobs import command, record

HOLD = "print('up', flush=True)\ntime.sleep(60)"


def point_of(command: sweep_jobs.Command) -> sweep.Point:
    return sweep.Point(command.name, (), {}, command.workdir)


def wait_for(command: sweep_jobs.Command, word: str) -> None:
    log = command.workdir / sweep.LOG
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if log.exists() and word in log.read_text().splitlines():
            return
        time.sleep(0.05)
    raise TimeoutError(log)


def test_two_launchers_share_the_points(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each point runs once, whoever starts it, and none counts as failed."""
    code = f"open({str(tmp_path)!r} + '/ran', 'a').write('x')\ntime.sleep"
    commands = [command(tmp_path, name, f"{code}({seconds})") for name, seconds in (("short", 0.5), ("long", 4))]
    launchers = [
        threading.Thread(target=sweep_jobs.run_processes, args=(order,), kwargs={"parallel": 1})
        for order in (commands, commands[::-1])
    ]
    for launcher in launchers:
        launcher.start()
    for launcher in launchers:
        launcher.join()
    assert [record(one)["state"] for one in commands] == ["done", "done"]
    assert [record(one)["attempts"] for one in commands] == [1, 1]
    assert (tmp_path / "ran").read_text() == "xx"
    said = capsys.readouterr().out
    assert "failed" not in said
    assert said.count(sweep_jobs.ELSEWHERE) == 2


def test_a_point_outlives_a_launcher_that_is_killed(tmp_path: Path) -> None:
    one = command(tmp_path, "point", HOLD)
    code = (
        f"from pathlib import Path\nfrom launch import sweep_jobs\n"
        f"sweep_jobs.start(sweep_jobs.Command('point', Path({str(one.workdir)!r}), {one.argv!r}))\n"
        "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    wait_for(one, "up")
    try:
        assert point_of(one).state == "running"
        assert sweep_jobs.start(one) is None
        assert record(one)["attempts"] == 1
    finally:
        subprocess.run(["fuser", "-s", "-k", str(one.workdir / sweep.CLAIM)], check=False)
    deadline = time.monotonic() + 20
    while point_of(one).state == "running" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert point_of(one).state == "interrupted"


def test_a_point_that_a_study_command_works_on_is_left_to_it(tmp_path: Path) -> None:
    one = command(tmp_path, "point", "sys.exit(2)")
    with files.locked(one.workdir):
        assert point_of(one).state == "running"
        assert sweep_jobs.start(one) is None
        assert sweep_jobs.finish(one, 2, 1.0).startswith("running")
    assert record(one) == {}
    process = sweep_jobs.start(one)
    assert process is not None
    assert sweep_jobs.finish(one, process.wait(), 1.0).startswith("failed")


def test_the_first_line_of_a_log_is_a_command_that_a_shell_takes(tmp_path: Path) -> None:
    one = sweep_jobs.Command(
        "p", tmp_path / "a b" / "p", (sys.executable, "-c", "import sys; print(sys.argv[1:])", "x y", "$HOME #", "'[1]")
    )
    process = sweep_jobs.start(one)
    assert process is not None
    process.wait()
    first, said = (one.workdir / sweep.LOG).read_text().splitlines()
    again = subprocess.run(["sh", "-c", first.removeprefix("$ ")], capture_output=True, text=True, check=True)
    assert again.stdout.strip() == said == "['x y', '$HOME #', \"'[1]\"]"


def test_what_failed_says_the_last_attempt_alone(tmp_path: Path) -> None:
    log = tmp_path / sweep.LOG
    log.write_text("$ a\nerror: old\n$ b\nerror: --workdir=x: No space left on device; make room\n")
    assert sweep.failure(log, 1) == "--workdir=x: No space left on device; make room"
    log.write_text("$ a\nerror: old\n$ b\nTraceback\nKeyError: 'x'\n")
    assert sweep.failure(log, 1) == "exit status 1: KeyError: 'x'"


@pytest.mark.parametrize("content", [b"", b'{"state": "do', b"[1]", b"\xff\xfe", b'{"state": "done"}', b"[" * 100000])
def test_a_damaged_record_of_a_point_costs_it_another_look(tmp_path: Path, content: bytes) -> None:
    one = command(tmp_path, "point", "")
    sweep.write_state(one.workdir, "done")
    assert point_of(one).state == "done"
    (one.workdir / sweep.RECORD).write_bytes(content)
    with pytest.warns(UserWarning, match=r"sweep\.json is damaged; the point counts as interrupted"):
        assert point_of(one).state == "interrupted"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sweep.write_state(one.workdir, "running")
    assert record(one)["state"] == "running"


def test_every_flipped_bit_of_a_record_is_seen(tmp_path: Path) -> None:
    path = tmp_path / sweep.RECORD
    sweep.write_note(path, {"state": "done", "seconds": 12.5})
    whole = path.read_bytes()
    for index in range(len(whole)):
        for bit in (0, 1, 4):
            changed = bytearray(whole)
            changed[index] ^= 1 << bit
            path.write_bytes(changed)
            assert sweep.read_note(path) in (None, {"state": "done", "seconds": 12.5}), changed


# ------------------------------------------------------------------------------------------------------------ locks


def test_a_file_system_without_locks_is_said_and_worked_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for number in (errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS):

        def flock(handle: object, how: int, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(files.fcntl, "flock", flock)
        with pytest.warns(UserWarning, match="a file system without locks"), files.locked(tmp_path):
            assert not files.is_locked(tmp_path)


def test_a_lock_is_held_once_and_released(tmp_path: Path) -> None:
    with files.locked(tmp_path):
        assert files.is_locked(tmp_path)
        with pytest.raises(UserError, match="in use by another process"), files.locked(tmp_path):
            pass
    assert not files.is_locked(tmp_path)
    with files.locked(tmp_path):
        pass


def test_a_lock_neither_empties_nor_follows_what_lies_in_its_place(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("kept")
    with files.locked(tmp_path):
        pass
    assert (tmp_path / ".lock").read_text() == "kept"
    (tmp_path / "target").write_text("theirs")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / ".lock").symlink_to(tmp_path / "target")
    with (
        pytest.raises(UserError, match=r"inner/\.lock is a link, which is not followed"),
        files.locked(tmp_path / "inner"),
    ):
        pass
    assert (tmp_path / "target").read_text() == "theirs"


def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    code = (
        "import time\nfrom pathlib import Path\nfrom jaxseg.study import files\n"
        f"with files.locked(Path({str(tmp_path)!r})):\n print('up', flush=True)\n time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    assert files.is_locked(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not files.is_locked(tmp_path)
