"""Runs a whole study: prepare, pretrain, train every arm, evaluate, analyse, report.

python -m launch.study --config=configs/quickstart.py --workdir=runs/quickstart [--config.field=value ...]

The same command resumes an interrupted study; a finished one only rewrites its report.

python -m launch.study --config=configs/auto.py:SOURCE,TARGET --workdir=runs/mine --stages=plan --budget=2h

looks at the images of two folders, prints settings for them with their reasons, and writes runs/mine/planned.py, a
config to look at and run.
"""

from __future__ import annotations

import sys

from absl import flags

from jaxseg import hosts
from jaxseg.study import run as study_run
from jaxseg.study.claims import ahead, pilot
from jaxseg.study.plan import dry_run
from jaxseg.study.plan.planned import PlannedStudy
from jaxseg.types import UserError
from launch import cli, distributed, places, planning, terminal, timing, whole

_CONFIG = cli.config_flag()
_WORKDIR = cli.workdir_flag()
_STAGES = flags.DEFINE_list(
    "stages",
    list(study_run.STAGES),
    f"Some of {','.join(study_run.STAGES)}; or {planning.STAGE} alone, which writes a config for the images.",
)
_BUDGET = flags.DEFINE_string(
    "budget",
    None,
    f"With --stages=plan: time for the whole study on this machine, such as 90min or 2h. Default: {planning.BUDGET}",
)
_OUTPUT = cli.path_flag("output", f"With --stages=plan: the config file. Default: {planning.FILE} in the workdir.")
_DRY_RUN = cli.dry_run_flag()
_TIMING = flags.DEFINE_bool("timing", False, "Print at the end what each stage and each compiled program took.")
_PILOT = cli.place_flag(
    "pilot", "With --dry_run: a finished study from whose spread to tell how well the gain will be known."
)


def main() -> None:
    """Runs the requested stages."""
    config = cli.load_config(_CONFIG)
    place = cli.require(_WORKDIR.value, "workdir", "runs/quickstart")
    if _PILOT.value and not _DRY_RUN.value:
        raise UserError("--pilot looks ahead and trains nothing; give --dry_run with it")
    if not _STAGES.value:
        raise UserError(f"--stages is empty; allowed: some of {', '.join(study_run.STAGES)}, or {planning.STAGE}")
    if planning.STAGE in _STAGES.value:
        if len(_STAGES.value) > 1 or _DRY_RUN.value:
            raise UserError("--stages=plan stands alone: it writes a config file, which you then look at and run")
        words = cli.config_words(sys.argv)
        workdir = places.on_this_machine(place, "--stages=plan, which writes a config file there,")
        planning.run(config, words, workdir, budget=_BUDGET.value or planning.BUDGET, output=_OUTPUT.value)
        return
    if _BUDGET.value or _OUTPUT.value:
        raise UserError("--budget and --output are for --stages=plan; a study is as long as its config says")
    distributed.initialize()
    with places.working(place) as work, distributed.last_words():
        stages = [] if _DRY_RUN.value else _STAGES.value
        planned = whole.run_study(config, work.folder, stages=stages, saved=work.saved)
        if _DRY_RUN.value and hosts.is_first():
            _look_ahead(planned)
        elif _TIMING.value and hosts.is_first():
            terminal.say(f"\n{timing.describe(work.folder)}")


def _look_ahead(planned: PlannedStudy) -> None:
    """Prints the plan, which claims it can decide and, with a pilot, how well the gain will be known."""
    terminal.say(dry_run.describe(planned))
    terminal.say(f"\n{ahead.describe(ahead.prospects(planned))}")
    if _PILOT.value:
        terminal.say(f"\n{pilot.describe(*pilot.expected_widths(planned, places.reading(_PILOT.value)))}")


if __name__ == "__main__":
    cli.run(main)
