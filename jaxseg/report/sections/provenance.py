"""The last sections: what was loaded from the source network, and what was run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from jaxseg.report.blocks import (
    Block,
    Cell,
    Finding,
    Fold,
    Missing,
    Prose,
    Section,
    Styles,
    Table,
    TableGroup,
    Verbatim,
    arm_name,
)
from jaxseg.report.sections.summary import seed_ids
from jaxseg.report.shown import pretraining_of
from jaxseg.report.tables import Tables, scored_runs
from jaxseg.report.text import TIMES, cases, count, duration, listing, plural


def load_section(tables: Tables, styles: Styles) -> Section:
    """Show which parameters each arm took from its source network."""
    return Section("loaded", "What was loaded from the source network", tuple(_loads(tables)))


def _loads(tables: Tables) -> Iterator[Block]:
    if not tables.load_tables:
        yield Missing("There are no load tables: no arm starts from a source network, or its training has not begun.")
        return
    arms = dict.fromkeys(arm for arm, _ in tables.load_tables)
    yield Finding(
        "Which weights did each arm take from its source network?",
        f"{plural(len(arms), 'arm')} took weights from one: {listing([*arms])}.",
    )
    yield Prose("Every parameter of an arm is loaded, adapted or initialised anew. Nothing is skipped in silence.")
    shared: dict[tuple[str, str], list[str]] = {}
    order = {arm: i for i, arm in enumerate(tables.arms)}
    for arm, variant in sorted(tables.load_tables, key=lambda key: (order.get(key[0], len(order)), key)):
        text = tables.load_tables[arm, variant]
        shared.setdefault((arm, text), []).append(variant)
    for (arm, text), variants in shared.items():
        where = ", ".join(variants) if len(variants) < 4 else f"{variants[0]} and {len(variants) - 1} more, all alike"
        yield Fold(f"{arm} ({where})", (Verbatim(text),))


def provenance_section(tables: Tables, styles: Styles) -> Section:
    """Say what was run, on what, with what, for how long, and what was left out."""
    return Section("provenance", "What was run", tuple(_provenance(tables, styles)))


def _provenance(tables: Tables, styles: Styles) -> Iterator[Block]:
    study = tables.study
    train = study.get("train", {})
    runs = scored_runs(study)
    seeds = seed_ids(study)
    yield Finding("What exactly was run?", _run_words(tables, runs))
    facts = {
        "Study": study.get("name"),
        "Target": _task_words(study.get("target"), tables.config.get("target")),
        "Source": _task_words(study.get("source"), tables.config.get("source")),
        "Runs": f"{plural(len(runs), 'run')} of {plural(len(tables.arms), 'arm')}",
        "Seeds": ", ".join(str(seed) for seed in seeds),
        "Training": plural(int(train["steps"]), "step") if "steps" in train else None,
        "Pretraining": _pretraining_words(tables),
        "Networks trained on": "; ".join(map(_machine_words, study.get("trained_on", ()))),
        "Device": _device_words(study.get("device")),
        "Code": study.get("git_commit"),
        "Rules of the claims": f"version {study['rule_version']}" if "rule_version" in study else None,
        "Versions": ", ".join(f"{package} {version}" for package, version in study.get("versions", {}).items()),
    }
    rows = tuple((Cell(name), Cell(str(value))) for name, value in facts.items() if value)
    yield Table("", (), (TableGroup("", rows),), text_columns=(0, 1))
    timing = study.get("timing", {})
    if timing:
        spent = tuple((Cell(stage), Cell(duration(float(seconds)))) for stage, seconds in timing.items())
        total = (Cell("total"), Cell(duration(float(sum(timing.values())))))
        yield Table("Wall time of each stage.", ("Stage", "Time"), (TableGroup("", (*spent, total)),))
    yield Prose("The numbers on this page stand in results/*.csv; every figure lies in figures/ as SVG and PNG.")
    yield from _lost(study, styles)
    yield (
        Fold("The whole configuration", (Verbatim(json.dumps(tables.config, indent=2, ensure_ascii=False)),))
        if (tables.config)
        else Missing("There is no config.json: the configuration is left out.")
    )


def _run_words(tables: Tables, runs: list[dict[str, Any]]) -> str:
    diverged = sum(run.get("diverged_at") is not None for run in runs)
    spent = float(sum(tables.study.get("timing", {}).values()))
    took = f", in {duration(spent)} of wall time" if spent else ""
    lost = f"{count(diverged)} of them diverged" if diverged else "none of which diverged"
    return f"{plural(len(runs), 'run')} of {plural(len(tables.arms), 'arm')}, {lost}{took}."


def _lost(study: dict[str, Any], styles: Styles) -> Iterator[Block]:
    diverged = [run for run in study.get("runs", ()) if run.get("diverged_at") is not None]
    if diverged:
        rows = tuple(
            (
                Cell(arm_name(run.get("arm") or "source network", styles)),
                Cell(cases(int(run.get("train_cases") or 0))),
                Cell(str(run.get("fold", 0))),
                Cell(str(run.get("seed"))),
                Cell(count(run["diverged_at"])),
                Cell("a trial of rates: not scored" if run.get("kind") == "select" else "left out of means and tests"),
            )
            for run in diverged
        )
        head = ("Arm", "Trained on", "Fold", "Seed", "Diverged at step", "What follows")
        yield Table("Diverged runs.", head, (TableGroup("", rows),), text_columns=(0, 1, 5))
    else:
        yield Prose("No run diverged.")
    is_run = [str(item.get("reason", "")).startswith("diverged") for item in study.get("exclusions", ())]
    exclusions = [item for item, skip in zip(study.get("exclusions", ()), is_run, strict=True) if not skip]
    if exclusions:
        left_out = tuple((Cell(str(item.get("case"))), Cell(str(item.get("reason")))) for item in exclusions)
        yield Table("Cases left out.", ("Case", "Why"), (TableGroup("", left_out),), text_columns=(0, 1))
    else:
        yield Prose("No case was left out.")


def _pretraining_words(tables: Tables) -> str | None:
    """Steps and sharing of the source networks, arm by arm where these differ."""
    shared = {"per_seed": ", one source network a seed", "one": ", one source network for all seeds"}
    of_arm = {}
    for arm in tables.arms:
        made = pretraining_of(tables.study, arm)
        if made:
            elsewhere = f"in {made['from_workdir']}" if made.get("from_workdir") else "elsewhere"
            steps = plural(int(made["steps"]), "step") if made.get("steps") else elsewhere
            of_arm[arm] = steps + shared.get(str(made.get("share")), "")
    ways = dict.fromkeys(of_arm.values())
    if len(ways) < 2:
        return next(iter(ways), None)
    return "; ".join(f"{listing([arm for arm in of_arm if of_arm[arm] == way])}: {way}" for way in ways)


def _device_words(device: dict[str, Any] | None) -> str | None:
    if not device:
        return None
    return f"{device.get('count', 1)} {TIMES} {device.get('kind', '')} ({device.get('platform', '')})"


def _machine_words(made: dict[str, Any]) -> str:
    return f"{_device_words(made['device'])}, jax {made['versions']['jax']}, code {made['git_commit'] or 'unknown'}"


def _task_words(task: dict[str, Any] | None, settings: dict[str, Any] | None) -> str | None:
    if not task or not task.get("name"):
        return None
    used = task.get("cases", {})
    split = ", ".join(f"{count(n)} {what}" for what, n in used.items() if n)
    labels = ", ".join(str(label) for label in task.get("labels", ()))
    data = f" from {settings['data']}" if settings and settings.get("data") else ""
    return f"{task['name']}{data}; labels: {labels}; cases: {split}; unit: {task.get('unit', '')}"
