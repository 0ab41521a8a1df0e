"""Flags that choose an arm of a finished study, for the commands that read its networks."""

from __future__ import annotations

from typing import Any

from absl import flags

import jaxseg
from jaxseg.study.api import Arm, FinishedStudy
from launch import cli, places

_WORKDIR = cli.workdir_flag()
_ARM = flags.DEFINE_string("arm", None, "Name of an arm.")
_TRAIN_CASES = flags.DEFINE_integer("train_cases", None, "Train size, where the arm has several; 0 means all.")
_FOLD = flags.DEFINE_integer("fold", None, "Fold, where there are several.")


def workdir() -> Any:
    """Returns the workdir that was given; None if none was."""
    return _WORKDIR.value


def fold() -> int | None:
    """Returns the fold that was given, if any."""
    return _FOLD.value


def chosen() -> tuple[FinishedStudy, Arm]:
    """Opens the study and returns it with the arm that the flags name.

    Raises:
        UserError: If a flag is missing, or there is no such study, arm or variant.
    """
    study = jaxseg.load(places.reading(cli.require(_WORKDIR.value, "workdir", "runs/quickstart")))
    name = cli.require(_ARM.value, "arm", study.arms[0])
    return study, study.arm(name, train_cases=_TRAIN_CASES.value, fold=_FOLD.value)
