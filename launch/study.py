"""Runs a whole study: prepare, pretrain, train every arm, evaluate, analyse, report.

python -m launch.study --config=configs/quickstart.py --workdir=runs/quickstart [--config.field=value ...]

The same command resumes an interrupted study; a finished one only rewrites its report.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from jaxseg import hosts
from jaxseg.study import run as study_run
from jaxseg.study.plan import dry_run
from launch import cli, distributed, terminal, whole

_CONFIG = cli.config_flag()
_WORKDIR = cli.workdir_flag()
_STAGES = flags.DEFINE_list("stages", list(study_run.STAGES), f"Some of {','.join(study_run.STAGES)}.")
_DRY_RUN = cli.dry_run_flag()


def main() -> None:
    """Runs the stages asked for."""
    config = cli.load_config(_CONFIG)
    workdir = Path(cli.require(_WORKDIR.value, "workdir", "runs/quickstart"))
    distributed.initialize()
    planned = whole.run_study(config, workdir, stages=[] if _DRY_RUN.value else _STAGES.value)
    if _DRY_RUN.value and hosts.is_first():
        terminal.say(dry_run.describe(planned))


if __name__ == "__main__":
    cli.run(main)
