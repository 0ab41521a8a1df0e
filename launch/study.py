"""Runs a whole study: prepare, pretrain, train every arm, evaluate, analyse, report.

python -m launch.study --config=configs/quickstart.py --workdir=runs/quickstart [--config.field=value ...]

The same command resumes an interrupted study; a finished one only rewrites its report.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from jaxseg.report import write_report
from jaxseg.study import describe, results
from jaxseg.study import run as study_run
from jaxseg.types import UserError
from launch import cli

_CONFIG = cli.config_flag()
_WORKDIR = cli.workdir_flag()
_STAGES = flags.DEFINE_list("stages", list(study_run.STAGES), f"Some of {','.join(study_run.STAGES)}.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Prepare the data, print the plan, train nothing.")


def main() -> None:
    """Runs the stages asked for."""
    config = cli.load_config(_CONFIG)
    workdir = Path(cli.require(_WORKDIR.value, "workdir", "runs/quickstart"))
    stages = [] if _DRY_RUN.value else _STAGES.value
    ready = study_run.run_stages(config, workdir, stages=stages, progress=cli.make_progress(), tell=print)
    if _DRY_RUN.value:
        print(describe.describe(ready))
    elif "report" in stages:
        if not (workdir / "results" / "cases.csv").exists():
            raise UserError(f"stage 'report' needs stage 'evaluate', which is not finished in {workdir}")
        if (workdir / "results" / "comparisons.csv").exists():
            print(results.format_results(workdir))
        print(f"report: {write_report(workdir).absolute()}")


if __name__ == "__main__":
    cli.run(main)
