"""What commands say, and that neither a name nor a reader who leaves ends them."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import terminal
from tests.conftest import ROOT

HOSTILE = ("[red]", "case[/b]", "[@click=(]", "scan\x1b[2J", "\u202egpj", "bell\x07", "größe", "x\udcff")


def in_process(code: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Python code after the streams are set up, in a process of its own."""
    setup = "import sys, warnings\nfrom launch import terminal\nterminal.use_utf8()\nterminal.set_up()\n"
    environment = os.environ | dict(options.pop("env", {}))  # type: ignore[call-overload]
    return subprocess.run(
        [sys.executable, "-c", setup + code], cwd=ROOT, env=environment, check=False, timeout=120, **options
    )  # type: ignore[call-overload, no-any-return]


def on_a_terminal(code: str) -> str:
    """What some Python code shows on a terminal of its own, in a process of its own."""
    ours, theirs = pty.openpty()
    setup = "import sys, time\nfrom launch import terminal\nterminal.set_up()\n"
    process = subprocess.Popen(
        [sys.executable, "-c", setup + code],
        cwd=ROOT,
        env=os.environ | {"TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the end of a terminal that nobody holds any more
        while part := os.read(ours, 4096):
            shown += part
    os.close(ours)
    assert process.wait() == 0, shown.decode(errors="replace")
    return shown.decode(errors="replace")


def test_names_on_the_terminal_are_shown_as_they_are() -> None:
    code = f"""
from jaxseg.types import RunLine
for name in {HOSTILE!a}:
    progress = terminal.make_progress()("evaluate " + name)
    progress("training", 1, 2, name, [RunLine(name + "/n0_fold0/seed_0", 0.5, None, True)])
    time.sleep(0.4)
    progress("training", 2, 2, name)
"""
    shown = on_a_terminal(code)
    for name in HOSTILE:
        expected = terminal.plain(name).encode("utf-8", "backslashreplace").decode()
        assert f"evaluate {expected}: training" in shown
        assert f"{expected}/n0_fold0/seed_0" in shown
    for commanding in ("\x07", "\u202e", "\x1b[2J"):
        assert commanding not in shown


def test_lines_of_a_log_hold_no_commands(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.say("a\x1b[31m\tb\u202e\nc")
    terminal.make_progress()("score")("scoring", 1, 1, "d\x1b]0;title\x07")
    assert capsys.readouterr().out == "a\\x1b[31m\tb\\u202e\nc\nscore: scoring 1/1  d\\x1b]0;title\\x07\n"


def test_a_reader_that_leaves_ends_nothing(tmp_path: Path) -> None:
    code = f"for i in range(20000): print('line', i)\nsys.stdout.flush()\nopen({str(tmp_path / 'end')!r}, 'w').close()"
    read, write = os.pipe()
    os.close(read)
    done = in_process(code, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, (tmp_path / "end").exists()) == (0, True)
    assert done.stderr == "warning: standard output is gone (Broken pipe); the command goes on without\n"


def test_a_full_disk_under_the_log_ends_nothing() -> None:
    with open("/dev/full", "w") as full:
        done = in_process("print('x', flush=True); print('y', file=sys.stderr)", stdout=full, stderr=subprocess.PIPE)
        both = in_process("print('x', flush=True); print('y', file=sys.stderr)", stdout=full, stderr=full)
    assert (done.returncode, both.returncode) == (0, 0)
    assert b"standard output is gone (No space left on device)" in done.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_the_caller_closed_is_no_files(tmp_path: Path, closed: str) -> None:
    code = (
        "import os\nfrom launch import terminal\nterminal.set_up()\n"
        f"handle = os.open({str(tmp_path / 'file')!r}, os.O_CREAT | os.O_WRONLY)\n"
        "os.write(1, b'words'); os.write(2, b'words'); print('words', flush=True); terminal.say('words', error=True)\n"
        "os.write(handle, b'content')\n"
    )
    command = f'"{sys.executable}" -c "$CODE" {closed}'
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, env=os.environ | {"CODE": code}, check=False, **quiet)
    assert done.returncode == 0
    assert (tmp_path / "file").read_bytes() == b"content"


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "latin-1"},
    ],
)
def test_names_beyond_ascii_pass_in_any_locale(tmp_path: Path, environment: dict[str, str]) -> None:
    path = tmp_path / "größe"
    # In ASCII, as a command line in another encoding is not what is tested.
    code = f"open({str(path)!a}, 'w').close()\nprint({'größe ∞ '!a} + chr(0xdcff))"
    done = in_process(code, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr
    assert path.exists()
    encoding = environment.get("PYTHONIOENCODING", "ascii")
    assert done.stdout == "größe ∞ \udcff\n".encode(encoding, "backslashreplace")


def test_what_goes_wrong_aside_is_a_line_and_once() -> None:
    code = (
        "import threading\n"
        "def fail(): raise OSError(28, 'No space left on device')\n"
        "for _ in range(5):\n thread = threading.Thread(target=fail); thread.start(); thread.join()\n"
        "class Last:\n def __del__(self): fail()\n"
        "for _ in range(5): Last()\n"
    )
    done = in_process(code, stderr=subprocess.PIPE, text=True)
    line = "warning: beside the command's own work: OSError: [Errno 28] No space left on device (<string>, line 6)\n"
    assert done.stderr == line


def test_a_signal_that_comes_while_a_destructor_runs_is_not_lost() -> None:
    code = (
        "import os, signal, time\n"
        "from jaxseg.loop import Interrupted\n"
        "def stop(signum, frame): raise Interrupted(signum, 'saved')\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "class Last:\n def __del__(self): os.kill(os.getpid(), signal.SIGTERM); time.sleep(0.01)\n"
        "try:\n Last()\n time.sleep(5)\n print('lost')\n"
        "except Interrupted as error: print(error)\n"
    )
    done = in_process(code, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert (done.stdout, done.stderr) == ("stopped by SIGTERM; saved\n", "")


def test_a_slow_reader_is_waited_for() -> None:
    code = "import os\nos.set_blocking(1, False)\nprint('x' * 3_000_000)\nsys.stdout.flush()"
    process = subprocess.Popen(
        [sys.executable, "-c", f"import sys\nfrom launch import terminal\nterminal.set_up()\n{code}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    time.sleep(3)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, len(out)) == (0, 3_000_001)


def test_a_study_goes_on_when_nobody_reads_it(tmp_path: Path) -> None:
    read, write = os.pipe()
    command = [sys.executable, "-m", "launch.study", "--config=tests/tiny_study.py", f"--workdir={tmp_path / 'w'}"]
    process = subprocess.Popen([*command, "--stages=prepare,pretrain"], cwd=ROOT, stdout=write, stderr=write)
    os.close(write)
    assert os.read(read, 1)
    os.close(read)
    assert process.wait(300) == 0
    assert (tmp_path / "w" / "train" / "pretrain").is_dir()
    assert signal.SIGPIPE not in {-process.returncode}
