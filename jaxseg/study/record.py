"""study.json read back: its shape is checked, and what it says of runs is compared with the checkpoints themselves.

A workdir may have been edited, damaged, mixed from two studies, or come from a stranger. What the record says decides
which network is read and how images are prepared for it, so that a record that is wrong would give another network's
predictions without a word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxseg import checkpoint, config, workdirs
from jaxseg.study import files, shapes
from jaxseg.study.plan import binding
from jaxseg.study.plan.runs import target_runs
from jaxseg.study.shapes import Maybe
from jaxseg.types import RunKey, StudySettings, UserError

NAME, CONFIG = "study.json", "config.json"
MEND = (
    "the command that began the study writes it anew, without training again; of a copied study, take the file from "
    "where it was copied"
)


class Place(NamedTuple):
    """One run's parameters on disk."""

    directory: Path
    """A job's `checkpoints`."""
    step: int
    position: int
    """On the run axis."""


KEY = {"arm": str, "train_cases": int, "fold": int, "seed": int}
"""The shape of a run's key in records (see `jaxseg.study.shapes`)."""

# The shapes of what is read from the record. Published records are without some fields.
_RUN = {
    **KEY,
    **{"kind": str, "directory": str, "index": int, "steps": int, "diverged_at": Maybe(int), "source": Maybe(KEY)},
}
_TASK = {
    "name": str,
    "labels": [str],
    "label_values": Maybe([int]),
    "channels": int,
    "noise": Maybe(float),
    "spacing_mm": Maybe([float]),
    "normalization": [str],
    "windows": Maybe([[[float]]]),
    "cases": {"train": int, "val": int, "test": int},
    "splits": Maybe([{"train": [str], "val": [str], "test": [str]}]),
}
_VERSIONS = {"versions": Maybe({str: Maybe(str)})}
_SHAPE = {
    "name": str,
    "target": _TASK,
    "source": Maybe(_TASK),
    "arms": {str: {"kind": str}},
    "runs": [_RUN],
    "stores": Maybe({str: str}),
    "chunks": Maybe({str: [int]}),
    "timing": Maybe({str: float}),
    "exclusions": Maybe([{"case": str, "reason": str}]),
}


def read(workdir: Path, *, any_format: bool = False) -> dict[str, Any]:
    """The record of a workdir; empty where there is none.

    Args:
        workdir: Folder of the study.
        any_format: Also of an earlier version, whose tables and record can be read though its networks cannot.

    Raises:
        UserError: It is of another version, damaged or of another shape, names stores that are not below the stores'
            folder, or the workdir holds links that lead out of it.
    """
    path = workdir / NAME
    if not path.exists() and not path.is_symlink():
        return {}
    workdirs.check_links(workdir)
    found = files.read_json(path, MEND)
    problem = shapes.problem(found, _VERSIONS, "")
    if problem is None and not any_format:
        binding.check_format(workdir, found)
    problem = problem or shapes.problem(found, _SHAPE, "") or _contradiction(found)
    if problem is not None:
        raise UserError(f"{path} is no record of a study: {problem}; {MEND}")
    for name in (found.get("stores") or {}).values():
        workdirs.inside(workdir / "stores", name)
    return found


def read_config(workdir: Path) -> Any:
    """The config that a study was started with, as `config.parse` takes it; None where the workdir has none.

    Raises:
        UserError: It is damaged.
    """
    mend = (
        "put back a copy of it, or give the command that began the study, with the same --config and overrides, which "
        "writes it anew"
    )
    found = files.read_json(workdir / CONFIG, mend)
    return config.from_tree(found) if found else None


def _contradiction(record: Mapping[str, Any]) -> str | None:
    """What two places of a record say differently; None where they agree."""
    for role in ("target", "source"):
        task = record.get(role) or {}
        values, labels = task.get("label_values"), task.get("labels", [])
        if values is not None and len(set(values)) != len(labels):
            return f"{role} has {len(labels)} labels and {len(set(values))} different label_values"
        if len(task.get("normalization", "")) != task.get("channels", 0):
            return f"{role} has {task['channels']} channel(s) and {len(task['normalization'])} entries of normalization"
    runs = Counter((run["kind"], run["directory"], run["index"]) for run in record["runs"])
    twice = [place for place, count in runs.items() if count > 1]
    return f"two runs have index {twice[0][2]} of {twice[0][1]}" if twice else None


def compare(record: Mapping[str, Any], study: StudySettings, workdir: Path) -> None:
    """Compares the arms and runs of a record with those that the study's config has.

    Raises:
        UserError: There are others, or a run is there twice.
    """
    path = workdir / NAME
    arms = {arm.name for arm in study.arms}
    if set(record["arms"]) != arms:
        raise UserError(
            f"{path} has the arms {', '.join(map(repr, record['arms']))}, and config.json beside it "
            f"{', '.join(sorted(map(repr, arms)))}: they are not of one study; {MEND}"
        )
    networks = [arm for arm in study.arms if arm.kind == "network"]
    expected = Counter(run.key for arm in networks for run in target_runs(study, arm, None))
    found = Counter(key_of(run) for run in record["runs"] if run["kind"] == "train")
    for key in sorted((expected - found) | (found - expected)):
        raise UserError(
            f"{path} has the run {named(key)} {found[key]} time(s), and by config.json beside it there is "
            f"{'one' if key in expected else 'none'}: they are not of one study; {MEND}"
        )


def place_of(workdir: Path, run: Mapping[str, Any]) -> Place:
    """Where the parameters of a run lie, after a look at which runs the checkpoints there say that they hold.

    Args:
        workdir: Folder of the study.
        run: An entry of the record's `runs`.

    Raises:
        UserError: The record names a place outside the workdir, or one that holds another run.
    """
    path, name = workdir / NAME, named(key_of(run))
    try:
        directory = workdirs.inside(workdir, *run["directory"].split("/")) / "checkpoints"
    except UserError as error:
        raise UserError(f"{path}: the directory of the run {name} is {run['directory']!r}: {error}") from None
    steps = checkpoint.saved_steps(directory)
    if steps and steps[-1] > run["steps"]:
        raise UserError(
            f"{path}: the run {name} has {run['steps']} steps, and its checkpoints in {directory} go to {steps[-1]}; "
            f"{MEND}"
        )
    if steps:
        check_held(directory, steps[-1], run, path)
    return Place(directory, run["steps"], run["index"])


def key_of(run: Mapping[str, Any]) -> RunKey:
    """The key of a run as a record has it."""
    return RunKey(*(run[name] for name in KEY))


def named(key: RunKey) -> str:
    """A run for messages, as logs name it."""
    return f"{key.arm}/{key.variant()}/seed_{key.seed}"


def held_runs(directory: Path, step: int) -> list[dict[str, Any]]:
    """The runs that a checkpoint says it holds, in the order of its run axis.

    Raises:
        UserError: What it says is damaged, or no list of runs.
    """
    meta = checkpoint.read_meta(directory, step)
    problem = shapes.problem(meta, {"runs": [KEY]}, "")
    if problem is not None:
        raise UserError(f"checkpoint {directory / str(step)} does not say which runs it holds: {problem}")
    return meta["runs"]


def check_held(directory: Path, step: int, run: Mapping[str, Any], said_by: Path) -> None:
    """Compares a run with what a checkpoint says of its position.

    Args:
        directory: A job's `checkpoints`.
        step: A saved step.
        run: An entry of `runs` in study.json.
        said_by: Where the entry was read.

    Raises:
        UserError: Another run lies there, or none.
    """
    runs, index = held_runs(directory, step), run["index"]
    there = key_of(runs[index]) if 0 <= index < len(runs) else None
    if there != key_of(run):
        what = "nothing" if there is None else f"the run {named(there)}"
        raise UserError(
            f"{said_by}: the run {named(key_of(run))} is said to lie at index {index} of {directory.parent}, and its "
            f"checkpoints hold {what} there; {MEND}"
        )
