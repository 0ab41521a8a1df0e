"""What all commands share: flags, JAX's set-up and exit statuses."""

from __future__ import annotations

import difflib
import logging
import os
import re
import resource
import signal
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app, flags
from ml_collections import config_flags

from jaxseg import machine, oserrors, paths
from jaxseg.buckets import address as addresses
from jaxseg.loop import Interrupted
from jaxseg.types import UserError
from launch import mishaps, terminal
from launch.terminal import make_progress as make_progress


def setup_jax() -> None:
    """One CPU device per core, and programs cached on disk between processes; both yield to the environment."""
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", machine.cores())
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = cache_folder()
        if folder is None:
            terminal.say(
                "note: no folder for compiled programs can be written, so the next command compiles again; "
                "XDG_CACHE_HOME may name one",
                error=True,
            )
        else:
            jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def cache_folder() -> Path | None:
    """The folder for compiled programs, below XDG_CACHE_HOME or the home; None where there is none to write to."""
    given, home = os.environ.get("XDG_CACHE_HOME"), os.path.expanduser("~")
    if not given and (home in ("~", "/", "") or not Path(home).is_dir()):
        return None  # as in containers whose user has no home
    folder = Path(os.path.expanduser(given) if given else f"{home}/.cache") / "jaxseg" / "xla"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None


_THREADS = 64
"""How many the libraries below start, and a few more."""
_ADDRESSES = 4 * 2**30
"""Bytes of address space that they reserve beside a study's arrays, most of it never used."""


def check_room() -> None:
    """Refuses limits on threads and address space under which the readers of the prepared data would wait for ever.

    Raises:
        UserError: If too few threads or too little address space are allowed.
    """
    allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
    if allowed not in (resource.RLIM_INFINITY, -1) and allowed < _ADDRESSES:
        raise UserError(
            f"this process may use {allowed / 2**30:.1f} GiB of address space (ulimit -v), and at least "
            f"{_ADDRESSES / 2**30:.0f} GiB are needed, most of them reserved and never used; lift it (ulimit -v "
            f"unlimited) and limit the job's memory instead"
        )
    done, threads = threading.Event(), []
    try:
        for _ in range(_THREADS):
            threads.append(threading.Thread(target=done.wait, daemon=True))
            threads[-1].start()
    except RuntimeError:
        raise UserError(
            f"the system starts {len(threads) - 1} threads for this process and no more, and {_THREADS} are needed; "
            f"raise what limits them (ulimit -u, ulimit -v, or the container's number of processes)"
        ) from None
    finally:
        done.set()


class _PathParser(flags.ArgumentParser[str]):
    """A path with `~` put in; an empty one, as an unset variable of a shell leaves it, is a mistake."""

    syntactic_help = "a path"

    def parse(self, argument: str) -> str:
        """Returns the path as text."""
        if not argument:
            raise ValueError("it is empty; give a path, or . for the current folder")
        return str(paths.expand(argument))


class _PlaceParser(_PathParser):
    """A path, or the address of a workdir in a bucket."""

    syntactic_help = "a path, gs://BUCKET/PATH or s3://BUCKET/PATH"

    def parse(self, argument: str) -> str:
        """Returns the path or the address as text."""
        address = addresses.parse(argument)
        return super().parse(argument) if address is None else str(address)


def path_flag(name: str, text: str, parser: type[_PathParser] = _PathParser) -> Any:
    """Declares a flag that takes a path, once a process: several commands may have one of that name."""
    if name in flags.FLAGS:
        return flags.FlagHolder(flags.FLAGS, flags.FLAGS[name])
    return flags.DEFINE(parser(), name, None, text)


def place_flag(name: str, text: str) -> Any:
    """Declares a flag that takes the workdir of a study, which `launch.places` makes a folder of this machine."""
    return path_flag(name, text, _PlaceParser)


def config_flag() -> Any:
    """Declares --config=FILE.py[:ARG] and --config.field=value."""
    return config_flags.DEFINE_config_file("config", None, "Study: a file in configs/, FILE.py or FILE.py:ARG.")


def workdir_flag() -> Any:
    """Declares --workdir, which several commands have."""
    return place_flag(
        "workdir", "Folder of the study, or its address in a bucket (gs://, s3://); launch.study creates a new one."
    )


def dry_run_flag() -> Any:
    """Declares --dry_run, once a process."""
    if "dry_run" in flags.FLAGS:
        return flags.FlagHolder(flags.FLAGS, flags.FLAGS["dry_run"])
    return flags.DEFINE_bool("dry_run", False, "Prepare the data, print the plan, train nothing.")


def config_words(argv: Sequence[str]) -> list[str]:
    """Returns the words of a command line that make its config, --config and its overrides, each as FLAG=VALUE."""
    words: list[str] = []
    waiting = False
    for word in argv:
        own = re.match(r"--?(no)?config(?:\.[^=]+)?(=|$)", word)
        if own:
            words.append(word)
        elif waiting and re.match(r"[^-]|-[\d.]|$", word):  # a value that is a word of its own, maybe below 0
            words[-1] += f"={word}"
        waiting = bool(own) and "=" not in word
    return words


def parse_config(words: Sequence[str]) -> Any:
    """Returns the config that such words make, as a command with them would have it.

    Raises:
        UserError: If there is an unknown field, a value of another type, or no such file.
    """
    own = flags.FlagValues()
    argv = ["", *last_of_fields(words)]
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
    files = [word.split("=", 1)[1] for word in config_words(argv) if re.match(r"--?config=", word)]
    if not files:
        return []
    path, _, argument = files[-1].partition(":")
    holder: dict[str, Any] = {"__name__": "config"}
    try:
        exec(compile(Path(path).read_bytes(), path, "exec"), holder)
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
    """Loads the config that --config names.

    Raises:
        UserError: If the flag is missing, or its file cannot be loaded.
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


def run(main: Callable[[], None], *, set_up: Callable[[], None] | None = None) -> None:
    """Parses the command line, sets up JAX, runs a command and exits: 0 done, 2 the user's mistake, 1 anything else.

    SIGINT exits with 130, SIGTERM with 143.
    """
    terminal.use_utf8()
    own = terminal.set_up()
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    for name in ("absl", "asyncio", "gcsfs", "s3fs", "google.auth"):  # what these log as an error they raise too
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if {"-h", "-help", "--help"} & {*sys.argv[1:]}:
        print_help(main)
        sys.exit(0)
    refused = False
    try:
        parse_flags()
        (set_up or setup_jax)()
        check_room()
        with machine.one_blas_thread():
            main()
    except (app.UsageError, SystemExit) as error:
        status = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 2
    except BaseException as error:
        said = mishaps.explain(error)
        if said is None:
            traceback.print_exc()
            status = mishaps.FAULT
        else:
            text, status = said
            refused = oserrors.behind(error) is not None
            terminal.say(text, error=True)
    else:
        status = 0
    sys.stdout.flush()
    sys.stderr.flush()
    if (refused and own) or (status and jax.distributed.is_initialized()):
        # An orderly exit lets libraries write what the system has just refused, and waits for the other hosts, who wait
        # for this one.
        os._exit(status)
    sys.exit(status)


def parse_flags() -> None:
    """Parses the command line.

    Raises:
        UserError: If a flag or field is unknown, a value is not allowed, or a flag is given twice with other values.
    """
    sys.argv = argv = last_of_fields([_with_home(word) for word in sys.argv])
    _check_given_once(argv)
    try:
        extra = flags.FLAGS(argv)[1:]
    except UserError:
        raise
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(_config_mistake(error, argv)) from None
    if extra:
        raise UserError(f"unexpected argument {extra[0]!r}; options are --name=value, see --help")


def last_of_fields(words: Sequence[str]) -> list[str]:
    """Drops values of fields of the config that are set again: of a tuple, all values would be put together.

    >>> last_of_fields(["--config.train.steps=5", "--config.seed_ids=(1,2)", "--config.seed_ids=3"])
    ['--config.train.steps=5', '--config.seed_ids=3']
    """
    names = [match[1] if (match := re.match(r"--?(config\.[^=]+)=", word)) else None for word in words]
    last = {name: index for index, name in enumerate(names)}
    return [
        word for index, (word, name) in enumerate(zip(words, names, strict=True)) if name is None or last[name] == index
    ]


def _with_home(word: str) -> str:
    """`--config=~/FILE.py` with the home put in; shells do so only at the start of a word."""
    flag, _, value = word.partition("=")
    return f"{flag}={paths.expand(value)}" if flag.lstrip("-") == "config" and value.startswith("~") else word


def _check_given_once(argv: Sequence[str]) -> None:
    """Refuses a flag with two values, of which absl would take the last; a field of the config may be set again."""
    given: dict[str, str] = {}
    for index, word in enumerate(argv[1:], start=1):
        flag, equals, value = word.partition("=")
        name = flag.lstrip("-")
        if not flag.startswith("-") or name not in flags.FLAGS or name.startswith("config."):
            continue
        if isinstance(flags.FLAGS[name], flags.MultiFlag):
            continue
        if not equals:
            value = "true" if flags.FLAGS[name].boolean else "".join(argv[index + 1 : index + 2])
        if name in given and (given[name] != value or name == "config"):
            raise UserError(f"--{name} is given twice, as {given[name]} and as {value}; give it once")
        given[name] = value


def print_help(main: Callable[[], None]) -> None:
    """Prints the docstring of a command's module, and the flags that jaxseg declares."""
    print((sys.modules[main.__module__].__doc__ or "").strip() + "\n")
    by_module = flags.FLAGS.flags_by_module_dict()
    own = [flag for module in by_module if module.startswith(("launch.", "benchmarks.")) for flag in by_module[module]]
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
    """Returns the value of a flag that must be given.

    Raises:
        UserError: If the flag was not given.
    """
    if value is None:
        raise UserError(f"--{flag} is missing; for example --{flag}={example}")
    return value


def refuse(names: Sequence[str], why: str) -> None:
    """Refuses flags that would have no effect.

    Args:
        names: Flags that the command does not read in this mode.
        why: What they are for, to follow their names.

    Raises:
        UserError: If one of them was given.
    """
    given = [f"--{name}" for name in names if flags.FLAGS[name].present]
    if given:
        raise UserError(f"{' and '.join(given)} would have no effect here: {why}; leave out what is not meant")
