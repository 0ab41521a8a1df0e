"""What was compared: a sentence below the page's title, and the table of the arms with their marks."""

from __future__ import annotations

from jaxseg.report.blocks import Cell, Styles, Table, TableGroup, arm_name, sentence
from jaxseg.report.sections.checkpoints import checkpoints
from jaxseg.report.shown import seeds_per_arm
from jaxseg.report.tables import Tables
from jaxseg.study.claims.controls import CONTROLS
from jaxseg.text import count, listing, plural

_PRETRAINED = "a network pretrained on "


def standfirst(tables: Tables) -> str:
    """Return what was compared in a sentence or two."""
    study = tables.study
    kind, source_name, target_name = _task_names(tables)
    least, most = seeds_per_arm(study)
    sizes = {run.train_cases for run in study.runs_of("train")}
    named = [count(n) for n in sorted(sizes - {0})] + (["all"] if 0 in sizes else [])
    trained = f"{listing(named)} training cases" if named else "its training cases"
    first = (
        "Does starting from {kind}<b>{source}</b> help to segment <b>{target}</b>?"
        if any(arm.uses_source for arm in study.arms.values())
        else "How well do networks learn to segment <b>{target}</b>?"
    )
    tested = len({case for split in study.target.splits for case in split.test})
    return sentence(
        first + " {arms}, {seeds} each, trained on {trained}{tested}.",
        kind=kind,
        source=source_name,
        target=target_name,
        arms=plural(len(tables.arms), "arm"),
        seeds=plural(least, "seed") if least == most else f"{least} to {most} seeds",
        trained=trained,
        tested=f" and scored on {plural(tested, 'test case')} held out from training" if tested else "",
    )


def _task_names(tables: Tables) -> tuple[str, str, str]:
    """What the source is, its name and that of the target; of two tasks called the same, what sets the source apart."""
    study, settings = tables.study, tables.settings
    made, target = checkpoints(tables), study.target.name
    starts = _starts(tables)
    known = list(dict.fromkeys(made[name].file if name in made else study.arms[name].source for name in starts))
    of_others = [name in made for name in starts]
    if len(known := [name for name in known if name]) > 1:
        kind = "one of the checkpoints " if all(of_others) else "one of " if any(of_others) else _PRETRAINED
        return kind, listing(known) if any(of_others) else f"one of {listing(known)}", target
    source = known[0] if known else "the source task" if study.source is None else study.source.name
    if source == target:
        source = f"{source} itself" if settings.source.data == settings.target.data else f"another {source}"
    return "the checkpoint " if starts and all(of_others) else _PRETRAINED, source, target


def _starts(tables: Tables) -> list[str]:
    """The arms that start from a source network and are no controls; the controls if there are no others."""
    with_source = [name for name, arm in tables.study.arms.items() if arm.uses_source]
    return [name for name in with_source if name not in CONTROLS] or with_source


def arms_table(tables: Tables, styles: Styles) -> Table:
    """Show each arm with its mark, its start, and what of it is trained."""
    rows = []
    for name, arm in tables.study.arms.items():
        is_prior = arm.kind == "prior"
        rows.append(
            (
                Cell(arm_name(name, styles)),
                Cell("no network: mean label map" if is_prior else _start(arm.init)),
                Cell("nothing" if is_prior else _trained(arm.freeze), arm.fine_tuning),
                Cell(count(arm.trainable), f"of {count(arm.parameters)}" if arm.parameters else ""),
            )
        )
    head = ("Arm", "Weights start as", "Trained", "Trained parameters")
    return Table(
        "The arms and their marks in all figures.", head, (TableGroup("", tuple(rows)),), text_columns=(0, 1, 2)
    )


def _start(init: str) -> str:
    named = {
        "random": "random",
        "pretrained": "pretrained",
        "mean_var": "random, with the pretrained mean and variance",
    }
    if init.startswith("pretrained:"):
        return f"pretrained where {init.removeprefix('pretrained:')} matches, the rest random"
    return named.get(init, init)


def _trained(freeze: str) -> str:
    named = {"none": "all", "encoder": "decoder and head", "decoder": "encoder and head", "all_but_head": "head"}
    return f"all but {freeze.removeprefix('regex:')}" if freeze.startswith("regex:") else named.get(freeze, freeze)
