"""Checks whether a workdir is new or holds the study of a config."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path

from ml_collections import ConfigDict

from jaxseg import paths, settings, workdirs
from jaxseg.manifest import DamagedError
from jaxseg.settings import StudySettings
from jaxseg.study import files, record
from jaxseg.study.plan.binding import read_binding
from jaxseg.types import UserError


def read_config(workdir: Path) -> ConfigDict | None:
    """Reads the config that a study was started with; None if the workdir has none.

    Raises:
        UserError: If it is damaged.
    """
    mend = (
        "put back a copy of it, or give the command that began the study, with the same --config and overrides, which "
        "writes it anew"
    )
    found = files.read_json(workdir / files.CONFIG, mend)
    return settings.from_tree(found) if found else None


def check_workdir(config: ConfigDict, workdir: Path) -> StudySettings:
    """Checks the config, and that the workdir is new or holds the same study.

    Raises:
        UserError: If the config has a mistake, or the workdir belongs to another config, with the fields that differ.
    """
    study = settings.parse(config)
    paths.check_trainable(workdir, "workdir")
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"workdir {workdir} is a file; give a folder")
    workdirs.check_links(workdir)
    with contextlib.suppress(DamagedError):  # then there is nothing to ask; it is made anew
        record.check_format(workdir)
    lines = _other_config(config, workdir)
    if lines:
        raise UserError(
            f"workdir {workdir} holds a study with another config; nothing was changed. Differences:\n  "
            + "\n  ".join(lines)
            + "\nGive another --workdir, or the config it was started with"
        )
    return study


def _other_config(config: ConfigDict, workdir: Path) -> list[str]:
    """How the config of a workdir differs from the one asked for, a line each; none where nothing is there yet.

    Where config.json was lost, the digest in data.json tells whether it was this one. Where only the manifest beside it
    was, the file still says what was asked for.
    """
    path = workdir / files.CONFIG
    try:
        return settings.differences(settings.from_json(files.read_text(path)), config)
    except FileNotFoundError:
        lost = "it is not there"
    except DamagedError as error:
        lost = error.reason
        with contextlib.suppress(OSError, ValueError, RecursionError):
            text = path.read_text(encoding="utf-8")
            if settings.digest(settings.from_json(text)) == settings.digest(config):
                warnings.warn(f"{path} is what was asked for ({lost}); it is written anew", stacklevel=3)
                return []
    with contextlib.suppress(DamagedError):
        bound = read_binding(workdir)
        if bound is None:
            return []
        if bound.config == settings.digest(config):
            warnings.warn(f"{path} was lost ({lost}); it is written anew", stacklevel=3)
            return []
    raise DamagedError(path, lost, "give the config that the study was started with, field by field as it was")
