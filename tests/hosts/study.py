"""A study that trains long enough to be stopped, lost or cut off half-way, and whose other stages are short."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from configs import default
from jaxseg import checkpoint, trees
from jaxseg.study import files
from tests import training_parts
from tests.conftest import ROOT
from tests.tiny_study import tiny_config

CONFIG = "--config=tests/hosts/study.py"
STEPS = 400
_JOB = Path("train", "train", "chunk_0")
_TABLES = ("cases", "curves", "summary", "comparisons", "convergence")


def get_config() -> ConfigDict:
    """Two arms that train in one job, an odd number of runs, and no analyses of networks."""
    config = tiny_config()
    config.name = "hosts"
    config.num_seeds = 3
    config.arms = default.pick_arms("scratch", "scratch_b")
    config.train.steps = STEPS
    config.train.eval_every = 100
    config.train.save_every = 40
    config.analysis.cases = 0
    config.report.examples = 0
    return config


def environment() -> dict[str, str]:
    """Of processes that share the tests' compiled programs and take one device each."""
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "xla"))
    return os.environ | {"JAX_NUM_CPU_DEVICES": "1", "JAX_COMPILATION_CACHE_DIR": cache}


def run_alone(workdir: Path) -> None:
    """Runs the study in one process to its end."""
    command = [sys.executable, "-m", "launch.study", CONFIG, f"--workdir={workdir}"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def trained(workdir: Path) -> int:
    """The last step in the log of the training."""
    rows = training_parts.metric_lines(workdir / _JOB)
    return rows[-1]["step"] if rows else 0


def saved(workdir: Path) -> int:
    """The last step of which a checkpoint is whole."""
    return max(checkpoint.saved_steps(workdir / _JOB / "checkpoints"), default=0)


def assert_same_results(workdir: Path, other: Path) -> None:
    """Equal bits of all final parameters, and equal tables apart from the seconds."""
    ours, theirs = (
        trees.flatten(checkpoint.read_params(place / _JOB / "checkpoints", STEPS, range(6)))
        for place in (workdir, other)
    )
    assert ours.keys() == theirs.keys()
    for path, leaf in ours.items():
        np.testing.assert_array_equal(leaf, theirs[path], err_msg=path)
    for name in _TABLES:
        tables = [files.read_table(place / "results" / f"{name}.csv") for place in (workdir, other)]
        tables = [table.drop(columns="seconds", errors="ignore") for table in tables]
        pd.testing.assert_frame_equal(*tables, check_exact=True)
    assert (workdir / "report.html").exists()
