"""What commands say: streams that never end a study, names that cannot command the terminal, and progress."""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import math
import os
import re
import select
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from jaxseg.loop import Interrupted
from launch.pace import Pace

if TYPE_CHECKING:
    from jaxseg.types import Progress, RunLine

# Control characters other than tab and newline, and marks that turn the direction of what follows.
_COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def plain(text: str) -> str:
    r"""Returns a text whose control characters are shown instead of obeyed.

    >>> plain("scan\x1b[31m")
    'scan\\x1b[31m'
    """
    return _COMMANDS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def say(text: str, *, error: bool = False) -> None:
    """Prints a line at once; names in it may hold anything."""
    print(plain(text), file=sys.stderr if error else sys.stdout, flush=True)


# ----------------------------------------------------------------------------------------------------------- streams


class _Enduring(io.FileIO):
    """A standard stream whose reader may go away, or whose disk may fill: then what it is given is dropped.

    A study is worth more than its log.
    """

    def write(self, data: Any) -> int:
        """Writes, or drops the data and all that follow once nobody takes them."""
        try:
            while (written := super().write(data)) is None:  # the reader is slow, and does not let writers wait
                select.select([], [self.fileno()], [])
            return written
        except OSError as error:
            drop(self.fileno())
            name, other = ("standard output", sys.stderr) if self.fileno() == 1 else ("standard error", sys.stdout)
            with contextlib.suppress(OSError, ValueError, RuntimeError):  # the other may be gone too, for this one
                print(
                    f"warning: {name} is gone ({error.strerror}); the command goes on without", file=other, flush=True
                )
            return len(data)


def drop(descriptor: int) -> None:
    """Redirects a descriptor to the null device."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != descriptor:
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


def set_up() -> bool:
    """Sets up the standard streams so that neither names nor readers that go away can end a command.

    Descriptors that the caller closed (`>&-`) lead to nowhere, as the next file that is opened would get their number
    and the words of every library with it.

    Returns:
        Whether the streams were the process's own, and not put in place by a caller that lives on.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError as error:
            if error.errno == errno.EBADF:
                drop(descriptor)
    # Streams that a caller in this process has put in place are its own affair.
    if sys.stdout is sys.__stdout__:
        sys.stdout = _enduring(sys.stdout, 1)
    own = sys.stderr is sys.__stderr__
    if own:
        sys.stderr = _enduring(sys.stderr, 2)
        warnings.showwarning = _show_warning
        sys.unraisablehook = lambda found: _show_aside(found.exc_value)
        threading.excepthook = lambda found: _show_aside(found.exc_value)
        _said_aside.clear()
    return own


def _enduring(stream: TextIO | None, descriptor: int) -> TextIO:
    if stream is None:  # closed when Python started; its number may belong to another file by now
        return open(os.devnull, "w", encoding="utf-8")
    raw = _Enduring(descriptor, "w", closefd=False)
    # What the encoding lacks is shown by its number.
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        stream.encoding,
        errors="backslashreplace",
        line_buffering=descriptor == 2 or raw.isatty(),
    )


_show_as_python = warnings.showwarning
_PACKAGE = Path(__file__).parent.parent / "jaxseg"


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning of this project is a sentence; what libraries warn of keeps the place that it comes from."""
    if category is UserWarning and file is None and Path(filename).is_relative_to(_PACKAGE):
        say(f"warning: {message}", error=True)
    else:
        _show_as_python(message, category, filename, lineno, file, line)


_said_aside: set[str] = set()
_AGAIN_SECONDS = 0.05


def _show_aside(error: BaseException | None) -> None:
    """What went wrong in a thread or a destructor of a library, in a line and once.

    When a disk is full, hundreds of such follow from the one error that ends the command and is explained there.
    """
    if isinstance(error, Interrupted):  # the signal came while Python ran a destructor: it must not be lost
        again = threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), error.signum))
        again.daemon = True
        again.start()
        return
    frames = traceback.extract_tb(error.__traceback__) if error is not None else []
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    first = str(error).split("\n", 1)[0]
    line = f"warning: beside the command's own work: {type(error).__name__}: {first[:200]}{where}"
    if line not in _said_aside:
        _said_aside.add(line)
        say(line, error=True)


def use_utf8() -> None:
    """Starts this command again with names in UTF-8, where the locale has file names in another encoding.

    Python takes the encoding of file names once, when it starts. With ASCII it could not open a file that a data set
    names with an umlaut. What is printed keeps the encoding of the terminal.
    """
    if codecs.lookup(sys.getfilesystemencoding()).name == "utf-8" or os.environ.get("PYTHONUTF8") == "1":
        return
    if sys.stdout is not None:
        os.environ.setdefault("PYTHONIOENCODING", sys.stdout.encoding)
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


# ---------------------------------------------------------------------------------------------------------- progress


def make_progress() -> Callable[[str], Progress]:
    """Makes the progress of each title: a live bar on a terminal, plain lines otherwise, on the first host only."""
    from jaxseg import hosts  # it needs JAX, which the streams do not wait for

    if not hosts.is_first():
        return lambda title: lambda what, done, total, note="", runs=(): None
    return _bars() if sys.stdout.isatty() else _lines


def _bars() -> Callable[[str], Progress]:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    console = Console(highlight=False)

    def titled(title: str) -> Progress:
        live = Live(console=console, refresh_per_second=4)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[note]}", markup=False),
        )
        bars = Bars(*columns, console=console, auto_refresh=False)
        task, pace = bars.add_task(title, total=None, note="", left=""), Pace()

        def progress(what: str, done: int, total: int, note: str = "", runs: Sequence[RunLine] = ()) -> None:
            pace.reached(what, done, total)
            bars.update(
                task, description=plain(f"{title}: {what}"), completed=done, total=total, left=_left(pace, done < total)
            )
            if note:
                bars.update(task, note=plain(note))
            if runs:
                live.update(Group(bars, _table(runs, room=console.height - 6)))
            elif not live.is_started:
                live.update(bars)
            live.start(refresh=True)
            if done == total and what not in ("validating", "compiling"):
                live.stop()

        return progress

    return titled


def _table(runs: Sequence[RunLine], room: int) -> Any:
    """Loss and validation DSC run by run; the last lines are left out where the terminal has no room for them."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("run", "loss", "DSC", ""):
        table.add_column(name, justify="left" if name in ("run", "") else "right")
    shown = runs if len(runs) <= room else runs[: max(room - 1, 1)]
    for run in shown:
        dsc = "" if run.dsc is None else f"{run.dsc:.3f}"
        table.add_row(Text(plain(run.name)), f"{run.loss:.3f}", dsc, "" if run.alive else "diverged")
    if len(shown) < len(runs):
        table.add_row(f"and {len(runs) - len(shown)} more", "", "", "")
    return table


def _left(pace: Pace, unfinished: bool) -> str:
    """How long something still takes, in words; nothing where that is not known."""
    from jaxseg.text import duration

    return f"{duration(pace.left)} left" if unfinished and math.isfinite(pace.left) else ""


def _lines(title: str) -> Progress:
    told_at, told, pace = -60.0, "", Pace()

    def progress(what: str, done: int, total: int, note: str = "", runs: Sequence[RunLine] = ()) -> None:
        nonlocal told_at, told
        now = time.monotonic()
        pace.reached(what, done, total)
        if what == "validating" or (done < total and now - told_at < 10 and what == told):
            return
        told_at, told = now, what
        more = ", ".join(filter(None, (note, _left(pace, done < total))))
        say(f"{title}: {what} {done}/{total}" + (f"  {more}" if more else ""))

    return progress
