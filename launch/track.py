"""Shows a study in MLflow: one run for each network, below one for its arm, below one for the study.

python -m launch.track --workdir=runs/quickstart --to=mlflow [--tracking_uri=URI] [--experiment=NAME] [--nopage]

The command writes what the study has so far, and may be given again at any time, while the study trains and afterwards:
it adds what is new and doubles nothing. Params are the arm's resolved settings, metrics the curves by step and the test
scores; the run of the study holds the page, the claims and the main tables.
"""

from __future__ import annotations

from absl import flags

from jaxseg.buckets.reading import is_in_use
from jaxseg.study.mirror import mirror
from launch import cli, mlflow_runs, places, terminal

_WORKDIR = cli.workdir_flag()
_TO = flags.DEFINE_enum("to", "mlflow", ["mlflow"], "Where the study is shown.")
_TRACKING_URI = flags.DEFINE_string(
    "tracking_uri",
    None,
    "MLflow's server or store, such as http://HOST:5000 or sqlite:///FILE. By default MLflow decides: its environment "
    "variable MLFLOW_TRACKING_URI, or mlflow.db in the current folder.",
)
_EXPERIMENT = flags.DEFINE_string(
    "experiment", None, "MLflow's experiment, created when new; the study's name if left out."
)
_PAGE = flags.DEFINE_bool("page", True, "Also send report.html, which holds pictures of cases.")


def main() -> None:
    """Writes the study as it is now, and says what it has not yet."""
    place = cli.require(_WORKDIR.value, "workdir", "runs/quickstart")
    busy = is_in_use(place)
    workdir = places.reading(place)
    busy = busy or is_in_use(place)  # by a process that began meanwhile
    found = mirror(workdir, page=_PAGE.value, busy=busy)
    experiment = _EXPERIMENT.value or found.name
    place = mlflow_runs.connect(_TRACKING_URI.value, experiment)
    done = mlflow_runs.write(place, found)
    terminal.say(
        f"{_TO.value}: {place.uri}, experiment {experiment}: {len(found.runs)} runs ({done.runs} new), "
        f"{done.points} new values"
    )
    for line in found.missing:
        terminal.say(f"not there yet: {line}")
    if done.changed:
        terminal.say(
            f"note: MLflow keeps the first value of a param; {len(done.changed)} would have another one now: "
            f"{done.changed[0]}{', ...' if len(done.changed) > 1 else ''}"
        )


if __name__ == "__main__":
    cli.run(main)
