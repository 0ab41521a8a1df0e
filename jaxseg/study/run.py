"""The stages of a study, each of which goes on where an earlier process stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxseg import checkpoint, hosts, logs, paths, workdirs
from jaxseg import config as config_module
from jaxseg.manifest import DamagedError
from jaxseg.study import claims, files
from jaxseg.study.plan import preparation, source_networks
from jaxseg.study.plan.binding import FORMAT, check_format, read_binding, read_trained
from jaxseg.study.plan.jobs import Job, chunk_sizes
from jaxseg.study.plan.planned import PlannedStudy, bind, prepare, subsets_of
from jaxseg.study.probe import stage as probe_stage
from jaxseg.study.score import stage as score_stage
from jaxseg.study.score import tables
from jaxseg.study.train import learning_rates
from jaxseg.study.train.stage import require_done, train_arms, train_jobs
from jaxseg.study.versions import made_with, ways
from jaxseg.types import Progress, StudySettings, UserError

STAGES = ("prepare", "pretrain", "train", "evaluate", "analyze", "report")


def check_workdir(config: ConfigDict, workdir: Path) -> StudySettings:
    """Checks the config, and that the workdir is new or holds the same study.

    Raises:
        UserError: A mistake in the config, or a workdir of another config, with the fields that differ.
    """
    study = config_module.parse(config)
    paths.check_trainable(workdir, "workdir")
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"workdir {workdir} is a file; give a folder")
    workdirs.check_links(workdir)
    with contextlib.suppress(DamagedError):  # then there is nothing to ask; it is made anew
        check_format(workdir, files.read_json(workdir / "study.json"))
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
    path = workdir / "config.json"
    try:
        return config_module.differences(config_module.from_json(files.read_text(path)), config)
    except FileNotFoundError:
        lost = "it is not there"
    except DamagedError as error:
        lost = error.reason
        with contextlib.suppress(OSError, ValueError, RecursionError):
            text = path.read_text(encoding="utf-8")
            if config_module.digest(config_module.from_json(text)) == config_module.digest(config):
                warnings.warn(f"{path} is what was asked for ({lost}); it is written anew", stacklevel=3)
                return []
    with contextlib.suppress(DamagedError):
        bound = read_binding(workdir)
        if bound is None:
            return []
        if bound.config == config_module.digest(config):
            warnings.warn(f"{path} was lost ({lost}); it is written anew", stacklevel=3)
            return []
    raise DamagedError(path, lost, "give the config that the study was started with, field by field as it was")


def run_stages(
    config: ConfigDict,
    workdir: Path,
    *,
    stages: Sequence[str],
    progress: Callable[[str], Progress],
    tell: Callable[[str], None] = lambda line: None,
) -> PlannedStudy:
    """Runs the stages up to `analyze` that are asked for, in order; each skips what is done.

    Args:
        config: As made by a file in configs/.
        workdir: Folder of the study; created when new.
        stages: Some of `STAGES`; with none of them the study is only planned, and the workdir not claimed.
        progress: Makes the progress of a stage or job from its title.
        tell: Takes lines that a person should see when they become known, such as warnings about cases.

    Returns:
        The study as planned.

    Raises:
        UserError: A mistake in config, data or workdir, or a stage whose predecessor is not done.
        loop.Interrupted: A signal came; what was done is saved.
    """
    for stage in stages:
        if stage not in STAGES:
            raise UserError(
                f"--stages names {stage!r}{config_module.nearest(stage, STAGES)} Stages: {', '.join(STAGES)}"
            )
    study = check_workdir(config, workdir)
    with files.locked(workdir) if hosts.is_first() else contextlib.nullcontext():
        began = time.monotonic()
        planned = prepare(study, workdir, progress("prepare"))
        if not stages:
            return planned
        if hosts.is_first() and (planned.binding or {"pretrain", "train"} & {*stages} or read_trained(workdir).marks):
            planned = bind(planned, config_module.digest(config), claims.RULE_VERSION)
        hosts.barrier("bind")
        planned = dataclasses.replace(planned, binding=read_binding(workdir))
        if hosts.is_first():
            # Only now: a config whose data turned out unusable must not claim the workdir.
            files.write_text(workdir / "config.json", config_module.to_json(config))
            if "prepare" in stages:
                for line in preparation.write_preparation(planned.tasks, workdir, progress("prepare")):
                    tell(line)
            write_study(planned, {"prepare": time.monotonic() - began})
        work: dict[str, Callable[[PlannedStudy], PlannedStudy | None]] = {
            "pretrain": lambda planned: train_jobs(planned, "pretrain", progress),
            "train": lambda planned: train_arms(planned, progress),
            "evaluate": lambda planned: evaluate_jobs(planned, progress),
            "analyze": lambda planned: analyze(planned, progress("analyze")),
        }
        for stage, do in work.items():
            if stage in stages:
                began = time.monotonic()
                planned = do(planned) or planned
                hosts.barrier(stage)
                if hosts.is_first():
                    write_study(planned, {stage: time.monotonic() - began})
    return planned


def evaluate_jobs(planned: PlannedStudy, progress: Callable[[str], Progress]) -> None:
    """Scores every job's runs on the test cases and writes cases.csv, the curves and the example pictures.

    Each host scores its own runs; the first one puts the parts together.
    """
    require_done(planned, "train", "evaluate")
    study, workdir, jobs = planned.study, planned.workdir, planned.plan.of_kind("train")
    for job in jobs:
        score_stage.evaluate_job(study, workdir, planned.tasks, job, progress(f"evaluate {job.group}/{job.chunk}"))
    hosts.barrier("scores")
    if not hosts.is_first():
        return
    for job in jobs:
        score_stage.merge_parts(study, workdir, job)
    if planned.plan.priors:
        score_stage.evaluate_priors(study, workdir, planned.tasks, planned.plan.priors, progress("evaluate priors"))
    files.write_table(workdir / "results" / "cases.csv", tables.cases_table(study, workdir, planned.plan))
    tables.write_curves(workdir, planned.plan)
    tables.write_budget(study, workdir, planned.plan)
    shown = score_stage.example_cases(study, planned.tasks)
    tables.merge_examples(study, workdir, jobs, shown, planned.tasks.prepared[study.target].labels)


def analyze(planned: PlannedStudy, progress: Progress) -> None:
    """Looks at the networks themselves, compares arms from the tables of the evaluation, and judges the claims.

    The first host does it, the others wait.
    """
    if not hosts.is_first():
        return
    if not (planned.workdir / "results" / "cases.csv").exists():
        raise UserError(
            f"stage 'analyze' needs stage 'evaluate', which is not finished in {planned.workdir}; "
            f"run without --stages, or with --stages=evaluate,analyze"
        )
    if planned.study.analysis.cases:
        probe_stage.write_analyses(planned, progress)
    tables.write_comparisons(planned.study, planned.workdir)
    files.write_table(planned.workdir / "results" / "claims.csv", claims.claims(claims.read_study(planned.workdir)))
    claims.write_shown(planned.workdir, confidence=planned.study.analysis.confidence)


# ---------------------------------------------------------------------------------------------------------- study.json


def _trained_on(planned: PlannedStudy) -> list[dict[str, Any]]:
    """With what the arms were trained, each way once: a workdir may move to another machine, and code may change."""
    found: list[dict[str, Any]] = []
    for job in planned.plan.of_kind("train"):
        folder = planned.workdir / job.directory / "checkpoints"
        steps = checkpoint.saved_steps(folder)
        with contextlib.suppress(OSError, ValueError):  # a damaged one, which training sets aside
            meta = checkpoint.read_meta(folder, steps[-1]) if steps else {}
            found += [made for made in ways(meta) if made not in found]
    return found


def _diverged_at(workdir: Path, job: Job) -> list[int | None]:
    """The step at which each run of a job diverged so far."""
    try:
        return logs.read_log(workdir / job.directory, len(job.runs)).diverged_at
    except DamagedError:  # which the stage that trains the job mends, before study.json is written again
        return [None] * len(job.runs)


def _chosen_rates(planned: PlannedStudy) -> learning_rates.Rates:
    """The rates that were chosen so far."""
    try:
        return learning_rates.chosen_rates(planned.workdir, planned.plan, planned.study.arms)
    except DamagedError:  # as in `_diverged_at`
        return {}


def _task_summary(planned: PlannedStudy, task: Any) -> dict[str, Any]:
    prepared, split = planned.tasks.prepared[task], planned.tasks.splits[task][0]
    return {
        "name": prepared.name,
        "labels": list(prepared.labels),
        "label_values": list(prepared.label_values),
        "unit": task.unit,
        "noise": task.noise,
        "channels": prepared.channels,
        "spacing_mm": prepared.spacing_mm,
        "normalization": prepared.normalization,
        "windows": [fold.windows for fold in planned.tasks.fitted[task]],
        "cases": {"train": len(split.train), "val": len(split.val), "test": len(split.test)},
        "splits": [dataclasses.asdict(part) for part in planned.tasks.splits[task]],
        "subsets": [{**draw._asdict(), "cases": cases} for draw, cases in subsets_of(planned, task).items()],
    }


def write_study(planned: PlannedStudy, seconds: dict[str, float]) -> None:
    """Writes study.json: what was planned, with which code, on what, and how it went so far.

    Args:
        planned: The study.
        seconds: Time spent in a stage by this process, added to what earlier ones spent.
    """
    study, plan, workdir = planned.study, planned.plan, planned.workdir
    path = workdir / "study.json"
    try:
        before = files.read_json(path)
    except DamagedError:
        before = {}  # `plan.planned.chunks_of` has said so
    timing = before.get("timing", {})
    for stage, spent in seconds.items():
        timing[stage] = round(timing.get(stage, 0.0) + spent, 2)
    runs, exclusions, chosen = [], [], _chosen_rates(planned)
    for job in plan.jobs:
        died = _diverged_at(workdir, job)
        for index, run in enumerate(job.runs):
            place = {"kind": job.kind, "directory": job.directory, "index": index, "diverged_at": died[index]}
            source = None if run.source is None else run.source._asdict()
            more = {"steps": job.program.train.steps, "lr": chosen.get((run.key.arm, *run.key[1:3]), run.rate)}
            if job.kind != "train":
                more["lr"] = run.rate
            runs.append(run.key._asdict() | place | more | run.ids | {"source": source})
            if died[index] is not None:
                name = f"{run.key.arm}/{run.key.variant()}/seed_{run.key.seed}"
                exclusions.append({"case": name, "reason": f"diverged at step {died[index]}"})
    for prepared in planned.tasks.prepared.values():
        exclusions += [{"case": name, "reason": reason} for name, reason in prepared.report.refused]
    own_sources = [task for task in planned.tasks.prepared if task != study.target]
    files.write_json(
        path,
        {
            "format": FORMAT,
            "name": study.name,
            # That of the code which began to train: rules are fixed before.
            "rule_version": claims.RULE_VERSION if planned.binding is None else planned.binding.rule_version,
            **made_with(),
            "trained_on": _trained_on(planned) or before.get("trained_on", []),
            "source": _task_summary(planned, own_sources[0]) if own_sources else source_networks.given_task(study.arms),
            "target": _task_summary(planned, study.target),
            "arms": {
                arm.name: {
                    "kind": arm.kind,
                    "init": arm.init,
                    "freeze": arm.freeze,
                    "schedule": arm.optim.schedule,
                    "parameters": plan.networks[arm.name].parameters,
                    "trainable": plan.networks[arm.name].trainable,
                    "pretrain": source_networks.record_of(arm),
                }
                for arm in study.arms
            },
            "runs": runs,
            "train": {"steps": study.train.steps},
            "chunks": chunk_sizes(plan),
            "stores": {
                planned.tasks.role(task): prepared.directory.name for task, prepared in planned.tasks.prepared.items()
            },
            "timing": timing,
            "exclusions": exclusions,
        },
    )
