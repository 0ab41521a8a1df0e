"""The last sections: what was loaded from the source network, and what was run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
from jaxseg.report.sections.checkpoints import checkpoint_words
from jaxseg.report.tables import Tables
from jaxseg.study.claims.controls import CONTROLS
from jaxseg.study.clock import COMPILE, VALIDATE
from jaxseg.study.record import Device, MadeWith, RecordedRun, RecordedTask, StudyRecord
from jaxseg.text import TIMES, cases, count, duration, listing, number, plural

MOST_ROWS = 100
"""The most ids, diverged runs or cases left out that a list on the page has."""


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
    runs = study.runs_of("train")
    yield Finding("What exactly was run?", _run_words(tables, runs))
    facts = {
        "Study": study.name,
        "Target": _task_words(study.target, tables.settings.target.data),
        "Source": None if study.source is None else _task_words(study.source, _source_data(tables)),
        "Tested elsewhere": "; ".join(f"{one.name}: {one.data}, {cases(len(one.cases))}" for one in study.external),
        "Runs": f"{plural(len(runs), 'run')} of {plural(len(tables.arms), 'arm')}",
        "Seeds": _seed_words(sorted({run.seed for run in runs})),
        "Training": None if study.train is None else plural(study.train.steps, "step"),
        "Pretraining": _pretraining_words(study),
        "Checkpoint of others": checkpoint_words(tables),
        "Networks trained on": "; ".join(map(_machine_words, study.trained_on)),
        "Device": None if study.device is None else _device_words(study.device),
        "Code": study.git_commit,
        "Rules of the claims": f"version {study.rule_version}",
        "Versions": ", ".join(f"{package} {version}" for package, version in study.versions.items()),
    }
    rows = tuple((Cell(name), Cell(str(value))) for name, value in facts.items() if value)
    yield Table("", (), (TableGroup("", rows),), text_columns=(0, 1))
    if study.timing:
        yield _stage_times(study)
    if study.programs:
        yield Fold("The programs that were compiled", (_compile_times(study),))
    yield Prose("The numbers on this page stand in results/*.csv; every figure lies in figures/ as SVG and PNG.")
    yield from _lost(study, styles)
    if tables.config:
        yield Fold("The whole configuration", (Verbatim(tables.config),))
    else:
        yield Missing("There is no config.json: the configuration is left out.")


def _stage_times(study: StudyRecord) -> Table:
    """The seconds of each stage and, where they are known, those of its parts."""
    columns = [part for part in (COMPILE, VALIDATE) if any(part in found for found in study.parts.values())]
    rows = []
    for stage, seconds in [*study.timing.items(), ("total", study.seconds)]:
        parts = [study.parts.get(stage, {}).get(part) for part in columns]
        rows.append((Cell(stage), *(Cell(duration(spent) if spent else "") for spent in (seconds, *parts))))
    heads = {COMPILE: "of it compiling", VALIDATE: "validating"}
    return Table(
        "Wall time of each stage.",
        ("Stage", "Time", *(heads[part] for part in columns)),
        (TableGroup("", tuple(rows)),),
    )


def _compile_times(study: StudyRecord) -> Table:
    """The seconds that each program took, by stage."""
    rows = tuple(
        (
            Cell(program.stage),
            Cell(program.name or "all others"),
            *(Cell(count(times)) for times in (program.number, program.cached)),
            *(Cell(number(seconds, 2)) for seconds in (program.traced, program.lowered, program.compiled)),
        )
        for program in study.programs
    )
    return Table(
        "Seconds that programs took until they could run. Cached ones were read from the disk.",
        ("Stage", "Program", "Number", "Cached", "Traced", "Lowered", "Compiled"),
        (TableGroup("", rows),),
        text_columns=(0, 1),
    )


def _source_data(tables: Tables) -> str:
    """Where the recorded source lies: the study's own setting, if networks of some arm were trained on it here."""
    study = tables.study
    own = [arm for name, arm in study.arms.items() if name not in CONTROLS and arm.pretrain is not None]
    here = any(arm.pretrain and not arm.pretrain.from_workdir for arm in own)
    return tables.settings.source.data if here else ""


def _seed_words(seeds: Sequence[int]) -> str:
    """The ids, of many the first and the last ones."""
    if len(seeds) <= MOST_ROWS:
        return ", ".join(map(str, seeds))
    return f"{', '.join(map(str, seeds[:3]))}, ..., {', '.join(map(str, seeds[-3:]))}: {plural(len(seeds), 'id')}"


def _run_words(tables: Tables, runs: Sequence[RecordedRun]) -> str:
    diverged = [run for run in runs if run.diverged_at is not None]
    took = f", in {duration(tables.study.seconds)} of wall time" if tables.study.timing else ""
    lost = f"{count(len(diverged))} of them diverged" if diverged else "none of which diverged"
    return f"{plural(len(runs), 'run')} of {plural(len(tables.arms), 'arm')}, {lost}{took}."


def _first_words(number: int) -> str:
    """What a caption says of a list of so many rows that is cut."""
    return "" if number <= MOST_ROWS else f", the first {MOST_ROWS} of {count(number)}; study.json has all"


def _lost(study: StudyRecord, styles: Styles) -> Iterator[Block]:
    if study.diverged:
        rows = tuple(
            (
                Cell(arm_name(run.arm, styles)),
                Cell(cases(run.train_cases)),
                Cell(str(run.fold)),
                Cell(str(run.seed)),
                Cell(count(run.diverged_at or 0)),
                Cell("a trial of rates: not scored" if run.kind == "select" else "left out of means and tests"),
            )
            for run in study.diverged[:MOST_ROWS]
        )
        head = ("Arm", "Trained on", "Fold", "Seed", "Diverged at step", "What follows")
        caption = f"Diverged runs{_first_words(len(study.diverged))}."
        yield Table(caption, head, (TableGroup("", rows),), text_columns=(0, 1, 5))
    else:
        yield Prose("No run diverged.")
    left_out = [item for item in study.exclusions if not item.reason.startswith("diverged")]
    if left_out:
        cells = tuple((Cell(item.case), Cell(item.reason)) for item in left_out[:MOST_ROWS])
        caption = f"Cases left out{_first_words(len(left_out))}."
        yield Table(caption, ("Case", "Why"), (TableGroup("", cells),), text_columns=(0, 1))
    else:
        yield Prose("No case was left out.")


def _pretraining_words(study: StudyRecord) -> str | None:
    """Steps and sharing of the source networks, arm by arm where these differ."""
    learned = {
        "restore": ", without labels: they restore corrupted images",
        "masked": ", without labels: they restore hidden blocks of images",
    }
    shared = {"per_seed": ", one source network a seed", "one": ", one source network for all seeds"}
    of_arm = {}
    for name, arm in study.arms.items():
        if (made := arm.pretrain) is not None:
            elsewhere = f"in {made.from_workdir}" if made.from_workdir else "elsewhere"
            where = plural(made.steps, "step") if made.steps else elsewhere
            of_arm[name] = where + shared.get(made.share, "") + learned.get(made.objective, "")
    ways = dict.fromkeys(of_arm.values())
    if len(ways) < 2:
        return next(iter(ways), None)
    return "; ".join(f"{listing([arm for arm in of_arm if of_arm[arm] == way])}: {way}" for way in ways)


def _device_words(device: Device) -> str:
    return f"{device.count} {TIMES} {device.kind} ({device.platform})"


def _machine_words(made: MadeWith) -> str:
    return f"{_device_words(made.device)}, jax {made.versions['jax']}, code {made.git_commit or 'unknown'}"


def _task_words(task: RecordedTask, data: str) -> str:
    split = ", ".join(f"{count(n)} {what}" for what, n in task.cases._asdict().items() if n)
    origin = f" from {data}" if data else ""
    kind = "labels" if task.regions is None else "overlapping regions"
    labels = f"{kind}: {', '.join(task.labels)}" if task.labels else "labels not used"
    pooled = [f"{part.name} ({cases(part.cases)}, labels: {', '.join(part.labels)})" for part in task.parts]
    name = f"{listing(pooled)}, pooled" if pooled else task.name
    return f"{name}{origin}; {labels}; cases: {split}; unit: {task.unit}"
