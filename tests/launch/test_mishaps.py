"""What the machine refuses ends a command with one sentence: the path, what it is, what to do, and an exit status."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxseg.loop import Interrupted
from launch import cli, mishaps
from launch import study as study_command
from tests.conftest import ROOT

Command = Callable[..., tuple[int, str]]


@pytest.mark.parametrize(
    ("number", "status", "help_"),
    [
        (errno.ENOSPC, 1, "make room"),
        (errno.EDQUOT, 1, "raise the quota"),
        (errno.EFBIG, 1, "limit"),
        (errno.EROFS, 2, "give a place that can be written to"),
        (errno.EACCES, 2, "change its permissions"),
        (errno.ENOTDIR, 2, "a file stands where a folder is needed"),
        (errno.EISDIR, 2, "a folder stands where a file is needed"),
        (errno.ENAMETOOLONG, 2, "a shorter name"),
        (errno.EMFILE, 1, "ulimit -n"),
        (errno.EIO, 1, "did not deliver"),
        (errno.ESTALE, 1, "nothing was set aside"),
        (errno.ENOMEM, 1, "free memory"),
    ],
)
def test_what_the_system_refuses_is_a_sentence(number: int, status: int, help_: str) -> None:
    said = mishaps.explain(OSError(number, os.strerror(number), "/a/b"))
    assert said is not None
    assert said[1] == status
    assert said[0].startswith(f"error: /a/b: {os.strerror(number)}; ")
    assert help_ in said[0]
    text = f"INTERNAL: Error writing \"/a/b\": x [os_error_code='{number}']"
    assert mishaps.explain(ValueError(text)) == said, "TensorStore's words for the same"
    text = f"Failed to finalize.\nwrite() failed: {os.strerror(number)}; writing /a/b; at byte 61440; Failed to close"
    assert mishaps.explain(RuntimeError(text)) == said, "ArrayRecord's words for the same"
    above = RuntimeError("the store was not written")
    above.__cause__ = OSError(number, os.strerror(number), "/a/b")
    assert mishaps.explain(above) == said, "a library's error about it"


@pytest.mark.parametrize(
    ("error", "status", "part"),
    [
        (MemoryError(), 1, "memory ran out"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore"), 1, "seeds_per_chunk"),
        (RuntimeError("can't start new thread"), 1, "no more threads"),
        (KeyboardInterrupt(), 130, "stopped by SIGINT"),
        (Interrupted(15, "saved"), 143, "stopped by SIGTERM; saved"),
        (OSError(errno.EXDEV, "Invalid cross-device link", "/a", None, "/b"), 1, "/a -> /b: Invalid cross-device link"),
    ],
)
def test_what_else_ends_a_command_is_a_sentence(
    command: Command, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, part: str, tmp_path: Path
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(study_command.study_run, "run_stages", fail)
    ended, message = command("--config=tests/tiny_study.py", f"--workdir={tmp_path}")
    assert ended == status
    assert part in message
    assert "Traceback" not in message
    assert len(message.splitlines()) == 1


def test_a_refusal_that_names_no_file_names_where_the_command_writes(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(study_command.study_run, "run_stages", fail)
    _, message = command("--config=tests/tiny_study.py", f"--workdir={tmp_path}")
    assert message.startswith(f"error: --workdir={tmp_path}: No space left on device; make room")


def test_a_bug_keeps_its_traceback() -> None:
    for error in (KeyError("x"), ZeroDivisionError(), ValueError("y"), AssertionError()):
        assert mishaps.explain(error) is None
    try:
        try:
            open("absent")  # noqa: SIM115
        except FileNotFoundError:
            {}["a bug in what handles it"]
    except KeyError as error:
        assert mishaps.explain(error) is None  # noqa: PT017


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("/dev/null/study", "a file stands where a folder is needed"),
        ("{tmp}/" + "x" * 300, "File name too long"),
        ("{tmp}/file", "is a file; give a folder"),
        ("{tmp}/file/study", "a file stands where a folder is needed"),
        ("", "it is empty"),
        ("~nobody-of-this-name/x", "the home that ~nobody-of-this-name stands for is not known"),
    ],
)
def test_a_workdir_that_cannot_be(command: Command, tmp_path: Path, place: str, text: str) -> None:
    (tmp_path / "file").write_text("")
    status, message = command("--config=tests/tiny_study.py", f"--workdir={place.format(tmp=tmp_path)}")
    assert (status, "Traceback" in message) == (2, False), message
    assert text in message


def test_a_flag_given_twice_is_refused(command: Command, tmp_path: Path) -> None:
    status, message = command("--config=tests/tiny_study.py", "--config=configs/quickstart.py", f"--workdir={tmp_path}")
    assert (status, message) == (
        2,
        "error: --config is given twice, as tests/tiny_study.py and as configs/quickstart.py; give it once\n",
    )
    status, message = command(
        "--config", "tests/tiny_study.py", f"--workdir={tmp_path}", "--workdir", f"{tmp_path}/other"
    )
    assert (status, f"--workdir is given twice, as {tmp_path} and as {tmp_path}/other" in message) == (2, True)
    status, message = command("--config=tests/tiny_study.py", "--dry_run", f"--workdir={tmp_path / 'w'}", "--dry_run")
    assert status == 0, message


def test_the_home_is_put_in_for_a_tilde_in_flags(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "study.py").write_text("from tests.tiny_study import get_config\n")
    status, message = command(
        "--config=~/study.py", "--workdir=~/w", "--config.runtime.store_dir=~/s", "--stages=prepare"
    )
    assert status == 0, message
    assert (tmp_path / "w" / "config.json").exists()
    assert list((tmp_path / "s").iterdir())
    assert not Path("~").exists()


# -------------------------------------------------------------------------------------------------- the environment


def test_the_folder_of_compiled_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli.cache_folder() == tmp_path / ".cache" / "jaxseg" / "xla"
    monkeypatch.setenv("HOME", str(tmp_path / "absent"))
    assert cli.cache_folder() is None
    assert not (tmp_path / "absent").exists()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cli.cache_folder() == tmp_path / "cache" / "jaxseg" / "xla"
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/absent")
    assert cli.cache_folder() is None
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # a user that the system does not know
    assert cli.cache_folder() is None


def doctor(limits: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", f'{limits} exec "{sys.executable}" -m launch.doctor'],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name not in environment} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_platform_without_a_device_is_a_sentence() -> None:
    done = doctor(JAX_PLATFORMS="cuda,absent")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert "error: JAX finds no device for JAX_PLATFORMS=cuda,absent (" in done.stderr


def test_an_address_space_in_which_readers_would_wait_for_ever_is_refused() -> None:
    done = doctor("ulimit -v 3000000;")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert "may use 2.9 GiB of address space (ulimit -v), and at least 4 GiB are needed" in done.stderr


def test_too_few_threads_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []

    def start(thread: object) -> None:
        if len(started) == 9:
            raise RuntimeError("can't start new thread")
        started.append(thread)

    monkeypatch.setattr(cli.threading.Thread, "start", start)
    with pytest.raises(cli.UserError, match="starts 9 threads for this process and no more, and 64 are needed"):
        cli.check_room()


def test_the_last_value_of_a_field_counts(command, tmp_path):
    words = ["--config=tests/tiny_study.py", "--config.target.patch=(16, 16)", "--config.target.patch=(8, 8)"]
    assert cli.parse_config([*words, "--config.model.widths=(2, 4)"]).target.patch == (8, 8)
    status, message = command(*words, "--config.target.patch=(5,)", f"--workdir={tmp_path}", "--dry_run")
    assert status == 2
    assert "config.target.patch = (5,)" in message
