"""Seconds from a folder of images to a decided answer, by stage, beside a PyTorch loop over the same networks.

    python -m launch.benchmark --study [--pair=2d,3d] [--data=FOLDER] [--steps=500] [--quick]
        [--workdir=runs/benchmark] [--torch_python=PYTHON] [--json=FILE] [--markdown=FILE]

The studies are those of benchmarks/pair.py: eight seeds of four arms, with every analysis, claims.csv and the page.
Each is run by `launch.study`, in a process of its own with an empty compilation cache; then `benchmarks.torch_study`
trains, validates and tests as many networks for as many steps on the same prepared cases, one network after another.

What PyTorch is spared: reading and resampling the images, augmentation, every measure but DSC, going back to each
case's own grid, saving anything. Where --torch_python, or by default this interpreter, has no PyTorch, ours is
measured alone. --quick takes the smallest pair, to try the tool.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from absl import flags

from benchmarks import pair as pairs
from benchmarks.training import BUSY, allowed_busy
from jaxseg import data, inference
from jaxseg.machine import cores as cores_of_process
from jaxseg.study import record
from jaxseg.study.clock import COMPILE, VALIDATE
from jaxseg.study.plan.jobs import Job
from jaxseg.study.plan.planned import PlannedStudy
from jaxseg.study.plan.tasks import training_cases
from jaxseg.study.record import StudyRecord
from jaxseg.study.run import run_stages
from jaxseg.types import UserError
from launch import cli, terminal

STUDY = flags.DEFINE_bool("study", False, "Measure whole studies instead of training steps; see benchmarks/answer.py.")
_PAIR = flags.DEFINE_list("pair", ["2d", "3d"], f"With --study: any of {', '.join(pairs.SETS)}.")
_DATA = cli.path_flag("data", "With --study: folder of the sets of each pair. Default: synthetic tasks.")
_STEPS = flags.DEFINE_integer("steps", None, "With --study: training steps of every network.", lower_bound=1)
_QUICK = flags.DEFINE_bool("quick", False, "With --study: the smallest pair alone.")
_WORKDIR = cli.path_flag("workdir", "With --study: folder of the studies, which must be new. Default: runs/benchmark.")
_TORCH_PYTHON = cli.path_flag("torch_python", "With --study: an interpreter that has PyTorch. Default: this one.")
_JSON = cli.path_flag("json", "File for the rows.")
_MARKDOWN = cli.path_flag("markdown", "With --study: file for the tables.")

STAGES = ("start", "prepare", COMPILE, "pretrain", "train", VALIDATE, "score", "analyse", "page")
"""The rows of a table: `start` is what lies outside all stages, Python's start above all."""
_OF_STUDY = {"evaluate": "score", "analyze": "analyse", "report": "page"}
"""What the stages of a study are called here, where that differs."""
AIM, SHARE = 0.5, 0.1
"""The aims: the share of PyTorch's time; and the share of the whole of validation, and of analyses with the page."""


def seconds_by_stage(study: StudyRecord, whole: float) -> dict[str, float]:
    """Returns the seconds of each row of the table, which add up to those of the process."""
    found = dict.fromkeys(STAGES, 0.0)
    for stage, seconds in study.timing.items():
        parts = study.parts.get(stage, {})
        for part in (COMPILE, VALIDATE):
            found[part] += parts.get(part, 0.0)
        found[_OF_STUDY.get(stage, stage)] += seconds - sum(parts.values())
    return found | {"start": whole - study.seconds}


def run_ours(name: str, folder: Path) -> tuple[float, PlannedStudy]:
    """Runs a study in a process of its own; returns the seconds of the process, and the study as it was planned."""
    words = ",".join((name, _DATA.value or "", str(_STEPS.value or "")))
    config = Path(pairs.__file__)
    command = [sys.executable, "-m", "launch.study", f"--config={config}:{words}", f"--workdir={folder}"]
    empty = {"JAX_COMPILATION_CACHE_DIR": str(folder.parent / "programs")}
    began = time.monotonic()
    done = subprocess.run(command, env=os.environ | empty, capture_output=True, text=True, check=False)
    whole = time.monotonic() - began
    if done.returncode:
        raise UserError(f"the study of pair {name!r} ended with status {done.returncode}:\n{done.stderr.strip()}")
    return whole, run_stages(pairs.get_config(words), folder, stages=(), progress=_silent)


def _silent(title: str) -> Any:
    return lambda what, done, total, note="", runs=(): None


def write_work(planned: PlannedStudy, folder: Path) -> None:
    """Writes what PyTorch does: the networks of the study in their order, and the prepared cases as arrays."""
    folder.mkdir(parents=True)
    arrays: dict[str, Any] = {}
    jobs = [_work_of(planned, job, arrays) for job in planned.plan.jobs]
    np.savez(folder / "cases.npz", **arrays)
    work = {"threads": cores_of_process(), "jobs": jobs}
    (folder / "work.json").write_text(json.dumps(work), encoding="utf-8")


def _work_of(planned: PlannedStudy, job: Job, arrays: dict[str, Any]) -> dict[str, Any]:
    """One job's networks; adds the cases that they need to `arrays`."""
    program, tasks, evaluate = job.program, planned.tasks, planned.study.evaluate
    prepared, (split, *_) = tasks.of(job), tasks.splits[program.task]
    role, patch, train = tasks.role(program.task), program.task.patch, program.train
    runs: list[dict[str, Any]] = [
        {
            "name": f"{run.key.arm} {run.key.seed}",
            "arm": run.key.arm,
            "seed": run.key.seed,
            "train": training_cases(tasks, job, run),
            "source": None if run.source is None else f"{run.source.arm} {run.source.seed}",
        }
        for run in job.runs
    ]
    corners: dict[str, dict[str, list[Any]]] = {}
    for part, names, overlap in (
        ("train", {name for run in runs for name in run["train"]}, 0.0),
        ("validation", split.val, evaluate.val_overlap),
        ("test", split.test if job.kind == "train" else (), evaluate.overlap),
    ):
        corners[part] = {}
        for name in names:
            case = data.load_case(prepared, name)
            arrays[f"{role}/{name}/image"] = case.image[..., 0]
            arrays[f"{role}/{name}/label"] = case.label.astype(np.int64)
            padded = np.maximum(case.label.shape, patch).tolist()
            corners[part][name] = inference.window_starts(padded, patch, overlap)
    return {
        **{"kind": job.kind, "task": role, "patch": patch, "classes": program.classes, "widths": program.model.widths},
        **{"steps": train.steps, "batch": train.batch, "lr": planned.study.optim.lr, "runs": runs},
        "validate_at": sorted({*range(0, train.steps, train.eval_every), train.steps, *_scored_at(job)}),
        **{"validation": corners["validation"], "test": corners["test"], "window_batch": evaluate.window_batch},
    }


def _scored_at(job: Job) -> tuple[int, ...]:
    return job.program.train.scored_at if job.kind == "train" else ()


def run_torch(python: str, folder: Path) -> dict[str, Any]:
    """Lets PyTorch do its work; returns its result with the seconds of the whole process."""
    began = time.monotonic()
    command = [python, "-m", "benchmarks.torch_study", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    whole = time.monotonic() - began
    if done.returncode:
        raise UserError(f"PyTorch's side ended with status {done.returncode}:\n{done.stderr.strip()}")
    found: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    stages = dict.fromkeys(STAGES, 0.0) | found["seconds"]
    return found | {"seconds": stages | {"start": whole - sum(stages.values())}}


def compare(name: str, workdir: Path, python: str) -> dict[str, Any]:
    """Runs both sides of a pair; returns the row of the JSON file."""
    folder = workdir / name
    if folder.exists():
        raise UserError(f"{folder} exists, and a study that goes on says nothing about time; give another --workdir")
    whole, planned = run_ours(name, folder / "study")
    study = record.read(folder / "study")
    assert study is not None  # it ended well
    claims = pd.read_csv(folder / "study" / "results" / "claims.csv")
    answer = claims[claims["role"] == "answer"]
    row: dict[str, Any] = {
        **{"pair": name, "data": _DATA.value or "synthetic", "steps": planned.study.train.steps},
        "networks": len(study.runs),
        "seconds": seconds_by_stage(study, whole),
        "programs": [program._asdict() for program in study.programs],
        **{"grade": answer["grade"].iloc[0], "answer": answer["reason"].iloc[0]},
    }
    if python:
        write_work(planned, folder / "peer")
        row["torch"] = run_torch(python, folder / "peer")
    return row


def table(row: Mapping[str, Any]) -> str:
    """A pair's table in Markdown, with the aims below it and the programs that were compiled."""
    ours, peer = row["seconds"], row.get("torch", {}).get("seconds", {})
    whole, others = sum(ours.values()), sum(peer.values()) if peer else math.nan
    lines = [
        f"### {row['pair']}: {row['networks']} networks of {row['steps']} steps, {row['data']}",
        "",
        "| stage | ours, s | PyTorch, s | ratio |",
        "| --- | --- | --- | --- |",
    ]
    for stage, seconds in [*ours.items(), ("all", whole)]:
        theirs = others if stage == "all" else peer.get(stage, math.nan)
        lines.append(f"| {stage} | {seconds:.1f} | {_cell(theirs, 1)} | {_cell(_ratio(seconds, theirs), 2)} |")
    of_analyses = ours["analyse"] + ours["page"]
    lines += [
        "",
        f"All, of PyTorch's: {_cell(whole / others, 2) or 'not measured'} (aim: {AIM:g}). Validation, of the whole: "
        f"{ours[VALIDATE] / whole:.0%}; analyses and page: {of_analyses / whole:.0%} (aims: {SHARE:.0%}). "
        f"The answer ({row['grade']}): {row['answer']}",
        "",
        "| program | stage | number | cached | traced, s | lowered, s | compiled, s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for program in row["programs"]:
        times = " | ".join(f"{program[step]:.2f}" for step in ("traced", "lowered", "compiled"))
        name = program["name"] or "all others"
        lines.append(f"| {name} | {program['stage']} | {program['number']} | {program['cached']} | {times} |")
    return "\n".join(lines)


def _ratio(ours: float, theirs: float) -> float:
    return ours / theirs if theirs else math.nan


def _cell(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def main() -> None:
    """Prints a table for each pair and writes the files that are asked for."""
    names = ["smallest"] if _QUICK.value else _PAIR.value
    if unknown := [name for name in names if name not in pairs.SETS]:
        raise UserError(f"--pair={','.join(names)}: {unknown[0]!r} is none of {', '.join(pairs.SETS)}")
    if _DATA.value and "smallest" in names:
        raise UserError("the smallest pair has synthetic images alone; leave out --data")
    workdir, python = Path(_WORKDIR.value or "runs/benchmark"), _TORCH_PYTHON.value or sys.executable
    has_torch = not subprocess.run([python, "-c", "import torch"], capture_output=True, check=False).returncode
    if _TORCH_PYTHON.value and not has_torch:
        raise UserError(f"--torch_python={python} cannot import torch; name an interpreter that can, or leave it out")
    busy = allowed_busy()
    rows: list[dict[str, Any]] = []
    texts = [f"BUSY: other processes used {busy:.1f} cores."] if busy > BUSY else []
    terminal.say("\n".join(texts))
    for name in names:
        rows.append(compare(name, workdir, python if has_torch else ""))
        texts.append(table(rows[-1]))
        terminal.say(texts[-1])
    about = {"cores": cores_of_process(), "busy_cores": busy}
    for path, text in (
        (_JSON.value, json.dumps({"machine": about, "rows": rows}, indent=2)),
        (_MARKDOWN.value, "\n\n".join(texts)),
    ):
        if path:
            Path(path).write_text(f"{text}\n", encoding="utf-8")
