"""Packages too large for the extra `test`: PyTorch, networks that others built, drivers and services of buckets."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

import pytest

ALL_PACKAGES = "JAXSEG_ALL_PACKAGES"
"""Variable that is set where all of them are installed, as in CI: there no test is skipped for want of one."""


def optional_module(name: str) -> ModuleType:
    """Return a module; without it the test, or the whole file at whose top this is called, is skipped."""
    return importlib.import_module(name) if os.environ.get(ALL_PACKAGES) else pytest.importorskip(name)
