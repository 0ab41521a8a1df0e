"""Where a workdir lies: in a folder of this machine, or in a bucket, of which commands use a local copy."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from jaxseg import hosts, paths
from jaxseg.buckets import address as addresses
from jaxseg.buckets import reading as copies
from jaxseg.buckets.mirror import mirrored
from jaxseg.buckets.objects import open_objects
from jaxseg.types import UserError
from launch import cli, terminal

_SCRATCH = cli.path_flag(
    "scratch",
    "With a --workdir in a bucket (gs://, s3://): folder for its local copy, with room for the study. Default: "
    "~/.cache/jaxseg/buckets.",
)


class Place(NamedTuple):
    """A workdir that a command works in."""

    folder: Path
    saved: Callable[[], None]
    """Waits until what was done so far is where the user wants it."""


def _scratch() -> Path:
    return Path(_SCRATCH.value) if _SCRATCH.value else addresses.default_scratch()


def on_this_machine(place: str, what: str) -> Path:
    """Return the folder of a workdir that may not lie in a bucket.

    Raises:
        UserError: It does; the message names `what` needs a folder.
    """
    if paths.is_address(place):
        raise UserError(f"--workdir={place}: {what} needs a folder of this machine; give one")
    return Path(place)


def reading(place: str, *, wanted: Callable[[str], bool] = copies.without_stores) -> Path:
    """Return the folder to read a workdir from; what a bucket holds is brought here first.

    Args:
        place: The value of a flag.
        wanted: Which files the command reads.
    """
    scratch = _scratch() if paths.is_address(place) else None
    return copies.local_copy(place, scratch=scratch, wanted=wanted, tell=terminal.say)


@contextlib.contextmanager
def working(place: str) -> Iterator[Place]:
    """Hold a workdir to work in; one in a bucket follows its local copy until the end.

    Raises:
        UserError: The bucket cannot be used, another process works in it, or this is one process of several.
    """
    address = addresses.parse(place)
    if address is None:
        yield Place(Path(place), lambda: None)
        return
    if hosts.count() > 1:
        raise UserError(
            f"--workdir={place}: a study of several processes needs a folder that all of them see, since they write "
            f"its checkpoints together; a bucket serves a study of one process, with any number of devices"
        )
    home = _scratch() / address.slug
    folder = home / address.name
    paths.check_trainable(folder, "the local copy of the workdir")
    with mirrored(open_objects(address), folder, home, tell=terminal.say, lost=_stop) as mirror:
        yield Place(folder, mirror.flush)
    terminal.say(f"bucket: {address} holds all of it; the page is {address}/report.html")


def _stop() -> None:
    """Makes a training save and stop, as a scheduler would."""
    os.kill(os.getpid(), signal.SIGTERM)
