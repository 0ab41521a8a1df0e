"""What all commands share: flags, JAX's set-up, exit statuses and progress on a terminal or in a log."""

from __future__ import annotations

import difflib
import logging
import os
import re
import signal
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app, flags
from ml_collections import config_flags

from jaxseg import hosts
from jaxseg.loop import Interrupted
from jaxseg.types import Progress, RunLine, UserError


def setup_jax() -> None:
    """One CPU device per core, and programs cached on disk between processes; both yield to the environment."""
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(root / "jaxseg" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def config_flag() -> Any:
    """Declares --config=FILE.py[:ARG] and --config.field=value."""
    return config_flags.DEFINE_config_file("config", None, "Study: a file in configs/, FILE.py or FILE.py:ARG.")


def workdir_flag() -> Any:
    """Declares --workdir, which several commands have, once a process."""
    if "workdir" in flags.FLAGS:
        return flags.FlagHolder(flags.FLAGS, flags.FLAGS["workdir"])
    return flags.DEFINE_string("workdir", None, "Folder of the study; launch.study creates a new one.")


def dry_run_flag() -> Any:
    """Declares --dry_run, once a process."""
    if "dry_run" in flags.FLAGS:
        return flags.FlagHolder(flags.FLAGS, flags.FLAGS["dry_run"])
    return flags.DEFINE_bool("dry_run", False, "Prepare the data, print the plan, train nothing.")


def config_words(argv: Sequence[str]) -> list[str]:
    """The words of a command line that make its config: --config and its overrides."""
    words, waiting = [], False
    for word in argv:
        own = re.match(r"--?(no)?config(?:\.[^=]+)?(=|$)", word)
        if own or (waiting and not word.startswith("-")):
            words.append(word)
        waiting = bool(own) and "=" not in word
    return words


def parse_config(words: Sequence[str]) -> Any:
    """The config that such words make, as a command with them would have it.

    Raises:
        UserError: An unknown field, a value of another type, or no such file.
    """
    own = flags.FlagValues()
    argv = ["", *words]
    holder = config_flags.DEFINE_config_file("config", None, "", flag_values=own, sys_argv=argv)
    try:
        own(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(_config_mistake(error, argv)) from None
    return load_config(holder)


def _config_mistake(error: Exception, argv: Sequence[str]) -> str:
    """What to say of an override that the config refused."""
    text = str(error)
    overrides = [word.split("=")[0].lstrip("-") for word in argv if word.lstrip("-").startswith("config.")]
    known = _known_fields(argv)
    for name in overrides:
        if known and name.removeprefix("config.") not in known:
            close = difflib.get_close_matches(name.removeprefix("config."), known, n=1, cutoff=0.4)
            hint = f"; did you mean config.{close[0]}?" if close else "."
            return f"unknown field {name}{hint} Fields are declared and explained in configs/default.py"
    before, trace, after = text.partition("Traceback (most recent call last)")
    last = after.strip().rsplit("\n", 1)[-1]
    if trace and last.startswith("ValueError: "):  # what a config file says of its argument; its bugs keep their trace
        return f"{before.split(': ', 1)[0]}: {last.removeprefix('ValueError: ')}"
    return text


def _known_fields(argv: Sequence[str]) -> list[str]:
    """Dotted fields of the config file named on the command line; empty when it cannot be loaded."""
    files = [word.split("=", 1)[1] for word in argv if re.match(r"--?config=", word)]
    if not files:
        return []
    path, _, argument = files[-1].partition(":")
    holder: dict[str, Any] = {"__name__": "config"}
    try:
        exec(compile(Path(path).read_text(), path, "exec"), holder)
        config = holder["get_config"](argument) if argument else holder["get_config"]()
    except Exception:  # whatever the file raises was or will be told by the flag itself
        return []

    def names(tree: Any, prefix: str = "") -> list[str]:
        found = []
        for key, value in tree.items():
            found.append(prefix + key)
            if hasattr(value, "items"):
                found += names(value, f"{prefix}{key}.")
        return found

    return names(config)


def load_config(holder: Any) -> Any:
    """The config that --config names.

    Raises:
        UserError: The flag is missing, or its file cannot be loaded.
    """
    config = require(holder.value, "config", "configs/quickstart.py")
    try:
        config.keys()
    except OSError as error:
        cause = str(error).rsplit("Attempted", 1)[-1].strip()
        raise UserError(f"--config cannot be loaded. Tried {cause}") from None
    return config


def _interrupt(signum: int, frame: Any) -> None:
    raise Interrupted(signum, "the same command goes on from what is saved")


def run(main: Callable[[], None]) -> None:
    """Parses the command line, runs a command and exits: 0 done, 2 the user's mistake, 1 anything else.

    SIGINT exits with 130, SIGTERM with 143.
    """
    argv = sys.argv
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    logging.getLogger("absl").setLevel(logging.ERROR)
    if {"-h", "-help", "--help"} & {*argv[1:]}:
        print_help(main)
        sys.exit(0)
    try:
        try:
            extra = flags.FLAGS(argv)[1:]
            if extra:
                raise UserError(f"unexpected argument {extra[0]!r}; options are --name=value, see --help")
        except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(_config_mistake(error, argv)) from None
        setup_jax()
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except Interrupted as stop:
        print(f"{stop}", file=sys.stderr)
        status = 128 + stop.signum
    except (app.UsageError, SystemExit) as error:
        status = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 2
    except hosts.LostHostError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 1
    except Exception:
        traceback.print_exc()
        status = 1
    else:
        status = 0
    sys.stdout.flush()
    sys.stderr.flush()
    if status and jax.distributed.is_initialized():
        # An orderly exit waits for the other hosts, who wait for this one.
        os._exit(status)
    sys.exit(status)


def print_help(main: Callable[[], None]) -> None:
    """Prints what a command's module says of itself, and the flags that jaxseg declares."""
    print((sys.modules[main.__module__].__doc__ or "").strip() + "\n")
    by_module = flags.FLAGS.flags_by_module_dict()
    own = [flag for module in by_module if module.startswith("launch.") for flag in by_module[module]]
    shown = [flags.FLAGS["config"]] if "config" in flags.FLAGS else []
    shown += [*own, *flags.FLAGS.get_key_flags_for_module(sys.argv[0])]
    for flag in dict.fromkeys(shown):
        default = (
            "" if flag.default in (None, [], False, "") else f" Default: {str(flag.default_as_str).strip(chr(39))}"
        )
        _print_flag(flag.name, f"{flag.help or ''}{default}")
    if "config" in flags.FLAGS:
        _print_flag("config.FIELD", "Sets a field of the config; configs/default.py explains all.")


def _print_flag(name: str, text: str) -> None:
    start = f"  --{name}"
    lead = f"{start:<20}" if len(start) < 19 else f"{start}\n{'':20}"
    print(textwrap.fill(" ".join(text.split()), 110, initial_indent=lead, subsequent_indent=" " * 20))


def require(value: Any, flag: str, example: str) -> Any:
    """A flag that must be given.

    Raises:
        UserError: It was not.
    """
    if value is None:
        raise UserError(f"--{flag} is missing; for example --{flag}={example}")
    return value


def make_progress() -> Callable[[str], Progress]:
    """Progress of one title after another: a live bar on a terminal, plain lines otherwise; of one host's alone."""
    if not hosts.is_first():
        return lambda title: lambda what, done, total, note="", runs=(): None
    return _bars() if sys.stdout.isatty() else _lines


def _bars() -> Callable[[str], Progress]:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(highlight=False)

    def titled(title: str) -> Progress:
        live = Live(console=console, refresh_per_second=4)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        bars = Bars(*columns, console=console, auto_refresh=False)
        task = bars.add_task(title, total=None, note="")

        def progress(what: str, done: int, total: int, note: str = "", runs: Sequence[RunLine] = ()) -> None:
            bars.update(task, description=f"{title}: {what}", completed=done, total=total)
            if note:
                bars.update(task, note=note)
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

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("run", "loss", "DSC", ""):
        table.add_column(name, justify="left" if name in ("run", "") else "right")
    shown = runs if len(runs) <= room else runs[: max(room - 1, 1)]
    for run in shown:
        dsc = "" if run.dsc is None else f"{run.dsc:.3f}"
        table.add_row(run.name, f"{run.loss:.3f}", dsc, "" if run.alive else "diverged")
    if len(shown) < len(runs):
        table.add_row(f"and {len(runs) - len(shown)} more", "", "", "")
    return table


def _lines(title: str) -> Progress:
    told_at, told = -60.0, ""

    def progress(what: str, done: int, total: int, note: str = "", runs: Sequence[RunLine] = ()) -> None:
        nonlocal told_at, told
        now = time.monotonic()
        if what == "validating" or (done < total and now - told_at < 10 and what == told):
            return
        told_at, told = now, what
        print(f"{title}: {what} {done}/{total}" + (f"  {note}" if note else ""), flush=True)

    return progress
